"""An adapter on any data at every alpha, without training anything: `tether sweep`."""

from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from tether._alpha import Alpha
from tether.adapters.files import apply, load_adapter
from tether.adapters.head import Head, ModuleHead
from tether.data.captions import CaptionBenchmark
from tether.data.records import Benchmark, PictureBenchmark
from tether.ensembles.sweep import alpha_sweep
from tether.errors import TetherError
from tether.evaluation.classifier import Classifier, zero_shot_reader
from tether.evaluation.retrieval_scores import caption_reader
from tether.evaluation.scores import Sweep
from tether.evaluation.scoring import Progress, Reader
from tether.models import Model, load
from tether.runs.export import adapter_folder, base_of

ALPHAS = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)


def sweep(
    source: Path,
    benchmark: PictureBenchmark,
    alphas: Sequence[Alpha] = ALPHAS,
    *,
    base: str | None = None,
    device: torch.device | str = "cpu",
    progress: Progress | None = None,
) -> tuple[Sweep, Alpha]:
    """Scores on every test of a benchmark at every alpha, and the alpha that the adapter was kept with.

    Args:
        source: an adapter's folder, or a run that has one.
        alphas: in this order.
        base: the adapter's base, if it is not where the adapter says.
        progress: told how many pictures are evaluated.

    Raises:
        TetherError: there is no adapter, it does not fit its base, its head knows other classes than the data has, or
            there is neither head nor text tower.
    """
    folder = adapter_folder(source)
    if folder is None:
        raise TetherError(
            f"{source} is no adapter, and no run that has one. A model alone is judged by `tether zero-shot --model "
            f"{source}`, a LoRA of peft after `tether import`."
        )
    adapter = load_adapter(folder)
    model = load(base or base_of(adapter, folder), device=device)
    reader = _reader(model, benchmark, adapter.head, folder, progress)
    attached = apply(model, adapter)
    attached.eval_mode()
    with attached.path() as path:
        return alpha_sweep(
            model, path, benchmark.tests, list(alphas), reader, progress=progress
        ), adapter.alpha


def text_reader(
    model: Model, benchmark: Benchmark | CaptionBenchmark, *, progress: Progress | None = None
) -> Reader:
    """What a model answers to the tests of a benchmark by its texts alone, as it is set now."""
    tests = benchmark.tests.values()
    if isinstance(benchmark, CaptionBenchmark):
        return caption_reader(model, tests, progress=progress)
    return zero_shot_reader(model, benchmark, tests, progress=progress)


def _reader(
    model: Model,
    benchmark: PictureBenchmark,
    head: Head | ModuleHead | None,
    folder: Path,
    progress: Progress | None,
) -> Callable[[float], Reader]:
    """What is made of features at an alpha of the text tower."""
    tests = benchmark.tests
    if isinstance(head, ModuleHead) or not isinstance(benchmark, Benchmark | CaptionBenchmark):
        raise TetherError(
            f"What is swept answers with a class or a caption. {benchmark.name} has {benchmark.knows}, and the head in "
            f"{folder} is {'for ' + head.task if isinstance(head, ModuleHead) else 'for none of these'}. A run has "
            f"its scores at every alpha of its grid."
        )
    if head is None and not model.has_text:
        raise TetherError(
            f"{folder} has no head, and its base no text tower, so it has no answers to be judged by."
        )
    if head is None or isinstance(benchmark, CaptionBenchmark):
        return lambda alpha: text_reader(model, benchmark, progress=progress)
    if len(head.weight) != len(benchmark.class_names) or any(split.class_names for split in tests.values()):
        raise TetherError(
            f"The head in {folder} was trained on {len(head.weight)} classes and {benchmark.name} has "
            f"{len(benchmark.class_names)}, or tests with classes of their own. Judge it on the data that it was "
            f"trained for."
        )
    return lambda alpha: Classifier(weight=head.at(alpha).to(model.device), scale=model.head_scale)
