"""Function-space regularisation on simulated shifted samples, with consistency. A RECONSTRUCTION.

After the idea of "Feed Two Birds with One Scone" (Yuan, Shu, Meng, Xu, arXiv 2509.05328), of which only the
abstract was at hand: penalise the distance of fine-tuned and pre-trained model in function space on
simulated out-of-distribution samples, and ask for stable predictions under perturbation. The simulators,
the divergences, their direction and every number here are this library's choice, not the authors'.

Use it when preserving weights or features does not help an architecture; it costs one forward of the frozen
model and two more of the model in training.

    L = λ₁ · D(f₀(x̃) ‖ f(x̃)) + λ₂ · D(sg f(x) ‖ f(x̃′))

f are logits of the task's classes (zero-shot head), f₀ the pre-trained model, x̃ a simulated shift of x,
x̃′ a small perturbation of x, sg no gradient; add it to a cross-entropy on x.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from tether.config import method
from tether.errors import TetherError, near_misses
from tether.families import RegularizerConfig
from tether.objectives._checks import check_strengths
from tether.objectives._precision import cosine_logits
from tether.objectives.divergence import DIVERGENCES, divergence
from tether.objectives.simulated_shifts import SHIFTS, Simulator, jitter

Logits = Callable[[Tensor], Tensor]


@method("function_space")
@dataclass(frozen=True, kw_only=True)
class FunctionSpaceConfig(RegularizerConfig):
    """Weights, divergences and the simulator; all of them this library's choice.

    Args:
        weight: of both terms together.
        distance_weight: λ₁.
        consistency_weight: λ₂.
        distance, consistency: one of `DIVERGENCES`.
        shift: how x̃ is made: one of `SHIFTS`; "any" draws one of the others for each batch.

    Raises:
        TetherError: a negative weight or an unknown name.
    """

    weight: float = 1.0
    distance_weight: float = 1.0
    consistency_weight: float = 1.0
    distance: str = "kl"
    consistency: str = "kl"
    shift: str = "any"

    def term(self, shared: Any) -> "FunctionSpaceTerm":
        return FunctionSpaceTerm(self, shared)

    def __post_init__(self) -> None:
        for kind in (self.distance, self.consistency):
            if kind not in DIVERGENCES:
                raise TetherError(f"Unknown divergence {kind!r}{near_misses(kind, DIVERGENCES)}")
        if self.shift not in SHIFTS:
            raise TetherError(f"Unknown shift {self.shift!r}{near_misses(self.shift, list(SHIFTS))}")
        check_strengths(
            "function_space",
            weight=self.weight,
            distance_weight=self.distance_weight,
            consistency_weight=self.consistency_weight,
        )


class FunctionSpace:
    """The two terms, without the config's `weight`; `perturb` leaves the label alone.

    >>> model, pretrained = (nn.Sequential(nn.Flatten(), nn.Linear(48, 5)) for _ in range(2))
    >>> regularise = FunctionSpace(pretrained, FunctionSpaceConfig())
    >>> pixels = torch.rand(2, 3, 4, 4)
    >>> logits = model(pixels)
    >>> term = regularise(model, pixels, logits, torch.Generator().manual_seed(0))
    >>> loss = nn.functional.cross_entropy(logits, torch.tensor([0, 3])) + term
    """

    def __init__(
        self,
        pretrained: Logits,
        config: FunctionSpaceConfig,
        *,
        shift: Simulator | None = None,
        perturb: Simulator = jitter,
    ) -> None:
        """`pretrained` gives logits of pixels; a module is run in evaluation mode and left in the mode it
        was in. `shift` takes the place of the config's."""
        self.pretrained, self.config = pretrained, config
        self.shift, self.perturb = shift or SHIFTS[config.shift], perturb

    def __call__(
        self,
        model: Logits,
        pixels: Float[Tensor, "batch 3 height width"],
        logits: Float[Tensor, "batch classes"],
        generator: torch.Generator,
    ) -> Float[Tensor, ""]:
        """The weighted sum of the terms for a batch; `logits` are the model's on the unchanged `pixels`.

        Both models see the very same simulated pictures. A term of weight 0 costs nothing, and the
        generator moves on by one number a call whatever the weights are.
        """
        config = self.config
        shift_seed, perturb_seed = torch.randint(
            2**62, (2,), generator=generator, device=generator.device
        ).tolist()
        loss = logits.new_zeros(())
        if config.distance_weight:
            shifted = self.shift(pixels, torch.Generator().manual_seed(shift_seed))
            with torch.no_grad(), _evaluating(self.pretrained):
                reference = self.pretrained(shifted)
            loss = loss + config.distance_weight * divergence(reference, model(shifted), config.distance)
        if config.consistency_weight:
            perturbed = self.perturb(pixels, torch.Generator().manual_seed(perturb_seed))
            term = divergence(logits, model(perturbed), config.consistency)
            loss = loss + config.consistency_weight * term
        return loss


@contextmanager
def _evaluating(model: Logits) -> Iterator[None]:
    """Evaluation mode for a while, each part of the module put back into its own mode afterwards."""
    modes = [(part, part.training) for part in model.modules()] if isinstance(model, nn.Module) else []
    try:
        for part, _ in modes:
            part.training = False
        yield
    finally:
        for part, training in modes:
            part.training = training


class FunctionSpaceTerm:
    """Class logits on simulated shifts of the batch.

    Pictures are classified with the head where there is one, else both models' with the pre-trained class
    embeddings: then the term holds the image tower alone, and needs no text in a step. Shifts are drawn for the
    batch as a whole.
    """

    separable = False

    def __init__(self, config: FunctionSpaceConfig, shared: Any) -> None:
        shared.require_classes("function_space")
        if shared.context.head is None:
            shared.require_images("function_space")
        self._shared, reference, zero_shot = shared, shared.reference, shared.zero_shot

        def pretrained(pixels: Tensor) -> Tensor:
            return cosine_logits(reference.encode_image(pixels), zero_shot, shared.scale)

        self._term = FunctionSpace(pretrained, config)

    def __call__(self, step: Any) -> Tensor:
        given, classes = step.given, self._shared.classes

        def model(pixels: Tensor) -> Tensor:
            return cosine_logits(self._shared.context.model.encode_image(pixels), classes, given.scale)

        logits = cosine_logits(given.image, classes, given.scale)
        return self._term(model, given.pixels, logits, step.generator("function_space"))
