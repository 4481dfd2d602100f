"""Whole runs with methods that do not merge: training, alphas, averages, an interrupted run's files, predictions."""

import json

import pytest
import torch

from tether import recipe as recipes
from tether.adapters.files import apply, load_adapter
from tether.models import load
from tether.runs import train as fine_tuning

METHODS = {
    "mona": {"method": "mona", "hidden": 4, "drop": 0.2},
    "adapter_plus": {"method": "bottleneck", "variant": "adapter_plus"},
}


@pytest.mark.parametrize("adapter", METHODS.values(), ids=METHODS.keys())
def test_a_recipe_trains_it_and_scores_every_alpha(adapter, tiny_recipe, tmp_path):
    recipe = recipes.from_plain(tiny_recipe | {"adapter": adapter, "optimizer": {"lr": 1e-2}})
    run = fine_tuning.run(recipe, tmp_path, show_progress=False).run
    result = json.loads((run / "result.json").read_text())
    assert set(result["test"]) >= {"0.0", "0.5", "1.0"}
    saved = load_adapter(run / "adapter")
    assert type(saved.config) is type(recipe.adapter) and saved.alpha == 0.5
    model = load(tiny_recipe["model"])
    pixels = torch.randn(
        2, 3, *((model.image.size,) * 2 if isinstance(model.image.size, int) else model.image.size)
    )
    with torch.no_grad():
        base = model.encode_image(pixels)
        apply(model, saved)
        assert not torch.allclose(model.encode_image(pixels), base, atol=1e-3)


def test_what_has_two_ends_only_says_so(tiny_recipe, tmp_path):
    adapter = {"method": "vpt", "tokens": 2}
    options = tiny_recipe | {"adapter": adapter, "alpha": {"value": 1.0, "grid": [0.0, 1.0]}}
    run = fine_tuning.run(recipes.from_plain(options), tmp_path, show_progress=False).run
    assert set(json.loads((run / "result.json").read_text())["test"]) >= {"0.0", "1.0"}
