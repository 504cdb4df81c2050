"""Work that computes on one thread, in a process for each core up to four. Start from :func:`processes`."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager

import pytest

MOST = 4  # each holds PyTorch, half a gigabyte


def cores() -> int:
    """How many this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def processes() -> Iterator[ProcessPoolExecutor]:
    """A pool of new processes: what still waits at the end, because a test failed or was interrupted, is not begun."""
    with ProcessPoolExecutor(min(cores(), MOST), multiprocessing.get_context("spawn")) as pool:
        try:
            yield pool
        finally:
            pool.shutdown(cancel_futures=True)


def asked(request: pytest.FixtureRequest) -> list[dict[str, object]]:
    """The parameters of every test of this file that will run and uses the fixture that asks."""
    return [
        item.callspec.params
        for item in request.session.items
        if item.path == request.path and request.fixturename in item.fixturenames
    ]
