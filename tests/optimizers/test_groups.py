import pytest
import torch

from tether.errors import TetherError
from tether.optimizers.groups import parameter_groups


def names(group):
    return [name for name, _ in group["params"]]


def test_only_matrices_are_decayed():
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.LayerNorm(4))
    scale = torch.nn.Parameter(torch.zeros(()))
    parameters = {**dict(model.named_parameters()), "scale": scale}
    decayed, plain = parameter_groups(parameters, lr=0.1, weight_decay=0.3)
    assert decayed["params"] == [("0.weight", parameters["0.weight"])]
    assert (decayed["weight_decay"], plain["weight_decay"]) == (0.3, 0.0)
    assert names(plain) == ["0.bias", "1.weight", "1.bias", "scale"]
    assert {decayed["lr"], plain["lr"]} == {0.1}


def test_an_empty_group_is_left_out():
    groups = parameter_groups({"bias": torch.zeros(3)}, lr=0.1, weight_decay=0.1)
    assert [group["weight_decay"] for group in groups] == [0.0]


def test_some_parameters_have_options_of_their_own():
    """As in pre-training: the stem learns slowly and without decay, the last pattern counts, vectors never decay."""
    shapes = {
        "head": (2, 2),
        "a.stem.weight": (2, 2),
        "a.stem.bias": (2,),
        "block": (2, 2),
        "block.bias": (2,),
    }
    parameters = {name: torch.zeros(shape) for name, shape in shapes.items()}
    special = {
        "*.stem.*": {"lr": 0.1, "weight_decay": 0.0},
        "*.bias": {"weight_decay": 0.7},
        "head": {"lr": 5.0, "excluded": True},
    }
    groups = parameter_groups(parameters, lr=1.0, weight_decay=0.3, special=special)
    assert [
        (names(group), group["lr"], group["weight_decay"], group.get("excluded")) for group in groups
    ] == [
        (["head"], 5.0, 0.3, True),
        (["a.stem.weight", "a.stem.bias"], 0.1, 0.0, None),
        (["block"], 1.0, 0.3, None),
        (["block.bias"], 1.0, 0.0, None),
    ]


def test_a_pattern_that_fits_nothing_is_refused():
    with pytest.raises(TetherError, match="did you mean 'head'"):
        parameter_groups({"head": torch.zeros(2)}, lr=1.0, special={"haed": {}})
