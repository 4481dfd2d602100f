"""CAR-FT: keep the pre-trained model's reading of *how* a picture is shown.

"Context-Aware Robust Fine-Tuning" (arXiv 2211.16175): cross-entropy plus a divergence between the
distributions over contexts (a photo, a sketch, at night) that pre-trained and fine-tuned picture embeddings
have. Use it with full fine-tuning when the shifts are changes of style; it costs one forward of the frozen
picture encoder. The KL divergence of context distributions is the abstract's; its direction and the weight
1 are not confirmed against the paper.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from tether.config import method
from tether.errors import TetherError
from tether.families import RegularizerConfig
from tether.objectives._checks import check_strengths
from tether.objectives._precision import cosine_logits, full_precision
from tether.objectives.divergence import divergence


@method("car_ft")
@dataclass(frozen=True, kw_only=True)
class CarFTConfig(RegularizerConfig):
    """Weight of the term, and the contexts.

    Args:
        contexts: texts that say how something is shown and not what ("a sketch of a", "at night"); None takes
            the prompt templates without the class name, see `contexts_of`.

    Raises:
        TetherError: a negative weight, or fewer than two different contexts.
    """

    weight: float = 1.0
    """Of the term beside the objective."""
    contexts: tuple[str, ...] | None = None

    def term(self, shared: Any) -> "CarFTTerm":
        return CarFTTerm(self, shared)

    def __post_init__(self) -> None:
        check_strengths("car_ft", weight=self.weight)
        if self.contexts is not None and len(set(self.contexts)) < 2:
            raise TetherError(f"car_ft needs at least two different contexts; found {self.contexts!r}.")


def contexts_of(templates: Sequence[str]) -> tuple[str, ...]:
    """The prompt templates without the class name, each once; one that is nothing but the name is left out.

    >>> contexts_of(["{}", "a photo of a {}.", "a {} at night"])
    ('a photo of a', 'a at night')

    Raises:
        TetherError: fewer than two are left, and the softmax over one is always 1.
    """
    bare = (" ".join(template.replace("{}", " ").split()).strip(" .,") for template in templates)
    contexts = tuple(dict.fromkeys(context for context in bare if context))
    if len(contexts) < 2:
        raise TetherError(
            f"car_ft needs at least two contexts, and the prompt templates give {contexts}. Name some in its "
            f'option `contexts`, such as ["a photo", "a sketch"].'
        )
    return contexts


def car_ft(
    logits: Float[Tensor, "batch contexts"], reference: Float[Tensor, "batch contexts"]
) -> Float[Tensor, ""]:
    """KL(reference ‖ model) between softmax distributions over contexts, mean over the batch.

    Both arguments are scale · picture · context. No gradient reaches `reference`.
    """
    return divergence(reference, logits, "kl")


class CarFT(nn.Module):
    """The term with its frozen contexts: one unit-length text embedding per prompt template without a class
    name.

    >>> import torch
    >>> contexts = torch.nn.functional.normalize(torch.eye(3, 8) + 0.1, dim=-1)
    >>> image = torch.nn.functional.normalize(torch.ones(2, 8), dim=-1)
    >>> float(CarFT(contexts, scale=100.0)(image, image))
    0.0
    """

    contexts: Tensor

    def __init__(self, contexts: Float[Tensor, "contexts dim"], scale: float) -> None:
        super().__init__()
        self.scale = scale
        self.register_buffer("contexts", contexts.detach().clone())

    @full_precision
    def forward(
        self, image: Float[Tensor, "batch dim"], reference: Float[Tensor, "batch dim"]
    ) -> Float[Tensor, ""]:
        """The term for the same pictures embedded by the model in training and by the pre-trained one."""
        logits, before = (cosine_logits(side, self.contexts, self.scale) for side in (image, reference))
        return car_ft(logits, before)


class CarFTTerm:
    """Contexts are read by the pre-trained text tower, once before training."""

    separable = True

    def __init__(self, config: CarFTConfig, shared: Any) -> None:
        shared.require_images("car_ft")
        if not config.contexts:
            shared.require_classes("car_ft without contexts")
        contexts = config.contexts or contexts_of(shared.context.templates)
        self._term = CarFT(shared.features(contexts), shared.scale)

    def __call__(self, step: Any) -> Tensor:
        return self._term(step.given.image, step.reference_image)
