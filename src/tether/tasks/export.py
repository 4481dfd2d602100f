"""An adapter merged into its base and saved as an ordinary model folder."""

from pathlib import Path

import torch

from tether._alpha import Alpha, alpha_of
from tether._files import new_folder, read_tensors, refuse_existing, save_tensors
from tether.adapters import MergeReport
from tether.adapters.files import apply, load_adapter
from tether.models import load
from tether.models.saving import save_into
from tether.tasks.outcome import HEAD_FILE, head_at


def export(
    source: str, adapter: Path, out: Path, *, alpha: Alpha | None = None, head: Path | None = None
) -> MergeReport:
    """Merge an adapter into the model `source` and save the result in the format of its library.

    Args:
        source: the base, as `tether.load` takes it.
        adapter: folder written by `save_adapter`.
        out: new folder; nothing is overwritten.
        alpha: ensemble weight; by default the one saved with the adapter.
        head: a run's linear head, to be saved with the model as it is at this alpha (the text tower's).

    Raises:
        TetherError: `out` exists, the adapter belongs to another base, or the disk is full.
    """
    refuse_existing(out)
    saved = load_adapter(adapter)
    tensors = read_tensors(head) if head else None
    model = load(source)
    attached = apply(model, saved)
    alpha = saved.alpha if alpha is None else alpha
    probe = torch.randn(2, 3, model.image.size, model.image.size, generator=torch.Generator().manual_seed(0))
    report = attached.merge(alpha, probe=lambda: model.encode_image(probe))
    with new_folder(out) as folder:
        save_into(model, folder)
        if tensors:
            weight = head_at(tensors["weight"], tensors["zero_shot"], alpha_of(alpha, "text"))
            save_tensors(folder / HEAD_FILE, {"weight": weight})
    return report
