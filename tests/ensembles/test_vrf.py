import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tether.ensembles.output import calibrate, output_ensemble
from tether.ensembles.vrf.method import (
    VRF,
    Views,
    VRFConfig,
    choose_shape,
    is_failure,
    neighbour_count,
    neighbour_distance,
    tuned_weight,
)
from tether.errors import TetherError


def randn(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_weights_of_the_paper():
    distance = torch.tensor([1.5, 0.0, 1.0], dtype=torch.float64)
    found = tuned_weight(distance, 1.5, 0.6).tolist()
    assert found == pytest.approx([0.5, 0.924142, 0.697059], abs=5e-7)
    assert found == pytest.approx([1 / (1 + math.exp((d - 1.5) / 0.6)) for d in distance.tolist()], abs=1e-12)


def test_squared_and_plain_distance_give_very_different_weights():
    failure, opposite = torch.eye(1, 4, dtype=torch.float64), -torch.eye(1, 4, dtype=torch.float64)
    squared, plain = (neighbour_distance(opposite, failure, 1, squared=s) for s in (True, False))
    assert (float(squared), float(plain)) == (4, 2)
    weights = [float(tuned_weight(d, 1.5, 0.6)) for d in (squared, plain)]
    assert weights == pytest.approx([0.0153, 0.3029], abs=5e-5)
    assert VRFConfig().squared


def test_number_of_neighbours_by_both_rules():
    published = VRFConfig(k_rule="per_thousand_training")
    failures, training = 256_233, 1_281_167
    assert neighbour_count(failures, training, VRFConfig()) == 256
    assert neighbour_count(failures, training, published) == 200
    assert neighbour_count(1000, 10**6, VRFConfig()) == neighbour_count(1000, 10**6, published) == 1
    # On small sets: never 0, never more than there are.
    assert neighbour_count(5, 50, VRFConfig()) == 1
    assert neighbour_count(5, 50, published) == 5
    assert neighbour_count(0, 50, VRFConfig()) == neighbour_count(0, 50, published) == 0
    assert all(neighbour_count(n, n, VRFConfig()) == n // 1000 for n in range(1000, 20_000, 1000))


@settings(deadline=None)
@given(
    size=st.integers(1, 7), k=st.integers(1, 7), order=st.permutations(range(7)), length=st.floats(0.1, 50)
)
def test_distance_is_that_of_sorting_all_of_them(size, k, order, length):
    k = min(k, size)
    features, failures = length * randn(4, 3), randn(7, 3, seed=1)[:size]
    for squared in (True, False):
        found = neighbour_distance(features, failures, k, squared)
        for i in range(4):
            unit = features[i] / features[i].norm()
            distances = sorted(float((unit - v / v.norm()).norm()) for v in failures)
            assert float(found[i]) == pytest.approx(distances[k - 1] ** (2 if squared else 1), abs=1e-9)
    shuffled = failures[[i for i in order if i < size]]
    torch.testing.assert_close(
        neighbour_distance(features, shuffled, k), neighbour_distance(features, failures, k)
    )


@pytest.mark.parametrize("chunk", [1, 40, 75, 10**6])
def test_features_are_compared_in_chunks_without_another_result(chunk, monkeypatch):
    features, failures = randn(23, 8), randn(15, 8, seed=1)
    largest = []
    whole = neighbour_distance(features, failures, 3)
    topk = torch.Tensor.topk
    monkeypatch.setattr("tether.ensembles.vrf.formulas._CHUNK", chunk)
    monkeypatch.setattr(torch.Tensor, "topk", lambda own, k: largest.append(own.numel()) or topk(own, k))
    torch.testing.assert_close(neighbour_distance(features, failures, 3), whole, rtol=0, atol=1e-14)
    assert max(largest) <= max(chunk, len(failures))
    assert neighbour_distance(features[:0], failures, 3).shape == (0,)


def test_a_failure_itself_is_at_distance_0_in_half_precision_and_under_autocast():
    features = randn(5, 16).half()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        distance = neighbour_distance(features, features.float(), 1)
    assert distance.dtype == torch.float32 and distance.max() < 1e-6 and distance.min() >= 0


def test_failures_are_what_only_the_tuned_model_gets_right():
    right, wrong = [0.0, 1.0], [1.0, 0.0]
    views = Views(
        torch.tensor([right, wrong, right, wrong]),
        torch.tensor([right, right, wrong, wrong]),
        torch.zeros(4, 1),
    )
    assert is_failure(views, torch.ones(4, dtype=torch.long)).tolist() == [False, True, False, False]


def test_without_failures_the_zero_shot_model_answers():
    vrf = VRF(VRFConfig(), torch.zeros(0, 3), training_size=9, a=1.5, b=0.6)
    views = Views(randn(2, 4).float(), randn(2, 4, seed=1).float(), randn(2, 3).float())
    torch.testing.assert_close(vrf(views), views.zero_shot.softmax(1))


def test_prediction_is_the_mixture_over_the_classes_at_hand():
    failures = randn(3, 5, seed=2)
    vrf = VRF(VRFConfig(), failures, training_size=30, a=1.0, b=0.5, temperatures=(2.0, 0.5))
    views = Views(randn(4, 6), randn(4, 6, seed=1), randn(4, 5, seed=3))
    weight = tuned_weight(neighbour_distance(views.features, failures, 1), 1.0, 0.5)
    expected = output_ensemble(views.zero_shot, views.tuned, weight, temperatures=(2.0, 0.5))
    torch.testing.assert_close(vrf(views), expected)
    kept = [1, 4]
    expected = output_ensemble(
        views.zero_shot[:, kept], views.tuned[:, kept], weight, temperatures=(2.0, 0.5)
    )
    torch.testing.assert_close(vrf(views, kept), expected)


def linear_models(seed=0):
    """Two linear models on 6-d "pixels", the tuned one with features of its own."""
    zero_shot, tuned, encode = randn(6, 4, seed=seed), randn(5, 4, seed=seed + 1), randn(6, 5, seed=seed + 2)

    def predict(pixels):
        features = torch.tanh(pixels @ encode)
        return Views(pixels @ zero_shot, features @ tuned, features)

    return predict


def samples(count, seed):
    pixels = randn(count, 6, seed=seed)
    return pixels, (pixels @ randn(6, 4, seed=9)).argmax(1)


def batched(data, size=7):
    return list(zip(*(part.split(size) for part in data), strict=True))


def test_fit_collects_failures_on_training_and_tunes_on_validation():
    predict, train, validation = linear_models(), samples(60, 1), samples(50, 2)
    vrf = VRF.fit(predict, batched(train), batched(validation))
    views = predict(train[0])
    kept = (views.tuned.argmax(1) == train[1]) & (views.zero_shot.argmax(1) != train[1])
    assert 0 < kept.sum() < 60 and vrf.training_size == 60
    torch.testing.assert_close(vrf.failures, views.features[kept])
    views = predict(validation[0])
    for temperature, logits in zip(vrf.temperatures, (views.zero_shot, views.tuned), strict=True):
        assert temperature == pytest.approx(calibrate(logits, validation[1]).temperature)
    distance = neighbour_distance(views.features, vrf.failures, vrf.neighbours)
    p, q = ((z / t).softmax(1) for z, t in zip((views.zero_shot, views.tuned), vrf.temperatures, strict=True))
    assert (vrf.a, vrf.b) == choose_shape(distance, p, q, validation[1])


def test_the_chosen_shape_is_at_least_as_accurate_as_every_other_on_the_grid_and_either_model_alone():
    predict, train, validation = linear_models(), samples(60, 1), samples(50, 2)
    vrf = VRF.fit(predict, batched(train), batched(validation))
    views, labels = predict(validation[0]), validation[1]
    best = (vrf(views).argmax(1) == labels).sum()
    median = float(neighbour_distance(views.features, vrf.failures, vrf.neighbours).median())
    for a in (0.25, 1.0, 1.5, 2.0):
        for b in (0.1, 0.4, 1.0):
            vrf.a, vrf.b = a * median, b * median
            assert (vrf(views).argmax(1) == labels).sum() <= best


def test_settings_that_are_given_are_not_fitted():
    predict, train, validation = linear_models(), samples(60, 1), samples(50, 2)
    config = VRFConfig(a=1.5, b=0.6, fit_temperatures=False)
    vrf = VRF.fit(predict, batched(train), batched(validation), config)
    assert (vrf.a, vrf.b, vrf.temperatures) == (1.5, 0.6, (1.0, 1.0))


def test_batch_size_and_order_of_the_training_set_do_not_matter():
    predict, train, validation = linear_models(), samples(60, 1), samples(50, 2)
    one = VRF.fit(predict, batched(train, 7), batched(validation, 50))
    backwards = tuple(part.flip(0) for part in train)
    other = VRF.fit(predict, batched(backwards, 60), batched(validation, 3))
    views = predict(samples(10, 3)[0])
    torch.testing.assert_close(one(views), other(views))


def test_a_model_below_chance_or_without_gain_ends():
    predict, validation = linear_models(), samples(50, 2)
    zero_shot = predict(validation[0]).zero_shot
    always_wrong = (validation[0], zero_shot.argmin(1))

    def same(pixels):
        views = predict(pixels)
        return Views(views.zero_shot, views.zero_shot, views.features)

    vrf = VRF.fit(same, batched(samples(60, 1)), batched(always_wrong))
    assert len(vrf.failures) == 0 and vrf.temperatures[0] == pytest.approx(100.0)
    assert vrf(same(validation[0])).isfinite().all()


@pytest.mark.parametrize("empty", ["train", "validation"])
def test_missing_samples_are_explained(empty):
    data = {"train": batched(samples(9, 1)), "validation": batched(samples(9, 2))} | {empty: []}
    with pytest.raises(TetherError, match="has none"):
        VRF.fit(linear_models(), **data)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"share": 0.0}, r"share of failures .* must be above 0 and at most 1; it is 0\.0"),
        ({"share": 2.0}, r"share of failures .* must be above 0 and at most 1; it is 2\.0"),
        ({"a": 1.0}, r"Give both a and b.*found a=1\.0, b=None"),
        ({"a": 1.0, "b": 0.0}, r"Give both a and b.*found a=1\.0, b=0\.0"),
        ({"k_rule": "per_thousand"}, "Unknown k_rule 'per_thousand'; did you mean 'per_thousand_training'"),
        ({"rule": "best"}, "There is no rule 'best' to choose by"),
    ],
)
def test_impossible_settings_are_refused_when_made(wrong, message):
    with pytest.raises(TetherError, match=message):
        VRFConfig(**wrong)


@pytest.mark.parametrize(
    ("a", "b"), [(float("nan"), 0.6), (float("inf"), 0.6), (1.0, float("inf")), (1.0, 0.0)]
)
def test_a_and_b_that_are_no_numbers_are_refused(a, b):
    with pytest.raises(TetherError, match="finite"):
        VRFConfig(a=a, b=b)
