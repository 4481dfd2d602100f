"""m³-Mix: the contrastive loss and the geodesic mixup terms together, with their random shares."""

from dataclasses import dataclass

import numpy
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from tether._distributed import gather_with_grad
from tether.errors import TetherError
from tether.objectives._pairs import paired
from tether.objectives._precision import full_precision
from tether.objectives.geodesic import l_mix, m2_mix, v_mix, vl_mix
from tether.objectives.info_nce import info_nce


@dataclass(frozen=True, kw_only=True)
class GeodesicMixupConfig:
    """Coefficients, temperatures and Beta parameters; the defaults are m³-Mix as its authors' scripts run it.

    `GeodesicMixupConfig(v=0.0, l=0.0, vl=0.0, m2_beta=0.5)` is m²-Mix. The scripts search `m2` in {0.001,
    0.005, 0.01, 0.05} and `vl` in {0.05, 0.1, 0.2}.
    """

    temperature: float = 0.01  # τ1, of the contrastive loss and of V-, L- and VL-Mix
    m2_temperature: float = 0.07  # τ2
    m2: float = 0.01
    v: float = 0.05
    l: float = 0.05  # noqa: E741 — the paper's letter
    vl: float = 0.1
    m2_beta: float = 0.2  # share ~ Beta(β, β)
    beta: float = 0.5  # the same for V-, L- and VL-Mix
    original_negatives: bool = False
    halve_m2: bool = False
    normalise_vl_target: bool = False
    fade: bool = False  # mixup terms divided by epoch + 1

    def __post_init__(self) -> None:
        for name in ("temperature", "m2_temperature", "m2_beta", "beta"):
            if not getattr(self, name) > 0:
                raise TetherError(f"{name} of a geodesic mixup must be above 0; it is {getattr(self, name)}.")
        for name in ("m2", "v", "l", "vl"):
            if not getattr(self, name) >= 0:
                raise TetherError(f"The coefficient {name} must be 0 or more; it is {getattr(self, name)}.")


def draw_share(beta: float, generator: torch.Generator) -> float:
    """One share from Beta(beta, beta), decided by the generator's state alone: equal states, equal shares."""
    seed = int(torch.randint(2**63 - 1, (), generator=generator, device=generator.device))
    return float(numpy.random.default_rng(seed).beta(beta, beta))


class GeodesicMixup(nn.Module):
    """Contrastive loss + coef · (m²-, V-, L-, VL-Mix), each with a share of its own drawn per batch.

    Over several processes every one returns the loss of the global batch, provided that their generators
    agree.

    >>> objective = GeodesicMixup(GeodesicMixupConfig())
    >>> features = torch.nn.functional.normalize(torch.eye(4) + 0.1, dim=-1)
    >>> loss = objective(features, features.roll(1, 1), torch.Generator().manual_seed(0))
    """

    def __init__(self, config: GeodesicMixupConfig) -> None:
        super().__init__()
        self.config = config

    @full_precision
    def forward(
        self,
        image: Float[Tensor, "batch dim"],
        text: Float[Tensor, "texts dim"],
        generator: torch.Generator,
        *,
        epoch: int = 0,
        index: Int[Tensor, " batch"] | None = None,
    ) -> Float[Tensor, ""]:
        """The whole loss of a batch of L2-normalised pairs.

        `epoch`, from 0, matters only with `fade`; `index` is the number of each picture's text where `text`
        holds the distinct texts of the batch only.
        """
        config = self.config
        image, text = gather_with_grad(image), gather_with_grad(paired(text, index, len(image)))
        common = (config.temperature, config.original_negatives)
        loss = info_nce(image, text, 1 / config.temperature)
        fading = 1 / (epoch + 1) if config.fade else 1.0
        # Every share is drawn, used or not: a coefficient of 0 leaves the other terms' shares as they were.
        m2, v, l, vl = (draw_share(b, generator) for b in (config.m2_beta, *3 * [config.beta]))  # noqa: E741
        if config.m2:
            term = m2_mix(image, text, m2, config.m2_temperature, halve=config.halve_m2)
            loss = loss + fading * config.m2 * term
        if config.v:
            loss = loss + fading * config.v * v_mix(image, text, v, *common)
        if config.l:
            loss = loss + fading * config.l * l_mix(image, text, l, *common)
        if config.vl:
            loss = loss + fading * config.vl * vl_mix(image, text, vl, *common, config.normalise_vl_target)
        return loss
