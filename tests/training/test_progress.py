"""A bar on a terminal, lines elsewhere, nothing where nobody looks."""

import io

from rich.console import Console

from tether.training.progress import Progress

VALUES = {"loss": 1.23456, "examples_per_second": 78.9}


def shown(*, visible=True, terminal):
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=terminal, width=120)
    with Progress(3, 10, visible=visible, console=console) as progress:
        for done in range(4, 11):
            progress.advance(done)
            progress.report(done, done // 4, VALUES)
        progress.say("The last line [not markup].")
    return stream.getvalue()


def test_a_terminal_shows_a_bar_with_loss_rate_and_time_left():
    text = shown(terminal=True)
    for part in (
        "epoch 3",
        "10/10",
        "loss 1.235, 79 examples/s, 0:00:00 left",
        "The last line [not markup].",
    ):
        assert part in text


def test_elsewhere_lines_are_plain_and_few():
    lines = shown(terminal=False).splitlines()
    assert lines[-2:] == [
        "step 10/10, epoch 3, loss 1.235, 79 examples/s, 0:00:00 left",
        "The last line [not markup].",
    ]
    assert len(lines) <= 3


def test_nothing_is_shown_where_it_is_not_wanted():
    assert shown(visible=False, terminal=True) == ""
