"""What a training step costs, counted and not timed: operations, saved activations, peak memory.

All of it also works on fake tensors (`torch._subclasses.FakeTensorMode`), which have shapes and no values, so
that a step of ViT-B/16 with 256 pairs is counted within seconds on a laptop.
"""

import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Of one step. Bytes are those of whole storages, each counted once."""

    flops: int
    saved_bytes: int
    peak_bytes: int


def solve_flops(matrix: tuple[int, ...], right: tuple[int, ...], *_: Any, **__: Any) -> int:
    """Operations of solving n × n systems with k right-hand sides by LU: 2/3 n³ + 2 n² k."""
    n = matrix[-1]
    columns = right[-1] if len(right) >= 2 else 1
    return prod(matrix[:-2]) * (2 * n**3 // 3 + 2 * n**2 * columns)


def convolution_backward_flops(
    gradient: tuple[int, ...], x: tuple[int, ...], weight: tuple[int, ...], *options: Any, **_: Any
) -> int:
    """As many as the forward pass for each gradient asked for; torch's own formula ignores groups."""
    transposed, output_mask = options[4], options[7]
    forward = 2 * prod(x if transposed else gradient) * prod(weight[1:])
    return forward * (output_mask[0] + output_mask[1])


def flop_counter() -> FlopCounterMode:
    """torch's counter, which also counts the linear solve that the folded adapters need."""
    aten = torch.ops.aten
    formulas = {
        aten._linalg_solve_ex: solve_flops,
        aten.convolution_backward: convolution_backward_flops,
    }
    return FlopCounterMode(display=False, custom_mapping=formulas)


def storage_bytes(tensors: Iterable[Tensor]) -> dict[int, int]:
    """Bytes by storage, for tensors that are alive."""
    storages = (tensor.untyped_storage() for tensor in tensors)
    return {storage._cdata: storage.nbytes() for storage in storages}


class SavedActivations:
    """Collects what autograd keeps for the backward pass, less what is in memory anyway.

    Args:
        known: parameters, buffers and inputs; what shares a storage with them is not counted.
    """

    def __init__(self, known: Iterable[Tensor]) -> None:
        self._held = list(known)  # lest something else gets their addresses
        self._known = storage_bytes(self._held).keys()
        self._saved: list[weakref.ref] = []

    @contextmanager
    def collect(self) -> Iterator["SavedActivations"]:
        def pack(tensor: Tensor) -> Tensor:
            kept = tensor.detach()  # lives as long as its node of the graph does
            self._saved.append(weakref.ref(kept))
            return kept

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda kept: kept):
            yield self

    def bytes(self) -> int:
        """Of the distinct storages still kept; ask before the backward pass."""
        alive = [kept for kept in (reference() for reference in self._saved) if kept is not None]
        return sum(size for storage, size in storage_bytes(alive).items() if storage not in self._known)


class PeakMemory(TorchDispatchMode):
    """Tracks the bytes of all tensors that operations make, and the largest sum alive at once (`peak`).

    Scratch memory inside a kernel is not seen.

    Args:
        known: tensors that are there already; their bytes are the start.
    """

    def __init__(self, known: Iterable[Tensor] = ()) -> None:
        super().__init__()
        self._alive: dict[int, int] = {}
        self.peak = self.now = 0
        for tensor in known:
            self._add(tensor)

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self._add(leaf)
        return result

    def _add(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._alive:
            return
        self._alive[key] = storage.nbytes()
        self.now += storage.nbytes()
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._remove, key)

    def _remove(self, key: int) -> None:
        self.now -= self._alive.pop(key)


class Operations(TorchDispatchMode):
    """Lists every operation that runs, with the shapes it gives: the graph as it is executed."""

    def __init__(self) -> None:
        super().__init__()
        self.listed: list[tuple[str, tuple[tuple[int, ...], ...]]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        result = func(*args, **(kwargs or {}))
        shapes = tuple(tuple(leaf.shape) for leaf in tree_leaves(result) if isinstance(leaf, Tensor))
        self.listed.append((str(func), shapes))
        return result


def cost(
    forward: Callable[[], Tensor], finish: Callable[[], None], known: Callable[[], list[Tensor]]
) -> Cost:
    """What one step costs; three steps are taken.

    Args:
        forward: prepares the step and returns the loss.
        finish: the optimizer's part, after the backward pass.
        known: what is in memory between steps: weights, inputs, optimizer state.
    """
    forward().backward()
    finish()
    saved = SavedActivations(known())
    with flop_counter() as counter:
        with saved.collect():
            loss = forward()
        saved_bytes = saved.bytes()
        loss.backward()
    finish()
    del loss
    with PeakMemory(known()) as memory:
        forward().backward()
        finish()
    return Cost(flops=counter.get_total_flops(), saved_bytes=saved_bytes, peak_bytes=memory.peak)
