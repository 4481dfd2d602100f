import torch

from tether.optimizers.groups import parameter_groups


def test_only_matrices_are_decayed():
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.LayerNorm(4))
    scale = torch.nn.Parameter(torch.zeros(()))
    parameters = {**dict(model.named_parameters()), "scale": scale}
    decayed, plain = parameter_groups(parameters, 0.3)
    assert [id(p) for p in decayed["params"]] == [id(parameters["0.weight"])]
    assert (decayed["weight_decay"], plain["weight_decay"]) == (0.3, 0.0)
    names = ("0.bias", "1.weight", "1.bias", "scale")
    assert {id(p) for p in plain["params"]} == {id(parameters[name]) for name in names}


def test_an_empty_group_is_left_out():
    assert [g["weight_decay"] for g in parameter_groups({"bias": torch.zeros(3)}, 0.1)] == [0.0]
