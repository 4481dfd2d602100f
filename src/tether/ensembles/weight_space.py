"""Ensembles in weight space: W(alpha) = W0 + alpha · delta (WiSE-FT; Wortsman et al., CVPR 2022, equation 1).

One stored model and one delta give every alpha: no second checkpoint, and no cost at inference.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from tether._alpha import Alpha, alpha_of, tower_of
from tether.errors import TetherError
from tether.models.weight_path import added, check_names, some


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
    check_names(delta, base)
    result = dict(base)
    for name, difference in delta.items():
        weight = alpha_of(alpha, tower_of(name) if towers is None else towers[name])
        if weight != 0:
            result[name] = added(base[name], difference, weight)
    return result


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
    check_names(tuned, base)
    if missing := [name for name in base if name not in tuned]:
        raise TetherError(f"The fine-tuned state dict lacks {some(missing)}. Are both of the same model?")
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
