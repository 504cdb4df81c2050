"""`make bench`: the recorded speeds of this machine's kernels as a table. Start from :func:`main`."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from quantlib.measure.ceilings import READ, Ceilings
from quantlib.measure.decoding import TokenRates
from quantlib.measure.measurements import FLOATS, Benchmark, best_float
from quantlib.records.records import load_record


@dataclass(frozen=True)
class Aim:
    """What the kernels are meant to reach on a kind of CPU.

    ways   how the names of the ways begin;  rows: of x
    gain   at least so many times as fast as the best float route, on every shape
    share  and, where it is not 0, reading at least so much of the bandwidth measured in the same rounds
    """

    ways: str
    rows: int
    gain: float
    share: float = 0.0


AIMS = {  # by what `kind_of` says
    "avx512_bf16": (
        Aim("int8 ", 1, 2.5, 0.65), Aim("int4 int4pack", 1, 3.5, 0.55), Aim("int4 compiled", 1, 5.0),
        Aim("int4 compiled", 16, 1.5), Aim("int4 compiled", 64, 1.0), Aim("w8a8", 16, 1.4), Aim("w8a8", 64, 1.4),
        Aim("int4 ", 64, 0.5), Aim("int8 ", 256, 0.5), Aim("int4 ", 256, 0.5),
    ),
    "avx2, the C++ built": (
        Aim("int8 ", 1, 1.8), Aim("int4 compiled", 1, 2.4), Aim("int8 compiled", 64, 0.95),
        Aim("int4 compiled", 64, 0.95), Aim("w8a8", 16, 1.4), Aim("w8a8", 64, 1.4), Aim("w8a8", 256, 1.4),
    ),
    "avx2, no C++ built": (
        Aim("int8 ", 1, 1.4), Aim("int4 int4pack", 1, 1.3), Aim("int4 ", 64, 0.6), Aim("int4 ", 256, 0.6),
        Aim("w8a8", 16, 0.9), Aim("w8a8", 64, 0.9), Aim("w8a8", 256, 0.9),
    ),
}  # fmt: skip
WITH_INTEGERS = tuple(  # int8 activations: W8A8, and LLM.int8() with a thousandth of its columns in floats
    Aim(way, rows, gain) for rows in (16, 256, 1024) for way, gain in (("w8a8", 1.4), ("mixed", 1.0))
)
WITH_INTEGERS_OF = {"avx2, no C++ built": tuple(Aim("w8a8", rows, 0.9) for rows in (16, 256, 1024))}  # where others
AIMED_SHAPE = "4096x4096"  # of those


def main() -> int:
    """Print the speeds of parts 2 and 3 and of decoding; 1 if they were not recorded or are damaged."""
    names = "part_02.speed", "part_02.speed_on_gpu", "part_03.speed", "part_02.decoding"
    try:
        speed, on_gpu, activations, decoding = (load_record(name) for name in names)
    except (OSError, ValueError) as error:
        print(f"{error}: run make bench", file=sys.stderr)
        return 1
    print(f"{speed.machine.cpu}, {speed.machine.cores} cores, {' '.join(speed.machine.abilities)}; {speed.date}")
    print("\n".join([*table(speed.values["cpu"]), *aims(speed.values["cpu"], speed.machine.abilities)]))
    print(f"\n{on_gpu.machine.gpu}, {on_gpu.date}")
    print("\n".join(table(on_gpu.values["cuda"])))
    kind = kind_of(speed.values["cpu"], activations.machine.abilities)
    for device, measured in activations.values.items():
        aimed = WITH_INTEGERS if device == "cuda" else WITH_INTEGERS_OF.get(kind, WITH_INTEGERS)
        print(f"\nint8 activations, {activations.machine.gpu if device == 'cuda' else device}; {activations.date}")
        print("\n".join(integers(measured["layers"], aimed)))
    rates = TokenRates.from_values(decoding.values["rates"])
    best = max(FLOATS, key=lambda name: rates[name])
    print(f"\ngreedy decoding of {decoding.model}, against {best}:")
    for name in rates.benchmark.measurements:
        print(f"  {name:6} {rates[name]:7.1f} tokens/s  {rates.ratio(name, best)}")
    return 0


def table(measured: Mapping) -> Iterator[str]:
    """Lines of one device: the ceilings, then each product against the best float route of the machine."""
    limits = Ceilings.from_values(measured["ceilings"])
    yield str(limits)
    for name, values in measured["products"].items():
        benchmark = Benchmark.from_values(values)
        best, here = best_float(benchmark), limits.beside(benchmark)
        shape, rows = name.split()
        yield f"{shape}, rows {rows}: ms at p10, times as fast as {best}, share of reading ({here.read_gb_per_s:.1f} GB/s)"
        for way in sorted(benchmark.measurements.keys() - {READ}, key=lambda way: benchmark[way].p10):
            yield f"{_timed(benchmark, best, way):58} {here.share_of_read(benchmark[way]):5.0%}"


def aims(measured: Mapping, abilities: Sequence[str]) -> Iterator[str]:
    """Lines: what was aimed at on such a CPU, and what the worst of the shapes reached."""
    kind = kind_of(measured, abilities)
    if kind is None:
        yield "no aims are known for a CPU without avx512_bf16 or avx2"
        return
    limits = Ceilings.from_values(measured["ceilings"])
    shapes = {name: Benchmark.from_values(values) for name, values in measured["products"].items()}
    yield f"aims for a CPU with {kind}, on every shape:"
    for aim in AIMS[kind]:
        reached = []
        for name, benchmark in shapes.items():
            ways = [w for w in benchmark.measurements if w.startswith(aim.ways) and not w.endswith("naive")]
            if name.endswith(f" {aim.rows}") and ways:
                best = min(ways, key=lambda way: benchmark[way].p10)
                ratio = benchmark.ratio(best_float(benchmark), best).value
                reached.append((ratio, limits.beside(benchmark).share_of_read(benchmark[best])))
        if reached:
            gain, share = (min(values) for values in zip(*reached, strict=True))
            yield _verdict(aim, gain, share)


def kind_of(measured: Mapping, abilities: Sequence[str]) -> str | None:
    """The key of AIMS for a CPU with these abilities, and with or without this package's C++ among its ways."""
    if "avx512_bf16" in abilities:
        return "avx512_bf16"
    built = any("compiled" in way for values in measured["products"].values() for way in values["measurements"])
    return f"avx2, {'the' if built else 'no'} C++ built" if "avx2" in abilities else None


def integers(measured: Mapping, aimed: Sequence[Aim] = WITH_INTEGERS) -> Iterator[str]:
    """Lines of one device: layers with int8 activations against the best float route, then what was aimed at."""
    shapes = {name: Benchmark.from_values(values) for name, values in measured.items()}
    for name, benchmark in shapes.items():
        best, (shape, rows) = best_float(benchmark), name.split()
        yield f"{shape}, rows {rows}: ms at p10, times as fast as {best}"
        for way in sorted(benchmark.measurements, key=lambda way: benchmark[way].p10):
            if not way.startswith("part: "):
                yield _timed(benchmark, best, way)
    for aim in aimed:
        if (benchmark := shapes.get(f"{AIMED_SHAPE} {aim.rows}")) is not None:
            yield _verdict(aim, benchmark.ratio(best_float(benchmark), aim.ways).value)


def _timed(benchmark: Benchmark, best: str, way: str) -> str:
    return f"  {way:22} {1e3 * benchmark[way].p10:9.3f}  {benchmark.ratio(best, way)}"


def _verdict(aim: Aim, gain: float, share: float = 0.0) -> str:
    met = "met" if gain >= aim.gain and share >= aim.share else "missed"
    of_read = f", {share:.0%} of {aim.share:.0%} of the read bandwidth" if aim.share else ""
    return f"  {aim.ways.strip():14} {aim.rows:4} rows: {gain:.2f}× of {aim.gain}×{of_read}: {met}"
