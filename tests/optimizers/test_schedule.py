"""Schedules against their formula."""

import math

import pytest
import torch

from tether.errors import TetherError
from tether.optimizers import SPD
from tether.optimizers.schedule import Schedule, ScheduleConfig, schedule_factor


def test_warm_up_is_linear_and_reaches_the_peak():
    config = ScheduleConfig(warmup=4)
    assert [schedule_factor(step, 100, config) for step in range(5)] == [0.25, 0.5, 0.75, 1.0, 1.0]


def test_cosine_falls_from_the_peak_to_the_floor():
    config = ScheduleConfig(warmup=10, floor=0.1)
    values = [schedule_factor(step, 110, config) for step in range(10, 110)]
    expected = [0.1 + 0.9 * (1 + math.cos(math.pi * i / 100)) / 2 for i in range(100)]
    assert values == pytest.approx(expected)
    assert values == sorted(values, reverse=True)
    assert schedule_factor(110, 110, config) == pytest.approx(0.1)
    assert schedule_factor(500, 110, config) == pytest.approx(0.1)


def test_constant_stays_at_the_peak():
    config = ScheduleConfig(kind="constant", warmup=2)
    assert [schedule_factor(step, 5, config) for step in range(5)] == [0.5, 1.0, 1.0, 1.0, 1.0]


def optimizer():
    groups = [{"params": [torch.zeros(1)], "lr": 1.0}, {"params": [torch.zeros(1)], "lr": 0.1}]
    return torch.optim.SGD(groups)


def rates(optimizer):
    return [group["lr"] for group in optimizer.param_groups]


def test_every_group_keeps_its_own_peak():
    sgd = optimizer()
    schedule = Schedule.of(sgd, ScheduleConfig(kind="constant", warmup=2), steps=5)
    schedule.set(0)
    assert rates(sgd) == [0.5, 0.05]
    schedule.set(3)
    assert rates(sgd) == [1.0, 0.1]


def test_a_loaded_schedule_sets_what_the_saved_one_did():
    sgd, other = optimizer(), optimizer()
    schedule = Schedule.of(sgd, ScheduleConfig(warmup=2), steps=9)
    schedule.set(6)
    for group in other.param_groups:
        group["lr"] = 7.0
    loaded = Schedule.of(other, ScheduleConfig(warmup=2), steps=9)
    loaded.load_state_dict(schedule.state_dict())
    assert rates(other) == rates(sgd)


@pytest.mark.parametrize(("steps", "shorter"), [(60, 6), (500, 50), (7, 0)])
def test_a_warm_up_longer_than_the_run_is_shortened_and_said(steps, shorter):
    one, other = optimizer(), optimizer()
    with pytest.warns(
        UserWarning, match=rf"500 steps would not end within the run of {steps} .* takes {shorter} of"
    ):
        found = Schedule.of(one, ScheduleConfig(warmup=500), steps=steps)
    expected = Schedule.of(other, ScheduleConfig(warmup=shorter), steps=steps)
    for step in range(steps):
        found.set(step)
        expected.set(step)
        assert rates(one) == rates(other)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"warmup": -1}, "warmup must be at least 0 steps, found -1"),
        ({"floor": 1.5}, r"floor must lie between 0 and 1, found 1\.5"),
    ],
)
def test_options_that_make_no_sense_are_refused(options, message):
    with pytest.raises(TetherError, match=message):
        ScheduleConfig(**options)


def test_torchs_schedules_set_the_rate_of_a_robust_optimizer_too():
    spd = SPD([torch.nn.Parameter(torch.ones(2))], lr=0.1)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(spd, T_max=4)
    for _ in range(4):
        spd.step()
        schedule.step()
    assert rates(spd) == pytest.approx([0], abs=1e-9)
