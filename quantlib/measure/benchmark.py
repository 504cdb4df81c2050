"""How long a call takes, measured so that the figure can be believed. Start from :func:`measure`.

Four ways to be wrong, and what is done about each. A busy machine: candidates take turns in random order, every
sample is kept, and two candidates are compared round by round. A warm cache: a loop over one layer reads it from the
cache, a model reads each layer from memory once a token, so before each call another buffer is streamed through the
cache. An asynchronous GPU: its own events are the clock. Work that happens once: warm-up calls are not timed.

A way that is hopeless on this machine need not be timed as often as the good ones: one call tells (`race`).

What the samples say is in quantlib.measure.measurements. What the machine could do at best is in quantlib.measure.ceilings.
"""

from __future__ import annotations

import gc
import random
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType

import torch
from torch import Tensor

from quantlib.measure.caches import cold_buffer
from quantlib.measure.clocks import Clock, clock_of
from quantlib.measure.measurements import Benchmark, Conditions, Measurement, Ratio

__all__ = ["Benchmark", "Conditions", "Measurement", "Ratio", "measure", "using_threads"]

LAUNCHES_ON_GPU = 20  # calls in one sample, so that one synchronisation is shared by many launches
HOPELESS = 8.0  # times the quickest of the race
SHORT = 0.1  # seconds: a call below it costs little, and its first run may be slow for other reasons
LEAST_ROUNDS = 5  # however little patience there is


def measure(
    candidates: Mapping[str, Callable[[], object]],
    *,
    bytes_moved: Mapping[str, int] | None = None,
    flops: Mapping[str, int] | None = None,
    rounds: int = 30,
    warmup: int = 3,
    race: Collection[str] = (),
    patience: float | None = None,
    launches: int | None = None,
    device: str | torch.device = "cpu",
    threads: int | None = None,
    cold: bool = True,
    seed: int = 0,
    clock: Clock | None = None,
) -> Benchmark:
    """Seconds per call of each candidate, by turns: every round takes one sample of each, in an order drawn anew.

    candidates          name -> call without arguments, whose tensors lie on `device`
    bytes_moved, flops  name -> count of one call, for those candidates where it is known
    race                candidates that race each other. The first call of each is timed, and one that takes longer than
                        SHORT and than HOPELESS times the quickest of the race is out: it is not called again, and that
                        call is its one sample. On a GPU nobody is out, for there a first call compiles
    patience            seconds after which no further round begins, once there are LEAST_ROUNDS
    launches            calls averaged into one sample; default 1 on a CPU, LAUNCHES_ON_GPU on a GPU
    threads             of PyTorch while measuring, set back afterwards; default: as they are
    cold                stream cold_buffer(device) through the cache before each call. That is not timed; on a GPU it
                        also keeps the queue filled, so the time to launch a kernel is hidden as long as it is the
                        shorter one. False: calls follow each other directly
    clock               default clock_of(device)

    Raises ValueError for no candidates, counts below 1 (warmup: below 0), figures for unknown candidates or a race of
    them, negative patience, a device that is neither cpu nor cuda, and a sample too short for the clock; RuntimeError
    that names the candidate if one raises.
    """
    device = torch.device(device)
    bytes_moved, flops = dict(bytes_moved or {}), dict(flops or {})
    launches = launches if launches is not None else LAUNCHES_ON_GPU if device.type == "cuda" else 1
    _check_candidates(candidates, bytes_moved=bytes_moved, flops=flops, race=dict.fromkeys(race, 1))
    _check_counts(rounds=(rounds, 1), warmup=(warmup, 0), launches=(launches, 1))
    if patience is not None and not patience >= 0:
        raise ValueError(f"patience must be at least 0 seconds, got {patience!r}")
    clock = clock or clock_of(device)
    buffer = cold_buffer(device) if cold else None
    order = random.Random(seed)
    with using_threads(threads), _no_garbage_collection():
        first = _first_calls({n: candidates[n] for n in race if device.type == "cpu"}, buffer, clock)
        limit = max(SHORT, HOPELESS * min(first.values(), default=0.0))
        seconds = {name: [first[name]] if first.get(name, 0.0) > limit else [] for name in candidates}
        running = [name for name in candidates if not seconds[name]]
        for name in running:
            with _naming(name):
                for _ in range(warmup - (name in first)):
                    candidates[name]()
                clock.synchronise()  # an error of a GPU shows here
        done, start = 0, None if patience is None else clock.mark()
        while done < rounds and (start is None or done < LEAST_ROUNDS or _since(start, clock) < patience):
            for name in order.sample(running, len(running)):
                with _naming(name):
                    seconds[name].append(_sample(candidates[name], launches, buffer, clock))
            done += 1
        conditions = Conditions(
            done, warmup, launches, str(device), torch.get_num_threads(), 0 if buffer is None else buffer.nbytes, seed
        )
    for name, samples in seconds.items():
        if min(samples) <= 0:
            raise ValueError(f"a sample of candidate {name!r} is too short for the clock: raise launches={launches}")
    measured = {n: Measurement(tuple(s), bytes_moved.get(n), flops.get(n)) for n, s in seconds.items()}
    return Benchmark(MappingProxyType(measured), conditions)


@contextmanager
def using_threads(threads: int | None) -> Iterator[None]:
    """PyTorch with so many CPU threads, and as before afterwards, whatever happens. None changes nothing."""
    if threads is not None:
        _check_counts(threads=(threads, 1))
    before = torch.get_num_threads()
    try:
        if threads is not None:
            torch.set_num_threads(threads)
        yield
    finally:
        torch.set_num_threads(before)


def _first_calls(race: Mapping[str, Callable[[], object]], buffer: Tensor | None, clock: Clock) -> dict[str, float]:
    """Seconds of the first call of each."""
    first = {}
    for name, call in race.items():
        with _naming(name):
            first[name] = _sample(call, 1, buffer, clock)
    return first


def _since(start: object, clock: Clock) -> float:
    """Seconds from a mark until now."""
    now = clock.mark()
    clock.synchronise()
    return clock.seconds(start, now)


def _sample(call: Callable[[], object], launches: int, buffer: Tensor | None, clock: Clock) -> float:
    """Mean seconds of a call."""
    spans = []
    if buffer is None:
        start = clock.mark()
        for _ in range(launches):
            result = call()
        spans.append((start, clock.mark()))
    else:
        for _ in range(launches):
            buffer.sum()  # reads, for a write would leave lines that the call must write back
            start = clock.mark()
            result = call()
            spans.append((start, clock.mark()))
    clock.synchronise()
    del result  # held until here: to free it is no part of the call
    return sum(clock.seconds(start, stop) for start, stop in spans) / launches


@contextmanager
def _naming(name: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        raise RuntimeError(f"candidate {name!r} failed: {type(error).__name__}: {error}") from error


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """A collection strikes a random sample, and takes as long as the process has objects."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _check_candidates(candidates: Mapping, **figures: Mapping[str, int]) -> None:
    if not candidates:
        raise ValueError("candidates is empty: pass {name: call}")
    for name, call in candidates.items():
        if not isinstance(name, str) or not callable(call):
            raise TypeError(f"candidates must map names to calls without arguments, got {name!r}: {call!r}")
    for argument, counts in figures.items():
        for name, count in counts.items():
            if name not in candidates:
                raise ValueError(f"{argument} has {name!r}, which is no candidate; they are {', '.join(candidates)}")
            if not isinstance(count, int) or count < 1:
                raise ValueError(f"{argument}[{name!r}] must be an int of at least 1, got {count!r}")


def _check_counts(**counts: tuple[int, int]) -> None:
    for name, (value, least) in counts.items():
        if not isinstance(value, int) or value < least:
            raise ValueError(f"{name} must be an int of at least {least}, got {value!r}")
