"""What stands at one site: a module f whose f(x) is added to the model's own tensors."""

import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from tether.adapters.patch_grid import PatchGrid
from tether.adapters.taps import Tap, added, rows_first
from tether.errors import TetherError
from tether.models.site import Port, Site

Rows = Float[Tensor, "batch *tokens width"]
"""What f takes: batch first, then the sequence of tokens or the height and width of a map, channels last."""


class Whole(nn.Module):
    """All of f(x) is added."""

    def forward(self, delta: Rows) -> Rows:
        return delta


class NothingDrawn(Whole):
    """All of f(x) is added for want of `begin_step`: says so where gradients are computed.

    Args:
        drop: the probability with which f(x) was to be dropped.
    """

    def __init__(self, drop: float) -> None:
        super().__init__()
        self.drop = drop

    def forward(self, delta: Rows) -> Rows:
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            warnings.warn(
                f"An adapter with drop={self.drop} is in training mode, but begin_step has drawn nothing for this "
                f"forward, so nothing is dropped. Call attached.begin_step(step, image_keys, text_keys) before every "
                f"forward that trains, with keys for each tower that is run, and eval_mode() otherwise.",
                stacklevel=2,
            )
        return delta


class KeptRows(nn.Module):
    """f(x) is added in some rows (pictures or texts), and scaled there.

    Args:
        factor: of each row, 0 or 1 / (1 − drop).
    """

    def __init__(self, factor: Float[Tensor, " rows"]) -> None:
        super().__init__()
        self.register_buffer("factor", factor, persistent=False)

    def forward(self, delta: Rows) -> Rows:
        if len(delta) != len(self.factor):
            raise TetherError(
                f"begin_step was given keys for {len(self.factor)} rows, but the tower now got {len(delta)}. Give "
                f"begin_step one key per picture and per text of the coming batch, and call eval() before encoding "
                f"others."
            )
        return delta * self.factor.to(delta.dtype).view(-1, *[1] * (delta.dim() - 1))


class Times(nn.Module):
    """f(x) is scaled by alpha."""

    def __init__(self, alpha: float, device: torch.device) -> None:
        super().__init__()
        self.register_buffer("alpha", torch.full((), alpha, device=device), persistent=False)

    def forward(self, delta: Rows) -> Rows:
        return delta * self.alpha.to(delta.dtype)


class Placed(nn.Module, ABC):
    """f at one site; a method derives from it and says what f is in `forward`.

    Args:
        site: where it stands.

    Attributes:
        mixes_tokens: whether f of a token depends on others, as in a convolution.
        grid: rows and columns of the patches, where tokens are a sequence.
        share: what becomes of f(x) before it is added, swapped for every step and every alpha.
    """

    mixes_tokens = False
    drop = 0.0

    def __init__(self, site: Site) -> None:
        super().__init__()
        self.site = site
        self.grid = PatchGrid(site)
        self.share: nn.Module = Whole()
        self._delta: Tensor | None = None

    @abstractmethod
    def forward(self, x: Rows) -> Rows:
        """f(x), of x as `Rows`."""

    @property
    def needs_every_token(self) -> bool:
        """Whether what is read must have all tokens of the block (see `fast_last_block`)."""
        return self.mixes_tokens or self.site.writes != (self.site.reads,)

    def taps(self) -> list[tuple[Port, Tap]]:
        """What is to be done at which port, in the order of a forward."""
        reads, writes = self.site.reads, self.site.writes
        if writes == (reads,):
            return [(reads, Add(self, reads))]
        first = [(reads, ReadAndAdd(self, reads) if reads in writes else Read(self, reads))]
        *middle, last = [port for port in writes if port != reads]
        return [*first, *((port, AddRead(self, port)) for port in middle), (last, AddLast(self, last))]

    def delta(self, x: Tensor, port: Port) -> Rows:
        """What is to be added, of the tensor that passes a port."""
        return self.share(self(rows_first(x, port.tokens)))

    def on_map(
        self,
        z: Float[Tensor, "batch *tokens channels"],
        mix: Callable[[Tensor], Tensor],
        rest: Callable[[Tensor], Tensor],
    ) -> Float[Tensor, "batch *tokens channels"]:
        """`mix` of the patches as a map [batch, height, width, channels], and `rest` of the prefix tokens.

        Raises:
            TetherError: a sequence does not fit the site's grid.
        """
        if z.dim() == 4:
            return mix(z)
        prefix = self.site.prefix_tokens
        patches = mix(z[:, prefix:].unflatten(1, self.grid.of(z.shape[1]))).flatten(1, 2)
        return torch.cat([rest(z[:, :prefix]), patches], dim=1) if prefix else patches

    def train(self, mode: bool = True) -> "Placed":
        """Evaluation mode ends the step: nothing is dropped until the next `begin_step`."""
        super().train(mode)
        if not mode and isinstance(self.share, NothingDrawn | KeptRows):
            self.share = Whole()
        elif mode and self.drop and type(self.share) is Whole:
            self.share = NothingDrawn(self.drop)
        return self

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_delta": None}  # a checkpointed forward may end before its last tap


class _Tap:
    """Something that `placed` does at a port."""

    def __init__(self, placed: Placed, port: Port) -> None:
        self.placed, self.port = placed, port


class Add(_Tap):
    """x + f(x)."""

    def __call__(self, x: Tensor, *_: Any) -> Tensor:
        return added(x, self.placed.delta(x, self.port), self.port.tokens)


class Read(_Tap):
    """x; f(x) is kept for later."""

    def __call__(self, x: Tensor, *_: Any) -> Tensor:
        self.placed._delta = self.placed.delta(x, self.port)
        return x


class ReadAndAdd(_Tap):
    """x + f(x), and f(x) is kept for later."""

    def __call__(self, x: Tensor, *_: Any) -> Tensor:
        delta = self.placed._delta = self.placed.delta(x, self.port)
        return added(x, delta, self.port.tokens)


class AddRead(_Tap):
    """y + f(x) of what was read before."""

    def __call__(self, y: Tensor, *_: Any) -> Tensor:
        return added(y, self.placed._delta, self.port.tokens)


class AddLast(_Tap):
    """The same, and f(x) is forgotten."""

    def __call__(self, y: Tensor, *_: Any) -> Tensor:
        delta, self.placed._delta = self.placed._delta, None
        return added(y, delta, self.port.tokens)
