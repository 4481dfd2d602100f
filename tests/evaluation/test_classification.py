import math
from dataclasses import replace

import pytest
import torch

from tether.data.dataset import ImageDataset
from tether.data.records import Example, ImageRef
from tether.data.transforms import test_transform as plain_transform
from tether.ensembles import alpha_sweep
from tether.errors import TetherError
from tether.evaluation.classification import evaluate
from tether.evaluation.classifier import (
    Classifier,
    class_embeddings,
    zero_shot_classifier,
)

from .tiny import NAMES, TEMPLATES, way

ALPHAS = (0.0, 0.25, 0.5, 1.0, 1.5)


class Counting(ImageDataset):
    reads = 0

    def picture(self, index):
        type(self).reads += 1
        return super().picture(index)


@pytest.fixture
def splits(make_split):
    return {
        "plain": make_split("plain", 23),
        "masked": make_split("masked", 10, labels=3, class_mask=(0, 1, 2)),
        "grouped": make_split("grouped", 14, groups=((1, 4), (2, 3, 5))),
    }


def zero_shot(model):
    return lambda alpha: zero_shot_classifier(model, NAMES, TEMPLATES)


def moved(model, delta, alpha):
    """The same model at an alpha, the slow way."""
    weights = {"image": alpha, "text": alpha} if isinstance(alpha, float) else alpha
    with torch.no_grad():
        for name, parameter in model.module.named_parameters():
            if name in delta:
                tower = "image" if name.startswith("visual") else "text"
                parameter.copy_(parameter + weights[tower] * delta[name])


def same(first, second):
    return (
        torch.equal(first.predictions, second.predictions)
        and torch.equal(first.ranks, second.ranks)
        and torch.allclose(first.confidences, second.confidences, atol=1e-6)
    )


def test_class_embeddings_are_the_normalised_mean_of_normalised_prompts(model):
    found = class_embeddings(model, NAMES, TEMPLATES, batch_size=3)
    for name, row in zip(NAMES, found, strict=True):
        prompts = [template.format(name) for template in TEMPLATES]
        mean = model.encode_text(model.tokenize(prompts)).mean(0)
        torch.testing.assert_close(row, mean / mean.norm())
    assert not found.is_inference()


def test_each_distinct_prompt_is_encoded_once(model, monkeypatch):
    encoded = []
    tokenize = model.tokenize
    monkeypatch.setattr(model, "tokenize", lambda texts: encoded.extend(texts) or tokenize(texts))
    class_embeddings(model, ("cat", "dog", "cat"), ("a {}", "a {}", "the {}"), batch_size=2)
    assert sorted(encoded) == ["a cat", "a dog", "the cat", "the dog"]


def test_names_that_the_model_reads_only_the_same_beginning_of_are_warned_of(model):
    names = ("a very long name of a bird", "a very long name of a fish", "cat")
    with pytest.warns(
        UserWarning, match="bird' and 'a very long name of a fish' have the same prompts for tiny, .* 24"
    ):
        class_embeddings(model, names, ("one {}", "two {}"))
    class_embeddings(model, names, ("one {}", "{}"))  # told apart by one template


def test_evaluate_equals_a_loop_over_single_pictures(model, splits):
    classifier = zero_shot_classifier(model, NAMES, TEMPLATES)
    scores = evaluate(model, splits, classifier, batch_size=4)
    model.eval()
    for name, split in splits.items():
        dataset = ImageDataset(split, plain_transform(model.image))
        group = dict(enumerate(range(len(NAMES))))
        for members in split.groups:
            group.update(dict.fromkeys(members, members[0]))
        for i, example in enumerate(split.examples):
            with torch.no_grad():
                features = model.encode_image(dataset[i]["pixels"][None])
            logits = (math.exp(2.0) * features @ classifier.weight.T)[0].tolist()
            allowed = split.class_mask or range(len(NAMES))
            order = sorted(allowed, key=lambda label: -logits[label])
            answers = list(dict.fromkeys(group[label] for label in order))
            total = sum(math.exp(logits[label]) for label in allowed)
            share = sum(math.exp(logits[label]) for label in allowed if group[label] == answers[0]) / total
            assert scores[name].predictions[i] == order[0]
            assert scores[name].ranks[i] == answers.index(group[example.label])
            assert scores[name].confidences[i].item() == pytest.approx(share, rel=1e-5)


def test_every_module_gets_its_own_mode_back(model, splits):
    model.train()
    model.module.visual.eval()
    evaluate(model, splits, zero_shot_classifier(model, NAMES, TEMPLATES))
    assert model.module.training and model.module.dropout.training and not model.module.visual.training


def test_a_sweep_reads_each_picture_once_and_equals_separate_evaluations(model, delta, splits):
    def open_split(split):
        return Counting(split, plain_transform(model.image))

    Counting.reads = 0
    before = {name: value.clone() for name, value in model.module.state_dict().items()}
    sweep = alpha_sweep(
        model,
        way(model, delta),
        splits,
        ALPHAS,
        zero_shot(model),
        batch_size=5,
        open_split=open_split,
    )
    assert Counting.reads == sum(map(len, splits.values()))
    for name, value in model.module.state_dict().items():
        assert torch.equal(value, before[name]), name
    accuracies = set()
    for alpha in ALPHAS:
        model.module.load_state_dict(before)
        moved(model, delta, alpha)
        expected = evaluate(model, splits, zero_shot_classifier(model, NAMES, TEMPLATES))
        for name in splits:
            assert same(sweep.at(alpha)[name], expected[name]), (alpha, name)
        accuracies.add(expected["plain"].predictions.tolist().__str__())
    assert len(accuracies) > 2  # the path does change answers, so the comparison above means something
    assert sweep.curve("plain") == [sweep.at(alpha)["plain"].top1 for alpha in ALPHAS]


def test_a_grid_of_alphas_per_tower_costs_one_pass_per_alpha_of_a_tower(model, delta, splits, monkeypatch):
    grid = [{"image": i, "text": t} for t in (0.0, 1.0) for i in (0.0, 0.5, 1.0)]
    calls = {"image": 0, "text": 0}
    image_features, encode_image = model.image_features, model.encode_image
    monkeypatch.setattr(
        model, "encode_image", lambda pixels: calls.update(image=calls["image"] + 1) or encode_image(pixels)
    )

    def classifier(alpha):
        calls["text"] += 1
        return zero_shot_classifier(model, NAMES, TEMPLATES)

    only = {"plain": splits["plain"]}
    before = {name: value.clone() for name, value in model.module.state_dict().items()}
    sweep = alpha_sweep(model, way(model, delta), only, grid, classifier, batch_size=23)
    assert calls == {"image": 3, "text": 2}
    assert model.image_features is image_features
    for alpha in grid:
        model.module.load_state_dict(before)
        moved(model, delta, alpha)
        expected = evaluate(model, only, zero_shot_classifier(model, NAMES, TEMPLATES))
        assert same(sweep.at(alpha)["plain"], expected["plain"]), alpha


def test_a_linear_head_moves_along(model, delta, splits):
    start, end = torch.randn(len(NAMES), 6), torch.randn(len(NAMES), 6)
    bias = torch.randn(len(NAMES))

    def head(alpha):
        return Classifier(weight=start + alpha * (end - start), bias=alpha * bias)

    sweep = alpha_sweep(model, way(model, delta), splits, (0.0, 1.0), head)
    assert same(sweep.at(0.0)["plain"], evaluate(model, splits, head(0.0))["plain"])
    moved(model, delta, 1.0)
    assert same(sweep.at(1.0)["plain"], evaluate(model, splits, head(1.0))["plain"])


@pytest.mark.parametrize("where", ["classifier", "pictures"])
def test_weights_are_restored_when_something_breaks(model, delta, splits, where):
    before = {name: value.clone() for name, value in model.module.state_dict().items()}
    model.train()

    def classifier(alpha):
        if where == "classifier" and alpha == 0.5:
            raise RuntimeError("broken")
        return zero_shot_classifier(model, NAMES, TEMPLATES)

    def progress(what, done, total):
        if where == "pictures" and done > 10:
            raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        alpha_sweep(
            model,
            way(model, delta),
            splits,
            (0.0, 0.5, 1.0),
            classifier,
            batch_size=4,
            progress=progress,
        )
    for name, value in model.module.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert model.module.dropout.training


def test_autocast_does_not_keep_the_weights_of_another_alpha(model, delta, splits):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        model.encode_image(torch.zeros(1, 3, 8, 8))  # fills the cache of cast weights
        sweep = alpha_sweep(model, way(model, delta), splits, (0.0, 1.0), zero_shot(model))
        assert torch.is_autocast_cache_enabled()
    assert not torch.equal(sweep.at(0.0)["plain"].confidences, sweep.at(1.0)["plain"].confidences)
    moved(model, delta, 1.0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        expected = evaluate(model, splits, zero_shot_classifier(model, NAMES, TEMPLATES))
    assert torch.equal(sweep.at(1.0)["plain"].confidences, expected["plain"].confidences)


def test_progress_counts_every_picture(model, splits):
    seen = []
    classifier = zero_shot_classifier(model, NAMES, TEMPLATES)
    evaluate(model, splits, classifier, batch_size=10, progress=lambda *step: seen.append(step))
    assert seen[0] == ("evaluating plain", 10, 47) and seen[-1] == ("evaluating grouped", 47, 47)


def test_worker_processes_change_nothing(model, splits):
    classifier = zero_shot_classifier(model, NAMES, TEMPLATES)
    only = {"plain": splits["plain"]}
    alone, shared = (evaluate(model, only, classifier, workers=workers)["plain"] for workers in (0, 2))
    assert same(alone, shared)


@pytest.mark.parametrize("workers", (0, 1))
def test_a_broken_picture_is_named_without_a_traceback(model, splits, tmp_path, workers):
    (tmp_path / "broken.png").write_bytes(b"half a pic")
    broken = replace(splits["plain"], examples=(Example(ImageRef(str(tmp_path), "broken.png"), 0),))
    classifier = zero_shot_classifier(model, NAMES, TEMPLATES)
    with pytest.raises(TetherError, match=r"^Cannot read the picture \S*broken\.png: .*\.$"):
        evaluate(model, {"broken": broken}, classifier, workers=workers)


def test_nan_is_refused_and_named(model, splits):
    with torch.no_grad():
        model.module.visual.weight[0, 0] = math.nan
    classifier = zero_shot_classifier(model, NAMES, TEMPLATES)
    with pytest.raises(TetherError, match="23 of 23 pictures of split 'plain'"):
        evaluate(model, splits, classifier)


def test_one_class_is_always_right(model, make_split):
    split = make_split("single", 4, labels=1)
    scores = evaluate(model, {"single": split}, zero_shot_classifier(model, ("red",), TEMPLATES))["single"]
    assert scores.top1 == 1 and scores.top5 is None and scores.interval.high == 1


def test_top5_is_left_out_where_it_says_nothing(model, splits):
    scores = evaluate(model, splits, zero_shot_classifier(model, NAMES, TEMPLATES))
    assert scores["masked"].top5 is None  # three classes compete
    assert scores["grouped"].top5 is None  # seven classes, four answers
    assert 0 <= scores["plain"].top5 <= 1


def test_what_cannot_be_evaluated_is_refused(model, delta, splits, make_split):
    classifier = zero_shot_classifier(model, NAMES, TEMPLATES)
    with pytest.raises(TetherError, match="no examples"):
        evaluate(model, {"empty": make_split("empty", 0)}, classifier)
    with pytest.raises(TetherError, match="no split"):
        evaluate(model, {}, classifier)
    with pytest.raises(TetherError, match="classes 0 to 1"):
        evaluate(model, splits, zero_shot_classifier(model, NAMES[:2], TEMPLATES))
    with pytest.raises(TetherError, match="no class names"):
        class_embeddings(model, (), TEMPLATES)
    for alphas, message in (
        ((), "at least one"),
        ((0.5, 0.5), "twice"),
        ((math.nan,), "finite"),
        (({"image": 0.5},), "text tower"),
    ):
        with pytest.raises(TetherError, match=message):
            alpha_sweep(model, way(model, delta), splits, alphas, zero_shot(model))
    sweep = alpha_sweep(
        model, way(model, delta), splits, (0.0, {"image": 1.0, "text": 0.0}), zero_shot(model)
    )
    with pytest.raises(TetherError, match=r"0.7 was not evaluated; there are: 0; image 1, text 0"):
        sweep.at(0.7)


def test_numbers_hold_what_a_table_needs(model, splits):
    scores = evaluate(model, splits, zero_shot_classifier(model, NAMES, TEMPLATES))["masked"]
    numbers = scores.numbers()
    assert numbers["n"] == 10 and numbers["classes"] == 3 and numbers["digest"] == splits["masked"].digest
    assert numbers["top1"] == scores.correct.double().mean()
    assert numbers["interval"][0] <= numbers["top1"] <= numbers["interval"][1]
