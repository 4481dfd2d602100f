"""Visual prompt tuning (Jia et al., "Visual Prompt Tuning", ECCV 2022).

p learned tokens of width d stand behind the prefix tokens of the sequence that a block takes:

- "shallow": they enter the first block, and leave behind the last.
- "deep": each block has prompts of its own, which leave behind it.

They are uniform at the start up to √(6 / (i + d)), where i is the fan-in of the patch embedding (3 patch²): p d
numbers, or p d per block. A new model is not the base. Blocks whose attention sees windows, as in Swin, would need
prompts in every window, and a position bias and a mask for them, which no site offers; rotary position embeddings are
made for the patches alone.
"""

import math
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from tether.adapters.layers import uniform
from tether.adapters.patch_grid import patch_embedding
from tether.adapters.placed import (
    PlacedAttached,
    PlacedConfig,
    require_known,
    require_probability,
    require_width,
)
from tether.adapters.placed_module import Placed
from tether.adapters.taps import Tap, rows_first
from tether.config import method
from tether.errors import TetherError
from tether.models.site import Kind, Layout, Port, Position, Select, Site
from tether.models.sites import sites as find_sites


@method("vpt")
@dataclass(frozen=True, kw_only=True)
class VPTConfig(PlacedConfig):
    """Learned tokens in the picture's sequence (VPT; Jia et al., ECCV 2022).

    Args:
        variant: "deep" or "shallow".
        tokens: p; the paper searches 1 to 200.
        dropout: probability with which single values of the prompts are dropped.
        select: which blocks; its kinds play no part.

    Raises:
        TetherError: a value is out of range or misspelt, or `drop` is not 0: prompts are in a sequence or not.
    """

    scalable = False

    select: Select = field(default_factory=lambda: Select(tower="image"))
    variant: Literal["deep", "shallow"] = "deep"
    tokens: int = 5
    dropout: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        require_known(self, variant=("deep", "shallow"))
        require_width("tokens", self.tokens)
        require_probability("dropout", self.dropout)
        if self.drop:
            raise TetherError(
                f"Prompts of single pictures cannot be dropped, so drop is 0, not {self.drop!r}. Single values can: "
                f"dropout."
            )

    @property
    def position(self) -> Position:
        return "prompt"

    @property
    def identity_at_start(self) -> bool:
        return False

    def sites(self, module: nn.Module) -> list[Site]:
        kinds: tuple[Kind, ...] = ("block",)
        try:
            found = find_sites(module, replace(self.select, kinds=kinds), self.position)
        except TetherError as error:
            raise TetherError(
                f"{error} Visual prompts need blocks that take a sequence of any length in which every token sees "
                f"every other; windows, convolutions, rotary position embeddings and texts are none. Choose another "
                f"method there, such as mona or bottleneck."
            ) from error
        if self.variant == "deep":
            return found
        return [replace(found[0], writes=found[-1].writes)]

    def module(self, site: Site, generator: torch.Generator) -> "Prompts":
        """With 16×16 patches of three colours; `VPTAttached` looks what the model has."""
        return self.prompts(site, generator, 3 * 16 * 16)

    def prompts(self, site: Site, generator: torch.Generator, fan_in: int) -> "Prompts":
        """The prompts of one site, in a model of this fan-in of the patch embedding."""
        bound = math.sqrt(6 / (fan_in + site.width))
        return Prompts(site, uniform((self.tokens, site.width), bound, generator), self.dropout)

    def attach(self, model: Any, *, seed: int = 0) -> "VPTAttached":
        return VPTAttached(model, self, seed=seed)


class Prompts(Placed):
    """Tokens that enter a sequence at a site's `reads` and leave it at its `writes`.

    Args:
        site: where they stand.
        prompts: their first values.
        dropout: probability.
    """

    mixes_tokens = True

    def __init__(self, site: Site, prompts: Float[Tensor, "p d"], dropout: float) -> None:
        super().__init__(site)
        self.prompts, self.dropout = nn.Parameter(prompts), dropout

    def taps(self) -> list[tuple[Port, Tap]]:
        reads, (last,) = self.site.reads, self.site.writes
        return [(reads, Enter(self, reads.tokens)), (last, Leave(self, last.tokens))]

    def forward(self, x: Float[Tensor, "batch n d"]) -> Float[Tensor, "batch n_and_p d"]:
        """The sequence with the prompts in it."""
        start = self.site.prefix_tokens
        prompts = F.dropout(self.prompts.to(x.dtype), self.dropout, self.training).expand(len(x), -1, -1)
        return torch.cat([x[:, :start], prompts, x[:, start:]], dim=1)

    def without(self, y: Float[Tensor, "batch n_and_p d"]) -> Float[Tensor, "batch n d"]:
        """The sequence without them."""
        start = self.site.prefix_tokens
        return torch.cat([y[:, :start], y[:, start + len(self.prompts) :]], dim=1)


class _Tap:
    def __init__(self, prompts: Prompts, tokens: Layout) -> None:
        self.prompts, self.tokens = prompts, tokens


class Enter(_Tap):
    """Puts prompts into a sequence."""

    def __call__(self, x: Tensor, *_: Any) -> Tensor:
        return rows_first(self.prompts(rows_first(x, self.tokens)), self.tokens)  # twice is as it was


class Leave(_Tap):
    """Takes them out."""

    def __call__(self, y: Tensor) -> Tensor:
        return rows_first(self.prompts.without(rows_first(y, self.tokens)), self.tokens)


class VPTAttached(PlacedAttached):
    """Prompts in a model; see `VPTConfig`."""

    config: VPTConfig

    def _made(self, site: Site, generator: torch.Generator) -> Prompts:
        embedding = patch_embedding(self.module, site.width)
        if embedding is None:
            return self.config.module(site, generator)
        fan_in = self.module.get_submodule(embedding).weight[0].numel()
        return self.config.prompts(site, generator, fan_in)
