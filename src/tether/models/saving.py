"""A model in a folder of its library: what describes it there, and what weights are not written."""

import shutil
from pathlib import Path

from torch import nn

from tether.errors import TetherError

WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".msgpack", ".h5", ".onnx", ".index.json")


def copy_description(base: Path, folder: Path) -> None:
    """The base's own files but for its weights."""
    for file in base.iterdir():
        if file.is_file() and not file.name.endswith(WEIGHTS):
            shutil.copy2(file, folder)


def check_finite(module: nn.Module) -> None:
    """Refuse a module with a weight that is no number, which would answer NaN wherever it is loaded.

    Buffers may hold infinities, as masks of attention do, but no NaN.

    Raises:
        TetherError: naming such tensors.
    """
    wrong = [name for name, parameter in module.named_parameters() if not bool(parameter.isfinite().all())]
    wrong += [name for name, buffer in module.named_buffers() if bool(buffer.isnan().any())]
    if wrong:
        more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise TetherError(
            f"{', '.join(wrong[:3])}{more} of the model holds NaN or infinity, so it is not saved. Load the model "
            f"again and save an earlier checkpoint."
        )
