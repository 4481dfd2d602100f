"""What is answered to single pictures, against the merged model asked directly."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from tether import recipe as recipes
from tether.adapters.files import apply, load_adapter, save_adapter
from tether.adapters.head import Head
from tether.cli import main
from tether.data import load_benchmark, read_image, test_transform
from tether.data.records import ImageRef
from tether.errors import TetherError
from tether.evaluation import class_embeddings
from tether.models import load
from tether.runs.answers import answers

from .test_train import quiet


@pytest.fixture(scope="module")
def trained(tiny_recipe, tmp_path_factory):
    """A finished run, which no test changes."""
    return quiet(tiny_recipe, tmp_path_factory.mktemp("runs")).run


@pytest.fixture(scope="module")
def pictures(tiny_recipe):
    root = Path(tiny_recipe["data"]["train"])
    return [sorted((root / shape).iterdir())[0] for shape in ("circle", "square")]


@torch.no_grad()
def asked_directly(tiny_recipe, run, picture, alpha, names=None, templates=("{}",)):
    """Probabilities by text, from a model into which the adapter is merged."""
    model, benchmark = load(tiny_recipe["model"]), load_benchmark(recipes.from_plain(tiny_recipe).data)
    apply(model, load_adapter(run / "adapter")).merge(alpha)
    model.module.eval()
    if names is None:
        names, templates = benchmark.class_names, benchmark.templates
    image = model.encode_image(
        test_transform(model.image)(read_image(ImageRef(str(picture.parent), picture.name)))[None]
    )
    weight = class_embeddings(model, names, templates)
    return dict(zip(names, (model.head_scale * image @ weight.T).softmax(1)[0].tolist(), strict=True))


def test_a_run_answers_zero_shot_as_kept_and_as_trained(tiny_recipe, trained, pictures):
    for picture, columns in zip(pictures, answers(str(trained), pictures), strict=True):
        assert [one.alpha for one in columns] == [0.0, 0.5, 1.0]
        for one in columns:
            expected = asked_directly(tiny_recipe, trained, picture, one.alpha)
            assert dict(one.best) == pytest.approx(expected, abs=1e-4)
            assert [p for _, p in one.best] == sorted((p for _, p in one.best), reverse=True)
        assert columns[0].best != columns[2].best


def test_free_texts_are_taken_as_they_are_at_the_alpha_that_is_asked_for(tiny_recipe, trained, pictures):
    texts = ("a red thing", "a blue thing", "nothing at all")
    ((_, kept, _),) = answers(str(trained / "adapter"), pictures[:1], texts=texts, alpha=0.25, most=2)
    expected = asked_directly(tiny_recipe, trained, pictures[0], 0.25, texts)
    assert kept.alpha == 0.25 and len(kept.best) == 2
    assert dict(kept.best) == pytest.approx({text: expected[text] for text, _ in kept.best}, abs=1e-4)
    ((alone,),) = answers(tiny_recipe["model"], pictures[:1], texts=texts)
    assert dict(alone.best) == pytest.approx(
        asked_directly(tiny_recipe, trained, pictures[0], 0.0, texts), abs=1e-4
    )


def test_a_trained_head_answers_with_its_classes(tiny_recipe, trained, pictures, tmp_path):
    run = shutil.copytree(trained, tmp_path / "run", ignore=shutil.ignore_patterns("adapter"))
    model = load(tiny_recipe["model"])
    attached = apply(model, trained / "adapter")
    zero_shot = torch.eye(3, model.dim)
    save_adapter(run / "adapter", attached, alpha=1.0, head=Head(zero_shot.flip(0) * 3, zero_shot))
    attached.detach()
    ((before, after),) = answers(str(run), pictures[:1])
    assert (before.alpha, after.alpha) == (0.0, 1.0) and before.best != after.best
    assert {name for name, _ in after.best} == {"circle", "square", "cross"}
    save = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps({**save, "data": {**save["data"], "domain": "other"}}))
    assert answers(str(run), pictures[:1])  # the classes are the same


def test_the_command_prints_a_column_for_each_alpha(trained, pictures, capsys):
    assert main(["try", str(trained), *map(str, pictures)]) == 0
    out = capsys.readouterr().out
    assert out.count("zero-shot") == 2 and out.count("alpha 0.5") == 2 and out.count("alpha 1") == 2
    assert all(str(picture) in out for picture in pictures) and "circle" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (lambda run, model: [model], 'nothing to choose from. Say it: --texts "a cat" "a dog"'),
        (lambda run, model: [model, "--texts", "a", "--alpha", "0.5"], "belong to an adapter"),
        (lambda run, model: [str(run.parent / "empty-run")], "has no adapter"),
        (lambda run, model: [str(run.parent / "lonely")], "lies in no run"),
    ],
)
def test_what_makes_no_sense_is_refused(trained, tiny_recipe, pictures, arguments, message, capsys):
    empty, lonely = trained.parent / "empty-run", trained.parent / "lonely"
    empty.mkdir(exist_ok=True)
    for name in ("config.json", "environment.json"):
        shutil.copy2(trained / name, empty / name)
    if not lonely.exists():
        shutil.copytree(trained / "adapter", lonely)
    source, *options = arguments(trained, tiny_recipe["model"])
    assert main(["try", source, str(pictures[0]), *options]) == 2
    assert message in " ".join(capsys.readouterr().err.split())


def test_a_picture_that_is_not_there_is_told_before_anything_is_loaded(trained, tmp_path):
    with pytest.raises(TetherError, match=r"missing\.png"):
        answers(str(trained), [tmp_path / "missing.png"])
    with pytest.raises(TetherError, match="no picture"):
        answers(str(trained), [])
