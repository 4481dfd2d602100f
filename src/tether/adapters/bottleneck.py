"""Bottleneck adapters: f(x) = s ⊙ (U dropout(GELU(D x))), with D down to few channels and U up again.

- "houlsby": on what attention and MLP give, before each residual sum (Houlsby et al., ICML 2019). D and U normal with
  standard deviation 0.01, cut at two of them: nearly the identity.
- "pfeiffer": on what the MLP gives alone (Pfeiffer et al., EACL 2021). The reference library starts D and U with
  standard deviation 0.02.
- "adapter_plus": behind the whole block, on the residual stream, with a learned scale s per channel, at first 1
  (Steitz and Roth, CVPR 2024). D and U as Houlsby's; 8 channels, and `drop` 0.1.

Counts per module of width m and n hidden channels: 2 n m + n + m, and m more with a scale. VPT's published baseline
starts both D and U at 0, from where only the last bias ever moves; here U alone can start at 0 (`initialisation`).
"""

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import nn
from torch.nn import functional as F

from tether.adapters.layers import Linear, normal
from tether.adapters.placed import PlacedConfig, require_known, require_probability, require_width
from tether.adapters.placed_module import Placed, Rows
from tether.config import method
from tether.errors import TetherError
from tether.models.site import Kind, Position, Site


class Variant(NamedTuple):
    """What differs between the published forms."""

    position: Position
    kinds: tuple[Kind, ...]
    hidden: int | None
    """Channels; None is an eighth of the width."""
    std: float
    drop: float
    scaled: bool


VARIANTS = {
    "houlsby": Variant("branch", ("attention", "mlp"), 64, 0.01, 0.0, False),
    "pfeiffer": Variant("branch", ("mlp",), None, 0.02, 0.0, False),
    "adapter_plus": Variant("after", ("mlp",), 8, 0.01, 0.1, True),
}


@method("bottleneck")
@dataclass(frozen=True, kw_only=True)
class BottleneckConfig(PlacedConfig):
    """Bottleneck adapters, as published by Houlsby et al., Pfeiffer et al., or Steitz and Roth (Adapter+).

    Args:
        variant: "houlsby", "pfeiffer" or "adapter_plus": where adapters stand, and the defaults of the rest.
        hidden: channels of the bottleneck; None is the variant's: 64, an eighth of the width, 8.
        initialisation: "published" is the variant's, nearly the identity; "zero" starts U at 0: the identity.
        std: standard deviation of "published"; None is the variant's. The baseline in Mona's tables has 0.02.
        dropout: probability with which single values are dropped behind GELU. The baseline in Mona's tables has 0.1.
        drop: None is the variant's: 0, but 0.1 in Adapter+.

    Raises:
        TetherError: a value is out of range or misspelt.
    """

    variant: Literal["houlsby", "pfeiffer", "adapter_plus"] = "houlsby"
    hidden: int | None = None
    initialisation: Literal["published", "zero"] = "published"
    std: float | None = None
    dropout: float = 0.0
    drop: float | None = None

    def __post_init__(self) -> None:
        require_known(self, variant=tuple(VARIANTS), initialisation=("published", "zero"))
        super().__post_init__()
        require_probability("dropout", self.dropout)
        require_width("hidden", self.hidden)
        if self.std is not None and not 0 < self.std < float("inf"):
            raise TetherError(
                f"std is a positive number or None, not {self.std!r}: with D and U at 0 nothing but a bias would "
                f"ever move. For an identity at the start give initialisation=zero."
            )

    @property
    def published(self) -> Variant:
        return VARIANTS[self.variant]

    @property
    def position(self) -> Position:
        return self.published.position

    @property
    def kinds(self) -> tuple[Kind, ...]:
        return self.published.kinds

    @property
    def rate(self) -> float:
        return self.published.drop if self.drop is None else self.drop

    @property
    def identity_at_start(self) -> bool:
        return self.initialisation == "zero"

    def module(self, site: Site, generator: torch.Generator) -> "Bottleneck":
        hidden = self.hidden or self.published.hidden or max(1, site.width // 8)
        std = self.published.std if self.std is None else self.std
        down = normal((hidden, site.width), std, generator)
        up = normal((site.width, hidden), std, generator)
        up = torch.zeros_like(up) if self.initialisation == "zero" else up
        kind = ScaledBottleneck if self.published.scaled else Bottleneck
        return kind(site, Linear(down), Linear(up), self.dropout)


class Bottleneck(Placed):
    """f(x) = U dropout(GELU(D x)).

    Args:
        site: where it stands.
        down: D.
        up: U.
        dropout: probability.
    """

    def __init__(self, site: Site, down: Linear, up: Linear, dropout: float) -> None:
        super().__init__(site)
        self.down, self.up, self.dropout = down, up, dropout

    def forward(self, x: Rows) -> Rows:
        return self.up(F.dropout(F.gelu(self.down(x)), self.dropout, self.training))


class ScaledBottleneck(Bottleneck):
    """The same times a learned number per channel."""

    def __init__(self, site: Site, down: Linear, up: Linear, dropout: float) -> None:
        super().__init__(site, down, up, dropout)
        self.scale = nn.Parameter(torch.ones(site.width, device="cpu"))

    def forward(self, x: Rows) -> Rows:
        return super().forward(x) * self.scale.to(x.dtype)
