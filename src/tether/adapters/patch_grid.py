"""Rows and columns of the patches in a sequence, where the model takes pictures of any size: seen as they pass."""

import math
from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn

from tether.adapters.taps import Tap
from tether.models.site import Port, Select, Site
from tether.models.sites import sites as find_sites


class PatchGrid:
    """The grid of one site's sequence.

    Args:
        site: where the sequence is.
    """

    def __init__(self, site: Site) -> None:
        self.site, self.seen = site, site.grid

    def of(self, tokens: int) -> tuple[int, int]:
        """Rows and columns of a sequence of `tokens` tokens: as last seen, or else as the site has it.

        Raises:
            TetherError: the sequence fits neither.
        """
        if self.seen is not None and math.prod(self.seen) == tokens - self.site.prefix_tokens:
            return self.seen
        return self.site.grid_of(tokens)


class SeeBlock:
    """Sees the grid in what a block takes: a map, or rows and columns beside a sequence (Swin of transformers)."""

    def __init__(self, grid: PatchGrid) -> None:
        self.grid = grid

    def __call__(self, x: Tensor, *others: Any) -> Tensor:
        if x.dim() == 4:
            self.grid.seen = (x.shape[1], x.shape[2])
        elif others and isinstance(others[0], tuple | list) and len(others[0]) == 2:
            self.grid.seen = (others[0][0], others[0][1])
        return x


class SeeEmbedding:
    """Sees the grid in what a patch embedding gives: [batch, channels, rows, columns]."""

    def __init__(self, grid: PatchGrid) -> None:
        self.grid = grid

    def __call__(self, y: Tensor) -> Tensor:
        self.grid.seen = (y.shape[-2], y.shape[-1])
        return y


def sights(module: nn.Module, grid: PatchGrid) -> Iterator[tuple[Port, Tap]]:
    """Where the grid of a site can be seen, in the order of a forward; nowhere if it is fixed or the site has a map."""
    site = grid.site
    if site.grid is not None or site.tokens not in ("BNC", "NBC"):
        return
    embedding = patch_embedding(module, site.width)
    if embedding is not None:
        yield Port(embedding, "output", "BCHW"), SeeEmbedding(grid)
    for block in find_sites(module, Select(kinds=("block",), tower=site.tower)):
        if block.depth == site.depth and block.tokens != "BCHW":
            yield Port(block.path, "input", block.tokens), SeeBlock(grid)


def patch_embedding(module: nn.Module, width: int) -> str | None:
    """The convolution that makes tokens of this width, by its path: the last such in the model."""
    found = [
        path
        for path, part in module.named_modules()
        if isinstance(part, nn.Conv2d) and part.out_channels == width and part.groups == 1
    ]
    return found[-1] if found else None
