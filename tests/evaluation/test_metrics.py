import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchmetrics.functional import classification as reference

from tether.errors import TetherError
from tether.evaluation.metrics import (
    expected_calibration_error,
    label_rank,
    macro_f1,
    mean_per_class_accuracy,
    once_by_index,
    per_class_accuracy,
    top_k_accuracy,
)

settings.register_profile("evaluation", deadline=None, max_examples=40)
settings.load_profile("evaluation")


def draw(seed, n=200, classes=9):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(n, classes, generator=generator)
    labels = torch.randint(classes, (n,), generator=generator)
    return logits + 1.5 * torch.nn.functional.one_hot(labels, classes), labels


@given(seed=st.integers(0, 2**31), k=st.integers(1, 8))
def test_top_k_is_that_of_torchmetrics(seed, k):
    logits, labels = draw(seed)
    expected = reference.multiclass_accuracy(logits, labels, 9, average="micro", top_k=k)
    assert top_k_accuracy(logits, labels, k) == pytest.approx(expected.item())


def test_rank_breaks_ties_by_class_index_and_not_in_favour_of_the_truth():
    logits = torch.tensor([[1.0, 1.0, 1.0], [0.0, 2.0, 2.0], [2.0, 0.0, 2.0]])
    assert label_rank(logits, torch.tensor([2, 2, 0])).tolist() == [2, 1, 0]
    assert top_k_accuracy(torch.zeros(4, 4), torch.arange(4)) == 0.25  # a collapsed model is at chance


@given(seed=st.integers(0, 2**31))
def test_per_class_and_f1_are_those_of_torchmetrics(seed):
    logits, labels = draw(seed)
    predictions = logits.argmax(1)
    accuracy, counts = per_class_accuracy(predictions, labels, 9)
    expected = reference.multiclass_accuracy(predictions, labels, 9, average=None)
    torch.testing.assert_close(accuracy.float(), expected)
    assert counts.tolist() == [int((labels == c).sum()) for c in range(9)]
    assert mean_per_class_accuracy(predictions, labels) == pytest.approx(expected.mean().item())
    expected = reference.multiclass_f1_score(predictions, labels, 9, average="macro")
    assert macro_f1(predictions, labels) == pytest.approx(expected.item())


def test_classes_that_do_not_occur_are_left_out():
    labels, predictions = torch.tensor([0, 0, 2, 2]), torch.tensor([0, 1, 2, 2])
    accuracy, counts = per_class_accuracy(predictions, labels, 4)
    assert accuracy.isnan().tolist() == [False, True, False, True] and counts.tolist() == [2, 0, 2, 0]
    assert mean_per_class_accuracy(predictions, labels) == 0.75
    assert macro_f1(predictions, labels) == pytest.approx((2 / 3 + 1) / 2)


@given(seed=st.integers(0, 2**31))
def test_calibration_error_is_that_of_torchmetrics(seed):
    logits, labels = draw(seed)
    confidences, predictions = logits.softmax(1).max(1)
    found = expected_calibration_error(confidences, predictions == labels)
    expected = reference.multiclass_calibration_error(logits.softmax(1), labels, 9, n_bins=15, norm="l1")
    assert found == pytest.approx(expected.item(), abs=1e-5)


def test_calibration_error_by_hand():
    confidences = torch.tensor([0.95, 0.99, 0.25, 0.25])
    correct = torch.tensor([True, False, False, True])
    assert expected_calibration_error(confidences, correct, bins=10) == pytest.approx(
        0.5 * abs(0.5 - 0.97) + 0.5 * abs(0.5 - 0.25), abs=1e-6
    )
    assert expected_calibration_error(torch.tensor([0.0, 1.0]), torch.tensor([False, True])) == 0


def test_rows_of_several_processes_count_once():
    index = torch.tensor([0, 2, 4, 1, 3, 0])  # two processes of three rows, the last one padded
    values = torch.tensor([10, 12, 14, 11, 13, 10])
    assert once_by_index(index, 5, values)[0].tolist() == [10, 11, 12, 13, 14]
    with pytest.raises(TetherError, match="one result for each of 6 examples; found 5"):
        once_by_index(index, 6, values)


def test_nothing_and_nan_are_refused():
    empty, no_labels = torch.zeros(0, 3), torch.zeros(0, dtype=torch.long)
    for measure in (
        lambda: top_k_accuracy(empty, no_labels),
        lambda: macro_f1(no_labels, no_labels),
        lambda: mean_per_class_accuracy(no_labels, no_labels),
        lambda: expected_calibration_error(torch.zeros(0), torch.zeros(0, dtype=torch.bool)),
    ):
        with pytest.raises(TetherError, match="nothing to measure"):
            measure()
    bad = torch.tensor([[0.0, float("nan")], [1.0, 0.0]])
    with pytest.raises(TetherError, match="1 of 2 rows of logits hold NaN"):
        top_k_accuracy(bad, torch.tensor([0, 1]))
    with pytest.raises(TetherError, match="says nothing"):
        top_k_accuracy(torch.zeros(2, 3), torch.tensor([0, 1]), k=5)
    with pytest.raises(TetherError, match="probabilities"):
        expected_calibration_error(torch.tensor([float("nan")]), torch.tensor([True]))
