"""R-Adapters at the sites of a model: placing, dropping, folding, merging."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from jaxtyping import Bool, Int
from torch import Tensor, nn

from tether._alpha import Alpha, alpha_of
from tether.adapters.files import Adapter
from tether.adapters.mergeable import Mergeable, Probe
from tether.adapters.r_adapter.arithmetic import combined_state
from tether.adapters.r_adapter.drop import DropRows, DropTokens, KeepAll
from tether.adapters.r_adapter.fold import break_even, fold_in, safe_to_fold, skip
from tether.adapters.r_adapter.low_rank import lora_of
from tether.adapters.r_adapter.masks import keep, keep_rows, signed, stream
from tether.adapters.r_adapter.module import (
    AdaptedAttention,
    AdaptedConvolution,
    AdaptedLinear,
    RAdapter,
    Rank,
    delta,
)
from tether.adapters.r_adapter.rank import Factored
from tether.adapters.r_adapter.states import PART, by_path, factors_of, full_rank
from tether.config import method
from tether.errors import TetherError, near_misses
from tether.families import AdapterConfig
from tether.models.site import Select, Site
from tether.models.sites import sites as find_sites

ADAPTED = {
    nn.MultiheadAttention: AdaptedAttention,
    nn.Linear: AdaptedLinear,
    nn.Conv2d: AdaptedConvolution,
}


@method("r_adapter")
@dataclass(frozen=True, kw_only=True)
class RAdapterConfig(AdapterConfig):
    """What an R-Adapter is; the defaults are those of the paper's full-data recipe.

    Args:
        rank: rank of A; None, or anything from the width on, is full rank (paper: full data), 4 is the
            paper's choice for few-shot. 0 leaves a tower alone. A mapping gives it per tower, {"image": 128,
            "text": None}, or per adapter by its path; what it does not name has full rank.
        drop: probability p of adapter drop (paper: 0.2). What is kept is scaled by 1 / (1 − p).
        granularity: what is dropped together. The paper writes one draw per call ("batch"). The published
            code most likely draws one per token position, shared by the batch ("token"), because its layout
            puts tokens first and it means to draw per sample. "sample" is the default: it is that intention,
            it has the least variance per step, and it does not depend on the layout of the model.
        scale: initial value of a learned factor s per adapter; None leaves it out, as the paper's text does.
            The default, 0.1, is the published code's: the published learning rate of 5e-4 belongs to it.
            Without it the same rate moves s·F about ten times as fast.
        select: the sites.
        fold: "auto" folds adapters into the frozen weights during training where that saves work, which
            changes results by rounding only; "always" and "never" are for measuring.

    Raises:
        TetherError: a value is out of range or misspelt.
    """

    rank: Rank | Mapping[str, Rank] = None
    drop: float = 0.2
    granularity: Literal["batch", "sample", "token"] = "sample"
    scale: float | None = 0.1
    select: Select = field(default_factory=Select)
    fold: Literal["auto", "always", "never"] = "auto"

    def __post_init__(self) -> None:
        ranks = self.rank.values() if isinstance(self.rank, Mapping) else [self.rank]
        if any(
            rank is not None and (isinstance(rank, bool) or not isinstance(rank, int) or rank < 0)
            for rank in ranks
        ):
            raise TetherError(
                f"rank is None (full), 0 (no adapter) or a positive integer, not {self.rank!r}."
            )
        if not 0 <= self.drop < 1:
            raise TetherError(f"drop is a probability from 0 to below 1, not {self.drop!r}.")
        for name, known in (
            ("granularity", ("batch", "sample", "token")),
            ("fold", ("auto", "always", "never")),
        ):
            if getattr(self, name) not in known:
                raise TetherError(
                    f"Unknown {name} {getattr(self, name)!r}{near_misses(str(getattr(self, name)), known)}"
                )
        if self.scale is not None and not 0 < self.scale < float("inf"):
            raise TetherError(
                f"scale is a positive number or None, not {self.scale!r}: at 0 neither s nor F would ever "
                f"get a gradient."
            )

    def attach(self, model: Any, *, seed: int = 0) -> "RAttached":
        return RAttached(model, self, seed=seed)

    def fitting(self, state: Mapping[str, Tensor]) -> "RAdapterConfig":
        """With the ranks of a state's adapters, and their scales or none."""
        adapters = by_path(state)
        ranks = {
            path: len(tensors["down"]) if "down" in tensors else None for path, tensors in adapters.items()
        }
        scaled = all("scale" in tensors for tensors in adapters.values())
        return replace(self, rank=ranks, scale=self.scale if scaled else None)

    def factored(self, state: Mapping[str, Tensor]) -> Factored:
        return Factored(state)

    def mean(self, adapters: Sequence[Adapter]) -> tuple["RAdapterConfig", dict[str, Tensor]]:
        """Of any ranks: the factors side by side, or a full matrix where that is smaller."""
        state = combined_state([adapter.state for adapter in adapters], [1 / len(adapters)] * len(adapters))
        return self.fitting(state), state

    def as_lora(
        self, attached: "RAttached", state: Mapping[str, Tensor]
    ) -> tuple[AdapterConfig, dict[str, Tensor]]:
        adapters = attached.by_linear(state)
        with attached.ordinary() as module:
            return lora_of(module, adapters)

    def rank_of(self, tower: str, path: str) -> Rank:
        """The rank of one adapter."""
        if not isinstance(self.rank, Mapping):
            return self.rank
        return self.rank.get(path, self.rank.get(tower))


class RAttached(Mergeable):
    """R-Adapters on the sites of a module, the identity until they are trained.

        attached = attach(model, RAdapterConfig(), seed=0)
        optimizer = torch.optim.AdamW(attached.named_parameters().values(), lr=5e-4, weight_decay=0)
        for step, (pixels, tokens, index) in enumerate(loader):
            attached.begin_step(step, index, index)
            ...                                             # forward, backward, optimizer.step()
        attached.merge(alpha=0.5)

    Args:
        model: a `tether.Model` or any module.
        config: what the adapters are.
        seed: of the low-rank initialisation and of the drop masks.
        sites: where they go, instead of what `config.select` finds.

    Raises:
        TetherError: something is attached already, a site has no linear to merge into, or the ranks name an
            adapter that does not exist.
    """

    def __init__(
        self, model: Any, config: RAdapterConfig, *, seed: int = 0, sites: Sequence[Site] | None = None
    ) -> None:
        super().__init__(model, config)
        self.seed = seed
        candidates = find_sites(self.module, config.select) if sites is None else list(sites)
        self.sites = [site for site in candidates if config.rank_of(site.tower, adapter_path(site)) != 0]
        if not self.sites:
            raise TetherError("No adapter is left: the rank of every site is 0.")
        if isinstance(config.rank, Mapping):
            for name in config.rank:
                if name not in (known := ["image", "text", *map(adapter_path, candidates)]):
                    raise TetherError(
                        f"rank names {name!r}, where there is no adapter{near_misses(name, known)}"
                    )
        self._linears = {adapter_path(site): site.linear for site in self.sites}
        self._towers = {site.linear: site.tower for site in self.sites}
        self._owners = {path: self.module.get_submodule(path) for path in self._linears}
        self._adapters = {adapter_path(site): self._new(index, site) for index, site in enumerate(self.sites)}
        self._classes = {path: type(owner) for path, owner in self._owners.items()}
        self._start()

    def _new(self, index: int, site: Site) -> RAdapter:
        path = adapter_path(site)
        check_site(site, self._owners[path])
        if sum(owner is self._owners[path] for owner in self._owners.values()) > 1:
            raise TetherError(
                f"{path} is at several sites of the model, so that a merge would change all of them."
            )
        rank = self.config.rank_of(site.tower, path)
        generator = torch.Generator().manual_seed(stream(self.seed, index) >> 1)
        rank = None if rank is None or rank >= site.width else rank
        adapter = RAdapter(site.width, rank, self.config.scale, generator)
        adapter.p = self.config.drop
        return adapter

    def named_parameters(self) -> dict[str, nn.Parameter]:
        return {
            f"{path}{PART}{name}": parameter
            for path, adapter in self._adapters.items()
            for name, parameter in adapter.named_parameters()
        }

    def products(self) -> dict[str, Tensor]:
        """The state with one full matrix s · F or s · U D per adapter: what an exact average averages."""
        return full_rank(self.state_dict())

    def by_linear(self, state: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
        """The tensors of each adapter of a state, by the path of the linear that it merges into."""
        return {self._linears[path]: tensors for path, tensors in self._tensors(state).items()}

    def delta(self, state: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
        result = {}
        for path, tensors in self._tensors(state).items():
            factors, k = factors_of(tensors)
            for kind in ("weight", "bias"):
                name = f"{self._linears[path]}.{kind}"
                base = self._base_tensor(name)
                if base is not None:
                    k = k.to(base.device) if isinstance(k, Tensor) else k
                    result[name] = delta(base, tuple(factor.to(base.device) for factor in factors), k)
        return result

    def zero_anchored(self) -> frozenset[str]:
        return frozenset(name for name in self.named_parameters() if name.endswith((".up", ".down")))

    def tower_of(self, name: str) -> str:
        return self._towers[name.rpartition(".")[0]]

    def begin_step(
        self,
        step: int,
        image_keys: Int[Tensor, " b"] | None = None,
        text_keys: Int[Tensor, " n"] | None = None,
    ) -> None:
        for adapter in self._adapters.values():
            adapter.clear()
        for tower, keys in (("image", image_keys), ("text", text_keys)):
            sites = [(index, site) for index, site in enumerate(self.sites) if site.tower == tower]
            if keys is not None and sites:
                self._draw(step, sites, keys)
        self._fold_where_it_saves_work(step)

    def _draw(self, step: int, sites: list[tuple[int, Site]], keys: Int[Tensor, " rows"]) -> None:
        """Set the drop of one tower's adapters for the coming forward."""
        config: RAdapterConfig = self.config
        adapters = [self._adapters[adapter_path(site)] for _, site in sites]
        words = [(self.seed, step, index) for index, _ in sites]
        dims = [1 if site.tokens == "NBC" else 0 for _, site in sites]
        for adapter in adapters:
            adapter.gain, adapter.drop = 1 / (1 - config.drop), KeepAll()
        if config.drop == 0:
            return
        if config.granularity == "batch":
            for adapter, word in zip(adapters, words, strict=True):
                if not keep(config.drop, *word):
                    skip(adapter)
        elif config.granularity == "token":
            for adapter, word, dim in zip(adapters, words, dims, strict=True):
                adapter.drop = DropTokens(signed(stream(*word)), config.drop, dim=dim)
        else:
            streams = torch.tensor([signed(stream(*word)) for word in words])
            kept = keep_rows(streams, keys.cpu(), config.drop)
            for adapter, (_, site), dim, *rows in zip(
                adapters, sites, dims, *self._sorted(kept, adapters), strict=True
            ):
                keep_row, order, positions, count = rows
                if count == 0:
                    skip(adapter)
                elif count < len(keep_row):
                    adapter.drop = DropRows(keep_row, order, positions, count, dim=dim, windows=site.windows)

    @staticmethod
    def _sorted(kept: Bool[Tensor, "sites rows"], adapters: list[RAdapter]) -> tuple[Any, ...]:
        """Per site: mask, kept rows before dropped ones, each row's place in that order, number kept."""
        order = torch.argsort(kept.int(), dim=1, descending=True, stable=True)
        device = adapters[0].factors[0].device
        on_device = torch.stack([kept.long(), order, torch.argsort(order, dim=1)]).to(
            device, non_blocking=True
        )
        return on_device[0].bool(), on_device[1], on_device[2], kept.sum(1).tolist()

    def _fold_where_it_saves_work(self, step: int) -> None:
        config: RAdapterConfig = self.config
        if config.fold == "never":
            return
        paths = [
            path
            for path, adapter in self._adapters.items()
            if type(adapter) is RAdapter
            and not isinstance(adapter.drop, DropTokens)
            and not isinstance(self._owners[path], nn.Conv2d)
        ]
        safe = safe_to_fold([self._adapters[path] for path in paths])
        for path, is_safe in zip(paths, safe, strict=True):
            if is_safe:
                linear, adapter = _linear(self._owners[path]), self._adapters[path]
                rank = None if adapter.weight is not None else len(adapter.down)
                tokens = break_even(linear.out_features, linear.in_features, rank)
                fold_in(adapter, step, 1 if config.fold == "always" else tokens)

    def _engage(self, adapters: Mapping[str, RAdapter] | None = None) -> None:
        for path, adapter in (adapters or self._adapters).items():
            owner = self._owners[path]
            adapter.to(_linear(owner).weight.device)
            adapter.train(owner.training)
            owner.r_adapter = adapter
            owner.__class__ = next(adapted for kind, adapted in ADAPTED.items() if isinstance(owner, kind))

    def _withdraw(self) -> None:
        for path, owner in self._owners.items():
            del owner.r_adapter
            owner.__class__ = self._classes[path]

    def _outputs_unmerged(
        self, alpha: Alpha, state: Mapping[str, Tensor] | None, probe: Probe
    ) -> list[Tensor]:
        towers = {adapter_path(site): site.tower for site in self.sites}
        adapters = {}
        for path, tensors in self._tensors(state).items():
            last = "weight" if "weight" in tensors else "up"
            adapters[path] = RAdapter.of({**tensors, last: alpha_of(alpha, towers[path]) * tensors[last]})
        self._engage(adapters)
        try:
            return self._run(probe)
        finally:
            self._engage()

    def _tensors(self, state: Mapping[str, Tensor] | None) -> dict[str, dict[str, Tensor]]:
        """The tensors of each adapter, from a state in any form."""
        adapters = by_path(self.state_dict() if state is None else state)
        missing = [path for path in self._adapters if path not in adapters]
        unexpected = [path for path in adapters if path not in self._adapters]
        if missing or unexpected:
            raise TetherError(
                f"The state has adapters at other places than the model. Missing: "
                f"{', '.join(missing[:6]) or 'none'}; unexpected: {', '.join(unexpected[:6]) or 'none'}"
                f"{near_misses(unexpected[0], missing) if unexpected and missing else '.'}"
            )
        for path, tensors in adapters.items():
            width, own_width = len(_linear(self._owners[path]).weight), factors_of(tensors)[0][0].shape[0]
            if own_width != width:
                raise TetherError(
                    f"The adapter at {path} is for width {own_width}, but this site has width {width}."
                )
        return {path: adapters[path] for path in self._adapters}


def adapter_path(site: Site) -> str:
    """The module that holds a site's adapter: its linear, or the fused attention that reads that linear
    itself.

    Raises:
        TetherError: no linear produces the output of the site.
    """
    if site.linear is None:
        raise TetherError(
            f"An R-Adapter needs a linear or a convolution over all channels to merge into, and the output of "
            f"{site.path} ({site.kind}) comes from none. Choose sites of kind 'attention', 'mlp' or 'stem'."
        )
    return site.path if site.fused else site.linear


def check_site(site: Site, owner: nn.Module) -> None:
    """Refuse an owner whose forward is not the one the adapter stands in for.

    Raises:
        TetherError: it is of another kind, or has an adapter already.
    """
    kind = nn.MultiheadAttention if site.fused else nn.Conv2d if site.tokens == "BCHW" else nn.Linear
    if isinstance(owner, tuple(ADAPTED.values())):
        raise TetherError(f"{adapter_path(site)} has an adapter already; detach it first.")
    if not isinstance(owner, kind) or type(owner).forward is not kind.forward:
        raise TetherError(
            f"{adapter_path(site)} is a {type(owner).__name__} with a forward of its own, not an "
            f"nn.{kind.__name__}: an adapter after it could not be merged. Leave it out with `select`."
        )
    if getattr(owner, "groups", 1) != 1:
        raise TetherError(
            f"{adapter_path(site)} is a convolution in {owner.groups} groups of channels: an adapter across them "
            f"could not be merged. Leave it out with `select`."
        )


def _linear(owner: nn.Module) -> nn.Linear | nn.Conv2d:
    return owner.out_proj if isinstance(owner, nn.MultiheadAttention) else owner
