"""What a site is, and how sites are chosen."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Literal, get_args

from tether.errors import TetherError, near_misses

Tower = Literal["image", "text"]
Kind = Literal["stem", "attention", "mlp", "block", "linear", "norm"]
Layout = Literal["BNC", "NBC", "BHWC", "BCHW"]
Side = Literal["input", "output"]
Position = Literal["output", "before", "after", "branch", "parallel", "parallel_normalized", "prompt"]
KINDS: tuple[Kind, ...] = get_args(Kind)
POSITIONS: tuple[Position, ...] = get_args(Position)
NORMS = re.compile("(Layer|Batch|Group|RMS|Rms)_?Norm")


@dataclass(frozen=True)
class Port:
    """A tensor that passes a module and can be read or added to there."""

    path: str
    side: Side
    """The module's output (a tensor, or the first item of a tuple), or its first positional argument."""
    tokens: Layout
    """Layout: batch, tokens (or height and width), channels."""


@dataclass(frozen=True)
class Site:
    """A place in a model where something can be attached: what it reads, and where it adds to.

    What is attached computes f(x) of the tensor at `reads` and adds it to every tensor of `writes`, within one
    call of the block. Where a port of `writes` has another layout, f(x) has its tokens in the same order and is
    reshaped to it. The positions, with h0 a block's input, h1 = h0 + attention(norm(h0)) and h2 = h1 + mlp(norm(h1)):

    - "output": the output of one module. Of kind `attention` that of an attention's out-projection and of kind `mlp`
      that of an MLP's second linear, both before LayerScale, drop path and the residual sum; `block` is the output
      of a whole block; `linear` and `norm` are the linears and norms inside the blocks. `stem`, in front of the
      blocks of a hybrid ViT, is the output of the last convolution of each of the stem's residual branches and of
      its projection to tokens.
    - "before" and "after": the residual stream on either side of a branch, of kind `attention` (h0, h1) or `mlp`
      (h1, h2).
    - "branch": what a branch gives, as whole tokens or a whole map (in Swin after windows are put together
      again), before LayerScale, drop path and the residual sum; behind the norm where that follows the branch.
    - "parallel": around a branch and its norm: reads the stream before it, adds to the stream after it.
    - "parallel_normalized": around a branch, behind its norm: reads what the branch reads, adds to what it gives.
    - "prompt": a sequence of kind `block` into which tokens can be inserted at index `prefix_tokens` of what the
      block takes (`reads`), and removed from what it gives (`writes`). Not while `fast_last_block` shortens it.
    """

    path: str
    """The module of `reads`."""
    tower: Tower
    depth: int
    """Number of the block within its tower, from 0; a stem counts as part of block 0."""
    kind: Kind
    width: int
    """Channels of what is read and of what is added."""
    tokens: Layout
    """Layout of what is read."""
    prefix_tokens: int
    """How many tokens of a sequence come before its patches: class token, distillation token, registers."""
    linear: str | None
    """The linear, or the convolution over all channels, whose weight and bias produce the output: where a linear
    adapter is merged."""
    fused: bool
    """The linear is never called as a module; its owner reads the weight and bias itself."""
    windows: bool = False
    """The leading dimension is batch × windows (batch-major): attention inside windows, as in Swin."""
    grid: tuple[int, int] | None = None
    """Rows and columns of patches; None where the model takes pictures of other sizes too."""
    position: Position = "output"
    reads: Port | None = None
    """None is the output of `path`."""
    writes: tuple[Port, ...] = ()
    """Nothing given is `reads`."""

    def __post_init__(self) -> None:
        if self.reads is None:
            object.__setattr__(self, "reads", Port(self.path, "output", self.tokens))
        if not self.writes:
            object.__setattr__(self, "writes", (self.reads,))

    def grid_of(self, tokens: int) -> tuple[int, int]:
        """Rows and columns of the patches in a sequence of `tokens` tokens, prefix tokens included.

        Raises:
            TetherError: the sequence does not fit the site's grid, or there is none and the patches are no square.
        """
        patches = tokens - self.prefix_tokens
        if self.grid is not None and patches == math.prod(self.grid):
            return self.grid
        side = math.isqrt(max(patches, 0))
        if self.grid is not None or side * side != patches or not side:
            expected = f"{self.grid[0]} × {self.grid[1]} patches" if self.grid else "a square of patches"
            raise TetherError(
                f"{self.path} has {tokens} tokens, where {self.prefix_tokens} in front of {expected} were expected. "
                f"Give pictures of the size the model was made for, or attach to a map (see Site.tokens)."
            )
        return side, side


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
