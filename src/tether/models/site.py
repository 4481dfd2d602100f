"""What a site is, how sites are chosen, and the sites that every kind of Transformer block has in common."""

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from types import MappingProxyType
from typing import Literal, get_args

from torch import nn

from tether.errors import TetherError, near_misses

Tower = Literal["image", "text"]
Kind = Literal["stem", "attention", "mlp", "block", "linear", "norm"]
Layout = Literal["BNC", "NBC", "BHWC", "BCHW"]
KINDS: tuple[Kind, ...] = get_args(Kind)
NORMS = re.compile("(Layer|Batch|Group|RMS|Rms)_?Norm")
NOT_TOKENS = re.compile(
    r"(^|\.)(cpb_mlp|q_norm|k_norm|ln_q|ln_k|shortcut)(\.|$)"
)  # position biases, per-head norms


@dataclass(frozen=True)
class Site:
    """A place in a model where something can be attached: the output of one of its modules.

    `attention` is the output of an attention's out-projection and `mlp` that of an MLP's second linear, both
    before LayerScale, drop path and the residual sum; `block` is the output of a whole block; `linear` and
    `norm` are the linears and norms inside the blocks. `stem`, in front of the blocks of a hybrid ViT, is the
    output of the last convolution of each of the stem's residual branches and of its projection to tokens.
    """

    path: str
    """The module whose output (a tensor, or the first item of a tuple) is the site."""
    tower: Tower
    depth: int
    """Number of the block within its tower, from 0; a stem counts as part of block 0."""
    kind: Kind
    width: int
    """Channels of the output."""
    tokens: Layout
    """Layout of the output: batch, tokens (or height and width), channels."""
    class_token: bool
    """Token 0 is a class token."""
    linear: str | None
    """The linear, or the convolution over all channels, whose weight and bias produce the output: where a linear
    adapter is merged."""
    fused: bool
    """The linear is never called as a module; its owner reads the weight and bias itself."""
    windows: bool = False
    """The leading dimension is batch × windows (batch-major): attention inside windows, as in Swin."""


@dataclass(frozen=True, kw_only=True)
class Select:
    """Which sites to use; what is left out is not restricted.

    Args:
        tower: "image" or "text".
        kinds: kinds of site, see `Site`.
        depths: first and last block, both included; negative numbers count from the end of each tower, so
            (-4, -1) is the last four blocks of every tower.
        pattern: glob on the site's path; `*` also matches dots. In a model of no known family, sites are
            found by their pattern alone, with kinds ("linear",) or ("norm",).
        count: how many sites this must give; anything else is an error.

    Raises:
        TetherError: a word is misspelt or a range is empty.
    """

    tower: Tower | None = None
    kinds: tuple[Kind, ...] = ("attention", "mlp")
    depths: tuple[int, int] | None = None
    pattern: str | None = None
    count: int | None = None

    def __post_init__(self) -> None:
        if self.tower is not None and self.tower not in get_args(Tower):
            raise TetherError(f"Unknown tower {self.tower!r}{near_misses(str(self.tower), get_args(Tower))}")
        if isinstance(self.kinds, str) or not self.kinds:
            raise TetherError(f"kinds is a tuple such as ('attention', 'mlp'), not {self.kinds!r}.")
        object.__setattr__(self, "kinds", tuple(self.kinds))
        for kind in self.kinds:
            if kind not in KINDS:
                raise TetherError(f"Unknown kind of site {kind!r}{near_misses(str(kind), KINDS)}")
        if self.depths is not None:
            first, last = self.depths
            object.__setattr__(self, "depths", (first, last))
            if (first < 0) == (last < 0) and first > last:
                raise TetherError(f"depths {self.depths} is empty: the first block comes after the last.")


def choose(sites: Sequence[Site], select: Select) -> list[Site]:
    """The sites that `select` asks for, in the order given.

    Raises:
        TetherError: nothing matches, a depth lies outside a tower, the pattern selects everything, or the
            number of sites is not the one that was asked for.
    """
    towers = {site.tower for site in sites}
    if select.tower is not None and select.tower not in towers:
        raise TetherError(f"The model has no {select.tower} tower; it has: {', '.join(sorted(towers))}.")
    in_tower = [site for site in sites if select.tower in (None, site.tower)]
    of_kind = [site for site in in_tower if site.kind in select.kinds]
    if not of_kind:
        kinds = sorted({site.kind for site in in_tower}, key=KINDS.index)
        raise TetherError(
            f"No site is of kind {' or '.join(select.kinds)}. This model has sites of kind "
            f"{', '.join(kinds)}."
        )
    chosen = _within(of_kind, in_tower, select.depths) if select.depths is not None else of_kind
    if select.pattern is not None:
        matching = [site for site in chosen if fnmatchcase(site.path, select.pattern)]
        if not matching:
            raise TetherError(
                f"No site's path matches the pattern {select.pattern!r}"
                f"{near_misses(select.pattern, sorted({_pattern_of(site.path) for site in chosen}))}"
            )
        if len(matching) == len(sites) > 1:
            raise TetherError(
                f"The pattern {select.pattern!r} matches all {len(sites)} sites and so selects nothing; "
                f"leave it out or make it narrower."
            )
        chosen = matching
    if select.count is not None and len(chosen) != select.count:
        paths = ", ".join(site.path for site in chosen[:6])
        raise TetherError(
            f"{len(chosen)} sites match where count={select.count} was asked for: {paths}"
            f"{', …' if len(chosen) > 6 else ''}"
        )
    return chosen


def _within(sites: Sequence[Site], in_tower: Sequence[Site], depths: tuple[int, int]) -> list[Site]:
    """The sites whose block lies in the range of depths, per tower."""
    blocks = {site.tower: 0 for site in in_tower}
    for site in in_tower:
        blocks[site.tower] = max(blocks[site.tower], site.depth + 1)
    ranges: dict[str, range] = {}
    for tower, count in blocks.items():
        first, last = (depth + count if depth < 0 else depth for depth in depths)
        if not 0 <= first <= last < count:
            raise TetherError(
                f"depths {depths} does not fit the {tower} tower, whose blocks are 0 to {count - 1} (or "
                f"{-count} to -1). Give a range that fits, or choose one tower."
            )
        ranges[tower] = range(first, last + 1)
    return [site for site in sites if site.depth in ranges[site.tower]]


def _pattern_of(path: str) -> str:
    return ".".join("*" if part.isdigit() else part for part in path.split("."))


def block_sites(
    block: nn.Module,
    path: str,
    *,
    tower: Tower,
    depth: int,
    width: int,
    tokens: Layout,
    class_token: bool,
    attention: tuple[str, str] | None,
    mlp: str | None,
    windows: bool = False,
    layouts: Mapping[str, Layout] = MappingProxyType({}),
    uncalled: Collection[str] = (),
) -> Iterator[Site]:
    """All sites of one block.

    Args:
        block: the block itself.
        path: its path in the model.
        attention: relative to the block, the module whose output is the attention's, and the linear that
            produces it. Where they differ the linear is read by its owner and never called.
        mlp: relative to the block, the MLP's second linear.
        windows: the attention works on batch × windows of tokens.
        layouts: layout of parts of the block, by relative path, where it is not `tokens`.
        uncalled: further linears, by relative path, that their owner reads without calling them.
    """

    def site(relative: str, kind: Kind, width: int, linear: str | None = None, fused: bool = False) -> Site:
        full = f"{path}.{relative}" if relative else path
        in_window = windows and attention is not None and _inside(relative, attention[0].split(".")[0])
        layout = "BNC" if in_window else layouts.get(relative, tokens)
        merges = linear is not None and isinstance(block.get_submodule(linear), nn.Linear | nn.Conv2d)
        owner = f"{path}.{linear}" if merges else None
        return Site(full, tower, depth, kind, width, layout, class_token, owner, fused, in_window)

    fused_owner = None
    if attention is not None:
        output, linear = attention
        fused_owner = output if output != linear else None
        yield site(output, "attention", block.get_submodule(linear).weight.shape[0], linear, output != linear)
    if mlp is not None:
        yield site(mlp, "mlp", block.get_submodule(mlp).weight.shape[0], mlp)
    yield site("", "block", width)
    for relative, module in block.named_modules():
        called = relative not in uncalled and (fused_owner is None or not _inside(relative, fused_owner))
        if not relative or not called or NOT_TOKENS.search(relative):
            continue
        if isinstance(module, nn.Linear):
            yield site(relative, "linear", module.out_features, relative)
        elif NORMS.search(type(module).__name__) and getattr(module, "weight", None) is not None:
            yield site(relative, "norm", module.weight.shape[0])


def _inside(path: str, ancestor: str) -> bool:
    return path == ancestor or path.startswith(ancestor + ".")


def is_linear(block: nn.Module, path: str) -> bool:
    """Whether the block has a linear, or a module with a linear's weight, at this relative path."""
    try:
        return getattr(block.get_submodule(path), "weight", None) is not None
    except AttributeError:
        return False
