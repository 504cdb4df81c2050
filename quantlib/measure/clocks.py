"""A clock for each kind of device. Start from :func:`clock_of`."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Clock:
    """mark() notes a moment, synchronise() waits until all marks have happened, seconds(a, b) is from mark a to b."""

    mark: Callable[[], object]
    seconds: Callable[[object, object], float]
    synchronise: Callable[[], None]


def clock_of(device: torch.device) -> Clock:
    """The CPU's nanosecond counter, or events in the current stream of a GPU. ValueError for other devices."""
    if device.type == "cpu":
        return Clock(time.perf_counter_ns, lambda a, b: (b - a) / 1e9, lambda: None)
    if device.type != "cuda":
        raise ValueError(f"device must be cpu or cuda, got {device}: no clock is known for it")

    def mark() -> torch.cuda.Event:
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(device))
        return event

    return Clock(mark, lambda a, b: a.elapsed_time(b) / 1e3, lambda: torch.cuda.synchronize(device))
