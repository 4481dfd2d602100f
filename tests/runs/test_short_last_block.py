"""Training computes only the pooled tokens of the last blocks, learns the same, and leaves nothing behind."""

from contextlib import nullcontext

import pytest
import torch

from tether import recipe as recipes
from tether.adapters.files import load_adapter
from tether.models import load
from tether.models.last_block import ClassTokenBlock, EndTokenBlock
from tether.runs import train as fine_tuning

SHORT = {ClassTokenBlock, EndTokenBlock}


def kinds(model) -> set[type]:
    return {type(part) for part in model.module.modules()}


@pytest.fixture
def seen(monkeypatch):
    """The model of a run, and the kinds of its modules while it trains."""
    found = {}

    def loaded(*arguments, **options):
        found["model"] = load(*arguments, **options)
        return found["model"]

    def fit(*arguments, **options):
        found["training"] = kinds(found["model"])
        return trained(*arguments, **options)

    trained = fine_tuning.fit
    monkeypatch.setattr(fine_tuning, "load", loaded)
    monkeypatch.setattr(fine_tuning, "fit", fit)
    return found


def test_short_while_training_and_whole_again(tiny_recipe, tmp_path, seen):
    fine_tuning.run(recipes.from_plain(tiny_recipe), tmp_path, show_progress=False)
    assert seen["training"] >= SHORT
    assert not kinds(seen["model"]) & SHORT


def test_whole_again_after_an_error(tiny_recipe, tmp_path, seen, monkeypatch):
    def stop(*arguments, **options):
        assert kinds(seen["model"]) >= SHORT
        raise RuntimeError("stop")

    monkeypatch.setattr(fine_tuning, "fit", stop)
    with pytest.raises(RuntimeError, match="stop"):
        fine_tuning.run(recipes.from_plain(tiny_recipe), tmp_path, show_progress=False)
    assert not kinds(seen["model"]) & SHORT


def test_the_same_is_learnt(tiny_recipe, tmp_path, seen, monkeypatch):
    options = recipes.from_plain(tiny_recipe | {"optimizer": {"lr": 1e-3}})
    short = fine_tuning.run(options, tmp_path / "short", show_progress=False)
    monkeypatch.setattr(fine_tuning, "fast_last_block", lambda model: nullcontext())
    whole = fine_tuning.run(options, tmp_path / "whole", show_progress=False)
    assert not seen["training"] & SHORT
    expected = load_adapter(whole.run / "adapter").state
    found = load_adapter(short.run / "adapter").state
    assert any(tensor.abs().max() > 1e-3 for tensor in expected.values())
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-3, atol=2e-5)
