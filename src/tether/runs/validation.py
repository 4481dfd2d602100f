"""How good a model is on validation pictures while it is trained: a curve to look at, which decides nothing."""

import math
from dataclasses import dataclass

import torch
from torch.utils.data import Dataset

from tether.adapters import Attached
from tether.data.records import PictureSplit
from tether.data.splitting import thinned
from tether.evaluation import evaluate
from tether.tasks.task import Task

_SHARE = 10  # one validation picture for so many training examples: forward only, about 3 % of the time
_LEAST = 64  # fewer pictures say nothing
_CACHE = 2**28


@dataclass(frozen=True, kw_only=True)
class Validation:
    """What `tether.training.fit` calls as `validate`: the task's first metric of the weights as they are, no drop.

    After every epoch, or every few where an epoch has fewer than 640 examples, and at the end. At most a tenth
    as many pictures are looked at as examples were trained on. Weights, modes and random streams are left as they were.
    """

    task: Task
    attached: Attached | None
    split: PictureSplit
    pictures: Dataset
    """The split's. Where the run's own process reads them, once, and kept in memory as far as there is room: processes
    that are started for a measurement end with it."""
    every: int
    """Epochs between measurements."""
    steps: int
    """Of the whole run."""

    @classmethod
    def of(cls, task: Task, attached: Attached | None, examples: int) -> "Validation | None":
        """The one for a run of so many training examples; None where there are no validation pictures."""
        whole, training = task.benchmark.validation, task.recipe.training
        if not len(whole):
            return None
        count = min(len(whole), max(_LEAST, examples // _SHARE))
        split = thinned(whole, count)
        return cls(
            task=task,
            attached=attached,
            split=split,
            pictures=task.encoder.open_split(
                task.model, split, cache_bytes=0 if training.workers else _CACHE
            ),
            every=math.ceil(_SHARE * count / examples),
            steps=training.total_steps(examples),
        )

    def __call__(self, epoch: int, step: int) -> dict[str, float] | None:
        """The metric by its name after `step` steps; None where it is not measured now."""
        if (epoch + 1) % self.every and step != self.steps:
            return None
        training, model = self.task.recipe.training, self.task.model
        if self.attached:
            self.attached.eval_mode()  # every step begins with training mode
        with torch.autocast(model.device.type, torch.bfloat16, enabled=training.precision == "bf16"):
            scores = evaluate(
                model,
                {"validation": self.split},
                self.task.live_reader(self.split),
                workers=training.workers,
                open_split=lambda split: self.pictures,
            )
        return {scores["validation"].metrics[0].name: scores["validation"].value}
