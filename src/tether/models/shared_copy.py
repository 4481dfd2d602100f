"""A tuned model beside its base that costs only what was tuned."""

import copy
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from tether.models.weight_path import MARK, WeightPath


def shared_copy(module: nn.Module, delta: Mapping[str, Tensor]) -> nn.Module:
    """A copy of a module with the weights W0 + delta, which shares all that delta does not change.

    Parts that hold no changed tensor are the module's own parts, and unchanged tensors its own tensors. So
    the copy costs the memory of delta, nothing in it is to be trained, and what both compute before the first
    changed part can be computed once (`tether.evaluation.sharing`).

    >>> base = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    >>> tuned = shared_copy(base, {"1.bias": torch.ones(2)})
    >>> tuned[0] is base[0], tuned[1].weight is base[1].weight, bool((tuned[1].bias == base[1].bias + 1).all())
    (True, True, True)

    Raises:
        TetherError: delta does not fit the module, or adapters are active in it.
    """
    with WeightPath(module, delta) as path:
        shared: dict[int, object] = {}
        for name, part in module.named_modules():
            if name and not any(changed.startswith(f"{name}.") for changed in delta):
                shared[id(part)] = part
        tensors = dict(module.named_parameters()) | dict(module.named_buffers())
        shared |= {id(tensor): tensor for name, tensor in tensors.items() if name not in delta}
        tuned = copy.deepcopy(module, shared)
        path.set(1.0)
        with torch.no_grad():
            values = dict(tuned.named_parameters()) | dict(tuned.named_buffers())
            for name in delta:
                values[name].copy_(tensors[name])
    tuned.__dict__.pop(MARK, None)  # an adapter of the base, taken out for now, is none of its
    return tuned
