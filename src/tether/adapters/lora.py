"""LoRA (Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", ICLR 2022) and its kin, as the library peft
has them: its layers stand in the model while the method is attached, and only where they are put is ours.

    lora      W' = W + s B A,                               s = a / r
    rslora    the same with                                 s = a / √r     (Kalajdzievski 2023, arXiv 2312.03732)
    dora      W' = m ⊙ (W + s B A) / ‖W + s B A‖ by row,    s = a / r      (Liu et al., ICML 2024, arXiv 2402.09353)

W [d, i] is a linear's frozen weight, A [r, i] and B [d, r] are trained, and so is m [d], which starts as the norm of
each row of W. a is `lora_alpha`. B starts at 0, so that a new adapter does nothing.

All three have weights W', and so a delta W' − W that merges at any alpha, as W + alpha (W' − W). For LoRA that is the
adapter with B times alpha. DoRA is not linear in its parameters: at alpha between 0 and 1 its weights lie on the line
between base and tuned, as with full fine-tuning, and are no DoRA themselves.

A fused attention (`nn.MultiheadAttention`) reads its matrices itself. peft's own layer for it applies the delta of the
output projection twice and changes the base by rounding in every forward, so it is not used; that of its queries, keys
and values, `in_proj_weight`, is adapted as a parameter.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import ModuleType
from typing import Any, Literal

import torch
from torch import Tensor, nn

from tether._alpha import Alpha, alpha_of, tower_of
from tether.adapters._tensors import check_state
from tether.adapters.mergeable import Mergeable, Probe
from tether.adapters.placed import require_known, require_probability, require_width
from tether.adapters.r_adapter.masks import stream
from tether.config import method
from tether.errors import TetherError, near_misses
from tether.families import AdapterConfig
from tether.models.site import Select, Site, Tower
from tether.models.sites import sites as find_sites

NAME = "default"
"""What peft calls an adapter that was given no name."""
IN_PROJ = "in_proj_weight"


@method("lora")
@dataclass(frozen=True, kw_only=True)
class LoRAConfig(AdapterConfig):
    """LoRA, rank-stabilised LoRA or DoRA on linears, which merge (Hu et al., ICLR 2022); needs the library peft.

    Args:
        rank: r.
        lora_alpha: a, the numerator of the scaling s; not the ensemble weight alpha. peft's default.
        dropout: probability with which single values of the input of A are dropped in training.
        variant: "lora", "rslora" or "dora".
        bias: also train a bias beside B, which merges into the linear's (peft's `lora_bias`).
        select: which linears. A site of kind `attention` or `mlp` stands for all linears of that branch, in a fused
            attention for its queries, keys and values; one of kind `linear` for itself.
        modules: in place of `select`, names of linears and fused attentions, such as ("q_proj", "v_proj"): paths, or
            ends of paths.

    Raises:
        TetherError: a value is out of range or misspelt, or options contradict each other.
    """

    rank: int = 8
    lora_alpha: float | int = 8
    dropout: float = 0.0
    variant: Literal["lora", "rslora", "dora"] = "lora"
    bias: bool = False
    select: Select = field(default_factory=Select)
    modules: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        require_width("rank", self.rank)
        require_probability("dropout", self.dropout)
        require_known(self, variant=("lora", "rslora", "dora"))
        if not 0 < self.lora_alpha < float("inf"):
            raise TetherError(
                f"lora_alpha is a positive number, not {self.lora_alpha!r}: at 0 nothing would ever move."
            )
        if self.bias and self.variant == "dora":
            raise TetherError("peft has no DoRA with a bias. Take bias=False, or variant='lora'.")
        if self.modules is not None and (isinstance(self.modules, str) or not self.modules):
            raise TetherError(f"modules is a tuple such as ('q_proj', 'v_proj'), not {self.modules!r}.")
        if self.modules is not None and self.select != Select():
            raise TetherError("Both select and modules say which linears are adapted. Give one of them.")

    @property
    def scaling(self) -> float:
        """s."""
        return self.lora_alpha / (self.rank**0.5 if self.variant == "rslora" else self.rank)

    def attach(self, model: Any, *, seed: int = 0) -> "LoRAAttached":
        return LoRAAttached(model, self, seed=seed)

    def as_lora(self, attached: "LoRAAttached", state: Mapping[str, Tensor]) -> tuple["LoRAConfig", dict]:
        return replace(self, select=Select(), modules=tuple(attached.targets)), dict(state)


@dataclass(frozen=True)
class Target:
    """A matrix that is adapted."""

    path: str
    """The module that has it: a linear, or a fused attention."""
    tower: Tower
    fused: bool

    @property
    def weight(self) -> str:
        """Its name in the base."""
        return f"{self.path}.{IN_PROJ if self.fused else 'weight'}"


class LoRAAttached(Mergeable):
    """peft's LoRA layers in a model; see `LoRAConfig`.

    The state names tensors as peft's files do: `blocks.0.attn.qkv.lora_A.weight`. While it is engaged, an adapted
    linear stands in the model under the name `base_layer` of its layer.

    Args:
        model: a `tether.Model` or any module.
        config: which linears, and how they are adapted.
        seed: of A.

    Attributes:
        targets: what is adapted, by the path of its module.

    Raises:
        TetherError: something is attached already, peft is not installed, a module is none that LoRA can be on, or
            a fused attention is to have dropout, a bias or DoRA.
    """

    config: LoRAConfig

    def __init__(self, model: Any, config: LoRAConfig, *, seed: int = 0) -> None:
        super().__init__(model, config)
        self.targets = {target.path: target for target in targets(self.module, config)}
        self._towers = {target.weight: target.tower for target in self.targets.values()}
        self._towers |= {f"{path}.bias": target.tower for path, target in self.targets.items()}
        self._owners = {path: self.module.get_submodule(path) for path in self.targets}
        every = [id(part) for _, part in self.module.named_modules(remove_duplicate=False)]
        for path, owner in self._owners.items():
            if every.count(id(owner)) > 1:
                raise TetherError(
                    f"{path} is at several places of the model, of which peft would adapt one. Leave it out."
                )
        self._layers = layers(list(self._owners.values()), list(self.targets.values()), config, seed)
        self._start()

    def named_parameters(self) -> dict[str, nn.Parameter]:
        found = {}
        for path, layer in zip(self.targets, self._layers, strict=True):
            found[f"{path}.lora_A.weight"] = layer.lora_A[NAME].weight
            found[f"{path}.lora_B.weight"] = layer.lora_B[NAME].weight
            if self.config.bias:
                found[f"{path}.lora_B.bias"] = layer.lora_B[NAME].bias
            if self.config.variant == "dora":
                found[f"{path}.lora_magnitude_vector"] = layer.lora_magnitude_vector[NAME].weight
        return found

    def delta(self, state: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
        state = self.state_dict() if state is None else state
        check_state(state, self.state_dict())
        result = {}
        for path, target in self.targets.items():
            base = self._base_tensor(target.weight)
            base = base.to(torch.promote_types(base.dtype, torch.float32))
            down, up = (state[f"{path}.lora_{name}.weight"].to(base) for name in "AB")
            update = self.config.scaling * (up @ down)
            if self.config.variant == "dora":
                magnitude = state[f"{path}.lora_magnitude_vector"].to(base)
                moved = base + update
                update = (magnitude / torch.linalg.norm(moved, dim=1))[:, None] * moved - base
            result[target.weight] = update
            if self.config.bias:
                result[f"{path}.bias"] = self.config.scaling * state[f"{path}.lora_B.bias"].to(base)
        return result

    def zero_anchored(self) -> frozenset[str]:
        return frozenset(name for name in self.named_parameters() if name.endswith(".weight"))

    def tower_of(self, name: str) -> str:
        return self._towers[name]

    def _outputs_unmerged(
        self, alpha: Alpha, state: Mapping[str, Tensor] | None, probe: Probe
    ) -> list[Tensor] | None:
        alphas = {path: alpha_of(alpha, target.tower) for path, target in self.targets.items()}
        if self.config.variant == "dora" and set(alphas.values()) != {1.0}:
            return None
        with self._in_state(at_alpha(self.state_dict() if state is None else state, alphas)):
            return self._run(probe)

    def _engage(self) -> None:
        for (path, owner), target, layer in zip(
            self._owners.items(), self.targets.values(), self._layers, strict=True
        ):
            layer.to(getattr(owner, target.weight.rpartition(".")[2]).device)
            layer.train(owner.training)
            self.module.set_submodule(path, layer)

    def _withdraw(self) -> None:
        for path, owner in self._owners.items():
            self.module.set_submodule(path, owner)

    def _others(self) -> dict[str, nn.Parameter]:
        return {name.replace(".base_layer.", "."): part for name, part in super()._others().items()}

    def _base_tensor(self, name: str) -> Tensor | None:
        path, _, kind = name.rpartition(".")
        if self._originals is not None or path not in self._owners:
            return super()._base_tensor(name)
        tensor = getattr(self._owners[path], kind)
        return None if tensor is None else tensor.detach()


def at_alpha(state: Mapping[str, Tensor], alphas: Mapping[str, float]) -> dict[str, Tensor]:
    """A state of LoRA, not of DoRA, whose delta is alpha times as large; `alphas` by the path of the linear."""
    return {
        name: tensor * alphas[name.split(".lora_B.")[0]] if ".lora_B." in name else tensor
        for name, tensor in state.items()
    }


def targets(module: nn.Module, config: LoRAConfig) -> list[Target]:
    """What a config adapts in a model, in the order of the sites, or of the modules where these are named.

    Raises:
        TetherError: nothing is selected or named, or something is that LoRA cannot be on.
    """
    found = _named(module, config.modules) if config.modules else _selected(module, config.select)
    if not found:
        raise TetherError("No linear is selected that LoRA can be on. Widen select.")
    for target in found.values():
        owner = module.get_submodule(target.path)
        if target.fused:
            if config.dropout or config.bias or config.variant == "dora":
                raise TetherError(
                    f"{target.path} is a fused attention, whose matrix peft adapts as a parameter: there it has no "
                    f"dropout, no bias and no DoRA. Take variant='lora' or 'rslora' without them, or leave it out: "
                    f"select.kinds=[mlp]."
                )
        elif config.bias and owner.bias is None:
            raise TetherError(f"{target.path} has no bias, into which one could be merged. Take bias=False.")
    return list(found.values())


def layers(
    owners: Sequence[nn.Module], adapted: Sequence[Target], config: LoRAConfig, seed: int
) -> list[nn.Module]:
    """peft's layer around each module. They are made aside, so that a refusal leaves the model as it was.

    Raises:
        TetherError: peft is not installed.
    """
    library, holder = peft(), nn.ModuleList(owners)
    options = peft_config(
        config, [Target(str(index), "image", one.fused) for index, one in enumerate(adapted)]
    )
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(stream(seed, 0) >> 1)
        library.inject_adapter_in_model(library.LoraConfig(**options), holder)
    for layer, target in zip(holder, adapted, strict=True):
        base = getattr(layer.get_base_layer(), target.weight.rpartition(".")[2])
        precise = torch.promote_types(
            base.dtype, torch.float32
        )  # what is trained, and so never half precision
        layer.lora_A.to(precise)
        layer.lora_B.to(precise)
        if config.variant == "dora":
            layer.lora_magnitude_vector[NAME].weight.data = torch.linalg.norm(
                base.detach().to(precise), dim=1
            )
    return list(holder)


def peft_config(config: LoRAConfig, adapted: Sequence[Target]) -> dict[str, Any]:
    """The options of peft's LoraConfig."""
    linears = [target.path for target in adapted if not target.fused]
    fused = [target.weight for target in adapted if target.fused]
    return {
        "r": config.rank,
        "lora_alpha": config.lora_alpha,
        "lora_dropout": config.dropout,
        "lora_bias": config.bias,
        "use_rslora": config.variant == "rslora",
        "use_dora": config.variant == "dora",
        "target_modules": linears,
        "target_parameters": fused or None,
    }


def peft() -> ModuleType:
    """The library.

    Raises:
        TetherError: it is not installed.
    """
    try:
        import peft as library
    except ImportError as error:
        raise TetherError(f"LoRA needs the package peft ({error}): pip install '.[peft]'.") from error
    return library


def _selected(module: nn.Module, select: Select) -> dict[str, Target]:
    result = {}
    for site in find_sites(module, select):
        if site.kind == "linear":
            paths = [site.path]
        elif site.kind in ("attention", "mlp"):
            paths = _branch(module, site)
        else:
            raise TetherError(
                f"LoRA is on linears, and {site.path or 'the model'} is of kind {site.kind}. Choose sites of kind "
                f"'attention' and 'mlp', for all linears of a branch, or 'linear'."
            )
        result |= {path: _target(module, path, site.tower) for path in paths}
    return result


def _branch(module: nn.Module, site: Site) -> list[str]:
    """The linears of an attention or an MLP, or the fused attention as a whole.

    Raises:
        TetherError: it calls none.
    """
    if site.fused and _is_fused(module.get_submodule(site.path)):
        return [site.path]
    every = find_sites(module, Select(kinds=("block", "attention", "linear"), tower=site.tower))
    block = next(
        one.path for one in every if one.kind == "block" and f"{site.path}.".startswith(f"{one.path}.")
    )
    inside = [one for one in every if one.path.startswith(f"{block}.")]
    owners = [
        f"{block}.{one.path.removeprefix(f'{block}.').partition('.')[0]}."
        for one in inside
        if one.kind == "attention"
    ]
    found = [
        one.path
        for one in inside
        if one.kind == "linear" and one.path.startswith(tuple(owners)) == (site.kind == "attention")
    ]
    if not found:
        owner = type(module.get_submodule(site.path)).__name__
        raise TetherError(
            f"{site.path} ({owner}) reads its linears inside of a function and calls none, so that LoRA on them would "
            f"do nothing. Leave it out: select.kinds=[mlp]."
        )
    return found


def _named(module: nn.Module, names: Sequence[str]) -> dict[str, Target]:
    parts, uncalled = dict(module.named_modules()), _uncalled(module)
    result = {}
    for name in names:
        paths = [name] if name in parts else [path for path in parts if path.endswith(f".{name}")]
        if not paths:
            linears = [path for path, part in parts.items() if isinstance(part, nn.Linear)]
            ends = sorted({path.rpartition(".")[2] for path in linears})
            raise TetherError(
                f"modules names {name!r}, which no module is{near_misses(name, ends + linears)}"
            )
        for path in paths:
            if path.startswith(uncalled):
                raise TetherError(
                    f"{path} is read by its attention and never called, so that LoRA on it would do nothing. Leave it "
                    f"out of modules, or take method r_adapter."
                )
            tower = tower_of(path) if hasattr(module, "logit_scale") else "image"
            result[path] = _target(module, path, tower)
    return result


def _uncalled(module: nn.Module) -> tuple[str, ...]:
    """Beginnings of paths of what a fused attention reads, in models of a known family."""
    try:
        return tuple(f"{site.path}." for site in find_sites(module) if site.fused)
    except TetherError:  # of no known family
        return ()


def _target(module: nn.Module, path: str, tower: Tower) -> Target:
    """One module as a target.

    Raises:
        TetherError: LoRA cannot be on it.
    """
    owner = module.get_submodule(path)
    if _is_fused(owner):
        return Target(path, tower, True)
    around, _, last = path.rpartition(".")
    if last == "out_proj" and isinstance(module.get_submodule(around), nn.MultiheadAttention):
        raise TetherError(
            f"{path} is read by its attention and never called, so that LoRA on it would do nothing. Name {around}, "
            f"whose queries, keys and values can be adapted."
        )
    if not isinstance(owner, nn.Linear) or type(owner).forward is not nn.Linear.forward:
        raise TetherError(
            f"{path} is a {type(owner).__name__}, and LoRA is on nn.Linear and on the matrix of nn.MultiheadAttention "
            f"that makes queries, keys and values. Leave it out."
        )
    return Target(path, tower, False)


def _is_fused(owner: nn.Module) -> bool:
    return isinstance(owner, nn.MultiheadAttention) and owner.in_proj_weight is not None
