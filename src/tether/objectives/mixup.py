"""The geodesic mixes as terms beside a contrastive loss, with their random shares; m³-Mix is all four.

"Geodesic Multi-Modal Mixup for Robust Fine-Tuning" (NeurIPS 2023, arXiv 2203.03897) minimises the contrastive
loss plus Σ coefficient · mix, so each of them is a term that is *added*; the formulas are in `geodesic`. The
defaults are those of the authors' scripts, which search the weight of m²-Mix in {0.001, 0.005, 0.01, 0.05} and
that of VL-Mix in {0.05, 0.1, 0.2}.
"""

from abc import abstractmethod
from dataclasses import dataclass, field
from typing import Any

import numpy
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from tether._distributed import gather_with_grad
from tether.config import method, method_of
from tether.families import RegularizerConfig
from tether.objectives._checks import check_positive, check_strengths
from tether.objectives._pairs import paired
from tether.objectives._precision import full_precision
from tether.objectives.geodesic import l_mix, m2_mix, v_mix, vl_mix


@dataclass(frozen=True, kw_only=True)
class MixConfig(RegularizerConfig):
    """What the four mixes have in common.

    Args:
        weight: the coefficient.
        beta: the share of a batch is drawn from Beta(beta, beta).
        temperature: τ; None takes the model's own. The published one is fixed: CLIP's 0.01, 0.07 for m²-Mix.
        fade: divide by epoch + 1, as the published code can.

    Raises:
        TetherError: a number is out of range.
    """

    weight: float
    beta: float = 0.5
    temperature: float | None = 0.01
    fade: bool = False

    def __post_init__(self) -> None:
        check_strengths("geodesic mixup", weight=self.weight)
        check_positive("geodesic mixup", beta=self.beta)
        if self.temperature is not None:
            check_positive("geodesic mixup", temperature=self.temperature)

    @abstractmethod
    def mix(self, image: Tensor, text: Tensor, share: float, temperature: float) -> Tensor:
        """The mix of a batch of pairs at a share, without weight and fading."""

    def term(self, shared: Any) -> "MixupTerm":
        return MixupTerm(self, shared)


@method("m2_mix")
@dataclass(frozen=True, kw_only=True)
class M2MixConfig(MixConfig):
    """m²-Mix; `negative_temperature` and `halve` as in `geodesic.m2_mix`."""

    weight: float = 0.01
    temperature: float | None = 0.07
    negative_temperature: float | None = None
    """A temperature of its own for the mixed negatives."""
    halve: bool = False
    """The mean of both directions instead of their sum."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.negative_temperature is not None:
            check_positive("m2_mix", negative_temperature=self.negative_temperature)

    def mix(self, image: Tensor, text: Tensor, share: float, temperature: float) -> Tensor:
        return m2_mix(image, text, share, temperature, self.negative_temperature, self.halve)


@method("v_mix")
@dataclass(frozen=True, kw_only=True)
class VMixConfig(MixConfig):
    """V-Mix; `original_negatives` as in `geodesic.v_mix`."""

    weight: float = 0.05
    original_negatives: bool = False
    """Mix only the similarities on the diagonal."""

    def mix(self, image: Tensor, text: Tensor, share: float, temperature: float) -> Tensor:
        return v_mix(image, text, share, temperature, self.original_negatives)


@method("l_mix")
@dataclass(frozen=True, kw_only=True)
class LMixConfig(MixConfig):
    """L-Mix; `original_negatives` as in `geodesic.l_mix`."""

    weight: float = 0.05
    original_negatives: bool = False
    """Mix only the similarities on the diagonal."""

    def mix(self, image: Tensor, text: Tensor, share: float, temperature: float) -> Tensor:
        return l_mix(image, text, share, temperature, self.original_negatives)


@method("vl_mix")
@dataclass(frozen=True, kw_only=True)
class VLMixConfig(MixConfig):
    """VL-Mix; `original_negatives` and `normalise_target` as in `geodesic.vl_mix`."""

    weight: float = 0.1
    original_negatives: bool = False
    """Mix only the similarities on the diagonal."""
    normalise_target: bool = False
    """Halve the published target, so that its rows add up to 1."""

    def mix(self, image: Tensor, text: Tensor, share: float, temperature: float) -> Tensor:
        return vl_mix(image, text, share, temperature, self.original_negatives, self.normalise_target)


@method("m3_mix")
@dataclass(frozen=True, kw_only=True)
class M3MixConfig(RegularizerConfig):
    """m³-Mix: the four mixes with weights of their own, and one for their sum."""

    weight: float = 1.0
    """Of the sum of the four mixes."""
    m2: M2MixConfig = field(default_factory=lambda: M2MixConfig(beta=0.2))
    """Options of m²-Mix."""
    v: VMixConfig = field(default_factory=VMixConfig)
    """Options of V-Mix."""
    l: LMixConfig = field(default_factory=LMixConfig)  # noqa: E741 — the paper's letter
    """Options of L-Mix."""
    vl: VLMixConfig = field(default_factory=VLMixConfig)
    """Options of VL-Mix."""

    def __post_init__(self) -> None:
        check_strengths("m3_mix", weight=self.weight)

    def term(self, shared: Any) -> "MixupTerm":
        return MixupTerm(self, shared)


def draw_share(beta: float, generator: torch.Generator) -> float:
    """One share from Beta(beta, beta), decided by the generator's state alone: equal states, equal shares."""
    seed = int(torch.randint(2**63 - 1, (), generator=generator, device=generator.device))
    return float(numpy.random.default_rng(seed).beta(beta, beta))


@full_precision
def mixup(
    config: MixConfig | M3MixConfig,
    image: Float[Tensor, "batch dim"],
    text: Float[Tensor, "batch dim"],
    generator: torch.Generator,
    *,
    scale: float = 100.0,
    epoch: int = 0,
) -> Float[Tensor, ""]:
    """One mix of a batch of L2-normalised pairs, or the weighted sum of the four, without the config's weight.

    Args:
        generator: on the CPU; decides the shares, m² first, then V, L and VL.
        scale: the model's inverse temperature, for a `temperature` of None.
        epoch: from 0, for `fade`.
    """
    if isinstance(config, M3MixConfig):
        parts = (config.m2, config.v, config.l, config.vl)
        terms = [
            (part.weight, mixup(part, image, text, generator, scale=scale, epoch=epoch)) for part in parts
        ]
        return sum((weight * term for weight, term in terms if weight), start=image.new_zeros(()))
    share = draw_share(config.beta, generator)
    temperature = 1 / scale if config.temperature is None else config.temperature
    term = config.mix(image, text, share, temperature)
    return term / (epoch + 1) if config.fade else term


class GeodesicMixup(nn.Module):
    """`mixup` over the pairs of all processes: every process returns the term of the global batch, provided
    that their generators agree.

    >>> from tether.objectives.info_nce import InfoNCE
    >>> config = M3MixConfig()
    >>> image = torch.nn.functional.normalize(torch.eye(4) + 0.1, dim=-1)
    >>> text, generator = image.roll(1, 1), torch.Generator().manual_seed(0)
    >>> loss = InfoNCE()(image, text, 100.0) + config.weight * GeodesicMixup(config)(image, text, generator)
    """

    def __init__(self, config: MixConfig | M3MixConfig) -> None:
        super().__init__()
        self.config = config

    def forward(
        self,
        image: Float[Tensor, "batch dim"],
        text: Float[Tensor, "texts dim"],
        generator: torch.Generator,
        *,
        scale: float = 100.0,
        epoch: int = 0,
        index: Int[Tensor, " batch"] | None = None,
    ) -> Float[Tensor, ""]:
        """See `mixup`; `index` is the number of each picture's text where `text` holds distinct texts only."""
        text = gather_with_grad(paired(text, index, len(image)))
        return mixup(self.config, gather_with_grad(image), text, generator, scale=scale, epoch=epoch)


class MixupTerm:
    """One geodesic mix, or the four of m³-Mix, of the global batch."""

    separable = False

    def __init__(self, config: MixConfig | M3MixConfig, shared: Any) -> None:
        self._config, self._name = config, method_of(type(config))
        shared.require_texts(self._name)

    def __call__(self, step: Any) -> Tensor:
        generator = step.generator(self._name)
        return mixup(self._config, *step.pairs, generator, scale=step.given.scale, epoch=step.epoch)
