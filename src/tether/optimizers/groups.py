"""Which parameters are decayed."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor


def parameter_groups(parameters: Mapping[str, Tensor], weight_decay: float) -> list[dict[str, Any]]:
    """Groups for a torch optimizer: matrices are decayed; biases, norms and scalars (ndim < 2) are not."""
    decayed = [p for p in parameters.values() if p.ndim >= 2]
    plain = [p for p in parameters.values() if p.ndim < 2]
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": plain, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]
