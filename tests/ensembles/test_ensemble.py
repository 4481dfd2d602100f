"""Ensembles of a run on tiny models: chosen on validation alone, and answering as the formulas say."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

import tether.data.dataset
from tether.adapters import LastBlocksConfig, RAdapterConfig, attach
from tether.adapters.files import apply, save_adapter
from tether.data.dataset import ImageDataset
from tether.data.records import Example, ImageRef, Split
from tether.data.transforms import test_transform as plain_transform
from tether.ensembles import (
    VRF,
    FisherConfig,
    OutputConfig,
    VRFConfig,
    alpha_sweep,
    diagonal_fisher,
    fisher_average,
)
from tether.ensembles.output import OutputEnsemble, calibrate, output_ensemble
from tether.ensembles.pair import Pair
from tether.ensembles.vrf.method import find_failures
from tether.errors import TetherError
from tether.evaluation import Classifier, evaluate, zero_shot_classifier
from tether.models import load
from tether.runs.predictor import Predictor, export_predictor, load_predictor, save_ensemble, save_predictor

from ..evaluation.tiny import NAMES, TEMPLATES, tiny_delta, tiny_model, tiny_split, way

CLASSES = len(NAMES)


@pytest.fixture
def model():
    return tiny_model()


@pytest.fixture
def delta(model):
    return {name: 2 * change for name, change in tiny_delta(model).items()}


@pytest.fixture
def pair(model, delta):
    return Pair.of(
        model,
        way(model, delta),
        lambda alpha: zero_shot_classifier(model, NAMES, TEMPLATES),
        batch_size=9,
    )


@pytest.fixture
def splits(tmp_path):
    return {
        "plain": tiny_split(tmp_path, "plain", 23),
        "masked": tiny_split(tmp_path, "masked", 10, labels=3, class_mask=(0, 1, 2)),
        "grouped": tiny_split(tmp_path, "grouped", 14, groups=((1, 4), (2, 3, 5))),
    }


@pytest.fixture
def train(tmp_path):
    return tiny_split(tmp_path, "training", 60)


@pytest.fixture
def validation(tmp_path):
    return tiny_split(tmp_path, "for validation", 40)


@pytest.fixture
def reads(monkeypatch):
    seen = []
    read_image = tether.data.dataset.read_image
    monkeypatch.setattr(tether.data.dataset, "read_image", lambda ref: seen.append(ref) or read_image(ref))
    return seen


def pixels_of(split, model):
    data = ImageDataset(split, plain_transform(model.image))
    return torch.stack([data[index]["pixels"] for index in range(len(data))])


def labels_of(split):
    return torch.tensor([example.label for example in split.examples])


@torch.no_grad()
def views_of(pair, split):
    with pair.ready():
        return pair(pixels_of(split, pair.zero_shot))


def same(first, second):
    return all(torch.equal(getattr(first, part), getattr(second, part)) for part in ("predictions", "ranks"))


def test_the_ends_are_those_of_the_path_of_alphas_and_every_picture_is_read_once(
    pair, splits, model, delta, reads
):
    before = {name: tensor.clone() for name, tensor in model.module.state_dict().items()}
    ensemble = OutputConfig(weight=0.5, fit_temperatures=False).fit(
        pair,
        train=splits["plain"],
        validation=splits["plain"],
    )
    assert not reads
    found = ensemble.sweep(splits)
    assert len(reads) == sum(map(len, splits.values()))
    assert found.alphas == tuple(OutputConfig().grid)
    expected = alpha_sweep(model, way(model, delta), splits, (0.0, 1.0), pair.classifier_at, batch_size=9)
    for alpha in (0.0, 1.0):
        for name in splits:
            one, other = found.at(alpha)[name], expected.at(alpha)[name]
            assert same(one, other) and torch.equal(one.confidences, other.confidences), (alpha, name)
    assert not same(found.at(0.0)["plain"], found.at(1.0)["plain"])
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.module.state_dict().items())


def test_what_comes_before_the_first_change_runs_once_for_both(tiny_model):
    model = load(tiny_model)
    attached = attach(model, LastBlocksConfig(blocks=1))
    with torch.no_grad():
        for parameter in attached.named_parameters().values():
            parameter.add_(0.1)
    attached.eval_mode()
    delta = attached.delta()
    attached.detach()
    head = Classifier(weight=torch.randn(3, 16))
    pair = Pair.of(model, way(model, delta), lambda alpha: head)
    calls = {"first": 0, "last": 0}
    blocks = model.module.visual.transformer.resblocks
    others = pair.tuned.module.visual.transformer.resblocks
    assert others[0] is blocks[0] and others[1] is not blocks[1]
    for name, block in (
        ("first", model.module.visual.conv1),
        ("last", blocks[1].ln_1),
        ("last", others[1].ln_1),
    ):
        forward = block.forward
        block.forward = lambda *a, n=name, f=forward: calls.update({n: calls[n] + 1}) or f(*a)
    pixels = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        alone = (model.encode_image(pixels), pair.tuned.encode_image(pixels))
        assert calls == {"first": 2, "last": 2}
        with pair.ready():
            views = pair(pixels)
    assert calls == {"first": 3, "last": 4}
    assert torch.equal(views.features, alone[1]) and not torch.equal(*alone)
    assert torch.equal(views.zero_shot, head(alone[0]))


def deciding(choice):
    """Where simulated shifts are evaluated: at the weights that compete, where there are several."""
    allowed = [point.alpha for point in choice.curve if point.allowed]
    return allowed if len(allowed) > 1 else []


@pytest.mark.parametrize("space", ["probabilities", "logits"])
def test_the_output_weight_is_chosen_on_validation_and_shifts_of_it(
    pair, splits, train, validation, reads, space
):
    ensemble = OutputConfig(space=space).fit(pair, train=train, validation=validation)
    assert set(reads) == validation.images
    views, labels = views_of(pair, validation), labels_of(validation)
    temperatures = tuple(calibrate(own, labels).temperature for own in (views.zero_shot, views.tuned))
    best = max(ensemble.choice.curve, key=lambda point: point.in_distribution)
    decided = deciding(ensemble.choice)
    for point in ensemble.choice.curve:
        mixed = OutputEnsemble(point.alpha, temperatures, space)(views)
        assert point.in_distribution == pytest.approx((mixed.argmax(1) == labels).double().mean().item())
        assert len(point.simulated) == (9 if point.alpha in decided else 0)
        assert point.loss == pytest.approx(best.in_distribution - point.in_distribution)
    assert ensemble.alpha == ensemble.choice.alpha and "No test picture" in ensemble.reason

    chosen = OutputConfig(space=space, weight=0.3).fit(pair, train=train, validation=validation)
    found = chosen.sweep(splits).at(0.3)["masked"]
    views = views_of(pair, splits["masked"])
    mixed = output_ensemble(
        views.zero_shot[:, :3], views.tuned[:, :3], 0.3, temperatures=temperatures, space=space
    )
    assert found.predictions.tolist() == mixed.argmax(1).tolist()
    torch.testing.assert_close(found.confidences, mixed.double().amax(1), rtol=1e-5, atol=1e-6)


def batched(split, model, size=8):
    return list(zip(pixels_of(split, model).split(size), labels_of(split).split(size), strict=True))


def test_vrf_is_that_of_the_library_and_answers_by_its_formula(pair, splits, train, validation, model, reads):
    ensemble = VRFConfig(share=0.2).fit(pair, train=train, validation=validation)
    assert set(reads) == train.images | validation.images and len(reads) == len(train) + len(validation)
    found = ensemble.mix
    with pair.ready():
        expected = VRF.fit(pair, batched(train, model), batched(validation, model), VRFConfig(share=0.2))
    assert 2 < len(found.failures) < 30 and found.neighbours == expected.neighbours
    torch.testing.assert_close(found.failures, expected.failures)
    assert (found.a, found.b) == pytest.approx((expected.a, expected.b))
    assert found.temperatures == pytest.approx(expected.temperatures)

    views = views_of(pair, validation)
    assert ensemble.alpha == pytest.approx(found.weight(views.features).mean().item(), abs=1e-5)
    accuracies = {point.alpha: point.in_distribution for point in ensemble.choice.curve}
    right = found(views).argmax(1) == labels_of(validation)
    assert accuracies[ensemble.alpha] == pytest.approx(right.double().mean().item())
    assert accuracies[ensemble.alpha] == max(accuracies.values()) and len(accuracies) > 4
    assert "No test picture" in ensemble.reason

    sweep = ensemble.sweep(splits)
    assert sweep.alphas == (0.0, ensemble.alpha, 1.0)
    for name, classes in (("plain", None), ("masked", (0, 1, 2))):
        mixed = found(views_of(pair, splits[name]), classes)
        scores = sweep.at(ensemble.alpha)[name]
        assert scores.predictions.tolist() == mixed.argmax(1).tolist()
        torch.testing.assert_close(scores.confidences, mixed.double().amax(1), rtol=1e-5, atol=1e-6)


def test_vrf_by_the_bounded_loss_looks_at_shifts_and_given_shapes_are_taken(pair, train, validation):
    ensemble = VRFConfig(rule="bounded loss").fit(pair, train=train, validation=validation)
    decided = deciding(ensemble.choice)
    assert all(
        len(point.simulated) == (9 if point.alpha in decided else 0) for point in ensemble.choice.curve
    )
    assert ensemble.alpha in [point.alpha for point in ensemble.choice.curve if point.allowed]
    given = VRFConfig(a=1.5, b=0.6).fit(pair, train=train, validation=validation)
    mix = given.mix
    assert (mix.a, mix.b, given.choice, given.reason) == (1.5, 0.6, None, "given in the recipe")


def test_vrf_without_failures_is_the_zero_shot_model_beside_itself(model, splits, train, validation):
    pair = Pair.of(model, way(model, {}), lambda alpha: zero_shot_classifier(model, NAMES, TEMPLATES))
    assert pair.tuned is pair.zero_shot
    assert find_failures(pair, train).shape == (0, 6)
    ensemble = VRFConfig().fit(pair, train=train, validation=validation)
    sweep = ensemble.sweep(splits)
    assert ensemble.alpha == 1e-6
    assert all(same(sweep.at(ensemble.alpha)[name], sweep.at(0.0)[name]) for name in splits)


@pytest.mark.parametrize("labels", ["model", "data"])
def test_the_fisher_path_is_the_fisher_average_of_the_ends(
    model, delta, pair, splits, train, validation, labels
):
    config = FisherConfig(examples=60, labels=labels, alpha=0.4, curve=False)
    ensemble = config.fit(pair, train=train, validation=validation)
    sweep = ensemble.sweep(splits)
    assert sweep.alphas == (0.0, 0.4, 1.0)
    if labels == "model":
        again = config.fit(pair, train=train, validation=validation, seed=1).sweep(splits)
        assert not torch.equal(again.at(0.4)["plain"].confidences, sweep.at(0.4)["plain"].confidences)
        return
    base = {name: tensor.detach().clone() for name, tensor in model.module.state_dict().items()}
    tuned = {name: base[name] + delta[name] for name in delta}
    names, fishers = ("visual.weight", "visual.bias"), []
    model.eval()
    for state, classifier in zip((base, tuned), pair.classifiers, strict=True):
        model.module.load_state_dict(base | state)

        def losses(batch, classifier=classifier):
            logits = classifier(model.encode_image(batch[0]))
            return torch.nn.functional.cross_entropy(logits, batch[1], reduction="none")

        parameters = {name: model.module.get_parameter(name) for name in names}
        fishers.append(diagonal_fisher(parameters, losses, batched(train, model)))
    merged = fisher_average([{name: base[name] for name in delta}, tuned], fishers, (0.6, 0.4))
    model.module.load_state_dict(base | merged)
    expected = evaluate(model, splits, zero_shot_classifier(model, NAMES, TEMPLATES))
    straight = {name: torch.lerp(base[name], tuned[name], 0.4) for name in delta}
    assert (merged["visual.weight"] - straight["visual.weight"]).abs().max() > 0.01
    torch.testing.assert_close(merged["text.weight"], straight["text.weight"])
    for name, scores in expected.items():
        torch.testing.assert_close(sweep.at(0.4)[name].confidences, scores.confidences, rtol=1e-4, atol=1e-6)


def test_fisher_chooses_alpha_on_validation_and_its_file_answers_as_reported(
    model, pair, splits, train, validation, reads, tmp_path
):
    before = {name: tensor.clone() for name, tensor in model.module.state_dict().items()}
    grads = {name: parameter.requires_grad for name, parameter in model.module.named_parameters()}
    config = FisherConfig(examples=12, grid=(0.0, 0.5, 0.9))
    ensemble = config.fit(pair, train=train, validation=validation)
    assert validation.images <= set(reads) <= validation.images | train.images
    assert len(set(reads) & train.images) == 12
    assert [point.alpha for point in ensemble.choice.curve] == [0.0, 0.5, 0.9]
    sweep = ensemble.sweep(splits)
    assert sweep.alphas == (0.0, 0.5, 0.9, 1.0)
    ensemble = replace(config, alpha=0.5).fit(pair, train=train, validation=validation)
    for _ in range(2):  # as after a kill
        assert save_ensemble(tmp_path, ensemble, NAMES) == [tmp_path / "fisher"]
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.module.state_dict().items())
    assert grads == {name: parameter.requires_grad for name, parameter in model.module.named_parameters()}
    fresh = tiny_model()
    apply(fresh, tmp_path / "fisher").merge(1.0)
    found = evaluate(fresh, splits, zero_shot_classifier(fresh, NAMES, TEMPLATES))
    for name, scores in found.items():
        assert same(scores, sweep.at(0.5)[name])


@pytest.mark.parametrize("config", [OutputConfig(), VRFConfig(), FisherConfig(), VRFConfig(a=1.0, b=1.0)])
def test_without_validation_pictures_there_is_nothing_to_choose_from(pair, train, config):
    assert config.needs_validation
    assert not FisherConfig(alpha=0.5).needs_validation
    assert not OutputConfig(weight=0.5, fit_temperatures=False).needs_validation
    with pytest.raises(TetherError, match="validation pictures"):
        config.fit(pair, train=train, validation=replace(train, examples=()))


def test_models_that_do_not_fit_each_other_are_refused(model, pair, train, validation):
    classifiers = pair.classifiers
    other = replace(model, image=replace(model.image, mean=(0.4, 0.4, 0.4)))
    with pytest.raises(TetherError, match="same pictures"):
        Pair(zero_shot=model, tuned=other, classifiers=classifiers)
    with pytest.raises(TetherError, match="same classes"):
        Pair(zero_shot=model, tuned=model, classifiers=(classifiers[0], Classifier(weight=torch.ones(3, 6))))
    own = Pair(zero_shot=model, tuned=tiny_model(), classifiers=classifiers)
    with pytest.raises(TetherError, match="own tuned weights"):
        FisherConfig().fit(own, train=train, validation=validation)
    with pytest.raises(TetherError, match="changed none"):
        still = Pair.of(model, way(model, {}), lambda alpha: classifiers[0])
        FisherConfig().fit(still, train=train, validation=validation)


# Predictors, on models that can be loaded again.


def tuned_pair(folder, attached_config, saved):
    """A pair of a tiny model and what an adapter makes of it, whose adapter is saved in `saved`."""
    model = load(folder)
    attached = attach(model, attached_config)
    random = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in attached.named_parameters().values():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=random))
    attached.eval_mode()
    save_adapter(saved, attached)
    delta = attached.delta()
    attached.detach()
    names = ("circle", "square", "cross")
    return Pair.of(
        model, way(model, delta), lambda alpha: zero_shot_classifier(model, names, ("a {}",))
    ), names


def mixes(pair):
    failures = torch.nn.functional.normalize(
        torch.randn(7, 16, generator=torch.Generator().manual_seed(2)), dim=-1
    )
    vrf = VRF(VRFConfig(share=0.4), failures, training_size=50, a=1.9, b=0.3, temperatures=(1.3, 0.7))
    return {"vrf": vrf, "output": OutputEnsemble(0.4, (1.3, 0.7), "logits")}


@pytest.fixture
def saved_predictor(tiny_model, tmp_path):
    """A predictor of an R-Adapter with VRF, in a folder beside other files of a run."""
    pair, names = tuned_pair(tiny_model, RAdapterConfig(drop=0.0), tmp_path / "run" / "adapter")
    predictor = Predictor(pair, mixes(pair)["vrf"], names)
    save_predictor(tmp_path / "run", predictor, adapter="adapter")
    (tmp_path / "run" / "result.json").write_text("{}")
    return predictor, tmp_path / "run"


PIXELS = torch.randn(5, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("mix", ["vrf", "output"])
@pytest.mark.parametrize("tuned", ["adapter", "weights", "model", "same"])
def test_what_was_saved_answers_bit_for_bit_as_before(tiny_model, make_tiny_model, tmp_path, tuned, mix):
    if tuned in ("adapter", "weights"):
        pair, names = tuned_pair(tiny_model, RAdapterConfig(drop=0.0), tmp_path / "out" / "adapter")
    else:
        names = ("circle", "square", "cross")
        models = [load(tiny_model), load(make_tiny_model(1))]
        classifiers = tuple(zero_shot_classifier(model, names, ("a {}",)) for model in models)
        if tuned == "model":
            pair = Pair(zero_shot=models[0], tuned=models[1], classifiers=classifiers)
        else:
            classifiers = (classifiers[0], replace(classifiers[1], bias=torch.randn(3)))
            pair = Pair.of(models[0], way(models[0], {}), lambda alpha: classifiers[int(alpha)])
    predictor = Predictor(pair, mixes(pair)[mix], names)
    save_predictor(tmp_path / "out", predictor, adapter="adapter" if tuned == "adapter" else None)
    again = load_predictor(tmp_path / "out")
    expected, found = predictor(PIXELS), again(PIXELS)
    assert torch.equal(found, expected)
    assert torch.equal(again(PIXELS, [2, 0]), predictor(PIXELS, [2, 0]))
    with torch.no_grad(), pair.ready():
        views = pair(PIXELS)
    torch.testing.assert_close(expected, predictor.mix(views))
    assert (views.zero_shot - views.tuned).abs().max() > 1e-3
    picture = Image.new("RGBA", (50, 40), "red")
    assert again.classify([picture, picture]) == predictor.classify([picture, picture])
    assert again.classify([picture])[0][0] in names


def three_kinds_of_pictures(folder, random):
    """An RGBA, an EXIF-rotated and a 16-bit file, each of which `convert("RGB")` alone would make other pixels of."""
    folder.mkdir()
    colours = random.integers(256, size=(40, 60, 4), dtype=np.uint8)
    Image.fromarray(colours).save(folder / "rgba.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(colours[..., :3]).save(folder / "rotated.png", exif=exif)
    Image.fromarray(random.integers(2**16, size=(40, 60), dtype=np.uint16)).save(folder / "deep.png")
    return [folder / name for name in ("rgba.png", "rotated.png", "deep.png")]


def test_opened_pictures_are_answered_as_their_files_are_in_evaluation(tiny_model, tmp_path):
    paths = three_kinds_of_pictures(tmp_path / "pictures", np.random.default_rng(0))
    examples = tuple(Example(ImageRef(str(path.parent), path.name), 0) for path in paths)
    split = Split("test", "pictures", examples)
    pair, names = tuned_pair(tiny_model, RAdapterConfig(drop=0.0), tmp_path / "adapter")
    config = OutputConfig(weight=0.5, fit_temperatures=False)
    ensemble = config.fit(pair, train=split, validation=split)
    expected = ensemble.sweep({"test": split}).at(0.5)["test"]
    opened = [Image.open(path) for path in paths]
    answers = Predictor(ensemble.pair, ensemble.mix, names).classify(opened)
    assert [names.index(name) for name, _ in answers] == expected.predictions.tolist()
    assert [share for _, share in answers] == pytest.approx(expected.confidences.tolist(), abs=1e-6)
    wrong = Predictor(ensemble.pair, ensemble.mix, names).classify(
        [picture.convert("RGB") for picture in opened]
    )
    assert answers[0][1] != pytest.approx(wrong[0][1], abs=1e-6)
    assert answers[2][1] != pytest.approx(wrong[2][1], abs=1e-6)


def test_what_is_no_list_of_opened_pictures_is_refused(tiny_model, tmp_path, unchecked):
    pair, names = tuned_pair(tiny_model, RAdapterConfig(drop=0.0), tmp_path / "adapter")
    predictor = Predictor(pair, OutputEnsemble(0.5), names)
    for wrong in ([], Image.new("RGB", (9, 9)), "cat.png", ["cat.png"], [tmp_path / "cat.png"], None):
        with pytest.raises(TetherError, match="list of opened pictures"):
            predictor.classify(wrong)


def test_the_export_holds_all_it_needs_and_nothing_else(saved_predictor, tmp_path):
    predictor, run = saved_predictor
    export_predictor(run, tmp_path / "out")
    parts = {path.name for path in (tmp_path / "out").iterdir()}
    (failures,) = (name for name in parts if name.startswith("vrf-"))
    assert parts == {"adapter", "classifiers.safetensors", "ensemble.json", "vrf.json", failures}
    assert torch.equal(load_predictor(tmp_path / "out")(PIXELS), predictor(PIXELS))
    with pytest.raises(TetherError, match="exists already"):
        export_predictor(run, tmp_path / "out")


def change(**parts):
    def harm(run):
        path = run / "ensemble.json"
        description = json.loads(path.read_text())
        path.write_text(json.dumps(description | parts))

    return harm


def swap(name):
    def harm(run):
        path = next(run.glob(name))
        data = bytearray(path.read_bytes())
        data[-1] ^= 1
        path.write_bytes(bytes(data))

    return harm


@pytest.mark.parametrize(
    ("harm", "complaint"),
    [
        (change(format="other"), "not of this library"),
        (change(tuned={"adapter": "../adapter", "sha256": ""}), "outside"),
        (change(base={"source": "nowhere", "fingerprint": ""}), "no folder 'nowhere'"),
        (change(mix={}), "lacks"),
        (swap("classifiers.safetensors"), "damaged"),
        (swap("adapter/adapter.safetensors"), "damaged"),
        (swap("vrf-*.safetensors"), "damaged"),
        (lambda run: (run / "ensemble.json").unlink(), "no ensemble of outputs"),
    ],
)
def test_each_kind_of_damage_is_told(saved_predictor, harm, complaint):
    _, run = saved_predictor
    harm(run)
    with pytest.raises(TetherError, match=complaint):
        load_predictor(run)


def test_another_base_is_refused_and_one_that_moved_is_found(saved_predictor, tiny_model, make_tiny_model):
    predictor, run = saved_predictor
    with pytest.raises(TetherError, match="fingerprint"):
        load_predictor(run, source=str(make_tiny_model(1)))
    assert torch.equal(load_predictor(run, source=str(tiny_model))(PIXELS), predictor(PIXELS))


def test_a_predictor_is_read_from_another_folder_and_by_its_name(tiny_model, tmp_path, monkeypatch):
    monkeypatch.chdir(tiny_model.parent)
    pair, names = tuned_pair(tiny_model.name, RAdapterConfig(drop=0.0), tmp_path / "run" / "adapter")
    predictor = Predictor(pair, OutputEnsemble(0.5), names)
    save_predictor(tmp_path / "run", predictor, adapter="adapter")
    monkeypatch.chdir(tmp_path)
    assert torch.equal(load_predictor("run")(PIXELS), predictor(PIXELS))


def test_a_run_without_an_ensemble_of_outputs_is_told_so(tmp_path):
    for use in (lambda: load_predictor(tmp_path), lambda: export_predictor(tmp_path, tmp_path / "out")):
        with pytest.raises(TetherError, match="holds no ensemble of outputs"):
            use()


def test_a_base_that_computes_with_an_adapter_is_no_zero_shot_model(saved_predictor):
    predictor, run = saved_predictor
    attached = apply(predictor.pair.zero_shot, run / "adapter")
    for use in (lambda: predictor(PIXELS), lambda: save_predictor(run, predictor, adapter="adapter")):
        with pytest.raises(TetherError, match="adapter"):
            use()
    with attached.ordinary():
        expected = predictor(PIXELS)
        parts = save_predictor(run, predictor, adapter="adapter")
    assert all(part.exists() for part in parts) and len(parts) == 5
    assert torch.equal(load_predictor(run)(PIXELS), expected)


def test_names_of_classes_are_counted(pair):
    with pytest.raises(TetherError, match="7 classes, but 6"):
        Predictor(pair, OutputEnsemble(0.5), NAMES[:6])
