"""An adapter merged into its base and saved as an ordinary model folder."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tether._alpha import Alpha, alpha_of
from tether._files import new_folder, read_json, refuse_existing, save_tensors
from tether.adapters import MergeReport
from tether.adapters.files import Adapter, apply, load_adapter
from tether.adapters.head import HEAD_FILE, ModuleHead, read_head, save_head
from tether.adapters.mergeable import mergeable
from tether.errors import TetherError
from tether.models import Model, load
from tether.models.load import is_here
from tether.runs.merged_card import write_card
from tether.runs.outcome import ADAPTER


def export(
    source: str | None, adapter: Path, out: Path, *, alpha: Alpha | None = None, head: Path | None = None
) -> MergeReport:
    """Merge an adapter into its base and save the result in the format of the base's library.

    Every tower is run before and after: what does not answer alike, or no number at all, is not saved.

    Args:
        source: the base, as `tether.load` takes it; None for where the adapter says that it is.
        adapter: folder written by `save_adapter`.
        out: new folder; nothing is overwritten.
        alpha: ensemble weight; by default the one saved with the adapter.
        head: file of a head, in place of the adapter's own; with the model a linear one is saved as it is at this alpha
            (the text tower's), another one as it is.

    Raises:
        TetherError: `out` exists, the adapter belongs to another base or that is not where it was, `head` is no
            head's file, the method does not merge, the merged model does not answer as the adapter does or the head is
            not finite, or the disk is full.
    """
    refuse_existing(out)
    saved = load_adapter(adapter)
    trained = read_head(head) if head else saved.head
    model = load(source or base_of(saved, adapter))
    attached = mergeable(apply(model, saved))
    alpha = saved.alpha if alpha is None else alpha
    at_alpha = trained.at(alpha_of(alpha, "text")) if trained else None
    tensors = at_alpha.tensors() if isinstance(at_alpha, ModuleHead) else {"weight": at_alpha}
    if trained and not all(bool(tensor.isfinite().all()) for tensor in tensors.values()):
        raise TetherError(
            f"The head in {head or adapter} holds NaN or infinity, so it is not saved. Take an earlier one."
        )
    report = attached.merge(alpha, probe=_probe(model))
    with new_folder(out) as folder:
        model.save_into(folder)
        if isinstance(at_alpha, ModuleHead):
            save_head(folder / HEAD_FILE, at_alpha)
        elif trained:
            save_tensors(folder / HEAD_FILE, tensors)
        write_card(folder, out.absolute().name, model, saved, adapter, report, head=at_alpha)
    return report


def _probe(model: Model) -> Callable[[], list[Tensor]]:
    """Runs every tower: random pictures, and two texts where there is a tower for them."""
    random = torch.Generator().manual_seed(0)
    pixels = torch.randn(2, 3, model.image.height, model.image.width, generator=random)
    if not model.has_text:
        return lambda: [model.encode_image(pixels)]
    tokens = model.tokenize(["a photo of a cat", "a drawing of two houses"])
    return lambda: [model.encode_image(pixels), model.encode_text(tokens)]


def adapter_folder(path: Path) -> Path | None:
    """The folder of an adapter, or the one in its run; None where there is neither."""
    return next((folder for folder in (path, path / ADAPTER) if (folder / "adapter.json").is_file()), None)


def base_of(adapter: Adapter, folder: Path) -> str:
    """Where the base of an adapter is, by the adapter itself or else by the run that its folder lies in.

    Raises:
        TetherError: neither says it, or nothing is there any more.
    """
    said = [source for source in (adapter.source, run_config(folder).get("model")) if source]
    if not said:
        raise TetherError(
            f"{folder} does not say which model it belongs to, and lies in no run. Name the model: --model."
        )
    for source in said:
        if is_here(source):
            return source
    raise TetherError(
        f"There is no {said[0]!r} here, the model that {folder} belongs to. Say where it is: --model."
    )


def run_config(adapter: Path) -> dict[str, Any]:
    """The recipe of the run that an adapter's folder lies in; empty where it lies in none."""
    path = adapter.absolute().parent / "config.json"
    return read_json(path, dict) if path.is_file() else {}
