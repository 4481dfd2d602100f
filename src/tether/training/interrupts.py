"""Ctrl-C and the scheduler's SIGTERM: finish the step, save, leave."""

import signal
import threading
from types import FrameType, TracebackType
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupted(SystemExit):
    """A run was stopped by a signal after it finished a step and wrote its checkpoint.

    If nobody catches it the process ends with exit code 128 + signal: 130 after Ctrl-C, 143 after SIGTERM.
    """

    def __init__(self, number: int, message: str) -> None:
        super().__init__(128 + number)
        self.message = message

    def __str__(self) -> str:
        return self.message


class Interrupts:
    """Within this context a first signal is noted in `received`; a second one acts as it would outside.

    Outside the main thread, where Python allows no handlers, signals act as ever.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self._outside: dict[int, Any] = {}

    def __enter__(self) -> "Interrupts":
        if threading.current_thread() is threading.main_thread():
            self._outside = {number: signal.signal(number, self._note) for number in SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._restore()

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.received = number
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._outside.items():
            signal.signal(number, handler)
        self._outside = {}
