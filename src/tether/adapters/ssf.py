"""Scale and shift features (Lian et al., "Scaling & Shifting Your Features: A New Baseline for Efficient Model Tuning",
NeurIPS 2022).

What every operation of a picture's tower gives is scaled and shifted by channel:

    y ← g ⊙ y + h

Operations are the patch embedding and all linears and norms, those between stages and the last norm included. As each
of them ends in a weight W and a bias b, this merges exactly: (g ⊙ W, g ⊙ b + h). Published: g starts as 1 and h as 0,
both with a spread of 0.02, so that a new model is nearly the base. An operation of d outputs has 2 d numbers.

Where queries, keys and values come out of one matrix that is never called as a module (`nn.MultiheadAttention`), they
stay as they are. Operations without a bias are only scaled.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from tether._alpha import Alpha, alpha_of, tower_of
from tether.adapters._tensors import check_state
from tether.adapters.files import Adapter
from tether.adapters.mergeable import Mergeable, Probe
from tether.adapters.placed import require_known
from tether.adapters.r_adapter.masks import stream
from tether.adapters.shared import mean_state
from tether.adapters.taps import check_tappable, tap, untap
from tether.config import method, method_of
from tether.errors import TetherError
from tether.families import AdapterConfig
from tether.models.site import NORMS, Layout, Port, Select
from tether.models.sites import sites as find_sites

STD = 0.02


@method("ssf")
@dataclass(frozen=True, kw_only=True)
class SSFConfig(AdapterConfig):
    """A scale and a shift behind every operation, which merge (SSF; Lian et al., NeurIPS 2022).

    Args:
        select: of which blocks; operations outside of blocks belong to their tower. Its kinds play no part.
        initialisation: "published" starts with a spread of 0.02, "identity" with none.

    Raises:
        TetherError: a word is misspelt.
    """

    select: Select = field(default_factory=lambda: Select(tower="image"))
    initialisation: Literal["published", "identity"] = "published"

    def __post_init__(self) -> None:
        require_known(self, initialisation=("published", "identity"))

    def attach(self, model: Any, *, seed: int = 0) -> "SSFAttached":
        return SSFAttached(model, self, seed=seed)

    def mean(self, adapters: Sequence[Adapter]) -> tuple["SSFConfig", dict[str, Tensor]]:
        """Of scales and shifts."""
        return self, mean_state(adapters)


@dataclass(frozen=True)
class Operation:
    """Something that ends in a weight and a bias."""

    path: str
    """The module whose output is scaled and shifted."""
    owner: str
    """The module that has the weight and the bias."""
    tower: str
    tokens: Layout


class ScaleShift(nn.Module):
    """g ⊙ y + h, or g ⊙ y.

    Args:
        scale: g.
        shift: h; None where it could not be merged.
        last: whether channels are the last dimension of y; they are the second otherwise.
    """

    def __init__(
        self, scale: Float[Tensor, " d"], shift: Float[Tensor, " d"] | None, last: bool = True
    ) -> None:
        super().__init__()
        self.scale = nn.Parameter(scale)
        self.shift = None if shift is None else nn.Parameter(shift)
        self._shape = (-1,) if last else (-1, 1, 1)

    def forward(self, y: Tensor) -> Tensor:
        scale = self.scale.to(y.dtype).view(self._shape)
        return (
            y * scale
            if self.shift is None
            else torch.addcmul(self.shift.to(y.dtype).view(self._shape), y, scale)
        )


class SSFAttached(Mergeable):
    """A scale and a shift behind every operation; see `SSFConfig`.

    Args:
        model: a `tether.Model` or any module.
        config: which operations.
        seed: of the first values.

    Raises:
        TetherError: something is attached already, the sites of the model are not known, or one is taken by another
            library.
    """

    config: SSFConfig

    def __init__(self, model: Any, config: SSFConfig, *, seed: int = 0) -> None:
        super().__init__(model, config)
        self.identity_at_start = config.initialisation == "identity"
        self._operations = operations(self.module, config.select)
        self._name = str(method_of(type(config)))
        for operation in self._operations:
            check_tappable(self.module.get_submodule(operation.path), operation.path)
        self._modules = [self._new(index, one, seed) for index, one in enumerate(self._operations)]
        self._start()

    def _new(self, index: int, operation: Operation, seed: int) -> ScaleShift:
        owner = self.module.get_submodule(operation.owner)
        shape, spread = (len(owner.weight),), 0.0 if self.identity_at_start else STD
        generator = torch.Generator().manual_seed(stream(seed, index) >> 1)
        scale = 1 + spread * torch.randn(shape, generator=generator, device="cpu")
        shift = spread * torch.randn(shape, generator=generator, device="cpu")
        return ScaleShift(scale, None if owner.bias is None else shift, operation.tokens != "BCHW")

    def named_parameters(self) -> dict[str, nn.Parameter]:
        return {
            f"{operation.path}.{self._name}.{name}": parameter
            for operation, part in zip(self._operations, self._modules, strict=True)
            for name, parameter in part.named_parameters()
        }

    def delta(self, state: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
        state = self.state_dict() if state is None else state
        check_state(state, self.state_dict())
        result = {}
        for operation in self._operations:
            for kind in ("weight", "bias"):
                name = f"{operation.owner}.{kind}"
                base = self._base_tensor(name)
                if base is None:
                    continue
                precise = base.to(torch.promote_types(base.dtype, torch.float32))
                change = state[f"{operation.path}.{self._name}.scale"].to(precise) - 1
                result[name] = precise * change.view(-1, *[1] * (precise.dim() - 1))
                if kind == "bias":
                    result[name] += state[f"{operation.path}.{self._name}.shift"].to(precise)
        return result

    def tower_of(self, name: str) -> str:
        owner = name.rpartition(".")[0]
        return next(one.tower for one in self._operations if one.owner == owner)

    def _outputs_unmerged(
        self, alpha: Alpha, state: Mapping[str, Tensor] | None, probe: Probe
    ) -> list[Tensor]:
        state = self.state_dict() if state is None else state
        towers = {f"{one.path}.{self._name}": one.tower for one in self._operations}
        weighted = {}
        for name, tensor in state.items():
            path, _, kind = name.rpartition(".")
            start = float(kind == "scale")
            weighted[name] = start + alpha_of(alpha, towers[path]) * (tensor - start)
        with self._in_state(weighted):
            return self._run(probe)

    def _engage(self) -> None:
        for operation, part in zip(self._operations, self._modules, strict=True):
            module = self.module.get_submodule(operation.path)
            part.to(self.module.get_submodule(operation.owner).weight.device)
            part.train(module.training)
            setattr(module, self._name, part)
            tap(module, Port(operation.path, "output", operation.tokens), [part])

    def _withdraw(self) -> None:
        for operation in self._operations:
            module = self.module.get_submodule(operation.path)
            untap(module)
            delattr(module, self._name)


def operations(module: nn.Module, select: Select) -> list[Operation]:
    """The operations of a model, those of blocks first.

    Raises:
        TetherError: the sites of the model are not known, or none is chosen.
    """

    def chosen(*kinds: str) -> Select:
        return Select(tower=select.tower, kinds=kinds, depths=select.depths, pattern=select.pattern)

    blocks = find_sites(module, Select(kinds=("block",), tower=select.tower))
    found: dict[str, Operation] = {}
    for site in find_sites(module, chosen("linear", "norm", "attention", "mlp")):
        owner = site.path if site.kind == "norm" else site.linear
        if owner is None or (site.kind == "attention" and not site.fused):
            continue
        found[owner] = Operation(site.path, owner, site.tower, site.tokens)
    if select.depths is None and select.pattern is None:
        towers = {site.tower for site in blocks}
        for path, part in module.named_modules():
            inside = any(f"{path}.".startswith(f"{block.path}.") for block in blocks)
            tower = tower_of(path) if hasattr(module, "logit_scale") else blocks[0].tower
            if not inside and tower in towers and _is_operation(path, part):
                tokens: Layout = "BCHW" if _is_of_maps(part) else "BNC"
                found.setdefault(path, Operation(path, path, tower, tokens))
    if not found:
        raise TetherError("No operation is chosen. Widen select.")
    return list(found.values())


def _is_operation(path: str, part: nn.Module) -> bool:
    """Whether a module outside of blocks embeds patches, goes from a stage to the next, or is a norm."""
    if isinstance(part, nn.Conv2d):
        return part.groups == 1 and part.kernel_size == part.stride != (1, 1)
    if isinstance(part, nn.Linear):
        return path.endswith(".reduction")
    weight = getattr(part, "weight", None)
    return bool(NORMS.search(type(part).__name__)) and weight is not None and weight.dim() == 1


def _is_of_maps(part: nn.Module) -> bool:
    """Whether channels are the second dimension of what a module gives."""
    first = getattr(part, "data_format", None) == "channels_first"  # ConvNeXt's of transformers
    return first or isinstance(part, nn.Conv2d) or type(part).__name__.endswith("2d")
