"""The questions that a recipe answers. Each has a folder with a file per answer, and a base class for their configs.

    What may move?         adapters/     AdapterConfig
    What is minimised?     objectives/   ObjectiveConfig, and RegularizerConfig for what is added to it
    How does it move?      optimizers/   OptimizerConfig
    What is kept?          ensembles/    EnsembleConfig
    What is it for?        tasks/        TaskConfig, on data/ DataConfig

A config is a frozen dataclass that derives from its question's base, is marked with its name by
`tether.config.method`, and says in one method how it becomes the thing itself. A recipe's field is typed by the base
alone, so whoever adds an answer adds one file: in the folder, or anywhere, if the recipe imports it.
"""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from torch import Tensor

from tether.config import Family, method_of
from tether.errors import TetherError


class AdapterConfig(Family, folder="tether.adapters"):
    """What may move.

    Attributes:
        moves: whether anything of the model does; where it does not, only a head can be trained.
    """

    moves: ClassVar[bool] = True

    @abstractmethod
    def attach(self, model: Any, *, seed: int = 0) -> Any:
        """Attach the method to a `tether.Model` or a module; gives its `tether.adapters.Attached`.

        Args:
            seed: of whatever is random in the method.
        """

    def fitting(self, state: Mapping[str, Tensor]) -> "AdapterConfig":
        """This config, changed so that what it attaches has a state's tensors, such as other ranks.

        Raises:
            TetherError: there is no such config, as for all methods whose tensors are given by the model.
        """
        raise TetherError(
            f"An adapter of the method {method_of(type(self))} has the tensors that its model gives it: no ranks can "
            f"be changed, and it cannot be combined with others."
        )

    def factored(self, state: Mapping[str, Tensor]) -> Any:
        """A state factored once, from which those of every rank follow; gives a `tether.adapters.ranks.Ranked`.

        Raises:
            TetherError: the method's tensors have no rank to choose.
        """
        raise TetherError(
            f"An adapter of the method {method_of(type(self))} has the tensors that its model gives it, without "
            f"a rank to choose."
        )

    def as_lora(
        self, attached: Any, state: Mapping[str, Tensor]
    ) -> tuple["AdapterConfig", dict[str, Tensor]]:
        """Config and state of the LoRA (`tether.adapters.LoRAConfig`) that computes the same as a state of `attached`.

        Raises:
            TetherError: there is none.
        """
        raise TetherError(
            f"An adapter of the method {method_of(type(self))} is no LoRA, which is what peft reads. Merge it (tether "
            f"merge) where the method allows it."
        )

    def mean(self, adapters: Sequence[Any]) -> tuple["AdapterConfig", dict[str, Tensor]]:
        """Config and state of the adapter whose merge is the mean of the merges of `adapters`, all of this method.

        Raises:
            TetherError: the method has no such mean, or these adapters have none.
        """
        raise TetherError(
            f"The method {method_of(type(self))} does not say what the mean of its adapters is; average merged models "
            f"instead."
        )


class ObjectiveConfig(Family, folder="tether.objectives"):
    """What is minimised.

    Attributes:
        pairs: whether the loss is on pairs of pictures and texts; else on a linear head's logits.
        many_positives: whether several texts of a batch may be right for a picture.
    """

    pairs: ClassVar[bool] = True
    many_positives: ClassVar[bool] = False

    @abstractmethod
    def loss(self) -> Any:
        """The loss: of pairs `(image, text, labels, scale, *, index)`, of a head `(image, head, labels, scale)`."""


class RegularizerConfig(Family, folder="tether.objectives"):
    """What is added to the objective, weighted by `weight`."""

    weight: float

    @abstractmethod
    def term(self, shared: Any) -> Any:
        """The term of a run: `term(step)` is the loss of a step, see `tether.tasks.terms`."""


class OptimizerConfig(Family, folder="tether.optimizers"):
    """How it moves. Every optimizer has a learning rate, and one for a linear head where that differs.

    Attributes:
        anchored: whether it holds the weights near anchors; it leaves a new head to its plain base step then.
        held_out: whether it learns from held-out examples, for which validation pictures are taken.
    """

    anchored: ClassVar[bool] = False
    held_out: ClassVar[bool] = False

    lr: float
    head_lr: float | None
    weight_decay: float

    @abstractmethod
    def optimizer(self, groups: Any, anchors: Any) -> Any:
        """The `torch.optim.Optimizer` over named parameter groups, see `tether.optimizers.create`."""


class EnsembleConfig(Family, folder="tether.ensembles"):
    """What is kept of the zero-shot and the tuned model, fitted after training."""

    @property
    @abstractmethod
    def needs_validation(self) -> bool:
        """Whether something is chosen or fitted on validation pictures."""

    @abstractmethod
    def fit(self, pair: Any, *, train: Any, validation: Any, seed: int = 0) -> Any:
        """Fit the ensemble of a pair; gives a `tether.ensembles.ensemble.Ensemble`. No test picture is involved.

        Args:
            pair: the zero-shot and the tuned model, a `tether.ensembles.pair.Pair`.
            train: the split that the tuned model was trained on, unaugmented.
            validation: in-distribution pictures that it was not trained on.
            seed: of whatever is drawn.
        """


class TaskConfig(Family, folder="tether.tasks"):
    """What it is for.

    Attributes:
        zero_shot: whether alpha 0 is a model that answers by itself; with a new head of several layers it is not.
    """

    zero_shot: ClassVar[bool] = True

    @abstractmethod
    def make(self, recipe: Any, model: Any, benchmark: Any, *, progress: Any = None) -> Any:
        """The `tether.tasks.task.Task` of a run, with the model as it was loaded.

        Args:
            progress: told what is being done, and how far it is.

        Raises:
            TetherError: the data is of another kind, or something in the recipe makes no sense with this task.
        """

    def examples(self, benchmark: Any) -> int:
        """How many examples are trained on: pictures, unless the task says otherwise."""
        return len(benchmark.train)

    @abstractmethod
    def scores(self, benchmark: Any, split: Any, tensors: Mapping[str, Tensor]) -> Any:
        """The `tether.evaluation.scoring.Scores` of a split from the tensors that they were saved as."""


class DataConfig(Family, folder="tether.data"):
    """What is learned from, and what is tested on.

    Attributes:
        corruptions: which tests of corrupted pictures are added, see `tether.data.corrupted_tests`.
    """

    corruptions: str = "none"

    @abstractmethod
    def load(self) -> Any:
        """The `tether.data.Benchmark`; pictures are read when they are used."""
