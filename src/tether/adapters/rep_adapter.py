"""RepAdapter (Luo et al., "Towards Efficient Visual Adaption via Structural Re-parameterization", 2023).

In front of attention and MLP, on what each of them reads behind its norm, without an activation in between:

    x + f(x),    f(x) = s (U (D x + c) + b)

D goes down to n channels, U up again in g groups: block-diagonal, so that each group of outputs sees n / g of the
channels. A linear y = W z + v that reads z = x + f(x) is then one linear of x,

    y = (W + s W U D) x + v + s W (U c + b)

so that the adapter merges into it. A module of width m has n m + n + n m / g + m numbers. At the start D is uniform
(Xavier), the rest 0: a new module does nothing. Published: n = 8, g = 2, and s chosen by task.

Where Swin pads its windows behind the norm, as on maps that they do not divide, padding stays 0 with the adapter and
does not when it is merged; a probe shows it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tether._alpha import TOWERS, Alpha, alpha_of
from tether.adapters._tensors import check_state
from tether.adapters.layers import Linear, uniform
from tether.adapters.mergeable import Mergeable, Probe
from tether.adapters.placed import PlacedAttached, PlacedConfig, require_probability, require_width
from tether.adapters.placed_module import Placed, Rows
from tether.config import method
from tether.errors import TetherError
from tether.models.block_sites import NOT_TOKENS
from tether.models.site import Position, Select, Site
from tether.models.sites import sites as find_sites

TENSORS = ("up", "bias", "down.weight", "down.bias")
"""Of each module."""


@method("rep_adapter")
@dataclass(frozen=True, kw_only=True)
class RepAdapterConfig(PlacedConfig):
    """Linear bottlenecks in front of attention and MLP, which merge into these (RepAdapter; Luo et al., 2023).

    Args:
        hidden: n.
        groups: g, by which n and every width are divisible; 1 is without groups.
        scale: s.
        dropout: probability with which single values are dropped between D and U.

    Raises:
        TetherError: a value is out of range, or g does not divide n.
    """

    hidden: int = 8
    groups: int = 2
    scale: float = 1.0
    dropout: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        require_width("hidden", self.hidden)
        require_width("groups", self.groups)
        require_probability("dropout", self.dropout)
        if self.hidden % self.groups:
            raise TetherError(f"groups divides hidden, {self.hidden}; {self.groups} does not.")
        if not 0 < self.scale < float("inf"):
            raise TetherError(
                f"scale is a positive number, not {self.scale!r}: at 0 nothing would ever move."
            )

    @property
    def position(self) -> Position:
        return "parallel_normalized"

    def sites(self, module: nn.Module) -> list[Site]:
        """What a branch reads behind its norm, there to be added to."""
        found = super().sites(module)
        for site in found:
            if site.width % self.groups:
                raise TetherError(f"groups divides every width; {self.groups} does not divide {site.width}.")
        return [replace(site, writes=(site.reads,)) for site in found]

    def module(self, site: Site, generator: torch.Generator) -> "RepAdapter":
        bound = (6 / (site.width + self.hidden)) ** 0.5
        return RepAdapter(site, Linear(uniform((self.hidden, site.width), bound, generator)), self)

    def attach(self, model: Any, *, seed: int = 0) -> "RepAdapterAttached":
        return RepAdapterAttached(model, self, seed=seed)


class RepAdapter(Placed):
    """f(x) = s (U dropout(D x + c) + b) at one site.

    Args:
        site: where it stands.
        down: D and c.
        config: the rest.
    """

    def __init__(self, site: Site, down: Linear, config: RepAdapterConfig) -> None:
        super().__init__(site)
        groups = config.groups
        self.down = down
        shape = (groups, site.width // groups, config.hidden // groups)
        self.up = nn.Parameter(torch.zeros(shape, device="cpu"))
        self.bias = nn.Parameter(torch.zeros(site.width, device="cpu"))
        self.scale = config.scale
        self.dropout = config.dropout

    def forward(self, x: Rows) -> Rows:
        z = F.dropout(self.down(x), self.dropout, self.training)
        up = torch.block_diag(*self.up)
        return self.scale * F.linear(z, up.to(x.dtype), self.bias.to(x.dtype))


class RepAdapterAttached(Mergeable, PlacedAttached):
    """RepAdapters in a model; see `RepAdapterConfig`.

    Raises:
        TetherError: besides what `PlacedAttached` refuses, what reads a norm's output is not known to be linear.
    """

    config: RepAdapterConfig

    def _prepare(self) -> None:
        self._readers = {path: readers(self.module, placed.site) for path, placed in self._placed.items()}
        self._towers = {
            name: self._placed[path].site.tower
            for path, found in self._readers.items()
            for pair in found
            for name in pair
        }

    def delta(self, state: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
        state = self.state_dict() if state is None else state
        check_state(state, self.state_dict())
        result = {}
        for path, found in self._readers.items():
            for weight, bias in found:
                base = self._base_tensor(weight)
                precise = base.to(torch.promote_types(base.dtype, torch.float32))
                named = {name: state[f"{path}.{name}"].to(precise) for name in TENSORS}
                matrix = precise.flatten(1)
                down, constant = named["down.weight"], named["down.bias"]
                up = torch.block_diag(*named["up"])
                result[weight] = (self.config.scale * (matrix @ up) @ down).view(precise.shape)
                result[bias] = self.config.scale * (matrix @ (up @ constant + named["bias"]))
        return result

    def tower_of(self, name: str) -> str:
        return self._towers[name]

    def _outputs_unmerged(
        self, alpha: Alpha, state: Mapping[str, Tensor] | None, probe: Probe
    ) -> list[Tensor]:
        with self._in_state(self.state_dict() if state is None else state):
            self.scale({tower: alpha_of(alpha, tower) for tower in TOWERS})
            try:
                return self._run(probe)
            finally:
                self.scale(dict.fromkeys(TOWERS, 1.0))


def readers(module: nn.Module, site: Site) -> list[tuple[str, str]]:
    """Names of weight and bias of all linears that read a norm's output.

    In front of an attention these are the linears in it that take the stream's width, but for the one that gives its
    output; in front of an MLP those outside of the attention.

    Raises:
        TetherError: there is none, or one has no bias to merge into.
    """
    select = Select(kinds=("attention", "mlp", "block"), tower=site.tower)
    here = {one.kind: one for one in find_sites(module, select) if one.depth == site.depth}
    block, attention, mlp = here["block"].path, here.get("attention"), here.get("mlp")
    owner = attention and f"{block}.{attention.path.removeprefix(f'{block}.').split('.')[0]}"
    last = {one.linear for one in (attention, mlp) if one}
    found = []
    for path, part in module.get_submodule(block).named_modules(prefix=block):
        inside = bool(owner) and f"{path}.".startswith(f"{owner}.")
        if inside != (site.kind == "attention") or path in last or NOT_TOKENS.search(path):
            continue
        if isinstance(part, nn.MultiheadAttention) and part.in_proj_weight is not None:
            found.append((f"{path}.in_proj", part.in_proj_weight, part.in_proj_bias, "_"))
        elif (isinstance(part, nn.Linear) or _is_pointwise(part)) and part.weight.shape[1] == site.width:
            found.append((path, part.weight, part.bias, "."))
    if not found:
        raise TetherError(
            f"Nothing linear is known to read what {site.path} gives, so a RepAdapter there could not be merged. "
            f"Leave it out with select, or take convpass, which merges nowhere."
        )
    for path, _, bias, _ in found:
        if bias is None:
            raise TetherError(
                f"{path} has no bias, into which the constant part of a RepAdapter is merged. Leave it out with "
                f"select, or take convpass, which merges nowhere."
            )
    return [(f"{path}{joint}weight", f"{path}{joint}bias") for path, _, _, joint in found]


def _is_pointwise(part: nn.Module) -> bool:
    """Whether a module is a convolution of single pixels over all channels."""
    return isinstance(part, nn.Conv2d) and part.kernel_size == (1, 1) and part.groups == 1
