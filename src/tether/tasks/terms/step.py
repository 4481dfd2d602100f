"""What terms are given: once before training, and in every step."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from tether._alpha import tower_of
from tether._distributed import gather_with_grad
from tether.adapters.attached import Attached
from tether.data.seeds import derived_seed
from tether.errors import TetherError
from tether.evaluation.classifier import class_embeddings
from tether.models.model import Model
from tether.tasks.terms.reference import Reference


@dataclass(frozen=True, kw_only=True, eq=False)
class TermContext:
    """What is known before training, with the model as it was right after `attach`.

    Args:
        attached: what is attached to the model; None where it is frozen.
        parameters: what is trained, by name, the head included.
        seed: of all random draws, together with the step.
        steps, steps_per_epoch: of the whole training.
        head: the linear head of a cross-entropy, initialised with the zero-shot classifier; None where the
            objective is contrastive.
        zero_shot: the pre-trained model's class embeddings where they are at hand; else they are computed.
    """

    model: Model
    attached: Attached | None
    parameters: Mapping[str, nn.Parameter]
    class_names: Sequence[str]
    templates: Sequence[str]
    seed: int
    steps: int
    steps_per_epoch: int
    head: nn.Parameter | None = None
    zero_shot: Float[Tensor, "classes dim"] | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class StepInput:
    """A training step, after the forward of its batch and in the same mode, under the same drop masks.

    Args:
        step: from 0.
        pixels: as the image tower took them.
        index: of each picture in the data set.
        image: features of length 1, with their gradient.
        scale: inverse temperature of the objective, a number also where it is trained.
        text: features of the batch's distinct prompts, with their gradient; None with cross-entropy.
        tokens: of these prompts, best on the CPU.
        text_index: number of each picture's prompt among them.
    """

    step: int
    pixels: Float[Tensor, "b 3 h w"]
    labels: Int[Tensor, " b"]
    index: Int[Tensor, " b"]
    image: Float[Tensor, "b dim"]
    scale: float
    text: Float[Tensor, "n dim"] | None = None
    tokens: Int[Tensor, "n length"] | None = None
    text_index: Int[Tensor, " b"] | None = None


class Shared:
    """What several terms have in common for the whole of training; each part is made when first asked for."""

    def __init__(self, context: TermContext) -> None:
        self.context = context
        self.scale = context.model.head_scale
        self.device = context.model.device

    @cached_property
    def reference(self) -> Reference:
        """To be asked for when a term is made: a copy taken between a forward and its backward spoils the latter."""
        return Reference(self.context.model, self.context.attached)

    @cached_property
    def zero_shot(self) -> Float[Tensor, "classes dim"]:
        """The pre-trained model's class embeddings."""
        if self.context.zero_shot is not None:
            return self.context.zero_shot.detach().to(self.device)
        with self.reference.model() as model:
            return class_embeddings(model, self.context.class_names, self.context.templates)

    @property
    def classes(self) -> Tensor:
        """Rows that pictures are classified with: the head, or the class embeddings of the pre-trained model."""
        return self.zero_shot if self.context.head is None else self.context.head

    def moves(self, tower: str) -> bool:
        """Whether something of a tower is trained."""
        head = self.context.head
        return any(p is not head and tower_of(name) == tower for name, p in self.context.parameters.items())

    def features(self, texts: Sequence[str]) -> Float[Tensor, "n dim"]:
        """The pre-trained model's features of texts."""
        return self.reference.encode_text(self.context.model.tokenize(texts), batch_size=256)

    def require_images(self, method: str) -> None:
        """Refuse a term on pictures whose tower does not move.

        Raises:
            TetherError: nothing of the image tower is trained.
        """
        if not self.moves("image"):
            raise TetherError(
                f"{method} acts on the features of pictures, but nothing of the image tower is trained. Leave "
                f"it out, or choose an adapter that trains the image tower."
            )

    def require_classes(self, method: str) -> None:
        """Refuse a term on classes where the task has none.

        Raises:
            TetherError: it has none.
        """
        if not self.context.class_names:
            raise TetherError(
                f"{method} needs the names of classes, and this task has none. Leave it out, or use "
                f"task.method=classification."
            )

    def require_texts(self, method: str) -> None:
        """Refuse a term on picture–prompt pairs beside a head.

        Raises:
            TetherError: the objective is cross-entropy.
        """
        if self.context.head is not None:
            raise TetherError(
                f"{method} needs pairs of pictures and prompts, and with cross-entropy there are none. Use "
                f"objective.method=info_nce or mpm_nce."
            )


class Step:
    """One training step, with what several terms need of it computed once."""

    def __init__(self, given: StepInput, shared: Shared) -> None:
        self.given, self.shared = given, shared
        self.number = given.step
        self.epoch = given.step // shared.context.steps_per_epoch

    @cached_property
    def reference_image(self) -> Float[Tensor, "b dim"]:
        """The pre-trained model's features of the batch."""
        return self.shared.reference.encode_image(self.given.pixels)

    @cached_property
    def pairs(self) -> tuple[Float[Tensor, "batch dim"], Float[Tensor, "batch dim"]]:
        """Features of pictures and of their prompts, from all processes."""
        return gather_with_grad(self.given.image), gather_with_grad(self.given.text[self.given.text_index])

    def generator(self, method: str) -> torch.Generator:
        """A stream for a method in this step, the same in every process and after every resumption."""
        seed = derived_seed("terms", self.shared.context.seed, method, self.number)
        return torch.Generator().manual_seed(seed)

    def draw(self, method: str, count: int) -> Int[Tensor, " b"]:
        """For each picture a number below `count`, whatever batch or process it is in; on the CPU."""
        words = ("terms", self.shared.context.seed, method, self.number)
        return torch.tensor([derived_seed(*words, index) % count for index in self.given.index.tolist()])

    def encode_text(self, tokens: Int[Tensor, "n length"], keys: Int[Tensor, " n"]) -> Float[Tensor, "n dim"]:
        """Features of further texts by the model in training.

        Args:
            keys: what identifies each text, as in `Attached.begin_step`, which draws masks for them here and the
                very same ones again for the pictures.
        """
        attached = self.shared.context.attached
        if attached is not None:
            attached.begin_step(self.number, self.given.index, keys)
        return self.shared.context.model.encode_text(tokens)
