"""What tasks share that answer for pixels or objects: a head of several layers on the feature maps of an image tower.

The tower moves as the adapter lets it; the head is trained beside it, whole. It began at random, so nothing answers at
alpha 0 as a zero-shot model does: along alpha what the adapter changed is scaled, and the head is as it was trained.
"""

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar

import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import Dataset

from tether import _distributed
from tether._alpha import tower_of
from tether.adapters import Attached
from tether.adapters.head import ModuleHead
from tether.config import method_of
from tether.data.augmentation import AugmentationConfig
from tether.data.dense import Answer, DenseBenchmark, DenseSplit
from tether.data.dense_dataset import DenseDataset, collate_dense
from tether.data.dense_transforms import (
    DenseAugmentationConfig,
    DenseTransform,
    Fit,
    dense_test_transform,
    dense_train_transform,
)
from tether.data.records import PictureBenchmark
from tether.data.seeds import derived_seed
from tether.errors import TetherError
from tether.evaluation.classifier import evaluating
from tether.evaluation.drawing import Drawn, address_of, legend_of
from tether.evaluation.encoder import FeatureMaps, WithAnswers
from tether.evaluation.scoring import Progress, Reader
from tether.families import ObjectiveConfig, TaskConfig
from tether.models import Model
from tether.models.modes import in_evaluation_mode
from tether.recipe import Recipe
from tether.tasks.task import Task, TrainingData

PREFIX = "head."
"""Of the names of a head's parameters among what is trained."""


@dataclass(frozen=True, kw_only=True)
class DenseConfig(TaskConfig):
    """How pictures with their answers come to the model.

    Args:
        augmentation: what training pictures and their answers go through, together.
        fit: how other pictures are brought to the model's size: "pad" keeps the ratio of their sides, "squash" not.
    """

    zero_shot: ClassVar[bool] = False

    augmentation: DenseAugmentationConfig = field(default_factory=DenseAugmentationConfig)
    fit: Fit = "pad"


class DenseTask(Task):
    """Pictures with answers for pixels or objects, and a head on feature maps.

    A task of this kind says what `answers` it needs, makes its head of plain options and gives loss and readers.

    Args:
        benchmark: a `DenseBenchmark`.

    Attributes:
        own_objective: the objective that stands for the loss of its head.
        encoding: how pictures are put through the model, made with the way they are fitted into its size.

    Raises:
        TetherError: the pictures have no such answers, the model gives no feature maps, or something in the recipe
            makes no sense with a head of several layers.
    """

    answers: ClassVar[Answer]
    own_objective: ClassVar[type[ObjectiveConfig]]
    encoding: ClassVar[type[WithAnswers]] = FeatureMaps
    benchmark: DenseBenchmark
    pooled = False
    draws = True
    own_loss = True

    def __init__(
        self,
        recipe: Recipe,
        model: Model,
        benchmark: PictureBenchmark,
        progress: Progress | None = None,
    ) -> None:
        super().__init__(recipe, model, benchmark, progress)
        self._check_data(benchmark)
        self._check_recipe(recipe)
        self.encoder = self.encoding(fit=recipe.task.fit)
        self.head_options = self.options_of_head()
        seed = derived_seed(recipe.training.seed, "head")
        self.head_module = self.make_head(model, self.head_options, seed=seed).to(model.device)
        self.set_head_mode(training=True)

    # What a task of this kind says about itself.

    @abstractmethod
    def options_of_head(self) -> dict[str, Any]:
        """By which `make_head` makes the head again, as plain data."""

    @staticmethod
    @abstractmethod
    def make_head(model: Model, options: Mapping[str, Any], *, seed: int) -> nn.Module:
        """The head with weights that are random by the seed; the global random stream is left as it was."""

    @abstractmethod
    def reader_of(self, head: Callable[..., Any]) -> Reader:
        """What a head answers to what the encoder gives."""

    @abstractmethod
    def draw(self, picture: Image.Image, output: Any) -> tuple[Image.Image, Image.Image, set[int]]:
        """Truth and answer over a picture, and the classes that are seen in them.

        Args:
            output: the reader's for this picture, with the truth.
        """

    # What of `head_module` is the head: all of it, unless it holds the trunk too.

    def head_parameters(self) -> dict[str, nn.Parameter]:
        """What of the head is trained, by name."""
        return dict(self.head_module.named_parameters())

    def head_state(self) -> dict[str, Tensor]:
        """Parameters and running statistics of the head, by name, sharing memory with it."""
        return dict(self.head_module.state_dict())

    def set_head_mode(self, *, training: bool) -> None:
        """Set the head to training or evaluation mode."""
        self.head_module.train(training)

    # What follows from it.

    def _check_data(self, benchmark: PictureBenchmark) -> None:
        known = getattr(benchmark, "answers", ())
        if self.answers not in known:
            has = " and ".join(map(repr, known)) if known else benchmark.knows
            raise TetherError(
                f"The task {method_of(type(self.recipe.task))} needs answers of the kind {self.answers!r}, and "
                f"{benchmark.name} has {has}. Use other data (scenes, mask_folders, voc, ade20k, coco) or another task."
            )

    def _check_recipe(self, recipe: Recipe) -> None:
        task = method_of(type(recipe.task))
        if type(recipe.objective) is not self.own_objective:
            raise TetherError(
                f"The task {task} has the loss of its head, in place of one on image features. Use "
                f"objective.method={method_of(self.own_objective)}."
            )
        for what, given in (("regularizers", recipe.regularizers), ("probe", recipe.probe)):
            if given:
                raise TetherError(
                    f"`{what}` is on image features or a linear head, and the task {task} has neither. Leave it out."
                )
        if recipe.ensemble:
            raise TetherError(
                f"This ensemble is one of classifiers, and the task {task} has none. Leave `ensemble` out: the "
                "weights are interpolated by `alpha`."
            )
        if recipe.training.micro_batch is not None:
            raise TetherError(
                f"The loss of the task {task} is a mean over what a batch's answers hold, more in one piece of it than "
                "in another; training.micro_batch would weigh pieces alike. Leave it out, and use a smaller batch_size."
            )
        if recipe.augmentation != AugmentationConfig():
            raise TetherError(
                f"`augmentation` is of pictures alone, and the task {task} moves their answers along: give "
                f"task.augmentation ({', '.join(one.name for one in fields(DenseAugmentationConfig))})."
            )

    def start(self, attached: Attached | None) -> None:
        super().start(attached)
        if attached and self.named_parameters().keys() == set(self.head_names):
            raise TetherError(
                "The adapter changes only the text tower, of which this task makes no use: nothing but the head would "
                "be trained. Let it change the image tower, or say adapter.method=frozen to train the head alone."
            )

    def named_parameters(self) -> dict[str, nn.Parameter]:
        parameters = {name: p for name, p in super().named_parameters().items() if tower_of(name) == "image"}
        return parameters | {f"{PREFIX}{name}": p for name, p in self.head_parameters().items()}

    @property
    def head_names(self) -> tuple[str, ...]:
        return tuple(f"{PREFIX}{name}" for name in self.head_parameters())

    def train_transform(self) -> DenseTransform:
        return dense_train_transform(self.model.image, self.recipe.task.augmentation)

    def test_transform(self) -> DenseTransform:
        return dense_test_transform(self.model.image, fit=self.recipe.task.fit)

    def training_data(self, transform: DenseTransform, *, seed: int) -> TrainingData:
        return TrainingData(
            data=DenseDataset(self.benchmark.train, transform, seed=seed), collate=collate_dense
        )

    def held_out_data(self, transform: DenseTransform, *, seed: int) -> Dataset:
        return DenseDataset(self.benchmark.validation, transform, seed=seed)

    def keys(self, batch: Mapping[str, Any]) -> tuple[Tensor | None, Tensor | None]:
        return batch["index"], None

    @torch.no_grad()
    def finish(self, trained: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Put the final values into the head; from here on nothing in it is random.

        Its running statistics are those of the last step, and with several processes the mean of theirs.
        """
        own = set(self.head_names)
        for name, parameter in self.head_parameters().items():
            parameter.copy_(trained[f"{PREFIX}{name}"])
        for tensor in self._statistics().values():
            if tensor.is_floating_point():
                tensor.copy_(_distributed.average(tensor.flatten()).view_as(tensor))
        self.set_head_mode(training=False)
        return {name: value for name, value in trained.items() if name not in own}

    def _statistics(self) -> dict[str, Tensor]:
        """What of the head's state is no parameter."""
        parameters = self.head_parameters()
        return {name: tensor for name, tensor in self.head_state().items() if name not in parameters}

    def state_dict(self) -> dict[str, dict[str, Tensor]]:
        return {**super().state_dict(), "statistics": self._statistics()}

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Mapping[str, Tensor]]) -> None:
        super().load_state_dict(state)
        for name, tensor in self._statistics().items():
            tensor.copy_(state["statistics"][name])

    @property
    def trained_head(self) -> ModuleHead:
        state = {name: tensor.detach().cpu() for name, tensor in self.head_state().items()}
        return ModuleHead(
            task=str(method_of(type(self.recipe.task))),
            options=self.head_options,
            state=state,
            class_names=self.class_names_of_answers,
            fit=self.recipe.task.fit,
        )

    @property
    def class_names_of_answers(self) -> tuple[str, ...]:
        """What answers count: with the background for pixels, without it for objects."""
        return self.benchmark.semantic_names if self.answers == "semantic" else self.benchmark.class_names

    def reader(self, splits: Mapping[str, DenseSplit]) -> Callable[[float], Reader]:
        reader = self.reader_of(self.head_module)
        return lambda alpha: reader

    def live_reader(self, split: DenseSplit) -> Reader:
        return self.reader_of(_Calm(self.head_module))

    def drawn(self, split: DenseSplit, places: Sequence[int]) -> list[Drawn]:
        data = self.encoder.open_split(self.model, split)
        batch = collate_dense([data[place] for place in places])
        batch["pixels"] = batch["pixels"].to(self.model.device)
        with evaluating(self.model):
            outputs = self.reader_of(_Calm(self.head_module))(self.encoder(self.model, batch))
        result = []
        for place, output in zip(places, outputs, strict=True):
            picture, _ = data.pair(place)
            truth, answer, seen = self.draw(picture, output)
            result.append(
                Drawn(
                    domain=split.domain,
                    identity=split.examples[place].identity,
                    picture=address_of(picture),
                    truth=address_of(truth),
                    answer=address_of(answer),
                    legend=legend_of(seen, self.class_names_of_answers),
                )
            )
        return result


class _Calm:
    """A head in evaluation mode for the time of a call, whatever mode it is trained in."""

    def __init__(self, head: nn.Module) -> None:
        self._head = head

    def __call__(self, *inputs: Any) -> Any:
        with in_evaluation_mode(self._head):
            return self._head(*inputs)


@torch.no_grad()
def widths_of_maps(model: Model) -> tuple[int, ...]:
    """Channels of each feature map of a model.

    Raises:
        TetherError: it gives none.
    """
    with evaluating(model):
        pixels = torch.zeros(1, 3, model.image.height, model.image.width)
        return tuple(one.shape[1] for one in model.feature_maps(pixels))
