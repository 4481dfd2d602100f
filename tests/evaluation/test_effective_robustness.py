import math

import numpy as np
import pytest

from tether.errors import TetherError
from tether.evaluation.effective_robustness import (
    effective_robustness,
    fit_baseline,
    inside,
    logit,
    sigmoid,
)


def test_logit_and_sigmoid_undo_each_other():
    for value in (1e-6, 0.2, 0.5, 0.93, 1 - 1e-6):
        assert sigmoid(logit(value)) == pytest.approx(value)
    assert sigmoid(-1000.0) == 0 and sigmoid(1000.0) == 1
    for value in (0.0, 1.0, math.nan):
        with pytest.raises(TetherError, match="strictly between"):
            logit(value)
    assert 0 < inside(0.0, 100) < 0.01 and 0.99 < inside(1.0, 100) < 1 and inside(0.5, 100) == 0.5


def test_a_line_on_logit_axes_is_found_exactly():
    x = [0.3, 0.5, 0.6, 0.8]
    y = [sigmoid(-0.7 + 1.2 * logit(value)) for value in x]
    line = fit_baseline(x, y)
    assert (line.slope, line.intercept) == pytest.approx((1.2, -0.7))
    assert line.predict(0.7) == pytest.approx(sigmoid(-0.7 + 1.2 * logit(0.7)))
    ends = line.interval(0.7)
    assert ends.high - ends.low < 1e-6


def test_line_and_interval_are_those_of_a_least_squares_solver():
    x, y = [0.35, 0.42, 0.5, 0.55, 0.66, 0.71], [0.24, 0.33, 0.36, 0.45, 0.5, 0.6]
    a = np.stack([np.ones(6), [logit(v) for v in x]], 1)
    b = np.array([logit(v) for v in y])
    weights, squares, _, _ = np.linalg.lstsq(a, b, rcond=None)
    covariance = np.linalg.inv(a.T @ a) * squares[0] / 4
    at = np.array([1, logit(0.6)])
    half = 2.776445 * math.sqrt(at @ covariance @ at)  # Student's t, 4 degrees of freedom
    line = fit_baseline(x, y)
    ends = line.interval(0.6)
    assert (line.intercept, line.slope) == pytest.approx(tuple(weights))
    assert ends.low == pytest.approx(sigmoid(at @ weights - half), abs=1e-6)
    assert ends.high == pytest.approx(sigmoid(at @ weights + half), abs=1e-6)


def test_effective_robustness_is_the_height_above_the_line():
    x = [0.3, 0.5, 0.6, 0.8]
    y = [sigmoid(logit(value) - 0.4 + 0.02 * (-1) ** i) for i, value in enumerate(x)]
    line = fit_baseline(x, y)
    value, ends = effective_robustness(line, 0.6, line.predict(0.6) + 0.07)
    assert value == pytest.approx(0.07) and ends.low < 0.07 < ends.high
    along, _ = effective_robustness(line, 0.9, line.predict(0.9))
    assert along == pytest.approx(0)  # better on both, yet no more robust


def test_too_few_or_equal_models_are_refused():
    with pytest.raises(TetherError, match="at least 3 models"):
        fit_baseline([0.3, 0.5], [0.2, 0.4])
    with pytest.raises(TetherError, match="found 3 and 2"):
        fit_baseline([0.3, 0.5, 0.6], [0.2, 0.4])
    with pytest.raises(TetherError, match="same in-distribution accuracy"):
        fit_baseline([0.5, 0.5, 0.5], [0.2, 0.3, 0.4])
