"""Name the non-linearities of a model as they are, not as a configuration says."""

from typing import Literal

from torch import nn

Activation = Literal["gelu", "quick_gelu"]
NAMES = {
    "QuickGELU": "quick_gelu",
    "QuickGELUActivation": "quick_gelu",
    "GELU": "gelu",
    "GELUActivation": "gelu",
    "GELUTanh": "gelu_tanh",
    "SiLU": "silu",
    "SiLUActivation": "silu",
}


def describe_activation(**towers: nn.Module) -> str:
    """The activations in use: "quick_gelu", or "image: gelu, text: quick_gelu" where towers differ."""
    names = {tower: _activations(module) for tower, module in towers.items()}
    if len(set(names.values())) == 1:
        return next(iter(names.values()))
    return ", ".join(f"{tower}: {name}" for tower, name in names.items())


def _activations(tower: nn.Module) -> str:
    found = set()
    for module in tower.modules():
        name = type(module).__name__
        if "LU" in name and not any(module.children()):
            approximate = getattr(module, "approximate", "none")
            found.add(NAMES.get(name, name.lower()) + ("_tanh" if approximate == "tanh" else ""))
    return "+".join(sorted(found)) or "none"
