"""The samples of a benchmark, and what is made of them. Start from :class:`Benchmark`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import torch

FLOATS = "fp32", "bf16"  # as the float routes are called in benchmarks of products


@dataclass(frozen=True)
class Measurement:
    """One candidate.

    seconds      of one call, a sample for each round, in the order of the rounds; a single one where the first call
                 took too long for more
    bytes_moved  by one call between memory and processor, as the caller counted, or None
    flops        of one call, a multiply-add as 2, or None
    """

    seconds: tuple[float, ...]
    bytes_moved: int | None = None
    flops: int | None = None

    @property
    def rounds(self) -> int:
        """The number of samples."""
        return len(self.seconds)

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
    """The median of the ratios of each round, and between which two values (low, high) half of the rounds lie.

    rounds is 1, and low and high are the value, if one of the two has a single sample: nothing is known of its spread.
    """

    value: float
    low: float
    high: float
    rounds: int

    def __str__(self):
        return f"{self.value:.2f}× " + (f"[{self.low:.2f}, {self.high:.2f}]" if self.rounds > 1 else "(one sample)")


@dataclass(frozen=True)
class Conditions:
    """How it was measured.

    rounds      samples of each candidate that was not out of the race;  warmup: calls of each before that, not timed
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

    An experiment may return one: quantlib.records.record_values writes it as it writes any dataclass, and
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

        A single sample has no round to share and is held against the median of the other. Above 1: b is so many times
        as fast as a. KeyError for a name that was not measured.
        """
        one, other = self[a], self[b]
        if 1 in (one.rounds, other.rounds):
            return Ratio(*[one.median / other.median] * 3, 1)
        of_round = [x / y for x, y in zip(one.seconds, other.seconds, strict=True)]
        return Ratio(*(_quantile(of_round, q) for q in (0.5, 0.25, 0.75)), len(of_round))

    def __str__(self):
        width = max(map(len, self.measurements))
        lines = [f"{self.conditions}; milliseconds: median [p10, p90]"]
        for name, m in self.measurements.items():
            moved = f"  {m.gb_per_s:7.1f} GB/s at p10" if m.bytes_moved else ""
            spread = f"[{1e3 * m.p10:.3f}, {1e3 * m.p90:.3f}]" if m.rounds > 1 else "(one sample)"
            lines.append(f"  {name:{width}}  {1e3 * m.median:9.3f} {spread}{moved}")
        return "\n".join(lines)


def _known(count: int | None, argument: str) -> int:
    if count is None:
        raise ValueError(f"{argument} of this candidate is not known: pass {argument}={{name: count}} to measure")
    return count


def _quantile(values: tuple[float, ...] | list[float], q: float) -> float:
    """Linear between the two nearest values."""
    return torch.tensor(values, dtype=torch.float64).quantile(q).item()


def best_float(benchmark: Benchmark) -> str:
    """The faster of the float routes."""
    return min(FLOATS, key=lambda name: benchmark[name].p10)
