"""Salient channels against plain indexing, their choice against numpy, and their count."""

import numpy as np
import pytest
import torch

from tether.adapters import SCTConfig, apply, attach, load_adapter, save_adapter
from tether.ensembles import Accumulation
from tether.errors import TetherError

from ..models.image_models import IMAGE_MODELS
from .checks import (
    WIDTH,
    assert_everything_moves,
    assert_independent_of_the_batch,
    assert_same_with_gradients,
    count,
    made,
    site,
)
from .models import TEXTS, pixels, timm_model
from .r_adapter.test_method import assert_same, disturb

LABELS = torch.tensor([0, 1, 0, 2, 1])


def test_forward_and_gradients_are_those_of_indexing():
    module = made(SCTConfig(channels=5, selection="seed"), site())
    x = torch.randn(2, 7, WIDTH, dtype=torch.float64, requires_grad=True)
    named = dict(module.named_parameters())
    chosen = module.chosen.tolist()
    assert len(set(chosen)) == 5 and chosen == sorted(chosen)
    columns = [torch.zeros(2, 7, dtype=torch.float64)] * WIDTH
    for row, channel in enumerate(chosen):
        columns[channel] = named["linear.bias"][row] + sum(
            named["linear.weight"][row, other] * x[..., chosen[other]] for other in range(5)
        )
    assert_same_with_gradients(module(x), torch.stack(columns, -1), [x, *named.values()])


def test_the_count_is_the_published_one():
    assert count("vit_base_patch16_224", SCTConfig()) == 111_744 == 12 * (96**2 + 96)


def test_every_parameter_gets_a_gradient():
    assert_everything_moves(SCTConfig(channels=5, selection="seed"), 1)


def test_a_picture_has_the_same_features_in_any_batch():
    assert_independent_of_the_batch(SCTConfig(channels=5, selection="seed"))


def stream(model: torch.nn.Module) -> list[np.ndarray]:
    """What every block's second norm takes, of the patches alone: [pictures, patches, channels]."""
    seen: list[np.ndarray] = []
    handles = [
        block.norm2.register_forward_pre_hook(lambda part, given: seen.append(given[0][:, 1:].numpy()))
        for block in model.blocks
    ]
    with torch.no_grad():
        model.eval()(pixels())
    for handle in handles:
        handle.remove()
    return seen


def test_the_most_salient_channels_are_chosen():
    model = timm_model()
    streams = stream(model)
    attached = attach(model, SCTConfig(channels=6))
    attached.select_channels([(pixels()[:2], LABELS[:2]), (pixels()[2:], LABELS[2:])])
    for placed, x in zip(attached._placed.values(), streams, strict=True):
        norms = [np.sqrt((x[LABELS.numpy() == label] ** 2).sum((0, 1))) for label in range(3)]
        expected = np.argsort(-np.mean(norms, axis=0), kind="stable")[:6]
        assert placed.chosen.tolist() == sorted(expected.tolist())
    assert not model.training
    attached.train_mode()
    attached.select_channels([(pixels(), LABELS)])
    assert model.training


def test_of_equal_channels_the_first_are_chosen():
    model = IMAGE_MODELS["timm Swin"][0]()
    attached = attach(model, SCTConfig(channels=6))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    attached.select_channels([(torch.randn(2, 3, 32, 32), torch.tensor([0, 1]))])
    assert all(placed.chosen.tolist() == list(range(6)) for placed in attached._placed.values())


def test_nothing_runs_before_channels_are_chosen():
    model = timm_model()
    attached = attach(model, SCTConfig(channels=5))
    with pytest.raises(TetherError, match=r"No salient channels are chosen yet.*select_channels"):
        model(pixels())
    with attached.path() as path:
        path.set(0.0)
        model(pixels())
    with pytest.raises(TetherError, match="No salient channels are chosen yet"):
        model(pixels())
    with pytest.raises(TetherError, match="no pictures to choose channels by"):
        attached.select_channels([])
    attached.select_channels([(pixels(), LABELS)])
    model(pixels())


@torch.no_grad()
def test_the_choice_is_part_of_the_state(tmp_path):
    model = timm_model()
    attached = attach(model, SCTConfig(channels=5))
    attached.select_channels([(pixels(), LABELS)])
    average = Accumulation(attached.named_parameters())
    disturb(attached)
    average.update()
    save_adapter(tmp_path / "a", attached, state=average.average(), keep_raw=True)
    assert not any("chosen" in name for name in attached.named_parameters())
    again = apply(timm_model(), tmp_path / "a")
    assert_same(again.state_dict(), attached.complete(average.average()))
    again.load_state_dict(load_adapter(tmp_path / "a").raw)
    assert torch.equal(again.module(pixels()), model(pixels()))


def test_what_makes_no_sense_is_refused(unchecked):
    with pytest.raises(TetherError, match="has 16 channels, of which 17 cannot be chosen"):
        attach(timm_model(), SCTConfig(channels=17))
    with pytest.raises(TetherError, match="channels is a whole number"):
        SCTConfig(channels=0)
    with pytest.raises(TetherError, match="did you mean 'data'"):
        SCTConfig(selection="date")
    assert len(LABELS) == TEXTS
