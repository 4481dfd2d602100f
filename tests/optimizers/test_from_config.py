"""Optimizers as recipes name them."""

import pytest
import torch

from tether.config import build, plain
from tether.errors import TetherError
from tether.families import OptimizerConfig
from tether.optimizers import FTP, L2SP, MARSSP, SPD, TPGM, DiGraP, create

ROBUST = {"ftp": FTP, "tpgm": TPGM, "spd": SPD, "digrap": DiGraP, "l2_sp": L2SP, "mars_sp": MARSSP}
SGD = {"momentum": 0.9, "nesterov": True}
HEAD = "head.weight"

robust = pytest.mark.parametrize("method", ROBUST)


def parameters():
    torch.manual_seed(0)
    shapes = {"block.weight": (3, 4), "block.bias": (3,), "factor.up": (4, 2), HEAD: (5, 3)}
    return {
        name: torch.nn.Parameter(torch.randn(shape, dtype=torch.float64)) for name, shape in shapes.items()
    }


def train(optimizer, params, steps=6):
    generator = torch.Generator().manual_seed(1)
    for step in range(steps):
        turn = 1.0 if step % 4 < 2 else -0.6
        for param in params.values():
            param.grad = turn + 0.3 * torch.randn(param.shape, generator=generator, dtype=torch.float64)
        optimizer.step()
        if isinstance(optimizer, TPGM):
            optimizer.project()
    return {name: param.detach() for name, param in params.items()}


def config(method, **options):
    return build(OptimizerConfig, {"method": method, **options}, "optimizer")


@pytest.mark.parametrize("method", [*ROBUST, "adamw", "sgd"])
def test_what_a_recipe_says_is_what_is_written_back(method):
    made = config(method, lr=1e-3)
    written = plain(made)
    assert written["method"] == method
    assert build(OptimizerConfig, written) == made


@robust
def test_the_defaults_are_those_of_the_optimizer(method):
    params = parameters()
    created = create(config(method, lr=0.05), params)
    direct = ROBUST[method](params.items(), lr=0.05)
    assert type(created) is ROBUST[method]
    assert created.defaults == direct.defaults


@pytest.mark.parametrize(
    ("method", "base"),
    [
        ("ftp", "adamw"),
        ("tpgm", "sgd"),
        ("spd", "adamw"),
        ("digrap", "sgd"),
        ("l2_sp", "adamw"),
        ("mars_sp", "sgd"),
    ],
)
def test_the_head_takes_the_plain_step_at_its_own_rate_and_the_rest_that_of_the_method(method, base):
    step = {"base": base, **(SGD if base == "sgd" else {})}
    options = {"lr": 0.05, "head_lr": 0.2, "weight_decay": 0.1}
    params, direct, plain_head = parameters(), parameters(), parameters()[HEAD]
    found = train(create(config(method, **options, **step), params, head=HEAD), params)

    kind = ROBUST[method]
    matrices = {
        "params": [(n, p) for n, p in direct.items() if n != HEAD and p.ndim == 2],
        "weight_decay": 0.1,
    }
    vectors = {"params": [(n, p) for n, p in direct.items() if p.ndim < 2]}
    head = {"params": [(HEAD, direct[HEAD])]}
    expected = train(kind([matrices, vectors, head], lr=0.05, **step), direct)
    for name in params.keys() - {HEAD}:
        assert torch.equal(found[name], expected[name]), name

    if base == "sgd":
        reference = torch.optim.SGD([plain_head], lr=0.2, weight_decay=0.1, **SGD)
    else:
        reference = torch.optim.AdamW([plain_head], lr=0.2, weight_decay=0.1, fused=True)
    alone = parameters()
    alone[HEAD] = plain_head
    expected = train(reference, alone)
    assert torch.equal(found[HEAD], expected[HEAD])


@pytest.mark.parametrize("method", ["adamw", "sgd"])
def test_plain_optimizers_are_those_of_torch(method):
    own = SGD if method == "sgd" else {"betas": (0.8, 0.95)}
    params, reference = parameters(), parameters()
    made = create(config(method, lr=0.05, head_lr=0.2, weight_decay=0.1, **own), params, head=HEAD)
    groups = [
        {"params": [reference["block.weight"], reference["factor.up"]], "lr": 0.05, "weight_decay": 0.1},
        {"params": [reference["block.bias"]], "lr": 0.05, "weight_decay": 0.0},
        {"params": [reference[HEAD]], "lr": 0.2, "weight_decay": 0.1},
    ]
    kind = torch.optim.SGD if method == "sgd" else torch.optim.AdamW
    assert type(made) is kind
    found, expected = train(made, params), train(kind(groups, **own), reference)
    for name in found:
        assert torch.equal(found[name], expected[name]), name


def test_anchors_are_the_start_zero_or_given_by_name():
    params, base = parameters(), torch.ones(3, 4, dtype=torch.float64)
    made = create(config("spd"), params, head=HEAD)
    kept = {name for name, param in params.items() if "anchor" in made.state[param]}
    assert kept == {"block.weight", "block.bias", "factor.up"}
    made = create(config("spd"), params, head=HEAD, anchors="zero")
    assert not any("anchor" in state for state in made.state.values())
    made = create(config("spd"), params, head=HEAD, anchors={"factor.up": None, "block.weight": base})
    kept = [name for name, param in params.items() if "anchor" in made.state[param]]
    assert kept == ["block.weight", "block.bias"]
    assert made.state[params["block.weight"]]["anchor"].data_ptr() == base.data_ptr()


def test_the_strengths_reach_the_optimizer():
    own = {
        "ftp": {"k": 0.3, "radius_lr": 0.1, "bias_correction": "exact", "first_radius": "published"},
        "tpgm": {"norm": "l2", "radius_lr": 0.1},
        "spd": {"strength": 0.5, "times_lr": True},
        "digrap": {"mu": 0.1, "kappa": 0.5, "condition": "agreement", "normalization": "tensor"},
        "l2_sp": {"alpha": 0.3, "decoupled": True},
        "mars_sp": {"radius": 0.3},
    }
    for method, options in own.items():
        for group in create(config(method, **options), parameters()).param_groups:
            assert group.items() >= options.items()


@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        ("adamw", {"lr": -1.0}, "optimizer.lr must be positive"),
        ("ftp", {"head_lr": 0.0}, "optimizer.head_lr must be positive"),
        ("adamw", {"weight_decay": -0.1}, "weight_decay must be"),
        ("adamw", {"betas": [0.9, 1.0]}, "betas must be"),
        ("adamw", {"strength": 1.0}, "no option 'optimizer.strength'"),
        ("sgd", {"nesterov": True}, "nesterov needs a momentum"),
        ("spd", {"momentum": 0.9}, "momentum is no option of base='adamw'"),
        ("spd", {"base": "sgd", "betas": [0.8, 0.9]}, "betas is no option of base='sgd'"),
        ("spd", {"base": "lion"}, "optimizer.base is 'lion'"),
        ("spd", {"strength": -1.0}, "strength must be"),
        ("ftp", {"k": 2.0}, "k must be"),
        ("digrap", {"mu": -1.0}, "mu must be"),
        ("digrap", {"kappa": 2.0}, "kappa must be"),
        ("tpgm", {"radius_lr": -1.0}, "radius_lr must be"),
        ("tpgm", {"norm": "l1"}, "optimizer.norm is 'l1'"),
        ("l2_sp", {"alpha": -1.0}, "alpha must be"),
        ("mars_sp", {"strength": 0.1, "radius": 0.1}, "not both"),
        ("mars_sp", {"radius": -0.1}, "radius must be"),
        ("adam", {}, "did you mean 'adamw'"),
    ],
)
def test_a_recipe_that_makes_no_sense_is_refused(method, options, message):
    with pytest.raises(TetherError, match=message):
        config(method, **options)


def test_a_head_that_is_not_there_is_refused():
    with pytest.raises(TetherError, match="there is no head"):
        create(config("adamw", head_lr=0.1), parameters())
    with pytest.raises(TetherError, match=r"not trained; did you mean 'head\.weight'"):
        create(config("adamw"), parameters(), head="head.wieght")
