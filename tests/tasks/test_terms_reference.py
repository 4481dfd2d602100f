"""The pre-trained model's features during training: right, without gradient, and nothing is left changed."""

from pathlib import Path

import pytest
import torch

from tether.models import load
from tether.models.last_block import ClassTokenBlock, fast_last_block
from tether.tasks.terms import Reference

from .terms_setup import ADAPTERS, Run


def state_of(run: Run) -> list:
    module = run.model.module
    modes = [part.training for part in module.modules()]
    classes = [type(part) for part in module.modules()]
    tensors = [(name, id(t), t._version, t.detach().clone()) for name, t in module.state_dict().items()]
    drops = [vars(part)["_modules"].get("drop") for part in module.modules()]
    return [
        modes,
        classes,
        [row[:3] for row in tensors],
        drops,
        torch.cat([row[3].flatten().float() for row in tensors]),
    ]


def same(before: list, after: list) -> bool:
    return before[:2] == after[:2] and before[3] == after[3] and torch.equal(before[4], after[4])


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_features_are_those_of_the_pretrained_model(adapter, tiny_model: Path):
    run = Run(tiny_model, adapter, cross_entropy=adapter == "frozen").move()
    fresh = load(str(tiny_model))
    run.forward(0)
    reference = Reference(run.model, run.attached)
    with torch.no_grad():
        run.move()
    assert reference.copied == (adapter in ("full", "bias_only"))
    pixels, tokens = torch.randn(3, 3, 32, 32), fresh.tokenize(["a circle", "nine crosses", "a"])
    before = state_of(run)
    image, text = reference.encode_image(pixels), reference.encode_text(tokens)
    pieces = reference.encode_text(tokens, batch_size=2)
    assert same(before, state_of(run))
    assert not image.requires_grad and not text.requires_grad
    torch.testing.assert_close(image, fresh.encode_image(pixels))
    torch.testing.assert_close(text, fresh.encode_text(tokens))
    torch.testing.assert_close(pieces, text)


@pytest.mark.parametrize("adapter", ["r_adapter", "full", "frozen"])
def test_nothing_is_left_changed_by_an_error(adapter, tiny_model: Path):
    run = Run(tiny_model, adapter, cross_entropy=adapter == "frozen").move()
    run.forward(0)
    reference = Reference(run.model, run.attached)
    before = state_of(run)
    with pytest.raises(ZeroDivisionError), reference.model():
        _ = 1 / 0
    assert same(before, state_of(run)) and torch.is_grad_enabled()


@pytest.mark.parametrize("adapter", ["r_adapter", "r_adapter low rank", "full", "bias_only"])
def test_the_backward_pass_of_what_was_computed_before_is_not_touched(adapter, tiny_model: Path):
    plain, disturbed = Run(tiny_model, adapter).move(), Run(tiny_model, adapter).move()
    reference = Reference(disturbed.model, disturbed.attached)
    for run in (plain, disturbed):
        step = run.forward(1)
        if run is disturbed:
            reference.encode_image(step.pixels)
            reference.encode_text(step.tokens)
        again = run.model.encode_image(step.pixels)  # under the same masks as before
        (step.image.square() @ torch.arange(16.0) + again @ torch.ones(16)).sum().backward()
        step.text.pow(3).sum().backward()
    expected, found = plain.gradients(), disturbed.gradients()
    assert expected.keys() == found.keys() and all(torch.equal(expected[n], found[n]) for n in expected)
    assert any(gradient.abs().max() > 0 for gradient in found.values())


def test_the_copy_shares_what_stays_frozen_and_shortens_its_last_block(tiny_model: Path):
    run = Run(tiny_model, "bias_only")
    with Reference(run.model, run.attached).model() as model:
        own, theirs = dict(model.module.named_parameters()), dict(run.model.module.named_parameters())
        assert any(type(part) is ClassTokenBlock for part in model.module.modules())
    shared = {name for name in own if own[name] is theirs[name]}
    assert not any(parameter.requires_grad for parameter in own.values())
    assert shared == theirs.keys() - run.parameters.keys()
    assert not any(type(part) is ClassTokenBlock for part in run.model.module.modules())


def test_a_shortened_last_block_stays_short(tiny_model: Path):
    run = Run(tiny_model).move()
    reference = Reference(run.model, run.attached)
    pixels = torch.randn(2, 3, 32, 32)
    whole = reference.encode_image(pixels)
    with fast_last_block(run.model):
        torch.testing.assert_close(reference.encode_image(pixels), whole)
        assert any(type(part) is ClassTokenBlock for part in run.model.module.modules())
