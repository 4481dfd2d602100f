import pytest
import torch

from tether.errors import TetherError
from tether.objectives.weighted_sum import weighted_sum


def test_sum_with_gradients():
    a, b = torch.tensor(2.0, requires_grad=True), torch.tensor(3.0, requires_grad=True)
    total = weighted_sum({"a": a, "b": b}, {"b": 0.25})
    total.backward()
    assert total == 2.75 and a.grad == 1 and b.grad == 0.25


def test_weight_0_leaves_even_infinity_out():
    assert weighted_sum({"a": torch.tensor(2.0), "b": torch.tensor(torch.inf)}, {"b": 0.0}) == 2


def test_a_misspelt_weight_is_named():
    with pytest.raises(TetherError, match="did you mean 'l2_sp'"):
        weighted_sum({"l2_sp": torch.tensor(1.0)}, {"l2sp": 1.0})


@pytest.mark.parametrize("terms", [{}, {"a": torch.tensor(1.0)}])
def test_nothing_to_minimise_is_refused(terms):
    with pytest.raises(TetherError, match="No term"):
        weighted_sum(terms, dict.fromkeys(terms, 0.0))
