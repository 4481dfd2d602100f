"""An adapter merged into its base and saved as an ordinary model folder."""

import shutil
from pathlib import Path

import torch

from tether._alpha import Alpha, alpha_of
from tether._files import new_folder, read_tensors, refuse_existing, save_tensors
from tether.adapters import MergeReport
from tether.adapters.files import apply, load_adapter
from tether.errors import TetherError
from tether.models import load
from tether.models.model import Model
from tether.tasks.outcome import HEAD_FILE, head_at

WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".msgpack", ".h5", ".onnx", ".index.json")


def export(
    source: str, adapter: Path, out: Path, *, alpha: Alpha | None = None, head: Path | None = None
) -> MergeReport:
    """Merge an adapter into the model `source` and save the result in the format of its library.

    Args:
        source: the base: a folder, or the built-in model.
        adapter: folder written by `save_adapter`.
        out: new folder; nothing is overwritten.
        alpha: ensemble weight; by default the one saved with the adapter.
        head: a run's linear head, to be saved with the model as it is at this alpha (the text tower's).

    Raises:
        TetherError: `out` exists, the adapter belongs to another base, or the format cannot be written.
    """
    refuse_existing(out)
    saved = load_adapter(adapter)
    tensors = read_tensors(head) if head else None
    base = folder_of(source)
    model = load(source)
    attached = apply(model, saved)
    alpha = saved.alpha if alpha is None else alpha
    probe = torch.randn(2, 3, model.image.size, model.image.size, generator=torch.Generator().manual_seed(0))
    report = attached.merge(alpha, probe=lambda: model.encode_image(probe))
    with new_folder(out) as folder:
        save_folder(model, base, folder)
        if tensors:
            weight = head_at(tensors["weight"], tensors["zero_shot"], alpha_of(alpha, "text"))
            save_tensors(folder / HEAD_FILE, {"weight": weight})
    return report


def save_folder(model: Model, base: Path, folder: Path) -> None:
    """The base's own files, with the merged weights in place of the base's."""
    for file in base.iterdir():
        if file.is_file() and not file.name.endswith(WEIGHTS):
            shutil.copy2(file, folder)
    if model.family == "transformers":
        model.module.save_pretrained(folder)
        return
    save_tensors(folder / "open_clip_model.safetensors", model.module.state_dict())


def folder_of(source: str) -> Path:
    if source == "builtin":
        from tether.models import builtin

        return builtin.folder()
    if any((Path(source) / name).is_file() for name in ("open_clip_config.json", "config.json")):
        return Path(source)
    raise TetherError(
        f"Merging writes a folder like the base's, and {source!r} is no model folder. Save the base to a "
        f"folder first, and give that."
    )
