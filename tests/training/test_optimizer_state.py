"""Optimizer state follows names."""

import pytest
import torch

from tether.errors import TetherError
from tether.optimizers import SPD
from tether.training.optimizer_state import load_named_state, named_state


def trained(names, kind=torch.optim.AdamW, named=False, **options):
    parameters = {name: torch.nn.Parameter(torch.ones(len(name))) for name in names}
    optimizer = kind(parameters.items() if named else parameters.values(), lr=0.1, **options)
    for name, parameter in parameters.items():
        parameter.grad = torch.full_like(parameter, float(len(name)))
    optimizer.step()
    return parameters, optimizer


@pytest.mark.parametrize("kind", [torch.optim.AdamW, SPD])
@pytest.mark.parametrize("named", [False, True])
def test_state_is_kept_by_name_whatever_the_order(kind, named):
    parameters, optimizer = trained(["a", "bb", "ccc"], kind, named, amsgrad=True)
    optimizer.param_groups[0]["lr"] = 0.025
    saved = named_state(optimizer, parameters)
    assert set(saved["state"]) == {"a", "bb", "ccc"}

    others, other = trained(["ccc", "a", "bb"], kind, named, amsgrad=True)
    for state in other.state.values():
        for tensor in state.values():
            tensor.zero_()
    load_named_state(other, others, saved)
    assert other.param_groups[0]["lr"] == 0.025
    assert other.param_groups[0].get("param_names") == (["ccc", "a", "bb"] if named else None)
    for name, parameter in others.items():
        for key, value in optimizer.state[parameters[name]].items():
            assert torch.equal(other.state[parameter][key], value)


def test_other_groups_are_refused():
    parameters, optimizer = trained(["a", "bb"])
    others, other = trained(["a", "ccc"])
    with pytest.raises(TetherError, match=r"other parameter groups: \[2\]"):
        load_named_state(other, others, named_state(optimizer, parameters))
