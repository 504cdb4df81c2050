"""`make bench`: the recorded speeds of this machine's kernels as a table. Start from :func:`main`."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping

from quantlib.benchmark import Benchmark
from quantlib.ceilings import Ceilings
from quantlib.decoding import TokenRates
from quantlib.records import load_record

FLOATS = ("fp32", "bf16")


def main() -> int:
    """Print part_02.speed and part_02.decoding; 1 if they were not recorded or are stale."""
    try:
        speed, decoding = (load_record(f"part_02.{name}") for name in ("speed", "decoding"))
    except (OSError, ValueError) as error:
        print(f"{error}: run make bench", file=sys.stderr)
        return 1
    print(f"{speed.machine.cpu}, {speed.machine.cores} cores, {' '.join(speed.machine.abilities)}; {speed.date}")
    for device, measured in speed.values.items():
        print(f"\n{speed.machine.gpu if device == 'cuda' else device}")
        print("\n".join(table(measured)))
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
        best = best_float(benchmark)
        shape, rows = name.split()
        yield f"{shape}, rows {rows}: ms at p10, times as fast as {best}, share of the read bandwidth"
        for way, m in sorted(benchmark.measurements.items(), key=lambda item: item[1].p10):
            yield f"  {way:22} {1e3 * m.p10:9.3f}  {benchmark.ratio(best, way)!s:22} {limits.share_of_read(m):5.0%}"


def best_float(benchmark: Benchmark) -> str:
    """The faster of the float routes."""
    return min(FLOATS, key=lambda name: benchmark[name].p10)


if __name__ == "__main__":
    sys.exit(main())
