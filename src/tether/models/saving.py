"""A model as a folder of its library: what describes it, copied or written, and the weights as they are now."""

import shutil
from pathlib import Path

from tether._files import save_tensors
from tether.errors import TetherError
from tether.models.model import Model

WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".msgpack", ".h5", ".onnx", ".index.json")


def save_into(model: Model, folder: Path) -> None:
    """Write a model into an empty folder, which its library and `tether.load` then read.

    Raises:
        TetherError: the model was made in memory, so nothing says how to describe it.
        OSError: a file cannot be written.
    """
    if model.describe is None:
        raise TetherError(
            f"{model.source} was made in memory and not loaded, so it cannot be written as a folder."
        )
    model.describe(folder)
    if model.family == "transformers":
        model.module.save_pretrained(folder)
    else:
        save_tensors(folder / "open_clip_model.safetensors", model.module.state_dict())


def copy_description(base: Path, folder: Path) -> None:
    """The base's own files but for its weights."""
    for file in base.iterdir():
        if file.is_file() and not file.name.endswith(WEIGHTS):
            shutil.copy2(file, folder)
