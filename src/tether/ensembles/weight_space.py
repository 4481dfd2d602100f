"""Ensembles in weight space: W(alpha) = W0 + alpha · delta (WiSE-FT; Wortsman et al., CVPR 2022, equation 1).

One stored model and one delta give every alpha: no second checkpoint, and no cost at inference.
"""

from collections.abc import Mapping
from types import TracebackType

import torch
from torch import Tensor, nn

from tether._alpha import Alpha, alpha_of, tower_of
from tether.errors import TetherError, near_misses


def interpolate(
    base: Mapping[str, Tensor],
    delta: Mapping[str, Tensor],
    alpha: Alpha,
    towers: Mapping[str, str] | None = None,
) -> dict[str, Tensor]:
    """base + alpha · delta for the tensors that delta names, the base's own tensors for all others.

    Args:
        base: a state dict.
        delta: differences to it, by the same names; any floating-point precision.
        alpha: 0 is the base, 1 is base + delta, between them an ensemble, beyond 1 an extrapolation; or one
            per tower.
        towers: the tower of each name, for an alpha per tower; None goes by the names open_clip and
            transformers give their towers.

    Returns:
        Tensors in the precision of the base, computed in fp32 (fp64 for fp64). Those delta does not name, and
        all at alpha = 0, share memory with `base`.

    Raises:
        TetherError: delta names what the base has not, or has it in another shape.
    """
    _check(delta, base)
    result = dict(base)
    for name, difference in delta.items():
        weight = alpha_of(alpha, tower_of(name) if towers is None else towers[name])
        if weight != 0:
            result[name] = _add(base[name], difference, weight)
    return result


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
        if getattr(module, "_tether_attached", None) is not None:
            raise TetherError(
                "This module computes with an adapter, which would count twice. Walk the path inside "
                "`with attached.ordinary(): ...`."
            )
        tensors = dict(module.named_parameters()) | dict(module.named_buffers())
        _check(delta, tensors)
        self._tensors = {name: tensors[name] for name in delta}
        self._base = {name: tensor.detach().clone() for name, tensor in self._tensors.items()}
        self._delta = {name: delta[name].to(tensor.device) for name, tensor in self._tensors.items()}
        self._towers = {name: tower_of(name) if towers is None else towers[name] for name in delta}

    @torch.no_grad()
    def set(self, alpha: Alpha) -> None:
        """Put W0 + alpha · delta into the module."""
        for name, tensor in self._tensors.items():
            weight = alpha_of(alpha, self._towers[name])
            if weight == 0:
                tensor.copy_(self._base[name])
            else:
                tensor.copy_(_add(self._base[name], self._delta[name], self._weight(name, weight)))

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


def wise_ft(base: Mapping[str, Tensor], tuned: Mapping[str, Tensor], alpha: Alpha) -> dict[str, Tensor]:
    """(1 − alpha) · base + alpha · tuned for two state dicts of the same model, exact at 0 and 1.

    Args:
        base: the zero-shot model's state dict.
        tuned: the fine-tuned model's.
        alpha: a number, or one per tower.

    Returns:
        A new state dict in the precision of the base. What is no floating-point tensor (counters, position
        ids) is the base's.

    Raises:
        TetherError: the state dicts differ in names or shapes.
    """
    _check(tuned, base)
    if missing := [name for name in base if name not in tuned]:
        raise TetherError(f"The fine-tuned state dict lacks {_some(missing)}. Are both of the same model?")
    result = {}
    for name, tensor in base.items():
        if not tensor.is_floating_point():
            result[name] = tensor.clone()
            continue
        precise = torch.promote_types(tensor.dtype, torch.float32)
        weight = alpha_of(alpha, tower_of(name))
        end = tuned[name].to(tensor.device, precise)
        result[name] = torch.lerp(tensor.to(precise), end, weight).to(tensor.dtype)
    return result


def _add(base: Tensor, difference: Tensor, weight: float | Tensor) -> Tensor:
    precise = torch.promote_types(base.dtype, torch.float32)
    return (base.to(precise) + weight * difference.to(base.device, precise)).to(base.dtype)


def _check(names: Mapping[str, Tensor], base: Mapping[str, Tensor]) -> None:
    unknown = [name for name in names if name not in base]
    if unknown:
        raise TetherError(f"The base has no tensor {_some(unknown)}{near_misses(unknown[0], list(base))}")
    shapes = [
        f"{name} ({list(tensor.shape)} instead of {list(base[name].shape)})"
        for name, tensor in names.items()
        if tensor.shape != base[name].shape
    ]
    if shapes:
        raise TetherError(f"Shapes differ from the base's: {_some(shapes)}.")


def _some(names: list[str]) -> str:
    return ", ".join(names[:6]) + (", …" if len(names) > 6 else "")
