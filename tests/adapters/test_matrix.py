"""Method × backbone: what every method promises holds on every backbone, or the pair is refused with a reason."""

import copy
from collections.abc import Iterable

import pytest
import torch
from torch import nn

from tether.adapters import apply, attach, load_adapter, save_adapter
from tether.adapters.attached import Attached
from tether.config import method_of, methods_of
from tether.errors import TetherError
from tether.families import AdapterConfig

from .matrix import BACKBONES, IMPOSSIBLE, MERGEABLE, METHODS, PAGE, UNUSED, backbone, outputs, page
from .models import TEXTS
from .r_adapter.test_method import assert_same, disturb, snapshot

KEYS = torch.arange(TEXTS)
EVERYWHERE = ("r_adapter", "lora", "mona", "full")
"""Methods that are tried on every backbone by `make test`, and the others on `FOR_ALL` alone."""
FOR_ALL = ("open_clip CLIP", "timm ViT", "transformers Swin", "torchvision ConvNeXt")


def pairs(methods: Iterable[str]) -> pytest.MarkDecorator:
    """The pairs that there are of some methods; the rest of the table is for `make test-slow`."""
    return pytest.mark.parametrize(
        ("method", "name"),
        [
            pytest.param(
                method, name, marks=() if method in EVERYWHERE or name in FOR_ALL else pytest.mark.slow
            )
            for method in methods
            for name in BACKBONES
            if (method, name) not in IMPOSSIBLE
        ],
    )


EVERY_PAIR, MERGEABLE_PAIRS = pairs(METHODS), pairs(MERGEABLE)


def attached_to(method: str, name: str) -> tuple[nn.Module, Attached]:
    """A copy of a backbone in evaluation mode, and the handle of a method on it."""
    module = copy.deepcopy(backbone(name)).eval()
    return module, attach(module, METHODS[method])


def assert_equal(one: list[torch.Tensor], other: list[torch.Tensor]) -> None:
    assert one and all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@EVERY_PAIR
def test_nothing_changes_until_it_is_trained_and_then_only_what_is_named(method, name):
    with torch.no_grad():
        expected = outputs(backbone(name).eval())
    module, attached = attached_to(method, name)
    base = snapshot(copy.deepcopy(backbone(name)))
    if attached.identity_at_start:
        with torch.no_grad():
            assert_equal(outputs(module), expected)
    disturb(attached, 0.02)
    attached.train_mode()
    attached.begin_step(0, KEYS, KEYS)
    sum(output.square().sum() for output in outputs(module)).backward()
    trained = attached.named_parameters()
    gradients = [trained[key].grad for key in trained.keys() - UNUSED.get(name, set())]
    assert gradients and all(gradient is not None for gradient in gradients)
    assert any(bool(gradient.any()) for gradient in gradients)
    own = {id(parameter) for parameter in trained.values()}
    assert all(p.grad is None and not p.requires_grad for p in module.parameters() if id(p) not in own)
    attached.detach()
    module.eval()
    assert_same({key: tensor for key, tensor in snapshot(module).items() if key in base}, base)
    with torch.no_grad():
        assert_equal(outputs(module), expected)


@EVERY_PAIR
@torch.no_grad()
def test_a_folder_makes_the_same_model_again_and_loading_is_strict(method, name, tmp_path):
    module, attached = attached_to(method, name)
    disturb(attached, 0.02)
    save_adapter(tmp_path / "adapter", attached)
    adapter = load_adapter(tmp_path / "adapter")
    assert_same(adapter.state, attached.state_dict())
    again = copy.deepcopy(backbone(name))
    applied = apply(again, adapter)
    assert_equal(outputs(again), outputs(module))
    first = next(iter(adapter.state))
    with pytest.raises(TetherError, match="missing"):
        applied.load_state_dict({key: tensor for key, tensor in adapter.state.items() if key != first})


@MERGEABLE_PAIRS
@torch.no_grad()
def test_what_merges_answers_as_before_and_comes_off_bit_for_bit(method, name):
    module, attached = attached_to(method, name)
    base = snapshot(copy.deepcopy(backbone(name)))
    assert all(not bool(tensor.any()) for tensor in attached.delta().values())
    disturb(attached, 0.02)
    adapted = outputs(module)
    attached.merge(1.0, probe=lambda: outputs(module))
    for one, other in zip(outputs(module), adapted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
    attached.unmerge()
    assert_equal(outputs(module), adapted)
    attached.merge(0.0)
    assert_same(snapshot(module), base)
    attached.detach()  # while it is merged
    assert_same(snapshot(module), base)


@pytest.mark.parametrize(("method", "name"), IMPOSSIBLE)
def test_what_cannot_be_is_refused_and_the_backbone_left_alone(method, name):
    module = copy.deepcopy(backbone(name))
    with pytest.raises(TetherError, match=IMPOSSIBLE[method, name][1]):
        attach(module, METHODS[method])
    assert_same(snapshot(module), snapshot(backbone(name)))
    assert all(parameter.requires_grad for parameter in module.parameters())


def test_every_method_that_moves_anything_is_in_the_matrix():
    moving = {name for name, config in methods_of(AdapterConfig).items() if config.moves}
    assert {method_of(type(config)) for config in METHODS.values()} == moving


@pytest.mark.parametrize("method", METHODS)
def test_the_matrix_knows_what_merges(method):
    assert attached_to(method, "timm ViT")[1].mergeable == (method in MERGEABLE)


def test_the_page_is_as_the_matrix_says():
    assert PAGE.read_text(encoding="utf-8") == page(), "Run python -m tests.adapters.matrix"
