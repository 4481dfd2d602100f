"""The smallest rank of a trained R-Adapter that does as well on the validation pictures."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from tether._files import read_tensors, refuse_existing
from tether.adapters.files import apply, load_adapter, save_adapter
from tether.adapters.rank import RankResult, smallest_within
from tether.adapters.states import config_for
from tether.data import ImageDataset, test_transform
from tether.data.records import Benchmark
from tether.errors import TetherError
from tether.evaluation import Classifier, alpha_sweep, class_embeddings
from tether.evaluation.classifier import Progress
from tether.models import Model
from tether.tasks.outcome import head_at

RANKS = (1, 2, 4, 8, 16, 32, 64)


def shrink(
    model: Model,
    benchmark: Benchmark,
    adapter: Path,
    out: Path,
    *,
    ranks: Sequence[int] = RANKS,
    tolerance: float = 0.005,
    head: Path | None = None,
    progress: Progress | None = None,
) -> list[RankResult]:
    """Measure an R-Adapter at several ranks on the validation split, and save the smallest that will do.

    Args:
        model: the adapter's base.
        out: new adapter folder.
        tolerance: top-1 accuracy that may be lost against the whole adapter, as a fraction.
        head: the run's linear head, where it trained one.

    Returns:
        Every rank's size and validation accuracy, from small to large; the last is the whole adapter.

    Raises:
        TetherError: there are no validation pictures, it is no R-Adapter, or it belongs to another base.
    """
    refuse_existing(out)
    if not len(benchmark.validation):
        raise TetherError(f"{benchmark.name} has no validation pictures to choose a rank by.")
    saved = load_adapter(adapter)
    config_for(saved.config, saved.state)  # refuses what is no R-Adapter before anything is evaluated
    tensors = read_tensors(head) if head else None
    attached = apply(model, saved)
    pictures = ImageDataset(benchmark.validation, test_transform(model.image), cache_bytes=2**29)

    def classifier(alpha: float) -> Classifier:
        if tensors:
            weight = head_at(tensors["weight"], tensors["zero_shot"], alpha)
        else:
            weight = class_embeddings(model, benchmark.class_names, benchmark.templates)
        return Classifier(weight=weight, scale=model.logit_scale)

    def accuracy(state: dict[str, Tensor]) -> float:
        splits = {"validation": benchmark.validation}
        swept = alpha_sweep(
            model,
            attached.delta(state),
            splits,
            [saved.alpha],
            classifier,
            open_split=lambda split: pictures,
            progress=progress,
        )
        return swept.scores[0]["validation"].top1

    with attached.ordinary():
        state, results = smallest_within(saved.state, ranks, accuracy, tolerance)
    attached.detach()
    save_adapter(out, replace(saved, config=config_for(saved.config, state), state=state, raw=None))
    return results
