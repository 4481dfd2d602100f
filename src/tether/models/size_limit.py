"""A configuration may ask for no more than its weights fill: found out before memory is taken for it."""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch.overrides import TorchFunctionMode

from tether.errors import TetherError

_FACTORIES = {
    torch.arange,
    torch.empty,
    torch.empty_strided,
    torch.eye,
    torch.full,
    torch.linspace,
    torch.logspace,
    torch.ones,
    torch.rand,
    torch.randint,
    torch.randn,
    torch.randperm,
    torch.zeros,
}
_VALUES = 2**24  # beside the weights: masks, tables of positions, parts that a model throws away again
_TENSORS = 3_000


class SizeLimit(TorchFunctionMode):
    """While inside, a module that is built may not ask for much more than weights files hold.

    Every tensor is first made without memory; one that is too much is refused there. Twice the values of the files
    (and 16 million) are allowed, and ten times their tensors (and 3,000), as building needs some for a moment.

    Args:
        files: safetensors, of which only the headers are read.

    Raises:
        TetherError: a file is not whole; inside, that more is asked for.
    """

    def __init__(self, files: Sequence[Path]) -> None:
        super().__init__()
        self._files = ", ".join(path.name for path in files[:3])
        shapes = [shape for path in files for shape in _shapes(path)]
        self._held = sum(map(math.prod, shapes)), len(shapes)
        self._values = _VALUES + 2 * self._held[0]
        self._tensors = _TENSORS + 10 * self._held[1]

    def __torch_function__(
        self, func: Callable, types: Any, args: tuple = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if func in _FACTORIES:
            # a generator and pinned memory belong to a device
            plain = {name: value for name, value in kwargs.items() if name not in ("generator", "pin_memory")}
            self._values -= func(*args, **{**plain, "device": "meta"}).numel()
            self._tensors -= 1
            if self._values < 0 or self._tensors < 0:
                raise TetherError(
                    f"The configuration asks for far more than its weights fill: {self._files} holds "
                    f"{self._held[0]:,} values in {self._held[1]:,} tensors. Look at the sizes that it states "
                    f"(layers, width, words, pixels), or put the right weights beside it."
                )
        return func(*args, **kwargs)


def _shapes(file: Path) -> list[list[int]]:
    try:
        with safe_open(file, "pt") as opened:
            return [opened.get_slice(name).get_shape() for name in opened.keys()]  # noqa: SIM118 (no mapping)
    except (OSError, SafetensorError) as error:
        raise TetherError(
            f"{file} is not a whole safetensors file ({error}); it may be cut short."
        ) from error
