"""What methods share that put one small module f at every site of a position: f(x) is added where the site says.

x is what passes `site.reads`, and f(x) is added to all of `site.writes`. A method is one file: its f, a
`tether.adapters.placed_module.Placed`, and its config, a `PlacedConfig` that says where f stands and makes it.
"""

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch
from jaxtyping import Int
from torch import Tensor, nn

from tether._alpha import TOWERS
from tether.adapters.attached import Attached
from tether.adapters.patch_grid import sights
from tether.adapters.placed_module import KeptRows, Placed, Times, Whole
from tether.adapters.r_adapter.masks import keep_rows, signed, stream
from tether.adapters.taps import Tap, check_tappable, tap, untap
from tether.config import method_of
from tether.errors import TetherError, near_misses
from tether.families import AdapterConfig
from tether.models.site import Kind, Port, Position, Select, Site
from tether.models.sites import sites as find_sites


@dataclass(frozen=True, kw_only=True)
class PlacedConfig(AdapterConfig):
    """Where modules stand, and what is dropped of them.

    Args:
        select: which sites; of its kinds those count at which the method has a place.
        drop: probability with which a picture or text loses all that one module adds, in training; what is kept is
            scaled by 1 / (1 − drop). 0 drops nothing.

    Attributes:
        spatial: whether f works on a map, so that texts have no place for it.
        scalable: whether alpha can be anything but 0 and 1: f(x) is added, and so can be scaled.

    Raises:
        TetherError: `drop` is out of range.
    """

    spatial: ClassVar[bool] = False
    scalable: ClassVar[bool] = True

    select: Select = field(default_factory=Select)
    drop: float = 0.0

    def __post_init__(self) -> None:
        require_probability("drop", self.rate)

    @property
    def rate(self) -> float:
        """`drop`, as it is used."""
        return self.drop

    @property
    @abstractmethod
    def position(self) -> Position:
        """Where in a block, see `tether.models.site.Site`."""

    @property
    def kinds(self) -> tuple[Kind, ...]:
        """At which kinds of site."""
        return ("attention", "mlp")

    @property
    def identity_at_start(self) -> bool:
        """Whether f(x) is 0 before anything is trained."""
        return True

    @abstractmethod
    def module(self, site: Site, generator: torch.Generator) -> Placed:
        """f of one site, on the CPU; `generator` draws what is random in it."""

    def attach(self, model: Any, *, seed: int = 0) -> "PlacedAttached":
        return PlacedAttached(model, self, seed=seed)

    def sites(self, module: nn.Module) -> list[Site]:
        """The sites in a model.

        Raises:
            TetherError: there are none, or some are in texts where f needs a map.
        """
        name = method_of(type(self))
        kinds = tuple(kind for kind in self.select.kinds if kind in self.kinds)
        if not kinds:
            raise TetherError(
                f"The method {name} has its place at kinds {', '.join(self.kinds)}, and select.kinds is "
                f"{', '.join(self.select.kinds)}. Name at least one of the former."
            )
        found = find_sites(module, replace(self.select, kinds=kinds), self.position)
        if self.spatial and any(site.tower == "text" for site in found):
            raise TetherError(
                f"The method {name} works on the grid of a picture's patches, and texts have none. Choose "
                f"select.tower=image."
            )
        return found


class PlacedAttached(Attached):
    """Modules at the sites of a model; see `PlacedConfig`.

    The state names each tensor by the module that is read: `blocks.0.norm2.mona.down.weight`.

    Args:
        model: a `tether.Model` or any module.
        config: the method's config.
        seed: of what is random at the start, and of what is dropped.

    Raises:
        TetherError: something is attached already, there is no site, or one is taken by another library.
    """

    config: PlacedConfig

    def __init__(self, model: Any, config: PlacedConfig, *, seed: int = 0) -> None:
        super().__init__(model, config)
        for path, part in self.module.named_modules():
            if type(part).__module__.startswith("tether.models.last_block"):
                raise TetherError(
                    f"{path} is shortened by fast_last_block, so that not every token is there to read. Attach first "
                    f"and shorten then."
                )
        self.seed = seed
        self.identity_at_start = config.identity_at_start
        self.sites = config.sites(self.module)
        self._name = str(method_of(type(config)))
        self._placed = {self._named(site): self._new(index, site) for index, site in enumerate(self.sites)}
        self._engaged = False
        self._absent: frozenset[str] = frozenset()  # towers whose modules are left out, at alpha 0
        self._acts = {path: self._taps(placed) for path, placed in self._placed.items()}
        for path in dict.fromkeys(port.path for acts in self._acts.values() for port, _ in acts):
            check_tappable(self.module.get_submodule(path), path)
        self._prepare()
        self._start()

    def _taps(self, placed: Placed) -> list[tuple[Port, Tap]]:
        """What one module does at which port."""
        seen = sights(self.module, placed.grid) if placed.mixes_tokens else ()
        return [*seen, *placed.taps()]

    def _prepare(self) -> None:
        """What else a method looks up, before anything is changed."""

    def _named(self, site: Site) -> str:
        """The path that a site's module gets in the model.

        It is a child of what is read; of what stands around that where that calls all of its children in turn.
        """
        holder, name = site.path, self._name
        while holder and isinstance(self.module.get_submodule(holder), nn.Sequential):
            holder, _, last = holder.rpartition(".")
            name = f"{name}_{last}"
        return f"{holder}.{name}" if holder else name

    def _new(self, index: int, site: Site) -> Placed:
        holder, _, name = self._named(site).rpartition(".")
        if hasattr(self.module.get_submodule(holder), name):
            raise TetherError(f"{holder} has something named {name} already, where an adapter was to be put.")
        generator = torch.Generator().manual_seed(stream(self.seed, index) >> 1)
        placed = self._made(site, generator)
        placed.drop = self.config.rate
        return placed

    def _made(self, site: Site, generator: torch.Generator) -> Placed:
        """f of one site."""
        return self.config.module(site, generator)

    def named_parameters(self) -> dict[str, nn.Parameter]:
        return {
            f"{path}.{name}": parameter
            for path, placed in self._placed.items()
            for name, parameter in placed.named_parameters()
        }

    def state_dict(self) -> dict[str, Tensor]:
        return {
            f"{path}.{name}": tensor
            for path, placed in self._placed.items()
            for name, tensor in placed.state_dict().items()
        }

    def complete(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        fixed = self.state_dict().keys() - self.named_parameters().keys()
        return {name: tensor for name, tensor in self.state_dict().items() if name in fixed} | dict(state)

    def branches(self, tower: str | None = None) -> frozenset[str]:
        return frozenset(
            f"{port.path}."
            for site in self.sites
            if tower in (None, site.tower)
            for port in (site.reads, *site.writes)
        )

    def scale(self, alphas: Mapping[str, float]) -> None:
        if not self.config.scalable:
            super().scale({tower: alphas[tower] for tower in {site.tower for site in self.sites}})
        for placed in self._placed.values():
            alpha = alphas[placed.site.tower]
            placed.share = Whole() if alpha in (0, 1) else Times(alpha, next(placed.parameters()).device)
        absent = frozenset(tower for tower in TOWERS if alphas[tower] == 0)
        if absent != self._absent:
            engaged = self._engaged
            if engaged:
                self._withdraw()
            self._absent = absent
            if engaged:
                self._engage()

    def begin_step(
        self,
        step: int,
        image_keys: Int[Tensor, " b"] | None = None,
        text_keys: Int[Tensor, " n"] | None = None,
    ) -> None:
        super().begin_step(step, image_keys, text_keys)
        rate = self.config.rate
        if not rate:
            return
        for tower, keys in (("image", image_keys), ("text", text_keys)):
            here = [(i, one) for i, one in enumerate(self._placed.values()) if one.site.tower == tower]
            if keys is None or not here:
                continue
            streams = torch.tensor([signed(stream(self.seed, step, index)) for index, _ in here])
            kept = keep_rows(streams, keys.cpu(), rate)
            device = next(here[0][1].parameters()).device
            factors = (kept.float() / (1 - rate)).to(device)
            for (_, placed), factor in zip(here, factors, strict=True):
                placed.share = KeptRows(factor)

    def _engage(self) -> None:
        self._engaged = True
        for path, placed in self._placed.items():
            if placed.site.tower in self._absent:
                continue
            holder, _, name = path.rpartition(".")
            owner = self.module.get_submodule(holder)
            placed.to(_device(self.module, holder))
            placed.train(owner.training)
            setattr(owner, name, placed)
            for port, act in self._acts[path]:
                tap(self.module.get_submodule(port.path), port, [act])

    def _withdraw(self) -> None:
        self._engaged = False
        for path in self._placed:
            holder, _, name = path.rpartition(".")
            owner = self.module.get_submodule(holder)
            if hasattr(owner, name):
                delattr(owner, name)
            for port, _ in self._acts[path]:
                untap(self.module.get_submodule(port.path))


def require_probability(name: str, value: float) -> None:
    """Refuse an option that is no probability below 1.

    Raises:
        TetherError: it is none.
    """
    if not 0 <= value < 1:
        raise TetherError(f"{name} is a probability from 0 to below 1, not {value!r}.")


def require_width(name: str, value: int | None) -> None:
    """Refuse an option that is no number of channels, where None leaves the choice to the method.

    Raises:
        TetherError: it is below 1.
    """
    if value is not None and value < 1:
        raise TetherError(f"{name} is a whole number from 1, not {value!r}.")


def require_known(options: Any, **known: tuple[str, ...]) -> None:
    """Refuse options of a config whose value is not among the known words.

    Raises:
        TetherError: naming the first that is not, and near misses.
    """
    for name, words in known.items():
        value = getattr(options, name)
        if value not in words:
            raise TetherError(f"Unknown {name} {value!r}{near_misses(str(value), words)}")


def _device(module: nn.Module, path: str) -> torch.device:
    """Where the weights at a path are, or those around it."""
    while True:
        parameter = next(module.get_submodule(path).parameters(), None)
        if parameter is not None or not path:
            return torch.device("cpu") if parameter is None else parameter.device
        path = path.rpartition(".")[0]
