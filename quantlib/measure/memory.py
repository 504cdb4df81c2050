"""The memory of this process while something runs. Start from :func:`extra_memory`, or :func:`peak_memory` for all of it."""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")


def peak_memory(work: Callable[[], T]) -> tuple[T, int | None]:
    """What work() returns, and the most bytes that the whole process held meanwhile; None where Linux does not keep them.

    All of the process counts: the interpreter, PyTorch, the model that is being worked on. What an allocator keeps for
    later from before is given back first, as far as it can be; a fresh process gives the smallest figure.
    """
    _give_back()
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # forget the peak of what was before
    return work(), _kilobytes("VmHWM")


def extra_memory(work: Callable[[], T]) -> tuple[T, int | None]:
    """What work() returns, and how many bytes more than before it the process held at most; what is returned counts.

    None where Linux does not keep them.
    """
    _give_back()
    before = _kilobytes("VmRSS")
    result, peak = peak_memory(work)
    return result, None if before is None or peak is None else max(peak - before, 0)


def _give_back() -> None:
    """Garbage to the allocator, and what glibc's keeps to the system."""
    gc.collect()
    with suppress(OSError, AttributeError, TypeError):  # another C library; CDLL(None) is a TypeError on Windows
        ctypes.CDLL(None).malloc_trim(0)


def _kilobytes(name: str) -> int | None:
    with suppress(OSError):
        for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
            if line.startswith(f"{name}:"):
                return 1024 * int(line.split()[1])
    return None
