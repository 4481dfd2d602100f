"""Every regularizer inside a training step: its gradient, its start, its state, what it refuses."""

from dataclasses import replace

import pytest
import torch

from tether.config import build, plain
from tether.errors import TetherError
from tether.models.last_block import fast_last_block
from tether.objectives import (
    CarFTConfig,
    CaRotConfig,
    FunctionSpaceConfig,
    L2SPPenaltyConfig,
    LipsumFTConfig,
    M2MixConfig,
    StarFTConfig,
    VLMixConfig,
)
from tether.tasks.terms import RegularizerConfig
from tether.tasks.terms.step import Step

from .terms_setup import ALL, CASES, IMAGE_TERMS, METHODS, PAIR_TERMS, Run

BOTH = pytest.mark.parametrize("adapter", ["r_adapter", "full"])


@pytest.mark.parametrize(("config", "adapter", "cross_entropy"), CASES)
def test_gradients_reach_what_is_trained_and_nothing_else(config, adapter, cross_entropy, tiny_model):
    run = Run(tiny_model, adapter, cross_entropy)
    terms = run.terms(config)
    run.move()
    (term,) = terms(run.forward(1)).values()
    term.backward()
    gradients = run.gradients()
    assert any(gradient.abs().max() > 0 for gradient in gradients.values())
    if config in IMAGE_TERMS[:2]:  # the text tower is not asked
        assert not any(name.startswith("transformer.") for name in gradients)


@pytest.mark.parametrize("cross_entropy", [False, True])
@BOTH
@pytest.mark.parametrize(
    "config", [*IMAGE_TERMS[:3], FunctionSpaceConfig(consistency_weight=0.0), L2SPPenaltyConfig()]
)
def test_nothing_is_asked_of_the_pretrained_model_itself(adapter, cross_entropy, config, tiny_model):
    run = Run(tiny_model, adapter, cross_entropy)
    terms = run.terms(config)
    with fast_last_block(run.model):
        (term,) = terms(run.forward(1)).values()
    term.backward()
    if isinstance(config, L2SPPenaltyConfig) and adapter == "r_adapter":
        assert term == 0.0  # matrices start at 0, scalars are held where they start
    assert abs(float(term.detach())) < 1e-6
    assert all(gradient.abs().max() < 1e-4 for gradient in run.gradients().values())


@pytest.mark.parametrize("config", PAIR_TERMS)
def test_with_a_head_there_are_no_pairs(config, tiny_model):
    run = Run(tiny_model, "full", cross_entropy=True)
    with pytest.raises(TetherError, match=f"{plain(config)['method']} needs pairs"):
        run.terms(config)


@pytest.mark.parametrize("config", IMAGE_TERMS[:3])
def test_frozen_pictures_cannot_be_held(config, tiny_model):
    with pytest.raises(TetherError, match="image tower"):
        Run(tiny_model, "frozen", cross_entropy=True).terms(config)


def test_a_head_alone_can_be_held_in_function_space_and_to_its_start(tiny_model):
    run = Run(tiny_model, "frozen", cross_entropy=True)
    terms = run.terms(FunctionSpaceConfig(), L2SPPenaltyConfig())
    run.move()
    found = terms(run.forward(0))
    sum(found.values()).backward()
    assert all(term > 0 for term in found.values()) and run.head.grad.abs().max() > 0
    assert list(run.gradients()) == ["head.weight"]


def test_a_text_tower_that_does_not_move_is_not_run_for_star_ft(tiny_model, monkeypatch):
    run = Run(tiny_model, "r_adapter of pictures").move()
    terms, step = run.terms(StarFTConfig()), run.forward(0)
    monkeypatch.setattr(run.model, "text_features", None)
    (term,) = terms(step).values()
    assert term > 0


def test_what_makes_no_sense_is_refused(tiny_model):
    run = Run(tiny_model)
    with pytest.raises(TetherError, match="twice"):
        run.terms(CarFTConfig(), CarFTConfig(contexts=("day", "night")))
    with pytest.raises(TetherError, match="context of"):
        run.terms(LipsumFTConfig(length=99))
    with pytest.raises(TetherError, match="only one"):
        Run(tiny_model, steps=4).terms(StarFTConfig())
    assert len(Run(tiny_model, steps=4).terms(StarFTConfig(fade=False))) == 1


def test_weight_0_costs_nothing(tiny_model, monkeypatch):
    run = Run(tiny_model, "full", cross_entropy=True)
    monkeypatch.setattr(run.model, "tokenizer", None)
    terms = run.terms(LipsumFTConfig(weight=0.0), CarFTConfig(weight=0.0))
    assert len(terms) == 0 and terms(run.forward(0)) == {}


def test_what_is_drawn_for_a_picture_does_not_depend_on_its_batch(tiny_model):
    run = Run(tiny_model, cross_entropy=True)
    given, shared = run.forward(2), run.terms(CarFTConfig())._shared
    drawn = Step(given, shared).draw("star_ft", 1000)
    turned = replace(given, index=given.index.flip(0))
    assert torch.equal(Step(turned, shared).draw("star_ft", 1000), drawn.flip(0))
    assert len(drawn.unique()) == 5
    assert not torch.equal(Step(replace(given, step=3), shared).draw("star_ft", 1000), drawn)


def test_the_pretrained_features_of_a_batch_are_computed_once(tiny_model, monkeypatch):
    run = Run(tiny_model).move()
    terms = run.terms(CarFTConfig(), LipsumFTConfig(), StarFTConfig())
    step, calls, features = run.forward(0), [], run.model.image_features
    monkeypatch.setattr(run.model, "image_features", lambda *a: calls.append(a) or features(*a))
    terms(step)
    assert len(calls) == 1
    terms(step)
    assert len(calls) == 2


def test_recipes_can_name_every_term():
    for config, method in zip(ALL, METHODS, strict=True):
        assert plain(config)["method"] == method
        assert build(tuple[RegularizerConfig, ...], [plain(config)]) == (config,)
    (m3,) = build(tuple[RegularizerConfig, ...], [{"method": "m3_mix", "m2": {"weight": 0.05}}])
    assert m3.m2 == M2MixConfig(weight=0.05, beta=0.2) and m3.vl == VLMixConfig()


def train(run: Run, terms, steps: range) -> None:
    optimizer = torch.optim.SGD(run.parameters.values(), lr=0.05)
    for step in steps:
        optimizer.zero_grad()
        given = run.forward(step)
        sum(terms(given).values(), start=given.image[:, 0].sum()).backward()
        optimizer.step()


@pytest.mark.parametrize("cross_entropy", [False, True])
@BOTH
def test_a_continued_run_is_bit_equal(adapter, cross_entropy, tiny_model):
    configs = [config for config in ALL if not cross_entropy or config not in PAIR_TERMS]
    whole = Run(tiny_model, adapter, cross_entropy)
    train(whole, whole.terms(*configs), range(5))

    first = Run(tiny_model, adapter, cross_entropy)
    terms = first.terms(*configs)
    train(first, terms, range(3))
    weights = {name: parameter.detach().clone() for name, parameter in first.parameters.items()}
    state = {name: tensor.clone() for name, tensor in terms.state_dict().items()}

    second = Run(tiny_model, adapter, cross_entropy)
    terms = second.terms(*configs)
    with torch.no_grad():
        for name, parameter in second.parameters.items():
            parameter.copy_(weights[name])
    terms.load_state_dict(state)
    train(second, terms, range(3, 5))
    for name, parameter in whole.parameters.items():
        assert torch.equal(parameter, second.parameters[name]), name
    moved = (whole.parameters[name] - weights[name]).abs().max()
    assert moved > 0


def test_a_state_holds_the_teacher_and_the_anchors_of_an_adapter_only(tiny_model):
    run = Run(tiny_model)
    terms = run.terms(CaRotConfig(), L2SPPenaltyConfig())
    state = terms.state_dict()
    teacher = [tensor for name, tensor in state.items() if name.startswith("carot.")]
    anchors = [tensor for name, tensor in state.items() if name.startswith("l2_sp_penalty.")]
    assert sum(t.numel() for t in teacher) == sum(p.numel() for p in run.parameters.values())
    assert len(anchors) == sum(p.ndim == 0 for p in run.parameters.values())
    for wrong in ({}, state | {"car_ft.contexts": torch.zeros(2)}):
        with pytest.raises(TetherError, match="terms"):
            terms.load_state_dict(wrong)
    full = Run(tiny_model, "full")
    assert full.terms(L2SPPenaltyConfig()).state_dict() == {}


def test_under_autocast_the_same_parameters_learn(tiny_model):
    """Casts are cached under autocast, and one made without gradients must not be used where they count."""
    reached = []
    for enabled in (False, True):
        run = Run(tiny_model, "full").move()
        terms = run.terms(*ALL)
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            found = terms(run.forward(1))
        assert all(term.dtype == torch.float32 and bool(term.isfinite()) for term in found.values())
        sum(found.values()).backward()
        reached.append({name for name, gradient in run.gradients().items() if gradient.abs().max() > 0})
    assert reached[0] == reached[1] and len(reached[0]) > 20
