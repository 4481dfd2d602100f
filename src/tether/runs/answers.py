"""What a model answers to single pictures, before it was tuned, as it is kept, and as it was trained: `tether try`."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from tether._alpha import Alpha, alpha_of
from tether.adapters.files import Adapter, apply, load_adapter
from tether.adapters.head import ModuleHead
from tether.data import load_benchmark, test_transform
from tether.data.reading import read_image
from tether.data.records import Benchmark, ImageRef
from tether.errors import TetherError
from tether.evaluation.classifier import Classifier, class_embeddings, evaluating
from tether.models import load
from tether.recipe import from_plain
from tether.runs.export import adapter_folder, base_of, run_config

AS_THEY_ARE = ("{}",)
"""The template of free texts."""


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What comes first for a picture at one alpha: texts or names of classes and their probabilities, best first."""

    alpha: Alpha
    best: tuple[tuple[str, float], ...]


@torch.no_grad()
def answers(
    source: str,
    pictures: Sequence[Path],
    *,
    texts: Sequence[str] = (),
    base: str | None = None,
    alpha: Alpha | None = None,
    most: int = 5,
    device: torch.device | str = "cpu",
) -> list[list[Answer]]:
    """The best texts for each picture; of an adapter at alpha 0, at its own, and at 1, of a model alone once.

    Args:
        source: a run, an adapter's folder, or a model as `tether.load` takes it.
        texts: what to choose from, as they are; by default the classes of the run, by its templates or head.
        base: the adapter's base, if it is not where the adapter says.
        alpha: in place of the adapter's own.
        most: texts per picture.

    Raises:
        TetherError: there is no such thing, nothing to choose from, no text tower for free texts, or a picture that
            cannot be read.
    """
    if not pictures:
        raise TetherError("There is no picture to answer for; name one or more.")
    images = [
        read_image(ImageRef(str(path.parent), path.name)) for path in pictures
    ]  # before anything that takes long
    folder = _adapter_folder(Path(source))
    adapter = load_adapter(folder) if folder else None
    if adapter is None and (alpha is not None or base):
        raise TetherError(f"--alpha and --model belong to an adapter, and {source} is none.")
    if adapter and isinstance(adapter.head, ModuleHead) and not texts:
        raise TetherError(
            f"{source} is for {adapter.head.task}, which answers with more than a class: the report of its run shows "
            "some pictures. Or give texts."
        )
    names, templates = (tuple(texts), AS_THEY_ARE) if texts else _classes(folder, adapter, source)
    model = load(source if adapter is None else base or base_of(adapter, folder), device=device)
    head = adapter.head if adapter and not texts else None
    if head is None and not model.has_text:
        raise TetherError(f"{source} has no text tower, so it knows no texts; there must be a trained head.")
    if head is not None and len(head.weight) != len(names):
        raise TetherError(
            f"The head in {folder} has {len(head.weight)} classes and the run's data {len(names)}; the data is not "
            "what it was. Put it back, or give texts."
        )
    pixels = torch.stack([test_transform(model.image)(image) for image in images]).to(model.device)

    def answer(alpha: Alpha) -> list[Answer]:
        weight = head.at(alpha_of(alpha, "text")) if head else class_embeddings(model, names, templates)
        classifier = Classifier(weight=weight, scale=model.head_scale)
        with evaluating(model):
            best = classifier(model.encode_image(pixels)).softmax(1).topk(min(most, len(names)), dim=1)
        return [
            Answer(alpha=alpha, best=tuple((names[i], p) for i, p in zip(index, values, strict=True)))
            for index, values in zip(best.indices.tolist(), best.values.tolist(), strict=True)
        ]

    if adapter is None:
        columns = [answer(0.0)]
    else:
        attached = apply(model, adapter)
        attached.eval_mode()
        columns = []
        with attached.path() as path:
            for at in _alphas(adapter.alpha if alpha is None else alpha):
                path.set(at)
                columns.append(answer(at))
    return [list(row) for row in zip(*columns, strict=True)]


def _alphas(own: Alpha) -> list[Alpha]:
    """Zero-shot, as it is kept, as it was trained; each once."""
    alphas: list[Alpha] = [0.0, own, 1.0]
    return [alpha for place, alpha in enumerate(alphas) if alpha not in alphas[:place]]


def _adapter_folder(path: Path) -> Path | None:
    """The adapter's folder that is meant by it or by its run; None where it is a model."""
    folder = adapter_folder(path)
    if folder is None and (path / "config.json").is_file() and (path / "environment.json").is_file():
        raise TetherError(f"The run {path} has no adapter: it is not finished, or trained a head alone.")
    return folder


def _classes(
    folder: Path | None, adapter: Adapter | None, source: str
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Names and templates of the classes of an adapter's run."""
    config = run_config(folder) if folder else {}
    if not config:
        what = "lies in no run" if adapter else "is a model"
        raise TetherError(
            f'{source} {what}, so there is nothing to choose from. Say it: --texts "a cat" "a dog".'
        )
    benchmark = load_benchmark(from_plain(config).data)
    if not isinstance(benchmark, Benchmark):
        raise TetherError(
            f'The run of {source} was on captions, so there are no classes to choose from. Say texts: --texts "a cat" '
            '"a dog".'
        )
    return benchmark.class_names, benchmark.templates
