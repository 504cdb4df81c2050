"""How long a call takes, measured so that the figure can be believed. Start from :func:`measure`.

Four ways to be wrong, and what is done about each. A busy machine: candidates take turns in random order, every
sample is kept, and two candidates are compared round by round. A warm cache: a loop over one layer reads it from the
cache, a model reads each layer from memory once a token, so before each call another buffer is streamed through the
cache. An asynchronous GPU: its own events are the clock. Work that happens once: warm-up calls are not timed.

What the machine could do at best is in quantlib.ceilings.
"""

from __future__ import annotations

import gc
import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from types import MappingProxyType

import torch
from torch import Tensor

from quantlib.caches import cold_buffer
from quantlib.clocks import Clock, clock_of

LAUNCHES_ON_GPU = 20  # calls in one sample, so that one synchronisation is shared by many launches


@dataclass(frozen=True)
class Measurement:
    """One candidate.

    seconds      of one call, a sample for each round, in the order of the rounds
    bytes_moved  by one call between memory and processor, as the caller counted, or None
    flops        of one call, a multiply-add as 2, or None
    """

    seconds: tuple[float, ...]
    bytes_moved: int | None = None
    flops: int | None = None

    @property
    def median(self) -> float:
        """Seconds."""
        return _quantile(self.seconds, 0.5)

    @property
    def p10(self) -> float:
        """Seconds: one sample in ten was quicker. What the machine does when nothing disturbs it."""
        return _quantile(self.seconds, 0.1)

    @property
    def p90(self) -> float:
        """Seconds: one sample in ten was slower."""
        return _quantile(self.seconds, 0.9)

    @property
    def min(self) -> float:
        """Seconds."""
        return min(self.seconds)

    @property
    def gb_per_s(self) -> float:
        """GB/s (1e9 bytes) at p10, as ceilings are quoted. ValueError if bytes_moved is not known."""
        return _known(self.bytes_moved, "bytes_moved") / self.p10 / 1e9

    @property
    def gflop_per_s(self) -> float:
        """GFLOP/s (1e9 operations) at p10. ValueError if flops is not known."""
        return _known(self.flops, "flops") / self.p10 / 1e9


@dataclass(frozen=True)
class Ratio:
    """The median of the ratios of each round, and between which two values (low, high) half of the rounds lie."""

    value: float
    low: float
    high: float
    rounds: int

    def __str__(self):
        return f"{self.value:.2f}× [{self.low:.2f}, {self.high:.2f}]"


@dataclass(frozen=True)
class Conditions:
    """How it was measured.

    rounds      samples of each candidate;  warmup: calls of each before that, not timed
    launches    calls in one sample, which is their mean
    device      "cpu", "cuda", "cuda:1";  threads: of PyTorch on the CPU
    cold_bytes  streamed through the cache before each call; 0: what the call before left there was used
    seed        of the order within the rounds
    """

    rounds: int
    warmup: int
    launches: int
    device: str
    threads: int
    cold_bytes: int
    seed: int

    def __str__(self):
        cache = f"cold cache ({self.cold_bytes / 2**20:.0f} MiB streamed)" if self.cold_bytes else "warm cache"
        calls = f" of {self.launches} calls" if self.launches > 1 else ""
        return f"{self.device}, {self.threads} threads, {cache}, {self.rounds} rounds{calls} by turns"


@dataclass(frozen=True)
class Benchmark:
    """The measurements of one call of measure, by the candidates' names, and the conditions that they share.

    An experiment may return one: quantlib.record_values writes it as it writes any dataclass, and
    Benchmark.from_values(load_record(name).values) reads it back.
    """

    measurements: Mapping[str, Measurement]
    conditions: Conditions

    @classmethod
    def from_values(cls, values: Mapping) -> Benchmark:
        """From mappings of the fields, as JSON or a record keeps them. ValueError if a field is missing or unknown."""
        try:
            measured = {
                name: Measurement(**{**fields, "seconds": tuple(fields["seconds"])})
                for name, fields in values["measurements"].items()
            }
            return cls(MappingProxyType(measured), Conditions(**values["conditions"]))
        except (KeyError, TypeError) as error:
            raise ValueError(f"values are not those of a Benchmark: {error!r}") from None

    def __getitem__(self, name: str) -> Measurement:
        if name not in self.measurements:
            raise KeyError(f"{name!r} was not measured; {', '.join(self.measurements)} were")
        return self.measurements[name]

    def ratio(self, a: str, b: str) -> Ratio:
        """Seconds of a over seconds of b, paired: the two samples of one round met the same machine.

        Above 1: b is so many times as fast as a. KeyError for a name that was not measured.
        """
        of_round = [x / y for x, y in zip(self[a].seconds, self[b].seconds, strict=True)]
        return Ratio(*(_quantile(of_round, q) for q in (0.5, 0.25, 0.75)), len(of_round))

    def __str__(self):
        width = max(map(len, self.measurements))
        lines = [f"{self.conditions}; milliseconds: median [p10, p90]"]
        for name, m in self.measurements.items():
            moved = f"  {m.gb_per_s:7.1f} GB/s at p10" if m.bytes_moved else ""
            lines.append(f"  {name:{width}}  {1e3 * m.median:9.3f} [{1e3 * m.p10:.3f}, {1e3 * m.p90:.3f}]{moved}")
        return "\n".join(lines)


def measure(
    candidates: Mapping[str, Callable[[], object]],
    *,
    bytes_moved: Mapping[str, int] | None = None,
    flops: Mapping[str, int] | None = None,
    rounds: int = 30,
    warmup: int = 3,
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
    launches            calls averaged into one sample; default 1 on a CPU, LAUNCHES_ON_GPU on a GPU
    threads             of PyTorch while measuring, set back afterwards; default: as they are
    cold                stream cold_buffer(device) through the cache before each call. That is not timed; on a GPU it
                        also keeps the queue filled, so the time to launch a kernel is hidden as long as it is the
                        shorter one. False: calls follow each other directly
    clock               default clock_of(device)

    Raises ValueError for no candidates, counts below 1 (warmup: below 0), figures for unknown candidates, a device
    that is neither cpu nor cuda, and a sample too short for the clock; RuntimeError that names the candidate if one
    raises.
    """
    device = torch.device(device)
    bytes_moved, flops = dict(bytes_moved or {}), dict(flops or {})
    launches = launches if launches is not None else LAUNCHES_ON_GPU if device.type == "cuda" else 1
    _check_candidates(candidates, bytes_moved=bytes_moved, flops=flops)
    _check_counts(rounds=(rounds, 1), warmup=(warmup, 0), launches=(launches, 1))
    clock = clock or clock_of(device)
    buffer = cold_buffer(device) if cold else None
    order = random.Random(seed)
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    with using_threads(threads), _no_garbage_collection():
        for name, call in candidates.items():
            with _naming(name):
                for _ in range(warmup):
                    call()
                clock.synchronise()  # an error of a GPU shows here
        for _ in range(rounds):
            for name in order.sample(list(candidates), len(candidates)):
                with _naming(name):
                    seconds[name].append(_sample(candidates[name], launches, buffer, clock))
        conditions = Conditions(
            rounds, warmup, launches, str(device), torch.get_num_threads(), 0 if buffer is None else buffer.nbytes, seed
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


def _known(count: int | None, argument: str) -> int:
    if count is None:
        raise ValueError(f"{argument} of this candidate is not known: pass {argument}={{name: count}} to measure")
    return count


def _quantile(values: tuple[float, ...] | list[float], q: float) -> float:
    """Linear between the two nearest values."""
    return torch.tensor(values, dtype=torch.float64).quantile(q).item()
