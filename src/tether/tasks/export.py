"""An adapter merged into its base and saved as an ordinary model folder."""

import json
import shutil
import tempfile
from pathlib import Path

import torch
from safetensors.torch import save_file

from tether.adapters import MergeReport
from tether.adapters.files import apply, load_adapter
from tether.errors import TetherError
from tether.models import load
from tether.models.model import Model


def export(source: str, adapter: Path, out: Path, *, alpha: float | None = None) -> MergeReport:
    """Merge an adapter into the model `source` and save the result in the format of its library.

    Args:
        source: anything `tether.load` takes that is a folder or the built-in model.
        adapter: folder written by `save_adapter`.
        out: new folder; nothing is overwritten.
        alpha: ensemble weight; by default the one saved with the adapter.

    Raises:
        TetherError: `out` exists, the adapter belongs to another base, or the format cannot be written.
    """
    if out.exists():
        raise TetherError(f"{out} exists already; name a folder that does not.")
    model = load(source)
    saved = load_adapter(adapter)
    attached = apply(model, saved)
    probe = torch.randn(2, 3, model.image.size, model.image.size, generator=torch.Generator().manual_seed(0))
    report = attached.merge(saved.alpha if alpha is None else alpha, probe=lambda: model.encode_image(probe))
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=out.parent, prefix=f".{out.name}."))
    try:
        _save(model, source, temporary)
        temporary.rename(out)
    except OSError as error:
        raise TetherError(f"Could not write {out}: {error.strerror}. Nothing was left behind.") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return report


def _save(model: Model, source: str, folder: Path) -> None:
    if model.family == "transformers":
        model.module.save_pretrained(folder)
        for file in Path(source).glob("*token*"):
            shutil.copy2(file, folder)
        for file in ("preprocessor_config.json", "vocab.json", "merges.txt", "special_tokens_map.json"):
            if (Path(source) / file).is_file():
                shutil.copy2(Path(source) / file, folder)
        return
    base = _folder(source)
    for file in base.iterdir():
        if file.is_file() and file.suffix != ".safetensors":
            shutil.copy2(file, folder)
    tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in model.module.state_dict().items()}
    save_file(tensors, folder / "open_clip_model.safetensors", metadata={"merged": json.dumps(True)})


def _folder(source: str) -> Path:
    if source == "builtin":
        from tether.models import builtin

        return builtin.folder()
    if (Path(source) / "open_clip_config.json").is_file():
        return Path(source)
    raise TetherError(f"Merging writes a folder like the base's, and {source!r} is no folder. Save the base to a folder first.")
