"""The smallest rank of a trained adapter that does as well on the validation pictures."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from tether._alpha import TOWERS, alpha_of
from tether._files import new_folder, refuse_existing
from tether.adapters.files import apply, check_head, load_adapter, save_adapter
from tether.adapters.head import ModuleHead
from tether.adapters.ranks import RankResult, smallest_within
from tether.data import ImageDataset, test_transform
from tether.data.records import Benchmark
from tether.ensembles.sweep import alpha_sweep
from tether.errors import TetherError
from tether.evaluation import Classifier, class_embeddings
from tether.evaluation.scoring import Progress
from tether.models import Model

RANKS = (1, 2, 4, 8, 16, 32, 64)


def shrink(
    model: Model,
    benchmark: Benchmark,
    adapter: Path,
    out: Path,
    *,
    ranks: Sequence[int] = RANKS,
    tolerance: float = 0.005,
    progress: Progress | None = None,
) -> list[RankResult]:
    """Measure an adapter at several ranks on the validation split, and save the smallest that will do.

    Args:
        model: the adapter's base.
        out: new adapter folder.
        ranks: those to try; what is no smaller than the adapter's own is passed over.
        tolerance: top-1 accuracy that may be lost against the whole adapter, from 0 to 1.

    Returns:
        Every rank's size and validation accuracy, from small to large; the last is the whole adapter.

    Raises:
        TetherError: there are no validation pictures, its method has no ranks, it belongs to another base, its head
            is not there, its alpha is 0, or no rank to try is below its own.
    """
    refuse_existing(out)
    if not 0 <= tolerance <= 1:
        raise TetherError(f"The tolerance is a share of the pictures, from 0 to 1, not {tolerance!r}.")
    if not len(benchmark.validation):
        raise TetherError(f"{benchmark.name} has no validation pictures to choose a rank by.")
    saved = load_adapter(adapter)
    if isinstance(saved.head, ModuleHead):
        raise TetherError(
            f"Ranks are chosen by accuracy, and {adapter} is for {saved.head.task}. Train it again with the rank."
        )
    factored = saved.config.factored(saved.state)  # refuses what has no ranks before anything is evaluated
    if not any(alpha_of(saved.alpha, tower) for tower in TOWERS):
        raise TetherError(
            f"{adapter} is to be used at alpha 0, where it does nothing, so every rank would do as well. Give it "
            f"another alpha first: tether average {adapter} --alpha 1 --out NEW."
        )
    check_head(saved, adapter)
    attached = apply(model, saved)
    pictures = ImageDataset(benchmark.validation, test_transform(model.image), cache_bytes=2**29)

    def classifier(alpha: float) -> Classifier:
        if saved.head:
            weight = saved.head.at(alpha)
        else:
            weight = class_embeddings(model, benchmark.class_names, benchmark.templates)
        return Classifier(weight=weight, scale=model.head_scale)

    def accuracy(state: dict[str, Tensor]) -> float:
        splits = {"validation": benchmark.validation}
        options = {"open_split": lambda split: pictures, "progress": progress}
        with attached.path(state) as path:
            swept = alpha_sweep(model, path, splits, [saved.alpha], classifier, **options)
        return swept.scores[0]["validation"].top1

    state, results = smallest_within(factored, ranks, accuracy, tolerance)
    attached.detach()
    with new_folder(out) as folder:
        save_adapter(folder, replace(saved, config=saved.config.fitting(state), state=state, raw=None))
    return results
