"""What a recipe's classification trains, and how its loss may be taken apart."""

import math

import pytest
import torch

from tether import recipe as recipes
from tether.adapters import attach
from tether.adapters.files import load_adapter
from tether.data import load_benchmark
from tether.errors import TetherError
from tether.models import load
from tether.runs.train import run
from tether.training import read_metrics


def made(options, **parts):
    """The task of a recipe, right after `attach`, with its recipe and benchmark."""
    recipe = recipes.from_plain({**options, **parts})
    model, benchmark = load(recipe.model), load_benchmark(recipe.data)
    task = recipe.task.make(recipe, model, benchmark)
    task.start(attach(model, recipe.adapter))
    return task


def batch(task):
    size = task.model.image.size
    pixels = torch.randn(3, 3, size, size, generator=torch.Generator().manual_seed(0))
    numbers = torch.arange(3)
    return {"pixels": pixels, "label": numbers, "index": numbers, "text_pick": numbers}


OBJECTIVES = pytest.mark.parametrize("objective", ["info_nce", "mpm_nce", "cross_entropy"])


@OBJECTIVES
@pytest.mark.parametrize("trains", [False, True])
def test_the_logit_scale_is_trained_where_the_recipe_says_so(objective, trains, tiny_recipe):
    adapter = {"method": "full", "train_logit_scale": trains}
    task = made(tiny_recipe, adapter=adapter, objective={"method": objective})
    parameter = task.model.module.logit_scale
    start = task.model.logit_scale
    assert ("logit_scale" in task.named_parameters()) == trains
    given = batch(task)
    task.begin_step(0, given)
    loss, _ = task.loss(given, 0)
    loss.backward()
    assert (parameter.grad is not None and parameter.grad.item() != 0) == trains
    with torch.no_grad():
        parameter += 0.5
    changed, _ = task.loss(given, 0)
    assert (changed.item() != loss.item()) == trains
    grown = start * (math.exp(0.5) if trains else 1)
    assert torch.as_tensor(task.scale).item() == pytest.approx(grown)


@pytest.mark.parametrize("objective", ["info_nce", "cross_entropy"])
def test_a_run_learns_and_keeps_its_logit_scale(objective, tiny_recipe, tmp_path):
    adapter = {"method": "full", "train_logit_scale": True}
    options = {**tiny_recipe, "adapter": adapter, "objective": {"method": objective}}
    outcome = run(recipes.from_plain(options), tmp_path, show_progress=False)
    (path,) = tmp_path.glob("*/adapter")
    tuned = load_adapter(path).state["logit_scale"]
    base = load(options["model"]).module.logit_scale
    assert outcome is not None and tuned.item() != pytest.approx(base.item(), abs=1e-4)


@pytest.mark.parametrize(
    ("term", "separable"),
    [
        (None, True),
        ("car_ft", True),
        ("lipsum_ft", True),
        ("l2_sp_penalty", True),
        ("star_ft", False),
        ("function_space", False),
    ],
)
def test_a_batch_is_taken_in_pieces_only_where_no_term_looks_at_it_as_a_whole(
    term, separable, tiny_recipe, tmp_path
):
    """The first steps are the same with pieces and without, or the recipe is refused."""
    own = {"car_ft": {"contexts": ["a drawing", "a photo"]}, "star_ft": {"fade": False}}
    own["lipsum_ft"] = {"texts": 5, "length": 3}
    terms = [{"method": term, **own.get(term, {})}] if term else []
    common = {
        **tiny_recipe,
        "adapter": {"method": "full"},
        "objective": {"method": "cross_entropy"},
        "regularizers": terms,
        "optimizer": {"method": "sgd", "lr": 0.01},
        "schedule": {"warmup": 0},
    }

    def trained(micro_batch):
        training = {"steps": 2, "batch_size": 6, "seed": 3, "micro_batch": micro_batch}
        root = tmp_path / str(micro_batch)
        run(recipes.from_plain({**common, "training": training}), root, show_progress=False)
        return load_adapter(next(root.glob("*/adapter"))).state

    if not separable:
        with pytest.raises(TetherError, match="micro_batch=4 would change the result"):
            trained(4)
        return
    pieces, whole = trained(4), trained(None)
    for name, tensor in whole.items():
        torch.testing.assert_close(pieces[name], tensor, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("adapter", [{"method": "full"}, {"method": "r_adapter"}, {"method": "frozen"}])
def test_a_model_without_texts_learns_with_a_head(adapter, tiny_recipe, tmp_path):
    torch.manual_seed(0)  # the weights are random: the same ones each time
    load("timm:test_vit", pretrained=False).save(tmp_path / "base")
    options = {
        **tiny_recipe,
        "model": str(tmp_path / "base"),
        "adapter": adapter,
        "objective": {"method": "cross_entropy"},
        "optimizer": {"lr": 1e-3},
        "alpha": {"value": 1.0, "curve": False},
    }
    outcome = run(recipes.from_plain(options), tmp_path / "runs", show_progress=False)
    losses = [row["loss"] for row in read_metrics(outcome.run) if row["kind"] == "train"]
    assert losses[0] == pytest.approx(math.log(3), abs=1e-3)  # a head that was not trained stays there
    assert min(losses) < losses[0] - 0.02  # batches of a few pictures: not each is better than the one before
    assert outcome.test.at(0.0)["colour"].confidences.tolist() == pytest.approx([1 / 3] * 6)  # knows nothing


def test_a_model_without_texts_has_no_pairs(tiny_recipe, tmp_path):
    load("timm:test_vit", pretrained=False).save(tmp_path / "base")
    options = {**tiny_recipe, "model": str(tmp_path / "base")}
    with pytest.raises(TetherError, match=r"objective\.method=cross_entropy"):
        run(recipes.from_plain(options), tmp_path / "runs", show_progress=False)
