"""The peak of this process's memory while something runs. Start from :func:`peak_memory`."""

from __future__ import annotations

import gc
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")


def peak_memory(work: Callable[[], T]) -> tuple[T, int | None]:
    """What work() returns, and the most bytes that the whole process held meanwhile; None where Linux does not keep them.

    All of the process counts: the interpreter, PyTorch, the model that is being worked on. What an allocator keeps for
    later from before counts too, so a fresh process gives the smallest figure.
    """
    gc.collect()
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # forget the peak of what was before
    return work(), _kilobytes("VmHWM")


def _kilobytes(name: str) -> int | None:
    with suppress(OSError):
        for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
            if line.startswith(f"{name}:"):
                return 1024 * int(line.split()[1])
    return None
