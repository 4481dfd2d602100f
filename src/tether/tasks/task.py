"""What a task is: what is trained besides the adapter, on what, and how answers come about and are scored.

A task knows no adapter's method, no file and no report; `tether.runs` directs. In one run

    config.make(recipe, model, benchmark)   what must be computed of the model before anything is attached
    task.start(attached)                    now everything that is trained is there
    task.training_data(…), task.loss(…)     what `tether.training.fit` trains
    task.finish(trained)                    what was trained, averaged where the recipe says so
    task.reader(splits)                     what is made of features at an alpha; its scorers know the rules

and afterwards, without a model, `config.scores(…)` reads answers again.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from tether.adapters import Attached
from tether.adapters.head import Head, ModuleHead
from tether.data.records import PictureBenchmark, PictureSplit
from tether.data.transforms import test_transform, train_transform
from tether.evaluation.drawing import Drawn
from tether.evaluation.encoder import IMAGE_FEATURES, Encoder
from tether.evaluation.scoring import Progress, Reader
from tether.models import Model
from tether.recipe import Recipe
from tether.tasks.terms import Terms, make_terms
from tether.tasks.terms.step import StepInput, TermContext

HEAD = "head.weight"


@dataclass(frozen=True, kw_only=True, eq=False)
class TrainingData:
    """What is trained on.

    Attributes:
        data: map-style, see `tether.training.fit`.
        collate: makes a batch of items; None for torch's own.
        order: examples of an epoch in order; None for shuffled ones.
    """

    data: Dataset
    collate: Callable[[list[Any]], Any] | None = None
    order: Any = None


class Task(ABC):
    """One task of one run; `tether.training.fit` trains it.

    Args:
        recipe: with the objective.
        model: as it was loaded.
        benchmark: what is trained and tested on.
        progress: told what is being done outside of training, and how far it is.

    Attributes:
        head: a linear head that is trained besides the adapter; None without one.
        class_names, templates: of the classes, for what needs their texts; empty without classes.
        zero_shot: the pre-trained model's class embeddings; None without classes.
        encoder: how pictures become what its readers read.
        draws: whether its answers are seen in pictures, see `drawn`.
        pooled: whether of the last block the pooled token alone is read, so that it may be shortened in training.
        own_loss: whether its head has a loss of its own, so that the objective is not asked for one on features.
    """

    class_names: tuple[str, ...] = ()
    templates: tuple[str, ...] = ()
    zero_shot: Tensor | None = None
    encoder: Encoder = IMAGE_FEATURES
    draws: bool = False
    pooled: bool = True
    own_loss: bool = False

    def __init__(
        self,
        recipe: Recipe,
        model: Model,
        benchmark: PictureBenchmark,
        progress: Progress | None = None,
    ) -> None:
        self.recipe, self.model, self.benchmark, self.progress = recipe, model, benchmark, progress
        self.head: nn.Parameter | None = None
        self._attached: Attached | None = None
        self._terms: Terms | None = None
        self._loss = None if self.own_loss else recipe.objective.loss()
        self._trains_scale, self._fixed_scale = False, model.head_scale

    # What a task says about itself.

    def train_transform(self) -> Callable[..., Any]:
        """What training pictures go through."""
        return train_transform(self.model.image, **asdict(self.recipe.augmentation))

    def test_transform(self) -> Callable[..., Any]:
        """What other pictures go through."""
        return test_transform(self.model.image)

    @abstractmethod
    def training_data(self, transform: Callable[..., Any], *, seed: int) -> TrainingData:
        """What is trained on, pictures through a transform."""

    @abstractmethod
    def held_out_data(self, transform: Callable[..., Any], *, seed: int) -> Dataset:
        """Validation examples as the loss takes them, for an optimizer that learns from held-out ones."""

    @abstractmethod
    def objective(self, batch: Mapping[str, Any]) -> tuple[Tensor, dict[str, Tensor], dict[str, Tensor]]:
        """The main objective of a batch, scalars to log, and the features it was made of, for `StepInput`."""

    @abstractmethod
    def keys(self, batch: Mapping[str, Any]) -> tuple[Tensor | None, Tensor | None]:
        """What identifies the rows that each tower is run on: pictures and texts; None where a tower is not run."""

    @abstractmethod
    def reader(self, splits: Mapping[str, PictureSplit]) -> Callable[[float], Reader]:
        """Called at an alpha of the text tower, with the model there: what is made of features, to be scored.

        Args:
            splits: those that will be asked about.
        """

    @abstractmethod
    def live_reader(self, split: PictureSplit) -> Reader:
        """The same of the model as it is while it is trained, at a small price: for a curve to look at."""

    # What follows from it.

    def start(self, attached: Attached | None) -> None:
        """Take up what is attached to the model; None where it is frozen."""
        self._attached = attached
        self._trains_scale = attached is not None and "logit_scale" in attached.named_parameters()

    def prepare(self, steps: int, steps_per_epoch: int) -> None:
        """Make the regularizers, before training and before a checkpoint is loaded."""
        context = TermContext(
            model=self.model,
            attached=self._attached,
            parameters=self.named_parameters(),
            class_names=self.class_names,
            templates=self.templates,
            seed=self.recipe.training.seed,
            steps=steps,
            steps_per_epoch=steps_per_epoch,
            head=self.head,
            zero_shot=self.zero_shot,
        )
        self._terms = make_terms(self.recipe.regularizers, context)

    @property
    def separable(self) -> bool:
        """Whether the loss is a mean over examples: with a head, and no regularizer on several of them together."""
        return self.head is not None and (self._terms is None or self._terms.separable)

    def named_parameters(self) -> dict[str, nn.Parameter]:
        """What is trained, by name."""
        return dict(self._attached.named_parameters()) if self._attached else {}

    @property
    def head_names(self) -> tuple[str, ...]:
        """Names of the parameters that are a new head's."""
        return () if self.head is None else (HEAD,)

    @property
    def scale(self) -> Any:
        """Inverse temperature, with its gradient where it is trained."""
        if not self._trains_scale:
            return self._fixed_scale
        return self.model.module.logit_scale.float().exp().reshape(())

    def begin_step(self, step: int, batch: Mapping[str, Any]) -> None:
        """Have the adapter draw its masks for the rows of a batch."""
        if self._attached:
            self._attached.train_mode()
            self._attached.begin_step(step, *self.keys(batch))

    def loss(self, batch: Mapping[str, Any], step: int) -> tuple[Tensor, dict[str, Tensor]]:
        """The objective and the regularizers of a batch, and scalars to log."""
        objective, scalars, features = self.objective(batch)
        if not self._terms:
            return objective, scalars
        scale = self.model.head_scale if self._trains_scale else self._fixed_scale
        added = self._terms(StepInput(step=step, scale=scale, **features))
        return objective + sum(added.values()), {**scalars, "objective": objective.detach(), **added}

    def held_out_loss(self, batch: Mapping[str, Any], step: int) -> Tensor:
        """The objective alone, without any drop, of held-out examples that something is learned from."""
        if self._attached:
            self._attached.eval_mode()
        return self.objective(batch)[0]

    def trained(self) -> dict[str, Tensor]:
        """Values of what is trained."""
        return {name: parameter.detach() for name, parameter in self.named_parameters().items()}

    def finish(self, trained: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Keep the final values of what is the task's own; gives the adapter's."""
        return dict(trained)

    @property
    def head_ends(self) -> tuple[Tensor, Tensor] | None:
        """The trained head and what it began as, as they are saved; None without one."""
        return None

    @property
    def trained_head(self) -> Head | ModuleHead | None:
        """The trained head as it is saved; None without one."""
        return None if self.head_ends is None else Head(*self.head_ends)

    def drawn(self, split: PictureSplit, places: Sequence[int]) -> list[Drawn]:
        """Some pictures of a split with truth and answers drawn over them, as the model is set now."""
        return []

    def state_dict(self) -> dict[str, dict[str, Tensor]]:
        return {"trained": self.trained(), "terms": self._terms.state_dict() if self._terms else {}}

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Mapping[str, Tensor]]) -> None:
        for name, parameter in self.named_parameters().items():
            parameter.copy_(state["trained"][name])
        if self._terms:
            self._terms.load_state_dict(state["terms"])
