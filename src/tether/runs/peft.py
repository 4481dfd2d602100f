"""Adapters as folders of the library peft, and its LoRAs as adapters."""

from pathlib import Path

from tether._alpha import Alpha
from tether._files import new_folder, read_json, refuse_existing
from tether.adapters.files import Adapter, apply, load_adapter, save_adapter
from tether.adapters.peft_files import CONFIG, load_peft, save_peft
from tether.errors import TetherError
from tether.models import load
from tether.runs.export import base_of


def export_peft(source: str | None, adapter: Path, out: Path, *, alpha: Alpha | None = None) -> Alpha:
    """Write an adapter as a folder that peft loads; see `save_peft`.

    Args:
        source: the base, as `tether.load` takes it; None for where the adapter says that it is.
        adapter: folder written by `save_adapter`.
        out: new folder; nothing is overwritten.
        alpha: ensemble weight; by default the one saved with the adapter.

    Returns:
        The alpha that it was written at.

    Raises:
        TetherError: besides what `save_peft` refuses, the adapter belongs to another base.
    """
    refuse_existing(out)
    saved = load_adapter(adapter)
    attached = apply(load(source or base_of(saved, adapter)), saved)
    alpha = saved.alpha if alpha is None else alpha
    save_peft(out, attached, alpha=alpha, head=saved.head)
    return alpha


def import_peft(folder: Path, out: Path, source: str | None = None) -> Adapter:
    """Save a LoRA that peft trained as an adapter; see `load_peft`.

    Args:
        folder: what peft saved.
        out: new folder; nothing is overwritten.
        source: the base, as `tether.load` takes it; None for what peft's own description names.

    Raises:
        TetherError: besides what `load_peft` refuses, it names no base.
    """
    refuse_existing(out)
    adapter = load_peft(folder, load(source or _base_in(folder)))
    with new_folder(out) as temporary:
        save_adapter(temporary, adapter)
    return adapter


def _base_in(folder: Path) -> str:
    """The base that peft's description names: a folder, or a name of the hub.

    Raises:
        TetherError: it names none.
    """
    file = folder / CONFIG
    named = read_json(file, dict).get("base_model_name_or_path") if file.is_file() else None
    if not named:
        raise TetherError(f"{folder} does not say which model it belongs to. Name the model: --model.")
    return str(named) if Path(named).exists() else f"hf:{named}"
