"""The way from one set of weights to another, walked in place."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import TracebackType
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from tether._alpha import Alpha, alpha_of, tower_of
from tether.errors import TetherError, near_misses

MARK = "_tether_attached"
"""Set on a module that something is attached to: the class of the handle, or None while it is withdrawn."""


def is_engaged(module: nn.Module) -> bool:
    """Whether a module computes with something that is attached to it."""
    return getattr(module, MARK, None) is not None


@runtime_checkable
class Path(Protocol):
    """From the base model, at alpha 0, to the tuned one, at 1."""

    def set(self, alpha: Alpha, tower: str | None = None) -> None:
        """Have the module compute at alpha; with a tower, that one alone."""

    def changes(self, tower: str | None = None) -> frozenset[str]:
        """Names, or beginnings of names, of the tensors or parts that differ between alphas, of all or one tower."""

    def restore(self) -> None:
        """Have the module compute as the base, bit for bit."""


@contextmanager
def restoring(path: Path) -> Iterator[None]:
    """Whatever happens inside, the path is at its beginning afterwards."""
    try:
        yield
    finally:
        path.restore()


class WeightPath:
    """The line W0 + alpha · delta through a module's weights, walked in place.

        with WeightPath(model, delta) as path:
            for alpha in (0, 0.5, 1):
                path.set(alpha)
                ...
        # the weights are W0 again, bit for bit

    To evaluate many alphas on a stream of batches, decode each batch once and walk the path inside the loop.

    Args:
        module: an ordinary module, with the weights W0 in it. Take adapters out of it first, with
            `attached.ordinary()`.
        delta: by the names of the module's parameters and buffers.
        towers: see `interpolate`.

    Raises:
        TetherError: delta does not fit the module, or adapters are still active in it.
    """

    def __init__(
        self, module: nn.Module, delta: Mapping[str, Tensor], towers: Mapping[str, str] | None = None
    ) -> None:
        if is_engaged(module):
            raise TetherError(
                "This module computes with an adapter, which would count twice. Walk the path inside "
                "`with attached.ordinary(): ...`."
            )
        tensors = dict(module.named_parameters()) | dict(module.named_buffers())
        check_names(delta, tensors)
        self._tensors = {name: tensors[name] for name in delta}
        self._base = {name: tensor.detach().clone() for name, tensor in self._tensors.items()}
        self._delta = {name: delta[name].to(tensor.device) for name, tensor in self._tensors.items()}
        self._towers = {name: tower_of(name) if towers is None else towers[name] for name in delta}

    @torch.no_grad()
    def set(self, alpha: Alpha, tower: str | None = None) -> None:
        """Put W0 + alpha · delta into the module, or into one tower of it."""
        for name, tensor in self._tensors.items():
            if tower not in (None, self._towers[name]):
                continue
            weight = alpha_of(alpha, self._towers[name])
            if weight == 0:
                tensor.copy_(self._base[name])
            else:
                tensor.copy_(added(self._base[name], self._delta[name], self._weight(name, weight)))

    def changes(self, tower: str | None = None) -> frozenset[str]:
        """Names of the tensors that delta changes, of all or of one tower."""
        return frozenset(name for name in self._tensors if tower in (None, self._towers[name]))

    @property
    def delta(self) -> dict[str, Tensor]:
        """W1 − W0 by name."""
        return dict(self._delta)

    def _weight(self, name: str, alpha: float) -> float | Tensor:
        """What the delta of one tensor is multiplied by at an alpha other than 0."""
        return alpha

    def restore(self) -> None:
        """Put W0 back, bit for bit."""
        self.set(0)

    def __enter__(self) -> "WeightPath":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.restore()


def added(base: Tensor, difference: Tensor, weight: float | Tensor) -> Tensor:
    precise = torch.promote_types(base.dtype, torch.float32)
    return (base.to(precise) + weight * difference.to(base.device, precise)).to(base.dtype)


def check_names(names: Mapping[str, Tensor], base: Mapping[str, Tensor]) -> None:
    unknown = [name for name in names if name not in base]
    if unknown:
        raise TetherError(f"The base has no tensor {some(unknown)}{near_misses(unknown[0], list(base))}")
    shapes = [
        f"{name} ({list(tensor.shape)} instead of {list(base[name].shape)})"
        for name, tensor in names.items()
        if tensor.shape != base[name].shape
    ]
    if shapes:
        raise TetherError(f"Shapes differ from the base's: {some(shapes)}.")


def some(names: list[str]) -> str:
    return ", ".join(names[:6]) + (", …" if len(names) > 6 else "")
