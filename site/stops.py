"""Ctrl-C and SIGTERM end a build at once; it says so and leaves the last good book. Start at `stoppable`."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TypeVar

Answer = TypeVar("Answer")
SIGNALS = (signal.SIGINT, signal.SIGTERM)

_held: list[int] | None = None  # the stops that were asked for inside `whole`; None outside it


class Stopped(BaseException):
    """Somebody asked for the end; `number` is the signal. No `except Exception` on the way may keep it."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


def _stop(number: int, _: object) -> None:
    if _held is not None:
        _held.append(number)
        return
    for each in SIGNALS:  # impatience does not interrupt the clearing up
        signal.signal(each, signal.SIG_IGN)
    raise Stopped(number)


@contextmanager
def stoppable() -> Iterator[None]:
    """Inside, either signal raises Stopped in the main thread."""
    before = {number: signal.signal(number, _stop) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def whole() -> Iterator[None]:
    """What stands inside is done wholly or not begun: a stop waits until its end."""
    global _held
    _held = []
    try:
        yield
    finally:
        asked, _held = _held, None
    if asked:
        _stop(asked[0], None)


def beside(work: Callable[[], Answer]) -> Answer:
    """`work()` in another thread, what it raises raised here. The main thread waits, where a signal reaches it: libraries
    that run an event loop take signals for themselves if they are called in the main thread.
    """
    answers: list[Answer] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            answers.append(work())
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    while thread.is_alive():
        thread.join(0.2)
    if errors:
        raise errors[0]
    return answers[0]


def kill_group(pid: int | None) -> None:
    """Ends a process that leads its own group, and what it has started."""
    if pid and hasattr(os, "killpg"):
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(pid, signal.SIGKILL)
