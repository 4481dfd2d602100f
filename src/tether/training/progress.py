"""How far a run is: a bar on a terminal, plain lines elsewhere."""

import time
from collections.abc import Mapping
from datetime import timedelta
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bar

_SECONDS_BETWEEN_LINES = 5.0


class Progress:
    """Shows step, epoch, loss, rate and time left on stderr; shows nothing where `visible` is false."""

    def __init__(self, start: int, total: int, *, visible: bool, console: Console | None = None) -> None:
        self._console = console or Console(stderr=True)
        self._visible = visible
        self._start, self._total = start, total
        self._began = self._last_line = time.monotonic()
        self._bar: Bar | None = None
        if visible and self._console.is_terminal:
            self._bar = Bar(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TextColumn("{task.fields[news]}"),
                console=self._console,
            )
            self._task = self._bar.add_task("training", total=total, completed=start, news="")

    def __enter__(self) -> "Progress":
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def advance(self, done: int) -> None:
        """Move the bar to `done` finished steps."""
        if self._bar is not None:
            self._bar.update(self._task, completed=done)

    def report(self, done: int, epoch: int, values: Mapping[str, float | int]) -> None:
        """Tell the latest measurements; off a terminal at most one line every few seconds, and the last."""
        if not self._visible:
            return
        now = time.monotonic()
        left = (now - self._began) / max(1, done - self._start) * (self._total - done)
        news = (
            f"loss {values['loss']:.4g}, {values['examples_per_second']:.0f} examples/s, "
            f"{timedelta(seconds=round(left))} left"
        )
        if self._bar is not None:
            self._bar.update(self._task, completed=done, description=f"epoch {epoch + 1}", news=news)
        elif now - self._last_line > _SECONDS_BETWEEN_LINES or done == self._total:
            self._last_line = now
            self.say(f"step {done}/{self._total}, epoch {epoch + 1}, {news}")

    def say(self, message: str) -> None:
        """Print a line (above the bar)."""
        if self._visible:
            self._console.print(message, markup=False, highlight=False, soft_wrap=True)
