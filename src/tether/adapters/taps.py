"""How something is read and added inside a model without another forward: modules get a class that taps them.

A tapped module is of a subclass of its own class. What it takes and gives passes the taps; its parameters, children,
hooks and its name in error messages are as before. So it copies, pickles, checkpoints and compiles as an ordinary
module does, and `untap` gives it its class back.
"""

from collections.abc import Callable, Iterable
from functools import cache
from typing import Any

from torch import Tensor, nn

from tether.errors import TetherError
from tether.models.site import Layout, Port

Tap = Callable[..., Tensor]
"""What a tensor becomes where it passes; on the way in, what is given beside it comes after it."""


class Tapped(nn.Module):
    """What a tapped module is besides its own class."""

    _own: type[nn.Module]
    _taps_in: tuple[Tap, ...]
    _taps_out: tuple[Tap, ...]

    def forward(self, *inputs: Any, **options: Any) -> Any:
        for tap in self._taps_in:
            inputs = (tap(*inputs), *inputs[1:])
        result = super().forward(*inputs, **options)
        y, others = (result[0], result[1:]) if isinstance(result, tuple) else (result, None)
        for tap in self._taps_out:
            y = tap(y)
        return y if others is None else (y, *others)

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        return _blank, (self._own,), self.__getstate__()


@cache
def tapped(own: type[nn.Module]) -> type[nn.Module]:
    """The tapped class of a class."""
    names = {"_own": own, "__module__": own.__module__, "__qualname__": own.__qualname__}
    return type(own.__name__, (Tapped, own), names)


def tap(module: nn.Module, port: Port, taps: Iterable[Tap]) -> None:
    """Have what passes a module's port pass `taps` too, after those that are there already."""
    if not isinstance(module, Tapped):
        module.__class__ = tapped(type(module))
        module._taps_in = module._taps_out = ()
    name = "_taps_in" if port.side == "input" else "_taps_out"
    setattr(module, name, (*getattr(module, name), *taps))


def check_tappable(module: nn.Module, path: str) -> None:
    """Refuse a module whose forward is not its class's.

    Raises:
        TetherError: somebody replaced it.
    """
    if "forward" in vars(module):
        raise TetherError(
            f"The forward of {path} ({type(module).__name__}) was replaced by another library, so nothing can be "
            f"attached there. Attach first, or take that off."
        )


def untap(module: nn.Module) -> None:
    """Give a module its own class back; nothing happens if it is not tapped."""
    if isinstance(module, Tapped):
        module.__class__ = module._own
        del module._taps_in, module._taps_out


def rows_first(x: Tensor, layout: Layout) -> Tensor:
    """A tensor of any layout with batch first and channels last: [batch, tokens or height and width, channels]."""
    if layout == "NBC":
        return x.transpose(0, 1)
    return x.movedim(1, -1) if layout == "BCHW" else x


def added(x: Tensor, delta: Tensor, layout: Layout) -> Tensor:
    """x of a layout + delta, which has the same tokens in the same order, batch first and channels last."""
    view = rows_first(x, layout)
    delta = delta.reshape(view.shape).to(x.dtype)
    if layout == "NBC":
        return x + delta.transpose(0, 1)
    return x + (delta.movedim(-1, 1) if layout == "BCHW" else delta)


def _blank(own: type[nn.Module]) -> nn.Module:
    """What a pickled tapped module is filled into."""
    cls = tapped(own)
    return cls.__new__(cls)
