"""Classification: pictures of classes, told apart by the texts of their names or by a linear head."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, nn
from torch.utils.data import Dataset

from tether._alpha import tower_of
from tether.adapters import Attached
from tether.adapters.head import head_at
from tether.config import method
from tether.data.dataset import ImageDataset
from tether.data.prompts import fill
from tether.data.records import Benchmark, PictureBenchmark, PictureSplit, Split
from tether.errors import TetherError
from tether.evaluation.classifier import Classifier, ClassReader, class_embeddings, prompts_of
from tether.evaluation.scores import SplitScores
from tether.evaluation.scoring import Progress
from tether.families import TaskConfig
from tether.models import Model
from tether.recipe import Recipe
from tether.tasks.task import HEAD, Task, TrainingData


@method("classification")
@dataclass(frozen=True, kw_only=True)
class ClassificationConfig(TaskConfig):
    """Which class a picture is of; judged by top-1 accuracy."""

    def make(
        self, recipe: Recipe, model: Model, benchmark: Any, *, progress: Progress | None = None
    ) -> "Classification":
        return Classification(recipe, model, benchmark, progress)

    def scores(
        self, benchmark: PictureBenchmark, split: PictureSplit, tensors: Mapping[str, Tensor]
    ) -> SplitScores:
        return SplitScores(split=split, classes=len(benchmark.class_names_of(split)), **tensors)


class Classification(Task):
    """Picture–prompt pairs of a benchmark, or a linear head on pictures.

    With a contrastive objective each picture gets a random template filled with its class's name; equal
    prompts of a batch are encoded once. With cross-entropy a head, initialised with the zero-shot classifier,
    stands for the text tower, which does not move. For a model without a text tower the head begins at zero, so that
    alpha 0 is no classifier: all classes are equally likely there.

    A test split may have classes and templates of its own; its classifier is then made of these.

    Raises:
        TetherError: the pictures have no labels, or a test has classes that a linear head or an ensemble does not know.
    """

    benchmark: Benchmark

    def __init__(
        self,
        recipe: Recipe,
        model: Model,
        benchmark: PictureBenchmark,
        progress: Progress | None = None,
    ) -> None:
        super().__init__(recipe, model, benchmark, progress)
        if not isinstance(benchmark, Benchmark):
            raise TetherError(
                f"Classification needs pictures of classes, and {benchmark.name} has {benchmark.knows}. Use "
                f"{'task.method=retrieval' if benchmark.knows == 'captions' else 'a task for these'}, or labelled data."
            )
        self._check_tests(benchmark.tests)
        self.class_names, self.templates = benchmark.class_names, benchmark.templates
        if not model.has_text and not recipe.objective.pairs:  # a head that begins with knowing nothing
            self.zero_shot = torch.zeros(len(self.class_names), model.dim, device=model.device)
        else:
            self.zero_shot = class_embeddings(model, self.class_names, self.templates, progress=progress)
            prompts = fill(self.templates, self.class_names)
            self._tokens = torch.stack([model.tokenize(row) for row in prompts])
        self._embeddings = {(0.0, self.class_names, self.templates): self.zero_shot}
        self._final_head: Tensor | None = None
        self._text_moves = False

    def _check_tests(self, tests: Mapping[str, Split]) -> None:
        """Refuse tests of other classes or prompts where there is one classifier, of what is trained on."""
        for name, split in tests.items():
            if self.recipe.ensemble and (split.class_names or split.templates):
                raise TetherError(
                    f"An ensemble has one classifier for all tests, and {name!r} has classes or templates of its own. "
                    "Leave `ensemble` out (the weights are interpolated by `alpha`), or that test."
                )
            if self.recipe.objective.pairs:
                continue
            if split.templates:
                raise TetherError(
                    f"A linear head has no prompts, and {name!r} has templates of its own. Leave these out, or use an "
                    "objective on pairs (info_nce or mpm_nce)."
                )
            if split.class_names:
                self._places(split.class_names, name)

    def _places(self, class_names: Sequence[str], test: str) -> list[int]:
        """Where the classes of a test stand among those of a linear head.

        Raises:
            TetherError: the head lacks one of them, or has two of its name.
        """
        trained = self.benchmark.class_names
        if missing := [name for name in class_names if trained.count(name) != 1]:
            raise TetherError(
                f"A linear head answers with the classes that it is trained on, and {len(missing)} of "
                f"{len(class_names)} classes of {test!r} are not among them, such as {missing[0]!r}. Leave that test "
                "out, or use an objective on pairs (info_nce or mpm_nce): a text tower knows classes by their names."
            )
        return [trained.index(name) for name in class_names]

    def start(self, attached: Attached | None) -> None:
        super().start(attached)
        self._text_moves = any(tower_of(name) == "text" for name in self.named_parameters())
        if self._text_moves:
            self._embeddings.clear()  # anew with adapters in the model: the last bit depends on when it was computed
        if not self.recipe.objective.pairs:
            self.head = nn.Parameter(self.zero_shot.clone())
            if attached and set(self.named_parameters()) == {HEAD}:
                raise TetherError(
                    "The adapter changes only the text tower, of which cross-entropy makes no use: nothing but the "
                    "head would be trained. Let it change the image tower, or say adapter.method=frozen for a linear "
                    "probe."
                )

    def training_data(self, transform: Callable[..., Tensor], *, seed: int) -> TrainingData:
        return TrainingData(data=ImageDataset(self.benchmark.train, transform, seed=seed, cache_bytes=2**29))

    def held_out_data(self, transform: Callable[..., Tensor], *, seed: int) -> Dataset:
        return ImageDataset(self.benchmark.validation, transform, seed=seed)

    def named_parameters(self) -> dict[str, nn.Parameter]:
        parameters = super().named_parameters()
        if self.head is not None:  # the text tower plays no part
            parameters = {name: p for name, p in parameters.items() if tower_of(name) == "image"}
            parameters[HEAD] = self.head
        return parameters

    def keys(self, batch: Mapping[str, Any]) -> tuple[Tensor | None, Tensor | None]:
        return batch["index"], None if self.head is not None else self._texts(batch).unique()

    def objective(self, batch: Mapping[str, Any]) -> tuple[Tensor, dict[str, Tensor], dict[str, Tensor]]:
        labels = batch["label"]
        image = self.model.encode_image(batch["pixels"])
        given = {"pixels": batch["pixels"], "labels": labels, "index": batch["index"], "image": image}
        if self.head is not None:
            loss = self._loss(image, self.head, labels, self.scale)
            accuracy = (image @ self.head.T).argmax(1).eq(labels).float().mean()
            return loss, {"accuracy": accuracy}, given
        distinct, inverse = self._texts(batch).unique(return_inverse=True)
        rows = self._tokens.flatten(0, 1)[distinct]
        text = self.model.encode_text(rows)
        inverse = inverse.to(image.device)
        loss = self._loss(image, text, labels, self.scale, index=inverse)
        return loss, {}, {**given, "text": text, "tokens": rows, "text_index": inverse}

    def finish(self, trained: Mapping[str, Tensor]) -> dict[str, Tensor]:
        values = dict(trained)
        self._final_head = values.pop(HEAD, None)
        self._embeddings = {key: known for key, known in self._embeddings.items() if key[0] == 0}
        return values

    @property
    def head_ends(self) -> tuple[Tensor, Tensor] | None:
        """The trained head and the zero-shot classifier that it began as; None without one."""
        return None if self._final_head is None else (self._final_head.detach(), self.zero_shot)

    def reader(self, splits: Mapping[str, PictureSplit]) -> Callable[[float], Classifier | ClassReader]:
        """A classifier, or one for each of the splits where some have classes or templates of their own."""
        kinds = {prompts_of(split): split for split in splits.values()}
        if not any(split.class_names or split.templates for split in kinds.values()):
            return self._classifier

        def reader(alpha: float) -> ClassReader:
            return ClassReader({prompts: self._classifier(alpha, split) for prompts, split in kinds.items()})

        return reader

    def live_reader(self, split: PictureSplit) -> Classifier:
        if self.head is not None:
            weight = self.head.detach()
        elif self._text_moves:
            # No more prompts than pictures, if that is possible.
            templates = self.templates[: max(1, len(split) // len(self.class_names))]
            weight = class_embeddings(self.model, self.class_names, templates)
        else:
            weight = self.zero_shot
        return Classifier(weight=weight, scale=self.model.head_scale)

    def _classifier(self, alpha: float, split: Split | None = None) -> Classifier:
        """Of the classes and templates of a split, or of the benchmark; with the text tower at alpha."""
        names, templates = self.class_names, self.templates
        if split is not None:
            names, templates = self.benchmark.class_names_of(split), self.benchmark.templates_of(split)
        if self.head_ends is None:
            weight = self._text_features(alpha, names, templates)
        else:
            weight = head_at(*self.head_ends, alpha)
            if names != self.class_names:
                weight = weight[self._places(names, split.domain)]
        return Classifier(weight=weight, scale=self.model.head_scale, class_names=names)

    def _text_features(self, alpha: float, names: tuple[str, ...], templates: tuple[str, ...]) -> Tensor:
        """Class embeddings with the text tower at alpha, computed once."""
        key = (alpha if self._text_moves else 0.0, names, templates)
        if key not in self._embeddings:
            self._embeddings[key] = class_embeddings(self.model, names, templates, progress=self.progress)
        return self._embeddings[key]

    def _texts(self, batch: Mapping[str, Any]) -> Int[Tensor, " batch"]:
        """Number of each picture's prompt among all classes × templates."""
        templates = len(self.templates)
        return batch["label"].cpu() * templates + batch["text_pick"].cpu() % templates
