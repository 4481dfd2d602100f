"""A bar on a terminal, lines elsewhere, nothing where nobody looks."""

import io

import pytest
from rich.console import Console

from tether.training import progress as module
from tether.training.progress import Pace, Progress, ProgressDisplay

VALUES = {"loss": 1.23456, "examples_per_second": 78.9}


class Clock:
    now = 1000.0

    def monotonic(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(module, "time", clock)
    monkeypatch.setattr(ProgressDisplay, "_last_line", clock.now)
    return clock


def shown(clock, *, visible=True, terminal):
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=terminal, width=120)
    with Progress(3, 10, visible=visible, console=console) as progress:
        for done in range(4, 11):
            clock.now += 6
            progress.advance(done)
            if done % 4 == 0 or done == 10:
                progress.report(done, done // 4, VALUES)
        progress.say("The last line [not markup] \x1b[2J.")
    return stream.getvalue()


def test_a_terminal_shows_a_bar_with_loss_rate_and_time_left(clock):
    text = shown(clock, terminal=True)
    for part in (
        "training",
        "10/10",
        "epoch 3, loss 1.235, 79 examples/s, 0:00:00 left",
        "The last line [not markup] \\x1b[2J.",
    ):
        assert part in text


def test_elsewhere_there_is_a_plain_line_at_least_every_15_seconds(clock):
    assert shown(clock, terminal=False).splitlines() == [
        "training: 5/10, epoch 2, loss 1.235, 79 examples/s, 0:00:30 left",
        "training: 7/10, epoch 2, loss 1.235, 79 examples/s, 0:00:18 left",
        "training: 9/10, epoch 3, loss 1.235, 79 examples/s, 0:00:06 left",
        "training: 10/10, epoch 3, loss 1.235, 79 examples/s, 0:00:00 left",
        "The last line [not markup] \\x1b[2J.",
    ]


def test_nothing_is_shown_where_it_is_not_wanted(clock):
    assert shown(clock, visible=False, terminal=True) == ""


def test_one_thing_after_the_other_is_shown_and_what_is_short_is_not(clock):
    console = Console(file=io.StringIO(), width=60)
    with ProgressDisplay(console) as display:
        for done in (1, 2, 3):
            clock.now += 1
            display("encoding prompts", done, 3)
        for done in range(0, 5_001, 1_000):
            clock.now += 5
            display("evaluating [v2] sketches\x07", done, 5_000)
    assert console.file.getvalue().splitlines() == [
        "evaluating [v2] sketches\\x07: 1,000/5,000, 0:00:20 left",
        "evaluating [v2] sketches\\x07: 3,000/5,000, 0:00:10 left",
        "evaluating [v2] sketches\\x07: 5,000/5,000, 0:00:00 left",
    ]


def test_a_bar_goes_away_when_its_work_fails(clock):
    console = Console(file=io.StringIO(), force_terminal=True, width=120)
    with pytest.raises(KeyboardInterrupt), ProgressDisplay(console) as display:
        display("evaluating sketches [v2]", 1, 3)
        raise KeyboardInterrupt
    text = console.file.getvalue()
    assert "evaluating sketches [v2]" in text and text.rindex("\x1b[?25h") > text.rindex("\x1b[?25l")


def test_the_pace_leaves_pauses_out_and_begins_anew(clock):
    pace = Pace()
    for examples in (30, 10):
        pace.add(examples)
        clock.now += 2
    with pace.paused():
        clock.now += 100
    assert pace.take() == 10
    pace.add(6)
    clock.now += 3
    assert pace.take() == 2
