"""`python -m quantlib table`: part 7's table of methods, as it was recorded. Start from :func:`main`.

python -m quantlib table                     both lesson models, tasks and speeds, in the terminal
python -m quantlib table --json table.json   the same numbers in a new file, with machine, versions and dates

`make table` records what is missing or stale first, row by row: interrupted, it goes on when it is called again.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

from quantlib.measure.ceilings import Ceilings
from quantlib.measure.decoding import TokenRates
from quantlib.measure.evaluate import PairedDifference, paired_bootstrap
from quantlib.measure.measurements import Benchmark
from quantlib.measure.method_table import MethodRow, advice, beaten_by, rows_of
from quantlib.records.records import Record, load_record

TABLES = {"part_07.quality": ("part_07.references",), "part_07.on_stories": ()}  # and what stands beside its rows
HEADER = f"{'':34}{'MB':>7}{'bits':>7}{'ppl':>9}  {'nats lost, 95 %':26}{'KL':>8}{'same':>8}{'flips':>8}{'s':>7}{'MB':>7}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table; 1 with a sentence if it was not recorded, or is stale, or the file is there already."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the numbers into a new file as well")
    options = parser.parse_args(arguments)
    try:
        records = {name: load_record(name) for name in TABLES}
        tasks = load_record("part_07.tasks")
    except (OSError, ValueError) as error:
        print(f"{error}; or run make table, which records all that is missing", file=sys.stderr)
        return 1
    for name in (name for names in TABLES.values() for name in names):
        with suppress(OSError, ValueError):  # what needs another library may be missing
            records[name] = load_record(name)
    written = {}
    for name, beside in TABLES.items():
        record, values = records[name], dict(records[name].values)
        for other in beside:
            values |= records[other].values if other in records else {}
        rows = rows_of(values)
        print("\n".join([*_about(record), HEADER, *map(_line, rows), *_conclusions(rows)]), end="\n\n")
        written[name] = {**_sources(record), "rows": [as_numbers(row) for row in rows]}
    print("\n".join(_accuracies(tasks.values)))
    written["part_07.tasks"] = {**_sources(tasks), "right": {n: _share(v) for n, v in tasks.values.items()}}
    for name, lines_of in BESIDE.items():  # facts of a machine and its libraries, which may be missing
        try:
            record = load_record(name)
            lines = list(lines_of(record, records["part_07.quality"].values))
        except (OSError, ValueError, KeyError) as error:
            print(f"\nno {name}: {error}")
            continue
        print("\n".join(["", *lines]))
        written[name] = {**_sources(record), "lines": lines}
    if options.json is None:
        return 0
    try:
        with options.json.open("x", encoding="utf-8") as file:
            json.dump(written, file, indent=1, ensure_ascii=False)
    except OSError as error:
        print(f"{options.json} is not written ({error.strerror}): name a new file", file=sys.stderr)
        return 1
    print(f"written to {options.json}")
    return 0


def as_numbers(row: MethodRow) -> dict[str, object]:
    """A row without the losses of its tokens, for JSON."""
    found = {name: value for name, value in vars(row).items() if name not in ("nll", "lost")}
    return found | {"total": row.total, "lost": None if row.lost is None else asdict(row.lost)}


def _sources(record: Record) -> dict[str, object]:
    return {
        "model": record.model, "checksum": record.model_checksum, "parameters": dict(record.parameters),
        "machine": {**vars(record.machine)}, "versions": dict(record.versions), "made": dict(record.made),
    }  # fmt: skip


def _about(record: Record) -> Iterator[str]:
    p = record.parameters
    yield f"{record.model}: {p['windows']} windows of {p['window']} tokens; methods that read text have read {p['count']}"
    yield f"{record.machine.cpu}, {record.date}, one thread; whole model in bytes of storage, embeddings in 16 bits"
    yield "last column: the most that the process held, with what its allocator had kept of earlier rows; an upper bound"


def _line(row: MethodRow) -> str:
    lost = "" if row.lost is None else _interval(row.lost)
    seconds, peak = (f"{value:.0f}" if value is not None else "–" for value in (row.seconds, row.peak and row.peak / 1e6))
    return (
        f"{row.name:34}{row.total / 1e6:7.1f}{row.bits:7.2f}{row.perplexity:9.2f}  {lost:26}{row.kl[0]:8.4f}"
        f"{row.same:8.1%}{row.flips:8.1%}{seconds:>7}{peak:>7}"
    )


def _interval(d: PairedDifference) -> str:
    return f"{d.mean:+.4f} {d.low:+.4f} {d.high:+.4f}" + (" ~" if d.verdict == "tie" else "")


def _conclusions(rows: Sequence[MethodRow]) -> Iterator[str]:
    beaten = [row for row in rows if beaten_by(row, rows)]
    yield f"~ ties with float. Beaten by a row no larger: {'; '.join(row.name for row in beaten) or 'none'}"
    for share in (0.7, 0.45, 0.4):
        limit = share * rows[0].total
        named = "; ".join(row.name for row in advice(rows, limit)) or "nothing fits"
        yield f"least lost within {share:.0%} of the 16-bit bytes, ties included: {named}"


def _accuracies(values: Mapping[str, Mapping]) -> Iterator[str]:
    yield "right answers"
    for name, found in values.items():
        yield f"  {name:44}{_share(found):7.1%} of {len(found['right'])}"


def _share(found: Mapping) -> float:
    return found["right"].double().mean().item()


def _by_llama_cpp(record: Record, ours: Mapping[str, Mapping]) -> Iterator[str]:
    """Its perplexity on the same windows, and what its arithmetic adds to that of the same weights here."""
    yield f"the same weights, answered by llama.cpp on {record.machine.cpu}: perplexity, nats added to ours, same first"
    for name, found in record.values.items():
        added = _interval(paired_bootstrap(ours[name]["nll"], found["nll"]))
        same = found["same first"].mean().item()
        yield f"  {name + ', ' + found['blocks']:44}{found['perplexity']:7.2f}  {added:26}{same:8.1%}"


def _writing(record: Record, _: Mapping) -> Iterator[str]:
    """Tokens a second, and over llama.cpp's where it took turns with them."""
    for threads, values in record.values["rates"].items():
        rates = TokenRates.from_values(values)
        yield f"greedy writing of {record.model}, {record.machine.cpu}, {record.date}, {_threads(threads)}: tokens/s"
        for name in rates.benchmark.measurements:
            peer = f"{name.partition(' ')[0]} llama.cpp"
            beside = peer in rates.benchmark.measurements and peer != name
            yield f"  {name:24}{rates[name]:8.1f}" + (f"   {rates.ratio(name, peer)} of llama.cpp" if beside else "")


def _reading(record: Record, _: Mapping) -> Iterator[str]:
    """Tokens a second, and the share of the fastest float32 product of this machine."""
    for threads, found in record.values["by threads"].items():
        limit = Ceilings.from_values(found["ceilings"]).matmul_gflop_per_s["float32"]
        for length, values in found.items():
            if length == "ceilings":
                continue
            benchmark = Benchmark.from_values(values["seconds"])
            yield f"reading a prompt of {length} tokens, {record.machine.cpu}, {_threads(threads)}: tokens/s"
            for name, m in benchmark.measurements.items():
                share = m.gflop_per_s / limit
                yield f"  {name:24}{int(length) / m.median:8.1f}   {share:5.0%} of the float32 limit"


def _on_gpu(record: Record, _: Mapping) -> Iterator[str]:
    """Tokens a second of whole models, and the share of the bandwidth that their bytes took."""
    limits = Ceilings.from_values(record.values["ceilings"])
    for shape, found in record.values.items():
        if shape == "ceilings":
            continue
        rates, reading = TokenRates.from_values(found["rates"]), Benchmark.from_values(found["reading"])
        yield f"{shape} with random weights, {record.machine.gpu}, {record.date}: MB and tokens/s, share of the limit"
        for name, size in found["bytes a token"].items():
            share = rates[name] * size / (1e9 * limits.read_gb_per_s)
            read = found["length"] / reading[name].median
            yield f"  {name:24}{size / 1e6:8.0f}{rates[name]:8.1f} {share:5.0%}; reading {read:.0f} tokens/s"


def _threads(count: str) -> str:
    return f"{count} thread{'s' * (count != '1')}"


BESIDE = {
    "part_07.llama_cpp": _by_llama_cpp, "part_02.writing": _writing, "part_07.reading": _reading,
    "part_07.on_gpu": _on_gpu,
}  # fmt: skip
