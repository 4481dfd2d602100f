"""Classifiers: class names turned into text features, or any linear head on normalised features."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tether.data.prompts import fill, warn_of_same_prompts
from tether.data.records import Benchmark, Split
from tether.errors import TetherError
from tether.evaluation.scores import ClassScorer, SplitScores
from tether.evaluation.scoring import Progress
from tether.models.model import Model
from tether.models.modes import in_evaluation_mode


@dataclass(frozen=True, kw_only=True, eq=False)
class Classifier:
    """Logits = scale · features · weightᵀ + bias, for features of length 1.

    Attributes:
        class_names: of its classes, where they are known: splits with classes of their own are answered by these alone.
    """

    weight: Float[Tensor, "classes dim"]
    bias: Float[Tensor, " classes"] | None = None
    scale: float = 1.0
    class_names: tuple[str, ...] | None = None

    def __call__(self, features: Float[Tensor, "b dim"]) -> Float[Tensor, "b classes"]:
        logits = self.scale * (features.float() @ self.weight.to(features.device).float().T)
        return logits if self.bias is None else logits + self.bias.to(features.device).float()

    def scorer(self, split: Split) -> ClassScorer:
        """The rules of a split: its class mask and its groups.

        Raises:
            TetherError: the split has classes of its own, and they are not this classifier's; or as `ClassScorer`.
        """
        if split.class_names is not None and split.class_names != self.class_names:
            raise TetherError(
                f"Split {split.name!r} has {len(split.class_names)} classes of its own, and the classifier is not one "
                "of these. Make one of the split's class_names, or use zero_shot_reader."
            )
        return ClassScorer(split, len(self.weight))


Prompts = tuple[tuple[str, ...] | None, tuple[str, ...] | None]
"""Class names and templates that a split has of its own; None for those of its benchmark."""


def prompts_of(split: Split) -> Prompts:
    """What is told apart in a split, and by which sentences."""
    return split.class_names, split.templates


@dataclass(frozen=True, eq=False)
class ClassReader:
    """Pictures' features as they are, to be classified among the classes of their split.

    Args:
        classifiers: by what splits have of their own.
    """

    classifiers: Mapping[Prompts, Classifier]

    def __call__(self, features: Float[Tensor, "b dim"]) -> Float[Tensor, "b dim"]:
        return features

    def scorer(self, split: Split) -> "FeatureScorer":
        """The split's classifier with the rules of the split."""
        classifier = self.classifiers[prompts_of(split)]
        return FeatureScorer(classifier, classifier.scorer(split))


@dataclass(frozen=True, eq=False)
class FeatureScorer:
    """Features classified, and scored by the rules of one split."""

    classifier: Classifier
    rules: ClassScorer

    def rows(self, features: Float[Tensor, "b dim"], index: Int[Tensor, " b"]) -> Float[Tensor, "b 3"]:
        return self.rules.rows(self.classifier(features), index)

    def scores(self, rows: Float[Tensor, "n 3"]) -> SplitScores:
        return self.rules.scores(rows)


def class_embeddings(
    model: Model,
    class_names: Sequence[str],
    templates: Sequence[str],
    *,
    batch_size: int = 256,
    progress: Progress | None = None,
) -> Float[Tensor, "classes dim"]:
    """For each class the mean of the text features of its prompts, scaled to length 1 again.

    Radford et al. 2021, section 3.1.4. Each distinct prompt is encoded once, short ones together. A warning names
    classes that the model cannot tell apart, as their prompts are the same where it stops reading.

    Raises:
        TetherError: no class, or a template without exactly one `{}`.
    """
    if not class_names:
        raise TetherError("There are no class names; a zero-shot classifier needs at least one.")
    classes_of: dict[str, list[int]] = {}
    filled = fill(templates, class_names)
    for label, prompts in enumerate(filled):
        for prompt in prompts:
            classes_of.setdefault(prompt, []).append(label)
    distinct = sorted(classes_of, key=len)
    sums = None
    read: dict[str, bytes] = {}
    with evaluating(model):
        for start in range(0, len(distinct), batch_size):
            prompts = distinct[start : start + batch_size]
            tokens = model.tokenize(prompts)
            read.update(zip(prompts, (row.tobytes() for row in tokens.numpy()), strict=True))
            features = model.encode_text(tokens)
            if sums is None:
                sums = torch.zeros(len(class_names), features.shape[1], device=features.device)
            rows, labels = zip(
                *((row, label) for row, prompt in enumerate(prompts) for label in classes_of[prompt]),
                strict=True,
            )
            index = torch.tensor(labels, device=features.device)
            sums.index_add_(0, index, features[torch.tensor(rows, device=features.device)])
            if progress:
                progress("encoding prompts", start + len(prompts), len(distinct))
    what = [tuple(read[prompt] for prompt in prompts) for prompts in filled]
    warn_of_same_prompts(class_names, what, f"{model.source}, which reads {model.context_length} tokens")
    return torch.nn.functional.normalize(sums, dim=-1)


def zero_shot_classifier(
    model: Model,
    class_names: Sequence[str],
    templates: Sequence[str],
    *,
    progress: Progress | None = None,
) -> Classifier:
    """The classifier made of the model's own text features and logit scale; see `class_embeddings`."""
    weight = class_embeddings(model, class_names, templates, progress=progress)
    return Classifier(weight=weight, scale=model.logit_scale, class_names=tuple(class_names))


def zero_shot_reader(
    model: Model, benchmark: Benchmark, splits: Iterable[Split], *, progress: Progress | None = None
) -> ClassReader:
    """A zero-shot classifier for each of some splits of a benchmark, of the split's own classes and templates where it
    has them; those of the same prompts share one.

        evaluate(model, benchmark.tests, zero_shot_reader(model, benchmark, benchmark.tests.values()))
    """
    classifiers: dict[Prompts, Classifier] = {}
    for split in splits:
        if (prompts := prompts_of(split)) not in classifiers:
            names, templates = benchmark.class_names_of(split), benchmark.templates_of(split)
            classifiers[prompts] = zero_shot_classifier(model, names, templates, progress=progress)
    return ClassReader(classifiers)


@contextmanager
def evaluating(model: Model) -> Iterator[None]:
    """No gradients, and every module in evaluation mode; each gets its own mode back."""
    with torch.no_grad(), in_evaluation_mode(model.module):
        yield
