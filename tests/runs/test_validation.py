"""The curve on validation pictures: what it measures, how often, and that a run is the same without it."""

from dataclasses import replace

import pytest
import torch

import tether.data.dataset
from tether import recipe as recipes
from tether.adapters import attach
from tether.data import load_benchmark
from tether.data.records import Example
from tether.evaluation import evaluate, zero_shot_classifier
from tether.models import load
from tether.runs import train as directing
from tether.runs.train import run
from tether.runs.validation import Validation
from tether.training import read_metrics
from tether.training.checkpoint import latest_checkpoint, load_checkpoint

KINDS = {
    "r_adapter": ({"method": "r_adapter", "drop": 0.3}, {"method": "mpm_nce"}),
    "full": ({"method": "full"}, {"method": "cross_entropy"}),
    "frozen": ({"method": "frozen"}, {"method": "cross_entropy"}),
}


def flat(state, path=""):
    if isinstance(state, dict):
        return {k: v for name, part in state.items() for k, v in flat(part, f"{path}/{name}").items()}
    return {path: state}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("workers", [0, 1])
def test_a_run_is_the_same_bit_for_bit_without_it(kind, workers, tiny_recipe, tmp_path, monkeypatch):
    adapter, objective = KINDS[kind]
    training = {**tiny_recipe["training"], "epochs": 2, "workers": workers}
    options = {**tiny_recipe, "adapter": adapter, "objective": objective, "training": training}
    recipe = recipes.from_plain(options)
    with_it = run(recipe, tmp_path / "with", show_progress=False, test=False).run
    monkeypatch.setattr(directing.Validation, "of", lambda *arguments: None)
    without = run(recipe, tmp_path / "without", show_progress=False, test=False).run

    found, expected = (
        flat(load_checkpoint(latest_checkpoint(path / "checkpoints"))) for path in (with_it, without)
    )
    assert found.keys() == expected.keys()
    assert any("random" in name for name in found) and any("optimizer" in name for name in found)
    for name, value in expected.items():
        if name.startswith("/random/python"):
            continue  # the type checker of the test run draws from it
        same = torch.equal(found[name], value) if isinstance(value, torch.Tensor) else found[name] == value
        assert same or name == "/random/python_gauss", name
    lines = [
        [
            {k: v for k, v in row.items() if k != "examples_per_second"}
            for row in read_metrics(path)
            if row["kind"] == "train"
        ]
        for path in (with_it, without)
    ]
    assert lines[0] == lines[1] and len(lines[0]) > 1
    assert {row["kind"] for row in read_metrics(without)} == {"train"}
    measured = [row for row in read_metrics(with_it) if row["kind"] == "validation"]
    assert measured[-1].keys() == {"kind", "step", "epoch", "top1"}
    assert list((with_it / "tensorboard").glob("events*"))


def made(tiny_recipe, **changes):
    recipe = recipes.from_plain({**tiny_recipe, **changes})
    model, benchmark = load(recipe.model), load_benchmark(recipe.data)
    task = recipe.task.make(recipe, model, benchmark)
    attached = attach(model, recipe.adapter)
    task.start(attached)
    return recipe, model, benchmark, task, attached


def test_it_measures_the_weights_as_they_are_without_any_drop(tiny_recipe):
    recipe, model, benchmark, task, attached = made(tiny_recipe, adapter={"method": "r_adapter", "drop": 0.9})
    with torch.no_grad():
        for parameter in attached.named_parameters().values():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    benchmark = replace(benchmark, templates=benchmark.templates[:1])
    task.begin_step(
        0,
        {
            "index": torch.arange(3),
            "label": torch.zeros(3, dtype=torch.long),
            "text_pick": torch.zeros(3, dtype=torch.long),
        },
    )
    task.templates = benchmark.templates
    examples = len(benchmark.train)
    measured = Validation.of(task, attached, examples)(0, recipe.training.total_steps(examples))
    attached.merge(1.0)
    splits = {"validation": benchmark.validation}
    classifier = zero_shot_classifier(model, benchmark.class_names, benchmark.templates)
    assert measured == {"top1": evaluate(model, splits, classifier)["validation"].top1}


def test_no_more_than_a_tenth_as_many_pictures_are_looked_at_as_were_trained_on(tiny_recipe):
    _, _, benchmark, task, attached = made(tiny_recipe)
    picture = benchmark.train.examples[0]

    def of(train, validated):
        def examples(kind, n):
            images = [replace(picture.image, name=f"{kind}-{i}.png") for i in range(n)]
            return tuple(Example(image, 3 * i // n) for i, image in enumerate(images))

        parts = {
            "train": replace(benchmark.train, examples=examples("train", train)),
            "validation": replace(benchmark.validation, examples=examples("validation", validated)),
        }
        task.benchmark = replace(benchmark, **parts)
        return Validation.of(task, attached, train)

    for train, validated, count, every in (
        (816, 236, 81, 1),  # a sample where there are more
        (5000, 300, 300, 1),
        (100, 30, 30, 3),  # all, but not after every epoch
        (16, 200, 64, 40),
        (18, 6, 6, 4),
    ):
        found = of(train, validated)
        assert (len(found.split), found.every) == (count, every)
        if every > 1:
            assert found(0, 1) is None
    classes = [example.label for example in of(816, 236).split.examples]
    assert [classes.count(label) for label in range(3)] == [28, 27, 26]
    assert of(816, 0) is None


def test_the_runs_own_process_reads_the_pictures_once(tiny_recipe, monkeypatch):
    *_, task, attached = made(tiny_recipe)
    validation, files = Validation.of(task, attached, 18), []
    original = tether.data.dataset.read_image
    monkeypatch.setattr(
        tether.data.dataset, "read_image", lambda image: files.append(image) or original(image)
    )
    first, second = (validation(0, validation.steps) for _ in range(2))
    assert first == second
    assert files == [example.image for example in validation.split.examples]
