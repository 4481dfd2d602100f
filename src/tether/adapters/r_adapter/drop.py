"""What adapter drop does to an adapter's branch: every adapter holds one of these, swapped for every step."""

import warnings
from collections.abc import Callable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from tether.adapters.r_adapter.masks import keep_rows
from tether.errors import TetherError

Linear = Callable[[Tensor], Tensor]


class KeepAll(nn.Module):
    """Nothing is dropped."""

    def forward(self, branch: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch dim"]:
        return branch

    def split(
        self, x: Float[Tensor, "*batch input"], kept: Linear, dropped: Linear
    ) -> Float[Tensor, "*batch dim"]:
        """`kept` of all rows."""
        return kept(x)


class NothingDrawn(KeepAll):
    """Nothing is dropped in a training forward, for want of `begin_step`: says so where gradients are computed.

    Args:
        p: the probability with which the adapter was to be dropped.
    """

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, branch: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch dim"]:
        self._warn()
        return branch

    def split(
        self, x: Float[Tensor, "*batch input"], kept: Linear, dropped: Linear
    ) -> Float[Tensor, "*batch dim"]:
        self._warn()
        return kept(x)

    def _warn(self) -> None:
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            warnings.warn(
                f"An R-Adapter with drop={self.p} is in training mode, but begin_step has drawn nothing for this "
                f"forward: no adapter is dropped. Call attached.begin_step(step, image_keys, text_keys) before "
                f"every forward that trains, with keys for each tower that is run, and eval_mode() otherwise.",
                stacklevel=2,
            )


class DropRows(nn.Module):
    """Some rows (pictures or texts) lose the adapter's branch in this step.

    Args:
        keep: which rows are kept.
        order: the kept rows, then the dropped ones.
        positions: where each row is found in `order`.
        kept: how many are kept.
        dim: the dimension that counts rows, 0, or 1 where tokens come first.
        windows: dimension 0 counts windows of rows.
    """

    def __init__(
        self,
        keep: Bool[Tensor, " rows"],
        order: Int[Tensor, " rows"],
        positions: Int[Tensor, " rows"],
        kept: int,
        *,
        dim: int,
        windows: bool,
    ) -> None:
        super().__init__()
        self.keep, self.positions = keep, positions
        self.kept, self.dropped = order[:kept], order[kept:]
        self.dim, self.windows = dim, windows

    def forward(self, branch: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch dim"]:
        rows = self._by_row(branch)
        keep = self.keep.to(branch.dtype).view((-1, 1, 1) if self.dim == 0 else (1, -1, 1))
        return (rows * keep).view(branch.shape)

    def split(
        self, x: Float[Tensor, "*batch input"], kept: Linear, dropped: Linear
    ) -> Float[Tensor, "*batch dim"]:
        """`kept` of the kept rows and `dropped` of the dropped ones, each row where it was."""
        rows = self._by_row(x)
        parts = [
            kept(rows.index_select(self.dim, self.kept)),
            dropped(rows.index_select(self.dim, self.dropped)),
        ]
        y = torch.cat(parts, dim=self.dim).index_select(self.dim, self.positions)
        return y.view(*x.shape[:-1], y.shape[-1])

    def _by_row(self, x: Float[Tensor, "*batch dim"]) -> Float[Tensor, "first second dim"]:
        rows, expected = x.shape[self.dim], len(self.keep)
        if rows % expected if self.windows else rows != expected:
            raise TetherError(
                f"begin_step was given keys for {expected} rows, but the tower now got {rows}. Give "
                f"begin_step one key per picture and per text of the coming batch, and call eval() before "
                f"encoding others."
            )
        return x if self.dim == 1 else x.reshape(expected, -1, x.shape[-1])


class DropTokens(nn.Module):
    """Some token positions, the same for all rows, lose the adapter's branch in this step.

    Args:
        stream: of this site in this step, see `keep_rows`.
        drop: probability.
        dim: the dimension that counts rows, 0, or 1 where tokens come first.
    """

    def __init__(self, stream: int, drop: float, *, dim: int) -> None:
        super().__init__()
        self.stream, self.p, self.dim = stream, drop, dim

    def forward(self, branch: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch dim"]:
        positions = branch.shape[1:-1] if self.dim == 0 else (branch.shape[0], 1)
        count = torch.Size(positions).numel()
        keys = torch.arange(count, device=branch.device)
        stream = torch.full((), self.stream, dtype=torch.int64, device=branch.device)
        return branch * keep_rows(stream, keys, self.p).to(branch.dtype).view(*positions, 1)
