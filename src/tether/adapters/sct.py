"""Salient channel tuning (Zhao et al., "SCT: A Simple Baseline for Parameter-Efficient Fine-Tuning via Salient
Channels", IJCV 2024).

On the stream x behind the attention of every block, a linear L on K of its channels alone:

    x[S] ← x[S] + L x[S],    L [K, K] with a bias

S are the channels of largest salience, found before training by one pass of the frozen model over the training
pictures: of each class the L2 norm of each channel over its pictures and patches, and of these norms the mean over
classes. A module has K² + K numbers; S is no parameter, and part of the state.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from tether.adapters.layers import Linear, normal
from tether.adapters.placed import PlacedAttached, PlacedConfig, require_known, require_width
from tether.adapters.placed_module import Placed, Rows
from tether.adapters.taps import rows_first
from tether.config import method
from tether.errors import TetherError
from tether.models.site import Kind, Port, Position, Select, Site

STD = 0.02


@method("sct")
@dataclass(frozen=True, kw_only=True)
class SCTConfig(PlacedConfig):
    """A linear on the salient channels behind the attention of every block (SCT; Zhao et al., IJCV 2024).

    Args:
        channels: K; the paper takes 96 of 768.
        selection: "data": the most salient ones, and training is refused before `SCTAttached.select_channels` has seen
            pictures. "seed": any, drawn at random, with which the paper compares.

    Raises:
        TetherError: a value is out of range or misspelt.
    """

    select: Select = field(default_factory=lambda: Select(tower="image"))
    channels: int = 96
    selection: Literal["data", "seed"] = "data"

    def __post_init__(self) -> None:
        super().__post_init__()
        require_width("channels", self.channels)
        require_known(self, selection=("data", "seed"))

    @property
    def position(self) -> Position:
        return "after"

    @property
    def kinds(self) -> tuple[Kind, ...]:
        return ("attention",)

    @property
    def identity_at_start(self) -> bool:
        return False

    def module(self, site: Site, generator: torch.Generator) -> "SalientChannels":
        if self.channels > site.width:
            raise TetherError(
                f"{site.path} has {site.width} channels, of which {self.channels} cannot be chosen. Give fewer "
                f"channels."
            )
        weight = normal((self.channels, self.channels), STD, generator, truncation=2 / STD)
        chosen = torch.randperm(site.width, generator=generator)[: self.channels].sort().values
        if self.selection == "data":
            chosen = torch.full_like(chosen, -1)
        return SalientChannels(site, Linear(weight), chosen)

    def attach(self, model: Any, *, seed: int = 0) -> "SCTAttached":
        return SCTAttached(model, self, seed=seed)


class SalientChannels(Placed):
    """f(x) = L x[S] at the channels S, and 0 elsewhere.

    Args:
        site: where it stands.
        linear: L.
        chosen: S, ascending; −1 where nothing is chosen yet.
    """

    def __init__(self, site: Site, linear: Linear, chosen: Int[Tensor, " k"]) -> None:
        super().__init__(site)
        self.linear = linear
        self.register_buffer("chosen", chosen)

    def forward(self, x: Rows) -> Rows:
        change = self.linear(x.index_select(-1, self.chosen))
        return torch.zeros_like(x).index_copy(-1, self.chosen, change.to(x.dtype))


class NothingChosen(SalientChannels):
    """What stands there while no channel is chosen."""

    def forward(self, x: Rows) -> Rows:
        raise TetherError(
            "No salient channels are chosen yet. Call attached.select_channels(batches) on the training pictures "
            "first, or choose them at random with selection=seed."
        )


class SCTAttached(PlacedAttached):
    """Linears on salient channels; see `SCTConfig`.

    attached = attach(model, SCTConfig())
    attached.select_channels((batch["pixels"], batch["label"]) for batch in loader)
    """

    def __init__(self, model: Any, config: SCTConfig, *, seed: int = 0) -> None:
        super().__init__(model, config, seed=seed)
        self._settle()

    def select_channels(
        self, batches: Iterable[tuple[Any, Tensor]], run: Callable[[Any], Any] | None = None
    ) -> None:
        """Choose the most salient channels of every site, by the frozen model.

        Args:
            batches: inputs of the model and the classes of their pictures, best all training pictures, unaugmented.
            run: runs the tower that is tuned on the inputs; None calls the module with them.

        Raises:
            TetherError: there is no batch, or it is merged or detached.
        """
        run = run or self.module
        sums: list[dict[int, Float[Tensor, " width"]]] = [{} for _ in self.sites]
        labels: list[Tensor] = []

        def add(site: Site, into: dict[int, Tensor], port: Port, x: Tensor) -> None:
            x = rows_first(x.detach(), port.tokens)
            x = x[:, site.prefix_tokens :] if x.dim() == 3 else x
            squares = x.float().square().flatten(1, -2).sum(1)
            for label in labels[-1].unique().tolist():
                into[label] = into.get(label, 0) + squares[(labels[-1] == label).to(x.device)].sum(0)

        training = self.module.training
        with self.ordinary() as module, torch.no_grad():
            module.eval()
            handles = [
                _watch(module, site.reads, partial(add, site, into, site.reads))
                for site, into in zip(self.sites, sums, strict=True)
            ]
            try:
                for inputs, classes in batches:
                    labels.append(classes.cpu())
                    run(inputs)
            finally:
                for handle in handles:
                    handle.remove()
                module.train(training)
        if not labels:
            raise TetherError("There were no pictures to choose channels by. Give at least one batch.")
        for placed, of_class in zip(self._placed.values(), sums, strict=True):
            salience = torch.stack([total.sqrt() for total in of_class.values()]).mean(0)
            order = torch.argsort(salience, descending=True, stable=True)  # of equals the first
            placed.chosen.copy_(order[: self.config.channels].sort().values)
        self._settle()

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        super().load_state_dict(state)
        self._settle()

    def _settle(self) -> None:
        """Have every module compute if its channels are chosen."""
        for placed in self._placed.values():
            if not placed.chosen.is_meta:
                placed.__class__ = SalientChannels if bool((placed.chosen >= 0).all()) else NothingChosen


def _watch(module: nn.Module, port: Port, see: Callable[[Tensor], None]) -> Any:
    """Have `see` see what passes a port; gives what to remove."""
    part = module.get_submodule(port.path)
    if port.side == "input":
        return part.register_forward_pre_hook(lambda part, given: see(given[0]))
    return part.register_forward_hook(
        lambda part, given, result: see(result[0] if isinstance(result, tuple) else result)
    )
