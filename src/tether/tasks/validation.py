"""How good a model is on validation pictures while it is trained: a curve to look at, which decides nothing."""

import math
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils.data import Dataset

from tether._alpha import tower_of
from tether.adapters import Attached
from tether.data import ImageDataset, test_transform
from tether.data.records import Benchmark, Split
from tether.evaluation import Classifier, class_embeddings, evaluate
from tether.recipe import Recipe
from tether.tasks.classification import Classification

_SHARE = 10  # one validation picture for so many training pictures: forward only, about 3 % of the time
_LEAST = 64  # fewer pictures say nothing
_CACHE = 2**28


@dataclass(frozen=True, kw_only=True)
class Validation:
    """What `tether.training.fit` calls as `validate`: accuracy of the weights as they are, without any drop.

    After every epoch, or every few where an epoch has fewer than 640 pictures, and at the end. At most a tenth
    as many pictures are looked at as were trained on. Weights, modes and random streams are left as they were.
    """

    task: Classification
    attached: Attached | None
    split: Split
    pictures: Dataset
    """The split's, read once and kept in memory as far as there is room."""
    class_names: tuple[str, ...]
    templates: tuple[str, ...]
    """Of the classifier, where the text tower is trained: no more prompts than pictures, if that is possible."""
    fixed: Float[Tensor, "classes dim"] | None
    """The classifier, where neither the text tower nor a head is trained."""
    recipe: Recipe
    every: int
    """Epochs between measurements."""
    steps: int
    """Of the whole run."""

    @classmethod
    def of(
        cls,
        task: Classification,
        attached: Attached | None,
        recipe: Recipe,
        benchmark: Benchmark,
        zero_shot: Float[Tensor, "classes dim"],
    ) -> "Validation | None":
        """The one for a run; None where there are no validation pictures."""
        examples, whole = len(benchmark.train), benchmark.validation
        if not len(whole):
            return None
        count = min(len(whole), max(_LEAST, examples // _SHARE))
        # at equal distances: lists are in the order of their classes
        chosen = tuple(whole.examples[i * len(whole) // count] for i in range(count))
        split = replace(whole, examples=chosen)
        trains_text = any(tower_of(name) == "text" for name in task.named_parameters())
        return cls(
            task=task,
            attached=attached,
            split=split,
            pictures=ImageDataset(split, test_transform(task.model.image), cache_bytes=_CACHE),
            class_names=benchmark.class_names,
            templates=benchmark.templates[: max(1, count // len(benchmark.class_names))],
            fixed=None if trains_text or task.head is not None else zero_shot,
            recipe=recipe,
            every=math.ceil(_SHARE * count / examples),
            steps=recipe.training.total_steps(examples),
        )

    def __call__(self, epoch: int, step: int) -> dict[str, float] | None:
        """The share of right answers after `step` steps; None where it is not measured now."""
        if (epoch + 1) % self.every and step != self.steps:
            return None
        training, model = self.recipe.training, self.task.model
        if self.attached:
            self.attached.eval_mode()  # every step begins with training mode
        with torch.autocast(model.device.type, torch.bfloat16, enabled=training.precision == "bf16"):
            scores = evaluate(
                model,
                {"validation": self.split},
                self._classifier(),
                workers=training.workers,
                open_split=lambda split: self.pictures,
            )
        return {"accuracy": scores["validation"].top1}

    def _classifier(self) -> Classifier:
        weight = self.fixed if self.task.head is None else self.task.head.detach()
        if weight is None:
            weight = class_embeddings(self.task.model, self.class_names, self.templates)
        return Classifier(weight=weight, scale=self.task.model.logit_scale)
