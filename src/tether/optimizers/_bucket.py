"""The tensors that are updated together, and sums and maxima over them that stay right when they are sharded.

A step has no host synchronisation: what is learned per tensor (a radius, a ratio) stays on the device, as one
vector with an entry per tensor of the bucket. On a CPU buckets are small, so that one stays in the cache
through all passes over it.

Sharded tensors (FSDP2 and tensor parallelism: `DTensor`) are updated as their local shards. A *row* is
everything at one index of the first dimension; a vector or a scalar is one row. Sharding the first dimension
of a matrix leaves rows whole, everything else splits them, and per-row sums are then added up over the ranks.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from tether.errors import TetherError
from tether.optimizers._base_step import adamw_step, sgd_step

_ELEMENTS_ON_CPU = 2**22  # few passes over memory that is not in a cache any more
_ELEMENTS = 2**26  # bounds temporary memory: 256 MiB for a list of float32 tensors


def local(tensor: Tensor) -> Tensor:
    """This rank's part of a `DTensor`, sharing its memory; any other tensor itself."""
    to_local = getattr(tensor, "to_local", None)
    return tensor if to_local is None else to_local()


def scalar_dtype(tensor: Tensor) -> torch.dtype:
    """The type of sums over a tensor and of numbers learned beside it: never less than float32."""
    return torch.promote_types(tensor.dtype, torch.float32)


def column(per_row: Tensor, like: Tensor) -> Tensor:
    """A vector with an entry per row, shaped and typed to multiply `like` row by row."""
    values = per_row.to(like.dtype)
    return values.view(-1, *[1] * (like.ndim - 1)) if like.ndim else values.view(())


@dataclass
class Bucket:
    """Tensors of one group with the same device, type, sharding and kind of anchor (`None`: all zero)."""

    group: dict[str, Any]
    split_groups: tuple[Any, ...] = ()  # process groups over which a tensor is split
    row_groups: tuple[Any, ...] = ()  # process groups over which its rows are split
    params: list[Tensor] = field(default_factory=list)
    grads: list[Tensor] = field(default_factory=list)
    anchors: list[Tensor] | None = None
    states: list[dict[str, Tensor]] = field(default_factory=list)

    @property
    def sign(self) -> float:
        """+1 where the gradient is descended, −1 with `maximize`."""
        return -1.0 if self.group["maximize"] else 1.0

    def clock(self) -> Tensor:
        """[tensors] how many steps each tensor has taken so far."""
        steps = [state["step"].item() for state in self.states]  # kept on the CPU: no synchronisation
        return torch.tensor(steps, dtype=scalar_dtype(self.params[0]), device=self.params[0].device)

    def full(self, name: str) -> list[Tensor]:
        """The state tensors of that name that have the shape of their parameter."""
        return [local(state[name]) for state in self.states]

    def scalars(self, name: str) -> Tensor:
        """[tensors] a copy of a number kept for each tensor."""
        return torch.stack([state[name] for state in self.states])

    def store(self, name: str, values: Tensor) -> None:
        torch._foreach_copy_([state[name] for state in self.states], list(values.unbind()))

    def displacements(self) -> list[Tensor]:
        """Fresh tensors c = θ − θ0."""
        if self.anchors is None:
            return [param.clone() for param in self.params]
        return list(torch._foreach_sub(self.params, self.anchors))

    def dots(self, first: Sequence[Tensor], second: Sequence[Tensor]) -> Tensor:
        """[tensors] inner products of whole tensors, of this rank's shards only."""
        dtype = scalar_dtype(first[0])
        return torch.stack(
            [
                torch.dot(x.reshape(-1).to(dtype), y.reshape(-1).to(dtype))
                for x, y in zip(first, second, strict=True)
            ]
        )

    def squares(self, tensors: Sequence[Tensor]) -> Tensor:
        """[tensors] sums of squares, of this rank's shards only."""
        norms = torch._foreach_norm(tensors, 2, dtype=scalar_dtype(tensors[0]))
        return torch.stack(norms).square()

    def total(self, partial: Tensor) -> Tensor:
        """Add up what the ranks hold; the last dimension runs over tensors."""
        return _all_reduce(partial, self.split_groups, "sum")

    def row_norms(self, tensors: Sequence[Tensor], order: int) -> list[Tensor]:
        """[rows] the L1 or L2 norm of every (whole) row of this rank's shards."""
        norms = []
        for tensor in tensors:
            rows = tensor.reshape(1, -1) if tensor.ndim < 2 else tensor
            dims = tuple(range(1, rows.ndim))
            dtype = scalar_dtype(tensor)
            if order == 1 and rows.device.type == "cpu":  # four times as fast as vector_norm there
                norms.append(rows.abs().sum(dims, dtype=dtype))
            else:
                norms.append(torch.linalg.vector_norm(rows, order, dim=dims, dtype=dtype))
        if not self.row_groups:
            return norms
        sizes = [len(norm) for norm in norms]
        powers = _all_reduce(torch.cat(norms).pow_(order), self.row_groups, "sum")
        return list(powers.pow_(1 / order).split(sizes))

    def largest(self, rows: Sequence[Tensor]) -> Tensor:
        """[tensors] the maximum over all rows of each tensor; a rank may hold none of them."""
        return _all_reduce(torch.stack([_maximum(row) for row in rows]), self.split_groups, "max")

    def smallest(self, rows: Sequence[Tensor]) -> Tensor:
        """[tensors] the minimum over all rows of each tensor."""
        return -self.largest([-row for row in rows])

    def per_row(self, values: Tensor, rows: Sequence[Tensor]) -> Tensor:
        """[all rows of all tensors] each tensor's value repeated for its rows."""
        sizes = [len(row) for row in rows]
        lengths = torch.tensor(sizes, device=values.device)
        return values.repeat_interleave(lengths, output_size=sum(sizes))

    def move(self, displacements: Sequence[Tensor], ratios: Sequence[Tensor]) -> None:
        """θ ← θ0 + ratio · c, with a ratio per row."""
        anchors = self.anchors or [None] * len(self.params)
        for param, anchor, c, ratio in zip(self.params, anchors, displacements, ratios, strict=True):
            if anchor is None:
                torch.mul(c, column(ratio, c), out=param)
            else:
                torch.addcmul(anchor, c, column(ratio, c), out=param)

    def base_step(self, grads: list[Tensor] | None = None, *, weight_decay: float) -> None:
        """One step of AdamW or SGD with these gradients (default: their own); advances the clocks."""
        step = adamw_step if self.group["base"] == "adamw" else sgd_step
        states = [{name: local(value) for name, value in state.items()} for state in self.states]
        step(
            self.params,
            self.grads if grads is None else grads,
            states,
            self.group,
            weight_decay=weight_decay,
        )


def collect(
    entries: Iterable[tuple[Tensor, Tensor | None, dict[str, Tensor]]], group: dict[str, Any], foreach: bool
) -> list[Bucket]:
    """Sort (parameter, anchor, state) into buckets; without `foreach` every tensor gets its own.

    A bucket holds the gradients of its parameters, or no gradients where the parameters have none.
    """
    buckets: list[Bucket] = []
    open_buckets: dict[Any, tuple[Bucket, int]] = {}
    for param, anchor, state in entries:
        mesh, placements = getattr(param, "device_mesh", None), getattr(param, "placements", ())
        whole_rows = mesh is None or param.ndim >= 2
        key = (param.device, param.dtype, mesh, placements, whole_rows, anchor is None)
        part = local(param)
        limit = _ELEMENTS_ON_CPU if part.device.type == "cpu" else _ELEMENTS
        bucket, size = open_buckets.get(key, (None, 0))
        if bucket is None or not foreach or size + part.numel() > limit:
            split, rows = _process_groups(param, mesh, placements)
            bucket, size = Bucket(group, split, rows), 0
            bucket.anchors = None if anchor is None else []
            buckets.append(bucket)
        open_buckets[key] = (bucket, size + part.numel())
        bucket.params.append(part)
        if param.grad is not None:
            bucket.grads.append(_gradient(param, mesh, placements))
        bucket.states.append(state)
        if anchor is not None:
            bucket.anchors.append(local(anchor))
    return buckets


def _gradient(param: Tensor, mesh: Any, placements: Any) -> Tensor:
    grad = param.grad
    if grad.is_sparse:
        raise TetherError("Sparse gradients are not supported; make the embedding with sparse=False.")
    if mesh is not None and grad.placements != placements:
        grad = grad.redistribute(mesh, placements)
    return local(grad)


def _process_groups(param: Tensor, mesh: Any, placements: Any) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    """The process groups over which a sharded tensor, and over which its rows, are split."""
    split, rows = [], []
    for dimension, placement in enumerate(placements):
        if placement.is_partial():
            raise TetherError(
                "A parameter holds partial sums; only replicated and sharded parameters can be updated."
            )
        if placement.is_replicate():
            continue
        group = mesh.get_group(dimension)
        split.append(group)
        if param.ndim < 2 or placement.dim != 0:
            rows.append(group)
    return tuple(split), tuple(rows)


def _all_reduce(values: Tensor, groups: tuple[Any, ...], operation: str) -> Tensor:
    for group in groups:
        dist.all_reduce(values, dist.ReduceOp.SUM if operation == "sum" else dist.ReduceOp.MAX, group=group)
    return values


def _maximum(row: Tensor) -> Tensor:
    return row.max() if len(row) else row.new_full((), -torch.inf)
