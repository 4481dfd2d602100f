"""A zero-shot and a tuned model that look at the same pictures, each read once."""

import copy
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tether import _distributed
from tether.data.records import Split
from tether.ensembles.views import Views
from tether.errors import TetherError
from tether.evaluation.classification import batches_of
from tether.evaluation.classifier import Classifier, evaluating
from tether.evaluation.metrics import once_by_index
from tether.evaluation.scores import ClassScorer, SplitScores
from tether.evaluation.scoring import Progress, answer
from tether.evaluation.sharing import shared_prefix
from tether.models.model import Model
from tether.models.shared_copy import shared_copy
from tether.models.weight_path import MARK, Path, WeightPath, is_engaged, restoring

Respond = Callable[[Tensor, Split], Sequence[Tensor]]
"""Logits of a batch of pixels by each of several classifiers, for one split."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Pair:
    """A zero-shot and a tuned model with a classifier each; `pair(pixels)` is what both say.

    Made by `Pair.of` from one model and what training changed; then both share what is unchanged. Or made
    directly from two models that take the same pictures; their architectures may differ.

    Attributes:
        classifiers: of the zero-shot and of the tuned model, for the same classes.
        delta: tuned minus zero-shot weights by name; None for two models of their own.
        classifier_at: the classifier at an alpha, called with the text tower set to it; None likewise.
        batch_size: how many pictures are read at a time,
        workers: by how many processes; 0 is this one.
        progress: told what is being done, and how far it is.

    Raises:
        TetherError: the models take different pictures or the classifiers have different classes.
    """

    zero_shot: Model
    tuned: Model
    classifiers: tuple[Classifier, Classifier]
    delta: Mapping[str, Tensor] | None = None
    classifier_at: Callable[[float], Classifier] | None = None
    batch_size: int = 64
    workers: int = 0
    progress: Progress | None = None

    def __post_init__(self) -> None:
        if self.zero_shot.image != self.tuned.image:
            raise TetherError(
                f"Both models must take the same pictures; these take {self.zero_shot.image} and "
                f"{self.tuned.image}."
            )
        first, second = (len(classifier.weight) for classifier in self.classifiers)
        if first != second:
            raise TetherError(
                f"Both classifiers must have the same classes; these have {first} and {second}."
            )

    @classmethod
    def of(
        cls, model: Model, path: Path, classifier: Callable[[float], Classifier], **reading: Any
    ) -> "Pair":
        """A model at both ends of its path; it is left at the beginning.

        Args:
            path: of the model, such as `attached.path()` or `WeightPath(model.module, delta)`, inside its `with` block.
            classifier: as for `alpha_sweep`: called at 0 and at 1, with the model there.
            reading: batch_size, workers and progress, if other than the defaults.

        Raises:
            TetherError: adapters are active in the model.
        """
        with restoring(path):
            path.set(0.0)
            zero_shot = classifier(0.0)
            path.set(1.0)
            classifiers = (zero_shot, classifier(1.0))
        linear = isinstance(path, WeightPath)
        return cls(
            zero_shot=model,
            tuned=tuned_copy(model, path),
            classifiers=classifiers,
            delta=path.delta if linear else None,
            classifier_at=classifier if linear else None,
            **reading,
        )

    @property
    def classes(self) -> int:
        """Number of classes."""
        return len(self.classifiers[0].weight)

    def __call__(self, pixels: Float[Tensor, "batch 3 h w"]) -> Views:
        """What both models say of a batch; pictures go through a shared image tower once."""
        features = self.zero_shot.encode_image(pixels)
        tuned = features if self.tuned is self.zero_shot else self.tuned.encode_image(pixels)
        return Views(self.classifiers[0](features), self.classifiers[1](tuned), tuned)

    @contextmanager
    def ready(self) -> Iterator[Callable[[], None]]:
        """Inside, nothing is random or trained, and what the models share before the first change runs once.

        Yields:
            A function to call after the first batch: what cannot be shared is not remembered any longer.

        Raises:
            TetherError: adapters are active in the zero-shot model.
        """
        self.check_ordinary()
        sharing = (
            nullcontext(lambda: None)
            if self.delta is None
            else shared_prefix(self.zero_shot.module, self.delta)
        )
        with evaluating(self.zero_shot), evaluating(self.tuned), sharing as forget_useless:
            yield forget_useless

    def check_ordinary(self) -> None:
        """Refuse a zero-shot model that computes with an adapter: it is none then.

        Raises:
            TetherError: it does.
        """
        if is_engaged(self.zero_shot.module):
            raise TetherError(
                "The zero-shot model computes with an adapter now. Use the pair inside `with "
                "attached.ordinary(): ...`, or detach the adapter."
            )

    def batches(self, split: Split) -> Iterator[tuple[Tensor, Tensor]]:
        """Pixels and numbers of this process's pictures of a split, unaugmented; shares are equally long."""
        return batches_of(self.zero_shot, split, self.batch_size, self.workers)

    def views(self, split: Split) -> Iterator[tuple[Views, Tensor]]:
        """What both models say of each batch, and the numbers of its pictures, of all processes together."""
        done = 0
        with self.ready() as forget_useless:
            for pixels, index in self.batches(split):
                views = self(pixels)
                forget_useless()
                parts = (_distributed.gather(column) for column in _columns(views))
                index = _distributed.gather(index)
                yield Views(*parts), index
                done += len(index)
                self._tell(f"comparing both models on {split.name}", done, len(split))

    def collect(self, split: Split) -> Views:
        """What both models say of every picture of a split, in its order."""
        views, indices = zip(*self.views(split), strict=True)
        index = torch.cat(indices)
        columns = [torch.cat(column) for column in zip(*map(_columns, views), strict=True)]
        return Views(*once_by_index(index.to(columns[0].device), len(split), *columns))

    def answer(self, respond: Respond, splits: Mapping[str, Split]) -> list[dict[str, SplitScores]]:
        """Scores of each classifier of `respond` on each split, every picture read once.

        Under `torchrun` the processes share the pictures, and each gets the complete result.

        Raises:
            TetherError: as `tether.evaluation.evaluate`.
        """
        with self.ready() as forget_useless:
            return answer(
                splits,
                lambda split, _: self.classifiers[0].scorer(split),
                self.batches,
                respond,
                self.progress,
                forget_useless,
            )

    def _tell(self, what: str, done: int, total: int) -> None:
        if self.progress:
            self.progress(what, min(done, total), total)


def tuned_copy(model: Model, path: Path) -> Model:
    """The image tower at the end of a path beside the model at its beginning; both share what the path leaves alone.

    The model itself, where nothing of the image tower changes.
    """
    if not path.changes("image"):
        return model
    if isinstance(path, WeightPath):
        image = path.changes("image")
        changes = {name: change for name, change in path.delta.items() if name in image}
        return replace(model, module=shared_copy(model.module, changes))
    with restoring(path):
        path.set(1.0)
        module = copy.deepcopy(model.module)
    module.__dict__.pop(MARK, None)
    return replace(model, module=module)


def score(split: Split, logits: Float[Tensor, "n classes"]) -> SplitScores:
    """Scores of logits that are there already, in the split's order."""
    scorer = ClassScorer(split, logits.shape[1])
    return scorer.scores(scorer.rows(logits, torch.arange(len(split))).cpu())


def competing(split: Split, classes: int) -> list[int]:
    """The classes that compete in a split, ascending."""
    return [label for label, counts_as in enumerate(split.canonical_classes(classes)) if counts_as >= 0]


def labels_among(split: Split, candidates: Sequence[int], device: torch.device) -> Int[Tensor, " n"]:
    """Place of each picture's class among some classes."""
    place_of = {label: place for place, label in enumerate(candidates)}
    return torch.tensor([place_of[example.label] for example in split.examples], device=device)


def as_logits(
    probabilities: Float[Tensor, "batch candidates"], candidates: Sequence[int], classes: int
) -> Float[Tensor, "batch classes"]:
    """Logits over all classes whose softmax is these probabilities of some, and 0 for the rest."""
    full = probabilities.new_full((len(probabilities), classes), -math.inf)
    full[:, list(candidates)] = probabilities.log()
    return full


def _columns(views: Views) -> tuple[Tensor, Tensor, Tensor]:
    return views.zero_shot, views.tuned, views.features
