"""Whole trajectories in float64 against formulas written apart from the library, to 1e-9."""

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from tether.optimizers import FTP, L2SP, MARSSP, SPD, TPGM, DiGraP

GOLDEN = Path(__file__).parent / "golden.json"
SHAPES = [(), (1,), (5,), (3, 4), (2, 3, 2, 2)]

# name: (library's class, its options, the formula's class, its options)
CASES = {
    "ftp": (FTP, {}, "FTP", {}),
    "ftp k=0.5": (FTP, {"k": 0.5}, "FTP", {"k": 0.5}),
    "ftp k=0": (FTP, {"k": 0.0}, "FTP", {"k": 0.0}),
    "ftp exact": (FTP, {"bias_correction": "exact"}, "FTP", {"exponent": "t-1"}),
    "ftp published start": (FTP, {"first_radius": "published"}, "FTP", {"first": "zero"}),
    "ftp fast radius": (FTP, {"radius_lr": 0.5}, "FTP", {"radius_lr": 0.5}),
    "spd": (SPD, {}, "SPD", {}),
    "spd 1.5": (SPD, {"strength": 1.5}, "SPD", {"strength": 1.5}),
    "spd times lr": (SPD, {"strength": 1.5, "times_lr": True}, "SPD", {"strength": 1.5 * 0.05}),
    "digrap": (DiGraP, {"mu": 0.5}, "DiGraP", {"mu": 0.5}),
    "digrap kappa": (DiGraP, {"mu": 0.5, "kappa": 0.3}, "DiGraP", {"mu": 0.5, "kappa": 0.3}),
    "digrap agreement": (
        DiGraP,
        {"mu": 0.5, "condition": "agreement"},
        "DiGraP",
        {"mu": 0.5, "condition": "agreement"},
    ),
    "digrap tensor": (
        DiGraP,
        {"mu": 0.5, "normalization": "tensor"},
        "DiGraP",
        {"mu": 0.5, "normalization": "tensor"},
    ),
    "digrap exact": (
        DiGraP,
        {"mu": 0.5, "bias_correction": "exact"},
        "DiGraP",
        {"mu": 0.5, "exponent": "t-1"},
    ),
    "l2sp": (L2SP, {"alpha": 0.3}, "L2SP", {"alpha": 0.3}),
    "l2sp decoupled": (L2SP, {"alpha": 0.3, "decoupled": True}, "L2SP", {"alpha": 0.3, "decoupled": True}),
    "marssp": (MARSSP, {"strength": 0.3}, "MARSSP", {"strength": 0.3}),
    "marssp radius": (MARSSP, {"radius": 0.25}, "MARSSP", {"radius": 0.25}),
}
BASES = {
    "adamw": ({}, "Adam", {}),
    "amsgrad": (
        {"amsgrad": True, "betas": (0.8, 0.95), "eps": 1e-6},
        "Adam",
        {"amsgrad": True, "betas": (0.8, 0.95), "eps": 1e-6},
    ),
    "sgd": ({"base": "sgd"}, "Sgd", {}),
    "nesterov": (
        {"base": "sgd", "momentum": 0.9, "nesterov": True},
        "Sgd",
        {"momentum": 0.9, "nesterov": True},
    ),
    "dampening": (
        {"base": "sgd", "momentum": 0.9, "dampening": 0.3},
        "Sgd",
        {"momentum": 0.9, "dampening": 0.3},
    ),
}


def pairs(formulas, case, base, weight_decay=0.0, moved=0.0, shapes=SHAPES, seed=0):
    """The library's optimizer over one tensor per shape, and a formula object per tensor."""
    method, options, formula, formula_options = CASES[case]
    base_options, base_formula, base_formula_options = BASES[base]
    decay = {"weight_decay": weight_decay} if weight_decay else {}
    rng = np.random.default_rng(seed)
    weights = [np.asarray(rng.normal(size=shape)) for shape in shapes]
    anchors = [np.asarray(weight + moved * rng.normal(size=weight.shape)) for weight in weights]
    params = [torch.nn.Parameter(torch.tensor(weight)) for weight in weights]
    given = (
        {param: torch.tensor(anchor) for param, anchor in zip(params, anchors, strict=True)}
        if moved
        else "start"
    )
    optimizer = method(params, lr=0.05, anchors=given, **options, **base_options, **decay)
    runs = [
        getattr(formulas, formula)(
            weight,
            anchor,
            getattr(formulas, base_formula)(0.05, **base_formula_options, **decay),
            **formula_options,
        )
        for weight, anchor in zip(weights, anchors, strict=True)
    ]
    return optimizer, params, runs, rng


def follow(optimizer, params, runs, rng, steps=25):
    """The largest difference between weights of the library and of the formulas over all steps."""
    worst = 0.0
    for t in range(steps):
        turn = 1.0 if t % 7 < 4 else -0.5
        for param, run in zip(params, runs, strict=True):
            gradient = np.asarray(turn + 0.8 * rng.normal(size=param.shape))
            param.grad = torch.tensor(gradient)
            run.step(gradient)
        optimizer.step()
        for param, run in zip(params, runs, strict=True):
            worst = max(worst, np.abs(param.detach().numpy() - run.W).max())
    return worst


OTHER_BASES = dict(zip(CASES, itertools.cycle(list(BASES)[1:]), strict=False))


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("moved", [0.0, 0.3])
def test_trace(formulas, case, moved):
    """On AdamW from the tensor's own start, and from a given anchor on one of the other base steps in turn."""
    base = OTHER_BASES[case] if moved else "adamw"
    assert follow(*pairs(formulas, case, base, moved=moved)) < 1e-9


@pytest.mark.parametrize("base", ["adamw", "nesterov"])
def test_ftp_decays_toward_zero_inside_the_projection(formulas, base):
    assert follow(*pairs(formulas, "ftp", base, weight_decay=0.2)) < 1e-9


@pytest.mark.parametrize(("base", "moved"), [("adamw", 0.0), ("nesterov", 0.3)])
@pytest.mark.parametrize("norm", ["mars", "l2"])
def test_tpgm_trace(formulas, norm, base, moved):
    """Base steps with decay, two radius steps in every second iteration, projection in the others."""
    base_options, base_formula, base_formula_options = BASES[base]
    rng = np.random.default_rng(0)
    weights = [np.asarray(rng.normal(size=shape)) for shape in SHAPES]
    anchors = [np.asarray(weight + moved * rng.normal(size=weight.shape)) for weight in weights]
    targets = [np.asarray(rng.normal(size=shape)) for shape in SHAPES]
    params = [torch.nn.Parameter(torch.tensor(weight)) for weight in weights]
    given = (
        {param: torch.tensor(anchor) for param, anchor in zip(params, anchors, strict=True)}
        if moved
        else "start"
    )
    optimizer = TPGM(params, 0.05, norm=norm, radius_lr=0.1, weight_decay=0.1, anchors=given, **base_options)
    runs = [
        formulas.TPGM(
            weight,
            anchor,
            getattr(formulas, base_formula)(0.05, weight_decay=0.1, **base_formula_options),
            norm=norm,
            radius_lr=0.1,
        )
        for weight, anchor in zip(weights, anchors, strict=True)
    ]

    def held_out():
        return sum(
            (param - torch.tensor(target)).square().sum() / 2
            for param, target in zip(params, targets, strict=True)
        )

    for t in range(12):
        for param, run in zip(params, runs, strict=True):
            gradient = np.asarray(rng.normal(size=param.shape))
            param.grad = torch.tensor(gradient)
            run.step(gradient)
        optimizer.step()
        for run, target in zip(runs, targets, strict=True):
            if t % 2 == 0:
                run.learn(lambda projected, target=target: projected - target, iterations=2)
            run.project()
        if t % 2 == 0:
            optimizer.radius_step(held_out, iterations=2)
        else:
            optimizer.project()
        for param, run in zip(params, runs, strict=True):
            assert np.abs(param.detach().numpy() - run.W).max() < 1e-9
            assert optimizer.state[param]["radius"].item() == pytest.approx(run.gamma, abs=1e-9)


def run_golden(formulas, method, options, base):
    param = torch.nn.Parameter(torch.tensor(formulas.W))
    base_options = {} if base == "adamw" else {"base": "sgd", "momentum": 0.9, "nesterov": True}
    optimizer = method([param], lr=0.1, **options, **base_options)
    weights = []
    for which in formulas.PATTERN:
        param.grad = torch.tensor(formulas.GRADIENTS[which])
        optimizer.step()
        weights.append(param.detach().flatten().tolist())
    return weights


def test_golden_numbers(formulas):
    """The stored numbers are what the script makes, and what the library computes."""
    stored = json.loads(GOLDEN.read_text())
    made = json.loads(json.dumps(formulas.golden()))
    assert stored.keys() == made.keys()
    for name in stored:
        for key, values in stored[name].items():
            assert np.allclose(values, made[name][key], rtol=0, atol=1e-12), name
    names = {
        "ftp exact": {"bias_correction": "exact"},
        "digrap agreement": {"mu": 0.5, "condition": "agreement"},
    }
    names |= {"digrap tensor": {"mu": 0.5, "normalization": "tensor"}}
    for name, (formula, options) in formulas.CASES.items():
        method = {"FTP": FTP, "SPD": SPD, "DiGraP": DiGraP, "L2SP": L2SP, "MARSSP": MARSSP}[formula.__name__]
        for base in ("adamw", "sgd"):
            weights = run_golden(formulas, method, names.get(name, options), base)
            assert np.allclose(weights, stored[f"{name} {base}"]["weights"], rtol=0, atol=1e-9), (name, base)


def test_published_check_values(formulas):
    """Numbers known of the authors' own functions: γ of FTP, radius of SPD, ω of DiGraP."""
    start = torch.tensor(formulas.W)
    g1, g2 = (torch.tensor(gradient) for gradient in formulas.GRADIENTS)

    def steps(optimizer, param, gradients, read):
        numbers = []
        for gradient in gradients:
            param.grad = gradient.clone()
            optimizer.step()
            numbers.append(torch.as_tensor(read(param)).item())
        return numbers

    param = torch.nn.Parameter(start.clone())
    ftp = FTP([param], lr=0.1)
    first = steps(ftp, param, [g1], lambda p: (p - start).abs().max())
    assert first[0] < 1e-8  # the first step is undone
    radii = steps(ftp, param, [g1] * 5, lambda p: ftp.state[p]["radius"])
    assert radii == pytest.approx([0.00744138, 0.016026, 0.025123, 0.03451, 0.044081], abs=6e-7)

    for strength, radius in ((1.0, [0.4, 0.4]), (0.0, [0.5373, 0.6344])):
        param = torch.nn.Parameter(start.clone())
        spd = SPD([param], lr=0.1, strength=strength)
        distances = steps(spd, param, [g1, g1, g2, g2], lambda p: (p - start).norm())
        assert distances[2:] == pytest.approx(radius, abs=5e-5)
        if strength == 1.0:
            assert distances[2] == pytest.approx(0.39999996, abs=1e-8)

    param = torch.nn.Parameter(start.clone())
    digrap = DiGraP([param], lr=0.1, mu=0.5)
    turns = [sign * g1 for sign in (1, 1, -1, -1, 1, -1, 1, -1)]
    omegas = steps(digrap, param, turns, lambda p: digrap.state[p]["omega"])
    assert omegas == pytest.approx([0, 0, 0.31941, 0.29886, 0.44222, 0.67984, 0.98015, 1], abs=6e-6)

    constant, plain = torch.nn.Parameter(start.clone()), torch.nn.Parameter(start.clone())
    digrap, adam = DiGraP([constant], lr=0.1, mu=0.5), torch.optim.Adam([plain], lr=0.1)
    assert steps(digrap, constant, [g1] * 6, lambda p: digrap.state[p]["omega"]) == [0.0] * 6
    steps(adam, plain, [g1] * 6, lambda p: 0.0)
    assert torch.allclose(constant, plain, rtol=0, atol=1e-12)
