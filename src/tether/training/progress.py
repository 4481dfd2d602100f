"""How far something is: a bar on a terminal, plain lines elsewhere."""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bar

from tether._text import printable

_SECONDS_BETWEEN_LINES = 10.0


class ProgressDisplay:
    """Shows on stderr what is being done, how far it is and how long it will take: one thing after the other.

    A terminal gets a bar. Anything else, such as a file or a log, gets a line where the last one of the process is
    `_SECONDS_BETWEEN_LINES` ago, and the last measurements of training.

        with ProgressDisplay() as progress:
            progress("evaluating sketches", 64, 1000)
    """

    _last_line = time.monotonic()

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console(stderr=True)
        self._bar: Bar | None = None
        self._total: int | None = None  # of what is shown now; None between two things

    def __enter__(self) -> "ProgressDisplay":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __call__(self, what: str, done: int, total: int, news: str = "") -> None:
        """Show that `done` of `total` are done. Another total, or fewer done than before, is another thing.

        Args:
            news: what else is known, such as a loss.
        """
        now = time.monotonic()
        if total != self._total or done < self._done:
            self.close()
            self._total, self._first, self._began = total, done, now
        self._done, last = done, bool(news) and done >= total
        if done > self._first:
            left = (now - self._began) / (done - self._first) * (total - done)
            news = ", ".join(filter(None, [news, f"{timedelta(seconds=round(left))} left"]))
        if self._console.is_terminal:
            self._show_bar(what, done, total, news)
        elif last or now - ProgressDisplay._last_line >= _SECONDS_BETWEEN_LINES:
            ProgressDisplay._last_line = now
            self.say(f"{what}: {done:,}/{total:,}{news and ', '}{news}")
        if done >= total:
            self.close()

    def say(self, message: str) -> None:
        """Print a line (above the bar)."""
        self._console.print(printable(message), markup=False, highlight=False, soft_wrap=True)

    def close(self) -> None:
        """Take the bar away, also of what is not finished."""
        if self._bar is not None:
            self._bar.stop()
        self._bar = self._total = None

    def _show_bar(self, what: str, done: int, total: int, news: str) -> None:
        if self._bar is None:
            self._bar = Bar(
                TextColumn("{task.description}", markup=False),
                BarColumn(),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TextColumn("{task.fields[news]}", markup=False),
                console=self._console,
            )
            self._task = self._bar.add_task("", total=total, news="")
            self._bar.start()
        self._bar.update(self._task, description=printable(what), completed=done, news=news)


class Progress:
    """Shows step, epoch, loss, rate and time left of training; shows nothing where `visible` is false."""

    def __init__(self, start: int, total: int, *, visible: bool, console: Console | None = None) -> None:
        self._display = ProgressDisplay(console) if visible else None
        self._total, self._news = total, ""
        self.advance(start)

    def __enter__(self) -> "Progress":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._display is not None:
            self._display.close()

    def advance(self, done: int) -> None:
        """Show that `done` steps are finished, with the latest measurements."""
        if self._display is not None and done < self._total:
            self._display("training", done, self._total, self._news)

    def report(self, done: int, epoch: int, values: Mapping[str, float | int]) -> None:
        """Tell the latest measurements, after `done` steps in the epoch `epoch`, counted from 0."""
        self._news = (
            f"epoch {epoch + 1}, loss {values['loss']:.4g}, {values['examples_per_second']:.0f} examples/s"
        )
        if self._display is not None:
            self._display("training", done, self._total, self._news)

    def say(self, message: str) -> None:
        """Print a line (above the bar)."""
        if self._display is not None:
            self._display.say(message)


class Pace:
    """Examples per second since they were last asked for, without the time of pauses."""

    def __init__(self) -> None:
        self._examples, self._since = 0, time.monotonic()

    def add(self, examples: int) -> None:
        self._examples += examples

    def take(self) -> float:
        """Examples per second; counting begins anew."""
        now = time.monotonic()
        rate = self._examples / max(now - self._since, 1e-9)
        self._examples, self._since = 0, now
        return rate

    @contextmanager
    def paused(self) -> Iterator[None]:
        began = time.monotonic()
        yield
        self._since += time.monotonic() - began
