"""Classification: pictures of classes, told apart by the texts of their names or by a linear head."""

from collections.abc import Callable, Mapping
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
from tether.data.records import Benchmark, PictureBenchmark, PictureSplit
from tether.errors import TetherError
from tether.evaluation.classifier import Classifier, class_embeddings
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
        return SplitScores(split=split, classes=len(benchmark.class_names), **tensors)


class Classification(Task):
    """Picture–prompt pairs of a benchmark, or a linear head on pictures.

    With a contrastive objective each picture gets a random template filled with its class's name; equal
    prompts of a batch are encoded once. With cross-entropy a head, initialised with the zero-shot classifier,
    stands for the text tower, which does not move. For a model without a text tower the head begins at zero, so that
    alpha 0 is no classifier: all classes are equally likely there.

    Raises:
        TetherError: the pictures have no labels.
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
                f"Classification needs pictures of classes, and {benchmark.name} has captions. Use "
                "task.method=retrieval, or labelled data."
            )
        self.class_names, self.templates = benchmark.class_names, benchmark.templates
        if not model.has_text and not recipe.objective.pairs:  # a head that begins with knowing nothing
            self.zero_shot = torch.zeros(len(self.class_names), model.dim, device=model.device)
        else:
            self.zero_shot = class_embeddings(model, self.class_names, self.templates, progress=progress)
            prompts = fill(self.templates, self.class_names)
            self._tokens = torch.stack([model.tokenize(row) for row in prompts])
        self._final_head: Tensor | None = None

    def start(self, attached: Attached | None) -> None:
        super().start(attached)
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
        own = dict(trained)
        self._final_head = own.pop(HEAD, None)
        return own

    @property
    def head_ends(self) -> tuple[Tensor, Tensor] | None:
        """The trained head and the zero-shot classifier that it began as; None without one."""
        return None if self._final_head is None else (self._final_head.detach(), self.zero_shot)

    def reader(self, splits: Mapping[str, PictureSplit]) -> Callable[[float], Classifier]:
        def classifier(alpha: float) -> Classifier:
            if self.head_ends is not None:
                weight = head_at(*self.head_ends, alpha)
            else:
                names, told = self.class_names, self.progress
                weight = class_embeddings(self.model, names, self.templates, progress=told)
            return Classifier(weight=weight, scale=self.model.head_scale)

        return classifier

    def live_reader(self, split: PictureSplit) -> Classifier:
        if self.head is not None:
            weight = self.head.detach()
        elif any(tower_of(name) == "text" for name in self.named_parameters()):
            # No more prompts than pictures, if that is possible.
            templates = self.templates[: max(1, len(split) // len(self.class_names))]
            weight = class_embeddings(self.model, self.class_names, templates)
        else:
            weight = self.zero_shot
        return Classifier(weight=weight, scale=self.model.head_scale)

    def _texts(self, batch: Mapping[str, Any]) -> Int[Tensor, " batch"]:
        """Number of each picture's prompt among all classes × templates."""
        templates = len(self.templates)
        return batch["label"].cpu() * templates + batch["text_pick"].cpu() % templates
