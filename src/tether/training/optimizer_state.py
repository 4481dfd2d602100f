"""Optimizer state by parameter name instead of by position, so that it cannot slip to another parameter."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from tether.errors import TetherError


def check_trains(optimizer: Optimizer, parameters: Mapping[str, Tensor]) -> None:
    """See that the optimizer trains exactly `parameters`.

    Raises:
        TetherError: one of them is missing, is trained without being saved, or is kept in half precision.
    """
    trained = {id(p) for group in optimizer.param_groups for p in group["params"]}
    missing = [name for name, p in parameters.items() if id(p) not in trained]
    unnamed = len(trained - {id(p) for p in parameters.values()})
    if missing or unnamed:
        raise TetherError(
            f"The optimizer must train exactly the named parameters. Not in the optimizer: "
            f"{', '.join(missing) or 'none'}; in the optimizer without a name: {unnamed}."
        )
    half = [name for name, p in parameters.items() if p.is_floating_point() and p.element_size() < 4]
    if half:
        raise TetherError(
            f"Trained parameters must be fp32 (an update would be rounded away in half precision); found "
            f"{parameters[half[0]].dtype} for {', '.join(half[:3])}. Load the model in fp32 and use "
            f"precision='bf16' for the arithmetic."
        )


def named_state(optimizer: Optimizer, parameters: Mapping[str, Tensor]) -> dict[str, Any]:
    """`optimizer.state_dict()` with parameter names in place of numbers."""
    state = optimizer.state_dict()
    names = _names(optimizer, parameters)
    groups = [
        {**group, "params": [names[i] for i in group["params"]]}
        for group in map(_nameless, state["param_groups"])
    ]
    return {**state, "state": {names[i]: s for i, s in state["state"].items()}, "param_groups": groups}


def load_named_state(
    optimizer: Optimizer, parameters: Mapping[str, Tensor], saved: Mapping[str, Any]
) -> None:
    """Load what `named_state` gave, whatever the order of the parameters is now.

    Raises:
        TetherError: the parameter groups are others.
    """
    names = _names(optimizer, parameters)
    numbers = {name: number for number, name in enumerate(names)}
    groups = [[names[i] for i in g["params"]] for g in optimizer.state_dict()["param_groups"]]
    if [set(g["params"]) for g in saved["param_groups"]] != [set(group) for group in groups]:
        raise TetherError(
            f"The checkpoint's optimizer has other parameter groups: {_sizes(saved['param_groups'])} "
            f"parameters there, {[len(group) for group in groups]} here. Use the same method to continue."
        )
    renumbered = [
        {**_nameless(old), "params": [numbers[name] for name in group]}
        for old, group in zip(saved["param_groups"], groups, strict=True)
    ]
    state = {numbers[name]: value for name, value in saved["state"].items()}
    optimizer.load_state_dict({**saved, "state": state, "param_groups": renumbered})


def _nameless(group: dict[str, Any]) -> dict[str, Any]:
    """The group without torch's list of its parameters' names, which says in another order what `params` says."""
    return {option: value for option, value in group.items() if option != "param_names"}


def _names(optimizer: Optimizer, parameters: Mapping[str, Tensor]) -> list[str]:
    """Names by the number that `state_dict` gives each parameter: its place in the groups."""
    known = {id(p): name for name, p in parameters.items()}
    return [known[id(p)] for group in optimizer.param_groups for p in group["params"]]


def _sizes(groups: list[dict[str, Any]]) -> list[int]:
    return [len(group["params"]) for group in groups]
