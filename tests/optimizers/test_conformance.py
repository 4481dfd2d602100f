"""What every robust optimizer must do, whatever its method."""

import copy
import doctest
import importlib
import inspect
import json

import pytest
import torch
from safetensors.torch import load, save

from tether.errors import TetherError
from tether.optimizers import FTP, L2SP, MARSSP, SPD, TPGM, DiGraP
from tether.optimizers._anchored import AnchoredOptimizer
from tether.optimizers._options import own_defaults

from .twins import TWINS

METHODS = {
    "FTP": (FTP, {"k": 0.5}),
    "SPD": (SPD, {"strength": 1.2}),
    "DiGraP": (DiGraP, {"mu": 0.5}),
    "L2SP": (L2SP, {"alpha": 0.3}),
    "L2SP decoupled": (L2SP, {"alpha": 0.3, "decoupled": True}),
    "MARSSP": (MARSSP, {"strength": 0.3}),
    "MARSSP radius": (MARSSP, {"radius": 0.2}),
    "TPGM": (TPGM, {"radius_lr": 0.05}),
    "TPGM l2": (TPGM, {"norm": "l2", "radius_lr": 0.05}),
}
BASES = {
    "adamw": {},
    "amsgrad": {"amsgrad": True, "betas": (0.8, 0.95), "eps": 1e-6},
    "sgd": {"base": "sgd"},
    "nesterov": {"base": "sgd", "momentum": 0.9, "nesterov": True},
    "dampening": {"base": "sgd", "momentum": 0.9, "dampening": 0.3},
}
SHAPES = {"scalar": (), "vector": (5,), "matrix": (3, 4), "kernel": (2, 3, 2, 2), "one": (1, 1)}

PAIRS = [
    *(("SPD", base) for base in BASES),
    ("FTP", "nesterov"),
    ("DiGraP", "amsgrad"),
    ("L2SP", "dampening"),
    ("L2SP decoupled", "adamw"),
    ("MARSSP", "sgd"),
    ("MARSSP radius", "nesterov"),
    ("TPGM", "adamw"),
    ("TPGM l2", "amsgrad"),
]
"""Every method on one base step and every base step under one method: the base step is torch's own, and methods
know nothing of it but the gradients they give it."""

methods = pytest.mark.parametrize("method", METHODS)
bases = pytest.mark.parametrize("base", BASES)
pairs = pytest.mark.parametrize(("method", "base"), PAIRS)


def parameters(shapes=SHAPES, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    return {
        name: torch.nn.Parameter(torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype))
        for name, shape in shapes.items()
    }


def make(method, base, params, **options):
    optimizer, own = METHODS[method]
    return optimizer(params.items(), lr=0.05, **{**own, **BASES[base], **options})


def gradient(name, shape, t, dtype=torch.float64):
    """Of a parameter's name and the step only; turns around, so that every branch of the methods is met."""
    generator = torch.Generator().manual_seed(sum(map(ord, name)) * 1000 + t)
    turn = 1.0 if t % 5 < 3 else -0.4
    noise = torch.randn(shape, generator=generator, dtype=torch.float64)
    return (turn * torch.ones(shape, dtype=torch.float64) + 0.7 * noise).to(dtype)


def advance(optimizer, params, steps, without=()):
    for t in steps:
        for name, param in params.items():
            skipped = (name, t) in without
            param.grad = None if skipped else gradient(name, param.shape, t, param.dtype).to(param.device)
        optimizer.step()
        if isinstance(optimizer, TPGM) and t % 2:
            trained = [param for name, param in params.items() if (name, t) not in without]
            if any(param.requires_grad for param in trained):
                optimizer.radius_step(lambda trained=trained: sum((p - 0.3).square().sum() for p in trained))


def values(params):
    return {name: param.detach().clone() for name, param in params.items()}


def assert_equal(first, second):
    assert first.keys() == second.keys()
    for name in first:
        assert torch.equal(first[name], second[name]), name


def assert_same_state(first, second):
    """State and options of two optimizers, bit for bit."""
    first, second = first.state_dict(), second.state_dict()
    assert json.dumps(first["param_groups"]) == json.dumps(second["param_groups"])
    assert first["state"].keys() == second["state"].keys()
    for index in first["state"]:
        assert_equal(first["state"][index], second["state"][index])
        for name, value in first["state"][index].items():
            assert value.dtype == second["state"][index][name].dtype


def through_files(state_dict):
    """What a checkpoint of safetensors and JSON makes of it."""
    tensors = {f"{i}/{n}": v for i, state in state_dict["state"].items() for n, v in state.items()}
    loaded, state = load(save(tensors)), {}
    for name, value in loaded.items():
        index, key = name.split("/")
        state.setdefault(int(index), {})[key] = value
    return {"state": state, "param_groups": json.loads(json.dumps(state_dict["param_groups"]))}


@pairs
def test_resume_is_bit_equal(method, base):
    dtype = torch.float32 if base in ("adamw", "nesterov") else torch.float64
    whole = parameters(dtype=dtype)
    optimizer = make(method, base, whole)
    advance(optimizer, whole, range(9))

    params = parameters(dtype=dtype)
    first = make(method, base, params)
    advance(first, params, range(5), without={("vector", t) for t in range(5)})
    # Until here the vector had no gradient: everything about it must be in the checkpoint all the same.
    resumed = {name: torch.nn.Parameter(value) for name, value in values(params).items()}
    second = make(method, base, resumed)  # made over the weights of step 5, which are not the anchor
    second.load_state_dict(through_files(first.state_dict()))
    advance(first, params, range(5, 9))
    advance(second, resumed, range(5, 9))
    assert_equal(values(params), values(resumed))
    for name in ("matrix", "kernel", "scalar", "one"):
        assert torch.equal(resumed[name], whole[name]), name
    assert_same_state(first, second)


@methods
def test_low_precision_keeps_what_it_learns_in_float32(method):
    params = parameters(dtype=torch.bfloat16)
    first = make(method, "adamw", params)
    advance(first, params, range(4))
    resumed = {name: torch.nn.Parameter(value) for name, value in values(params).items()}
    second = make(method, "adamw", resumed)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    for state in second.state.values():
        assert all(state[name].dtype == torch.float32 for name in second.learned)
        assert state["exp_avg"].dtype == torch.bfloat16
    assert_same_state(first, second)
    advance(first, params, range(4, 6))
    advance(second, resumed, range(4, 6))
    assert_equal(values(params), values(resumed))
    assert all(torch.isfinite(value).all() for value in values(params).values())


@pairs
def test_a_row_without_gradient_stays_finite_in_bfloat16(method, base):
    param = torch.nn.Parameter(torch.linspace(-1, 1, 20).reshape(4, 5).bfloat16())
    optimizer = make(method, base, {"w": param})
    for step in range(6):
        param.grad = torch.linspace(-1, 2, 20).reshape(4, 5).bfloat16() * (-1) ** step
        param.grad[2] = 0
        optimizer.step()
        if hasattr(optimizer, "project"):
            optimizer.project()
        assert param.isfinite().all(), step


@methods
def test_what_is_trained_is_not_float16(method):
    """AdamW's ε is 0 in it, so that a gradient of zero would make NaN."""
    half = {"w": torch.nn.Parameter(torch.ones(2, 3, dtype=torch.float16))}
    with pytest.raises(TetherError, match=r"w is float16, .* Train float32 .*torch\.autocast"):
        make(method, "adamw", half)
    with pytest.raises(TetherError, match="w is float16"):  # torch's own step under it is no better
        make(method, "adamw", half, exclude=["w"])

    params = {**parameters(dtype=torch.float32), "w": half["w"].requires_grad_(False)}
    optimizer = make(method, "adamw", params)  # frozen, as a base under adapters
    advance(optimizer, params, range(2))
    params["matrix"].data = params["matrix"].data.half()
    params["matrix"].grad = torch.ones_like(params["matrix"])
    with pytest.raises(TetherError, match="matrix is float16"):
        optimizer.step()
    half["w"].requires_grad_(True).grad = torch.ones_like(half["w"])
    params["matrix"].data = params["matrix"].data.float()
    params["matrix"].grad = None
    with pytest.raises(TetherError, match="w is float16"):
        optimizer.step()


@methods
def test_loading_shares_no_memory(method):
    params = parameters()
    first = make(method, "adamw", params)
    advance(first, params, range(3))
    saved = first.state_dict()
    before = copy.deepcopy(saved)
    other = parameters()
    second = make(method, "adamw", other)
    second.load_state_dict(saved)
    advance(second, other, range(3, 5))
    for index, state in before["state"].items():
        assert_equal(state, saved["state"][index])


@methods
def test_state_is_loaded_by_name(method):
    params = parameters()
    first = make(method, "adamw", params)
    advance(first, params, range(3))
    turned = {name: torch.nn.Parameter(value) for name, value in reversed(values(params).items())}
    second = make(method, "adamw", turned)
    second.load_state_dict(first.state_dict())
    advance(first, params, range(3, 5))
    advance(second, turned, range(3, 5))
    assert_equal(values(params), {name: values(turned)[name] for name in params})


def test_loading_refuses_what_does_not_fit():
    params = parameters()
    saved = make("FTP", "adamw", params).state_dict()
    renamed = {name.replace("vec", "vek"): param for name, param in parameters().items()}
    with pytest.raises(TetherError, match=r"lacks \['vektor'\] and has \['vector'\]"):
        make("FTP", "adamw", renamed).load_state_dict(saved)
    with pytest.raises(TetherError, match=r"has groups of \[5\] tensors, this one \[1\]"):
        make("FTP", "adamw", {"matrix": parameters()["matrix"]}).load_state_dict(saved)
    with pytest.raises(TetherError, match=r"anchor of matrix has shape \(3, 4\), not \(4, 3\)"):
        make("FTP", "adamw", parameters({**SHAPES, "matrix": (4, 3)})).load_state_dict(saved)
    with pytest.raises(TetherError, match=r"lacks .*momentum_buffer"):
        make("FTP", "nesterov", parameters()).load_state_dict(saved)


@pytest.mark.parametrize("method", ["FTP", "SPD", "TPGM"])
@pytest.mark.parametrize("way", ["left out", "empty", "frozen when saved"])
def test_a_state_without_a_trained_tensor_is_refused(method, way):
    """Its anchor would be the weights of now, which are not the pre-trained ones."""
    params = parameters()
    if way == "frozen when saved":
        params["matrix"].requires_grad_(False)
    first = make(method, "adamw", params)
    advance(first, params, range(3))
    saved = first.state_dict()
    place = list(params).index("matrix")
    if way == "left out":
        del saved["state"][place]
    elif way == "empty":
        saved["state"][place] = {}
    resumed = {name: torch.nn.Parameter(value) for name, value in values(params).items()}
    second = make(method, "adamw", resumed)
    before = copy.deepcopy(second.state_dict())
    message = "holds nothing of matrix, which is trained here.*unfreeze it afterwards"
    with pytest.raises(TetherError, match=message):
        second.load_state_dict(saved)
    for index, state in before["state"].items():
        assert_equal(state, second.state_dict()["state"][index])
    resumed["matrix"].requires_grad_(False)  # as the message says
    second.load_state_dict(saved)
    assert_equal(second.state[resumed["matrix"]], before["state"][place])
    resumed["matrix"].requires_grad_(True)
    advance(second, resumed, [3])


@methods
def test_a_state_is_loaded_only_where_tensors_are_treated_alike(method):
    """Also where the states have the same parts, as those of an excluded and a zero-anchored tensor have."""
    frozen = {name: param.detach() + 0.1 for name, param in parameters().items()}
    ways = {
        "excluded": ({"exclude": ["*"]}, "excluded"),
        "zero": ({"anchors": "zero"}, "anchored at zero"),
        "start": ({}, "anchored at its start"),
        "given": ({"anchors": frozen}, "anchored at a given tensor"),
    }
    for saved_way, (saved_options, saved_words) in ways.items():
        first = make(method, "adamw", parameters(), **saved_options)
        for way, (options, words) in ways.items():
            params = parameters()
            second = make(method, "adamw", params, **options)
            if way == saved_way:
                second.load_state_dict(first.state_dict())
                continue
            with pytest.raises(
                TetherError, match=f"scalar was saved as {saved_words}, and here it is {words}"
            ):
                second.load_state_dict(first.state_dict())
            params["scalar"].requires_grad_(False)  # a frozen tensor has no state that could be compared
            third = make(method, "adamw", params, **options)
            with pytest.raises(
                TetherError, match=f"scalar was saved as {saved_words}, and here it is {words}"
            ):
                third.load_state_dict(first.state_dict())


@methods
def test_a_state_with_given_anchors_goes_on_with_the_same_ones_only(method):
    frozen = {name: param.detach() + 0.1 for name, param in parameters().items()}
    params = parameters()
    first = make(method, "adamw", params, anchors=frozen)
    advance(first, params, range(3))
    saved = through_files(first.state_dict())

    resumed = {name: torch.nn.Parameter(value) for name, value in values(params).items()}
    second = make(method, "adamw", resumed, anchors=frozen)
    second.load_state_dict(saved)
    assert all(second.state[resumed[name]]["anchor"] is second._given[resumed[name]] for name in SHAPES)
    used = {state["anchor"].data_ptr() for state in second.state.values()}
    assert used == {anchor.data_ptr() for anchor in frozen.values()}  # still without a copy
    advance(first, params, range(3, 6))
    advance(second, resumed, range(3, 6))
    assert_equal(values(params), values(resumed))

    other = {**frozen, "kernel": frozen["kernel"] + 1e-6}
    third = make(method, "adamw", parameters(), anchors=other)
    before = copy.deepcopy(third.state_dict())
    with pytest.raises(TetherError, match="anchor given for kernel is not the one it was saved with"):
        third.load_state_dict(saved)
    for index, state in before["state"].items():
        assert_equal(state, third.state_dict()["state"][index])


@pairs
def test_a_tensor_has_its_own_clock(method, base):
    """A late first gradient starts its clock; a missing one leaves it as it is; others do not notice."""
    params = parameters()
    optimizer = make(method, base, params)
    late = {("vector", 0), ("vector", 1), ("matrix", 3)}
    advance(optimizer, params, range(2), without=late)
    assert torch.equal(params["vector"], parameters()["vector"])
    assert optimizer.state[params["vector"]]["step"] == 0
    advance(optimizer, params, [2], without=late)
    kept, state = values(params)["matrix"], copy.deepcopy(optimizer.state[params["matrix"]])
    advance(optimizer, params, [3], without=late)
    if "TPGM" not in method:  # its projection is for all tensors, with a gradient or without
        assert torch.equal(params["matrix"], kept)
        assert_equal(optimizer.state[params["matrix"]], state)
    advance(optimizer, params, range(4, 8))

    for name, steps in {"kernel": range(8), "vector": range(2, 8)}.items():
        alone = {name: parameters()[name]}
        advance(make(method, base, alone), alone, steps)
        assert torch.allclose(alone[name], params[name], rtol=0, atol=1e-13), name


@pairs
def test_frozen_tensors_stay(method, base):
    params = parameters()
    params["matrix"].requires_grad_(False)
    optimizer = make(method, base, params)
    assert not optimizer.state[params["matrix"]]  # no memory for it
    for name, param in params.items():
        param.grad = gradient(name, param.shape, 0)  # also where a gradient was left over
    for _ in range(3):
        optimizer.step()
    if isinstance(optimizer, TPGM):
        optimizer.project()
    assert torch.equal(params["matrix"], parameters()["matrix"])
    params["matrix"].requires_grad_(True)
    advance(optimizer, params, range(3))
    alone = {"matrix": parameters()["matrix"]}
    advance(make(method, base, alone), alone, range(3))
    assert torch.allclose(alone["matrix"], params["matrix"], rtol=0, atol=1e-13)


@pairs
def test_groups_have_their_own_settings(method, base):
    optimizer_class, own = METHODS[method]
    params = parameters()
    first, second = [{n: params[n] for n in names} for names in (("scalar", "matrix"), ("vector", "kernel"))]
    name, value = next(iter(own.items()))
    other = "mars" if value == "l2" else (not value if isinstance(value, bool) else value / 2)
    groups = [
        {"params": list(first.items())},
        {"params": list(second.items()), "lr": 0.01, name: other, "maximize": True},
    ]
    optimizer = optimizer_class(groups, lr=0.05, **own, **BASES[base])
    advance(optimizer, {**first, **second}, range(5))
    for part, options in ((first, {}), (second, {"lr": 0.01, name: other, "maximize": True})):
        alone = {n: parameters()[n] for n in part}
        settings = {"lr": 0.05, **own, **BASES[base], **options}
        advance(optimizer_class(alone.items(), **settings), alone, range(5))
        for n in part:
            assert torch.allclose(alone[n], params[n], rtol=0, atol=1e-13), n


@pytest.mark.parametrize(
    ("method", "base", "weight_decay"),
    [*((*pair, 0.1) for pair in PAIRS), *(("SPD", base, 0.0) for base in BASES)],
)
def test_excluded_tensors_take_the_plain_step(method, base, weight_decay):
    """Bit for bit that of torch.optim, with its decay, while the others are held."""
    reference = {
        "adamw": lambda p: torch.optim.AdamW(p, lr=0.05, weight_decay=weight_decay, fused=True),
        "amsgrad": lambda p: torch.optim.AdamW(
            p, 0.05, (0.8, 0.95), 1e-6, weight_decay, amsgrad=True, fused=True
        ),
        "sgd": lambda p: torch.optim.SGD(p, lr=0.05, weight_decay=weight_decay),
        "nesterov": lambda p: torch.optim.SGD(p, 0.05, 0.9, nesterov=True, weight_decay=weight_decay),
        "dampening": lambda p: torch.optim.SGD(p, 0.05, 0.9, 0.3, weight_decay=weight_decay),
    }[base]
    params, plain = parameters(), parameters()
    excluded = ["ma*", "vector", params["scalar"]]
    optimizer = make(method, base, params, exclude=excluded, weight_decay=weight_decay)
    advance(optimizer, params, range(8))
    advance(reference(list(plain.values())), plain, range(8))
    for name in ("scalar", "vector", "matrix"):
        assert torch.equal(params[name], plain[name]), name
    if (method, base) != (
        "SPD",
        "sgd",
    ):  # without momentum a step never leads away where the gradient leads back
        assert not torch.equal(params["kernel"], plain["kernel"])
    kept = optimizer.state[params["matrix"]]
    assert not ({"anchor", *optimizer.learned, *optimizer.remembered} & kept.keys())


@bases
def test_no_strength_is_the_plain_step(base):
    """Bit for bit; with a moved anchor, so that there is a displacement to act on."""
    anchors = {name: torch.zeros(shape, dtype=torch.float64) for name, shape in SHAPES.items()}
    off = [(SPD, {"strength": 0}), (DiGraP, {"kappa": 0}), (L2SP, {"alpha": 0}), (MARSSP, {"strength": 0})]
    off += [(L2SP, {"alpha": 0, "decoupled": True})]
    for optimizer, options in off:
        params, plain = parameters(), parameters()
        advance(optimizer(params.items(), 0.05, anchors=anchors, **options, **BASES[base]), params, range(7))
        advance(make("SPD", base, plain, exclude=["*"]), plain, range(7))
        assert_equal(values(params), values(plain))


@pytest.mark.parametrize(("method", "base"), [pair for pair in PAIRS if METHODS[pair[0]][0] in TWINS])
def test_the_update_is_that_of_its_twin(method, base):
    """TPGM's is traced by NumPy in test_traces.py."""
    optimizer_class, own = METHODS[method]
    twin = TWINS[optimizer_class]
    slow_class = type("Twin", (optimizer_class,), {"_update": lambda self, bucket: twin(bucket)})
    fast, slow = parameters(), parameters()
    anchors = {name: param.detach() + 0.1 for name, param in parameters().items()}
    options = {"anchors": anchors, **own, **BASES[base]}
    for params, made in ((fast, optimizer_class), (slow, slow_class)):
        params["kernel"].data = params["kernel"].data.to(memory_format=torch.channels_last)
        advance(made(params.items(), lr=0.05, foreach=made is optimizer_class, **options), params, range(8))
    for name in SHAPES:
        assert torch.allclose(fast[name], slow[name], rtol=0, atol=1e-12), name
        assert not torch.equal(fast[name], parameters()[name])


@pairs
def test_memory_layouts_do_not_matter(method, base):
    """Channels-last weights, transposed gradients and anchors: the same numbers at the same places."""
    plain, odd = parameters(), parameters()
    odd["kernel"].data = odd["kernel"].data.to(memory_format=torch.channels_last)
    odd["matrix"].data = odd["matrix"].data.T.contiguous().T
    anchors = {name: param.detach() + 0.1 for name, param in parameters().items()}
    turned = {**anchors, "matrix": anchors["matrix"].T.contiguous().T}
    first, second = make(method, base, plain, anchors=turned), make(method, base, odd, anchors=anchors)
    for t in range(5):
        for params in (plain, odd):
            for name, param in params.items():
                param.grad = gradient(name, param.shape, t)
        odd["vector"].grad = torch.stack([odd["vector"].grad] * 2, 1)[:, 0]
        plain["matrix"].grad = plain["matrix"].grad.T.contiguous().T
        first.step()
        second.step()
    for name in SHAPES:
        assert torch.allclose(plain[name], odd[name], rtol=0, atol=1e-13), name


@pytest.mark.parametrize("method", ["FTP", "TPGM"])
def test_the_closure_is_called_with_gradients(method):
    params = parameters()
    optimizer = make(method, "adamw", params)
    calls = []

    def closure():
        optimizer.zero_grad()
        loss = sum(param.square().sum() for param in params.values())
        loss.backward()
        calls.append(loss)
        return loss

    assert optimizer.step(closure) is calls[0]
    assert optimizer.state[params["matrix"]]["step"] == 1


@pairs
def test_gradients_are_left_as_they_are(method, base):
    params = parameters()
    optimizer = make(method, base, params)
    for t in range(9):
        grads = {}
        for name, param in params.items():
            param.grad = gradient(name, param.shape, t)
            grads[name] = param.grad.clone()
        optimizer.step()
        assert_equal(grads, {name: param.grad for name, param in params.items()})


@pairs
def test_no_learning_rate_no_change(method, base):
    params = parameters()
    optimizer = make(method, base, params, weight_decay=0.1)
    optimizer.param_groups[0]["lr"] = 0.0
    for t in range(3):
        for name, param in params.items():
            param.grad = gradient(name, param.shape, t)
        optimizer.step()
    for name, param in parameters().items():
        assert torch.equal(param, params[name])


@pairs
def test_maximize_descends_the_negated_gradient(method, base):
    up, down = parameters(), parameters()
    optimizers = (make(method, base, up, maximize=True), make(method, base, down))
    for t in range(6):
        for sign, params, optimizer in zip((-1, 1), (up, down), optimizers, strict=True):
            for name, param in params.items():
                param.grad = sign * gradient(name, param.shape, t)
            optimizer.step()
    for name in SHAPES:
        assert torch.allclose(up[name], down[name], rtol=0, atol=1e-14), name


@pytest.mark.parametrize("method", ["FTP", "TPGM"])
def test_a_step_skipped_by_the_scaler_does_not_count(method):
    """GradScaler unscales before the step; a step with infinities leaves weights and state alone."""
    params, plain = parameters(dtype=torch.float32), parameters(dtype=torch.float32)
    optimizer, reference = make(method, "adamw", params), make(method, "adamw", plain)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    for t in range(6):
        overflows = t == 3
        for name, param in params.items():
            param.grad = gradient(name, param.shape, t, torch.float32) * scaler.get_scale()
            if overflows:
                param.grad.fill_(torch.inf)
            plain[name].grad = gradient(name, param.shape, t, torch.float32)
        scaler.scale(torch.ones(()))
        scaler.step(optimizer)
        scaler.update()
        if not overflows:
            reference.step()
    assert_equal(values(params), values(plain))
    assert_same_state(optimizer, reference)
    assert optimizer.state[params["matrix"]]["step"] == 5


@pytest.mark.parametrize("method", ["FTP", "TPGM"])
def test_accumulated_gradients_are_one_step(method):
    def loss(params, scale):
        return sum(scale * (param - 0.5).square().sum() for param in params.values())

    twice, once = parameters(), parameters()
    optimizers = (make(method, "adamw", twice), make(method, "adamw", once))
    for _ in range(3):
        for optimizer in optimizers:
            optimizer.zero_grad()
        loss(twice, 0.25).backward()
        loss(twice, 0.75).backward()
        loss(once, 1.0).backward()
        for optimizer in optimizers:
            optimizer.step()
    for name in SHAPES:
        assert torch.allclose(twice[name], once[name], rtol=0, atol=1e-12)


@methods
def test_zero_anchors(method):
    """By word, by None and by given zeros: the same steps; no anchor is kept for the first two."""
    runs = []
    zeros = {name: torch.zeros(shape, dtype=torch.float64) for name, shape in SHAPES.items()}
    for anchors in ("zero", dict.fromkeys(SHAPES), zeros):
        params = parameters()
        optimizer = make(method, "adamw", params, anchors=anchors)
        advance(optimizer, params, range(6))
        assert all(("anchor" in state) == (anchors is zeros) for state in optimizer.state.values())
        runs.append(values(params))
    assert_equal(runs[0], runs[1])
    for name in SHAPES:
        assert torch.allclose(runs[0][name], runs[2][name], rtol=0, atol=1e-13)

    grouped = parameters()
    optimizer_class, own = METHODS[method]
    groups = [{"params": list(grouped.items()), "anchors": "zero"}]
    advance(optimizer_class(groups, lr=0.05, **own), grouped, range(6))
    assert_equal(values(grouped), runs[0])


@methods
def test_given_anchors_are_used_without_a_copy(method):
    frozen = {name: param.detach() + 0.1 for name, param in parameters().items()}
    before = {name: value.clone() for name, value in frozen.items()}
    params, by_identity = parameters(), parameters()
    optimizer = make(method, "adamw", params, anchors=frozen)
    advance(optimizer, params, range(4))
    used = {state["anchor"].data_ptr() for state in optimizer.state.values()}
    assert used == {anchor.data_ptr() for anchor in frozen.values()}
    assert_equal(frozen, before)
    identities = {by_identity[name]: frozen[name] for name in SHAPES}
    advance(make(method, "adamw", by_identity, anchors=identities), by_identity, range(4))
    assert_equal(values(params), values(by_identity))

    partly = parameters()
    optimizer = make(method, "adamw", partly, anchors={"matrix": frozen["matrix"]})
    assert "anchor" in optimizer.state[partly["vector"]]  # a copy of what is not in the mapping
    advance(optimizer, partly, range(4))
    assert torch.equal(partly["matrix"], params["matrix"])


def test_anchors_and_exclusions_that_do_not_fit_are_refused():
    params = parameters()
    with pytest.raises(
        TetherError, match="anchors names 'matrx', but no parameter fits; did you mean 'matrix'"
    ):
        SPD(params.items(), anchors={"matrx": torch.zeros(3, 4)})
    with pytest.raises(
        TetherError, match="exclude names 'vectr', but no parameter fits; did you mean 'vector'"
    ):
        SPD(params.items(), exclude=["vectr"])
    with pytest.raises(TetherError, match=r"pass model.named_parameters"):
        SPD(params.values(), exclude=["vector"])
    with pytest.raises(TetherError, match="not a parameter of this optimizer"):
        SPD(params.items(), exclude=[torch.zeros(2)])
    with pytest.raises(TetherError, match=r"matrix has shape \(3, 4\), its anchor \(4, 3\)"):
        SPD(params.items(), anchors={"matrix": torch.zeros(4, 3)})
    with pytest.raises(TetherError, match="own memory"):
        SPD(params.items(), anchors={"matrix": params["matrix"].detach()})


@pytest.mark.parametrize("exclude", [["matrix"], ["ma*"], [], "by identity"])
@pytest.mark.parametrize("anchor", [torch.zeros(3, 4, dtype=torch.float64), None])
def test_an_anchor_for_an_excluded_tensor_is_refused(exclude, anchor):
    params = parameters()
    given = [{"params": [("matrix", params["matrix"])], "excluded": exclude == []}]
    entry, shown = "matrix", "'matrix'"
    if exclude == "by identity":
        exclude, entry, shown = [params["matrix"]], params["matrix"], r"a tensor of shape \(3, 4\)"
    with pytest.raises(
        TetherError, match=f"{shown} is excluded, so the anchor given for it would have no effect"
    ):
        SPD(given, anchors={entry: anchor}, exclude=exclude)
    SPD(params.items(), exclude=["ma*"], anchors={"vector": torch.zeros(5, dtype=torch.float64)})


def options_of(optimizer):
    """Names and defaults in the signature of a constructor, as an editor shows them."""
    parameters = inspect.signature(optimizer).parameters.values()
    assert not [p for p in parameters if p.kind is p.VAR_KEYWORD], "an option is hidden"
    assert all(p.annotation is not p.empty for p in parameters)
    return {p.name: p.default for p in parameters}


@pytest.mark.parametrize("optimizer", dict.fromkeys(optimizer for optimizer, _ in METHODS.values()))
def test_every_option_is_in_the_signature_and_takes_effect(optimizer):
    options = options_of(optimizer)
    base_class = inspect.signature(AnchoredOptimizer).parameters
    shared = {name: p.default for name, p in base_class.items() if name != "own"}
    own = own_defaults(optimizer.config)
    assert options == {**shared, **own}
    assert {name: str(inspect.signature(optimizer).parameters[name]) for name in shared} == {
        name: str(base_class[name]) for name in shared
    }
    made = optimizer(parameters().items())
    group = made.param_groups[0]
    assert {name: group[name] for name in group.keys() & options.keys()} == {
        name: options[name] for name in group.keys() & options.keys() - {"params"}
    } | {"params": group["params"]}
    assert options.keys() - group.keys() == {"momentum", "dampening", "nesterov", "exclude", "foreach"}


def test_an_option_of_no_optimizer_is_refused():
    class Mine(AnchoredOptimizer):
        """As in the guide on adding a method: without a constructor of its own."""

        config = SPD.config

    with pytest.raises(TetherError, match="Mine has no option 'strenght'; did you mean 'strength'"):
        Mine(parameters().items(), strenght=1.0)
    with pytest.raises(TetherError, match="Mine has no option 'weigth_decay'; did you mean 'weight_decay'"):
        Mine(parameters().items(), weigth_decay=0.1)
    with pytest.raises(TypeError, match="'weigth_decay'"):
        SPD(parameters().items(), weigth_decay=0.1)


def test_options_that_do_not_fit_are_refused(unchecked):
    params = list(parameters().items())
    with pytest.raises(TetherError, match="momentum is no option of base='adamw'"):
        SPD(params, momentum=0.9)
    with pytest.raises(TetherError, match="amsgrad is no option of base='sgd'"):
        SPD(params, base="sgd", amsgrad=True)
    with pytest.raises(TetherError, match="betas is no option of base='sgd'"):
        SPD(params, base="sgd", betas=(0.8, 0.9))
    with pytest.raises(TetherError, match="base must be one of 'adamw', 'sgd'"):
        SPD(params, base="lion")
    with pytest.raises(TetherError, match="nesterov needs a momentum"):
        SPD(params, base="sgd", nesterov=True)
    with pytest.raises(TetherError, match="lr must be a number of at least 0"):
        SPD(params, lr=-1.0)
    with pytest.raises(TetherError, match=r"betas must be two numbers in \[0, 1\), found \(0.9, 1.0\)"):
        SPD(params, betas=(0.9, 1.0))
    with pytest.raises(TetherError, match="base of a group"):
        SPD([{"params": params, "base": "sgd"}])
    with pytest.raises(TetherError, match=r"type torch.int64"):
        SPD([torch.zeros(3, dtype=torch.int64)])
    for optimizer, options in [
        (SPD, {"strength": -1}),
        (FTP, {"k": 1.5}),
        (FTP, {"bias_correction": "none"}),
        (FTP, {"first_radius": "zero"}),
        (FTP, {"radius_lr": -1}),
        (DiGraP, {"kappa": 2}),
        (DiGraP, {"mu": -1}),
        (DiGraP, {"condition": "both"}),
        (DiGraP, {"normalization": "none"}),
        (L2SP, {"alpha": -1}),
        (MARSSP, {"strength": 0.1, "radius": 0.1}),
        (MARSSP, {"radius": -0.1}),
        (TPGM, {"norm": "l1"}),
        (TPGM, {"radius_lr": -1}),
    ]:
        message = f"^{next(iter(options))} (or radius )?must be"
        with pytest.raises(TetherError, match=message):
            optimizer([{"params": params, **options}])
        with pytest.raises(TetherError, match=message):
            optimizer(params, **options)


def test_sparse_gradients_are_refused():
    table = torch.nn.Embedding(4, 3, sparse=True)
    optimizer = SPD(table.parameters())
    table(torch.tensor([1])).sum().backward()
    with pytest.raises(TetherError, match="sparse=False"):
        optimizer.step()


@pairs
def test_the_device_is_never_waited_for(method, base, monkeypatch):
    """The meta device has nothing to read: an `if` or a float() on a tensor of the step would fail."""
    params = {name: torch.nn.Parameter(torch.zeros(shape, device="meta")) for name, shape in SHAPES.items()}
    optimizer = make(method, base, params)
    for t in range(3):
        for name, param in params.items():
            param.grad = gradient(name, param.shape, t, torch.float32).to("meta")
        optimizer.step()
    if isinstance(optimizer, TPGM):
        monkeypatch.setattr(
            "tether.optimizers.tpgm.method.all_finite", lambda values: True
        )  # where it waits, once
        optimizer.radius_step(lambda: sum(param.square().sum() for param in params.values()))
    assert optimizer.state[params["matrix"]]["step"] == 3


@methods
def test_memory(method):
    """Beside two moments: an anchor that is not given, and one tensor where a method keeps a direction."""
    params = parameters()
    size = sum(param.numel() for param in params.values())
    remembered = 1 if method in ("FTP", "DiGraP") else 0
    frozen = {name: param.detach() + 0.1 for name, param in params.items()}
    for anchors, copies in (("start", 3), ("zero", 2), (frozen, 2)):
        optimizer = make(method, "adamw", params, anchors=anchors)
        advance(optimizer, params, range(3))
        given = {anchor.data_ptr() for anchor in frozen.values()}
        tensors = [value for state in optimizer.state.values() for value in state.values()]
        kept = sum(value.numel() for value in tensors if value.data_ptr() not in given)
        numbers = len(params) * (2 + len(optimizer.learned))
        assert kept == (copies + remembered) * size + numbers
        groups = json.dumps(optimizer.state_dict()["param_groups"])  # no tensor hides in the options
        assert len(groups) < 1000


@methods
def test_state_follows_a_model_that_is_cast(method):
    params, double = parameters(dtype=torch.float32), parameters(dtype=torch.float32)
    optimizer = make(method, "adamw", params)
    for name, param in params.items():
        param.data = param.data.double()
        double[name] = torch.nn.Parameter(param.detach().clone())
    advance(optimizer, params, range(4))
    advance(make(method, "adamw", double), double, range(4))
    for name in SHAPES:
        assert torch.allclose(params[name], double[name], rtol=0, atol=1e-6)
        assert optimizer.state[params[name]]["exp_avg"].dtype == torch.float64


@methods
def test_how_tensors_are_put_together_changes_no_number(method, monkeypatch):
    """All at once, in small buckets, one by one; empty ones (such as an unused prompt) among them."""
    shapes = {**SHAPES, "none": (0,), "rows": (0, 3), "columns": (3, 0)}

    def run(**options):
        params = parameters(shapes)
        advance(make(method, "adamw", params, **options), params, range(5))
        return values(params)

    together = run()
    assert_equal(together, run(foreach=False))
    monkeypatch.setattr("tether.optimizers._bucket._ELEMENTS_ON_CPU", 1)
    assert_equal(together, run())
    assert all(torch.isfinite(value).all() for value in together.values())


@methods
def test_a_deep_copy_goes_its_own_way(method):
    params = parameters()
    optimizer = make(method, "adamw", params, exclude=["vector"], anchors={"matrix": None})
    advance(optimizer, params, range(2))
    copied_params, copied = copy.deepcopy((params, optimizer))
    before = values(params)
    advance(copied, copied_params, range(2, 4))
    assert_equal(values(params), before)
    advance(optimizer, params, range(2, 4))
    assert_equal(values(params), values(copied_params))


@pytest.mark.parametrize("name", ["ftp", "tpgm.method", "spd", "digrap", "l2sp", "marssp"])
def test_the_documented_example_runs(name):
    module = importlib.import_module(f"tether.optimizers.{name}")
    results = doctest.testmod(module, extraglobs={"torch": torch})
    assert results.attempted > 0
    assert results.failed == 0
