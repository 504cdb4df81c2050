"""`make record`: run the slow experiments, then record what the pages print. Start from :func:`main`.

python -m quantlib record                                     rows that are missing or stale, then every page
python -m quantlib record part_01                             the same of page 01; times are measured anew
python -m quantlib record part_01.perplexity_of_grids         the same of one experiment, then its page
python -m quantlib record "part_01.perplexity_of_grids:4 64"  one row of it, stale or not
python -m quantlib record index                               what the page prints, no experiment

Every row is written as soon as it is there: what was interrupted goes on when it is called again.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
import warnings
from collections.abc import Iterable, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

import torch
from tqdm import tqdm

from quantlib.measure.machine import package_versions, this_machine
from quantlib.records.experiments import Experiment, lesson_model_checksum, load_experiments
from quantlib.records.lesson_files import lessons_folder
from quantlib.records.records import Record, in_words, read_record, record_file, stale_rows, write_record

WHOLE = "all"  # the one row of an experiment without rows


def main(arguments: Sequence[str] | None = None) -> int:
    """Record what the arguments name, or what is not fresh; return 0, 1 if a page failed, 2 for an unknown name."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="name")
    names = parser.parse_args(arguments).names
    try:
        experiments, pages, unneeded = plan_for(names, lessons_folder())
    except (ValueError, FileNotFoundError) as error:
        print(error, file=sys.stderr)
        return 2
    for number, (which, reasons) in enumerate(experiments.items(), 1):
        print(f"[{number}/{len(experiments)}] {which.name}: {in_words(reasons)}", flush=True)
        if which.gpu and not torch.cuda.is_available():
            print("      left as it is: it needs a GPU, and PyTorch finds none", flush=True)
        else:
            run(which, reasons)
    if not names and not experiments:
        print("All experiments have fresh records.", flush=True)
    for file in unneeded:
        file.unlink()
        print(f"Removed {file}: nothing makes it any more.", flush=True)
    return record_pages(pages)


def plan_for(names: Sequence[str], lessons: Path) -> tuple[dict[Experiment, dict[str, str]], list[Path], list[Path]]:
    """Experiments with the reasons by row, pages, and files that nothing makes any more: all, or what is named.

    ValueError for a name that is nothing.
    """
    experiments, pages = all_experiments(lessons), sorted(lessons.glob("*.md"))
    if not names:
        stale = {e: reasons for e in experiments if (reasons := why_record(e))}
        return stale, pages, leftovers(experiments, pages, lessons)
    chosen: dict[Experiment, dict[str, str]] = {}
    renewed: list[Path] = []
    for name, _, row in (name.partition(":") for name in names):
        matching = [e for e in experiments if name in (e.name, e.name.partition(".")[0])]
        number = name.partition(".")[0].removeprefix("part_")
        own = [page for page in pages if page.stem == name or (matching and page.stem.startswith(f"{number}-"))]
        if not matching and not own:
            known = [*(e.name for e in experiments), *(page.stem for page in pages)]
            raise ValueError(f"{name!r} is no experiment and no page: there are {', '.join(known) or 'none'}")
        having = [e for e in matching if not row or row in e.rows]
        if row and not having:
            known = [known for e in matching for known in e.rows]
            raise ValueError(f"{row!r} is no row of {name}: there are {', '.join(known) or 'none'}")
        for e in having:
            asked = [row] if row else e.rows or [WHOLE]
            again = dict.fromkeys(asked, "asked for") if row or e.miniature is None else why_record(e)
            chosen[e] = chosen.get(e, {}) | again
        renewed += own
    return {e: reasons for e, reasons in chosen.items() if reasons}, list(dict.fromkeys(renewed)), []


def all_experiments(lessons: Path) -> list[Experiment]:
    """Every experiment of the lessons, by file and then in the file's order."""
    return [e for file in sorted((lessons / "experiments").glob("part_*.py")) for e in load_experiments(file)]


def why_record(which: Experiment) -> dict[str, str]:
    """The rows that have to be recorded, with the reasons: runs the miniature. Empty if the record is fresh."""
    try:
        return stale_rows(read_record(record_file(which.name)), which, miniature_of(which))
    except (FileNotFoundError, ValueError) as error:
        reason = str(error) if isinstance(error, ValueError) else "no record yet"
        return dict.fromkeys(which.rows or [WHOLE], reason)


def miniature_of(which: Experiment) -> dict[str, object] | None:
    """{row: what it gives on the model of quantlib.records.miniature}, or None for an experiment without a miniature."""
    from quantlib.records.miniature import miniature

    if which.miniature is None:
        return None
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # so little work is not worth sharing, and on a busy machine takes ten times as long
    try:
        with warnings.catch_warnings(action="ignore", category=UserWarning):  # that a text this small is too small
            return dict(which.seeded(*[miniature()][: which.model is not None], **which.miniature))
    finally:
        torch.set_num_threads(threads)


def leftovers(experiments: Sequence[Experiment], pages: Sequence[Path], lessons: Path) -> list[Path]:
    """Recorded files whose experiment or page is gone."""
    wanted = {f"{e.name}.json" for e in experiments} | {f"{page.stem}.outputs.json" for page in pages}
    return [file for file in sorted((lessons / "recorded").glob("*.json")) if file.name not in wanted]


def run(which: Experiment, rows: Iterable[str]) -> Record:
    """Record rows of an experiment on the CPU, each from the seed. The record is written after every row.

    Other rows stay as they are, each with the miniature it was made with: what was stale still is.
    """
    from quantlib.zoo.zoo import load_model

    file, rows, now = record_file(which.name), [*rows], miniature_of(which)
    kept = {}  # row -> value, miniature, made
    with suppress(FileNotFoundError, ValueError):  # rows besides these, if the experiment still says what it said
        old = read_record(file)
        for row in old.values.keys() & {*which.rows} - stale_rows(old, which).keys() - {*rows}:
            kept[row] = old.values[row], old.miniature and old.miniature[row], old.made[row]
    loaded = [] if which.model is None else [load_model(which.model, device="cpu")]
    code = tuple(which.code.split("\n"))  # as it was read, even if someone edits it meanwhile
    machine, start = this_machine(), time.perf_counter()
    results = which.seeded(*loaded, rows=rows if which.rows else ())
    for row, value in tqdm(results, which.name, len(rows), unit="row", disable=None):
        today = datetime.now(UTC).date().isoformat()
        seconds, start = time.perf_counter() - start, time.perf_counter()
        kept[row] = value, now and now[row], f"{today} on {machine.cpu} in {seconds:.0f} s"
        rows_there = [name for name in which.rows or kept if name in kept]
        values, small, how = ({name: kept[name][i] for name in rows_there} for i in range(3))
        record = Record(
            name=which.name,
            values=values,
            parameters=which.parameters,
            seed=which.seed,
            model=which.model,
            model_checksum=lesson_model_checksum(which.model),
            code=code,
            miniature=now and small,
            made=how,
            machine=machine,
            versions=package_versions(),
            date=today,
        )
        if which.rows:
            write_record(record, file)
        if not sys.stderr.isatty():
            print(f"      {row}: {seconds:.0f} s", flush=True)
    write_record(record, file)
    return record


def record_pages(pages: Sequence[Path]) -> int:
    """Run pages and record what their checked cells print: the tests' own run, told to write instead of compare."""
    if not pages:
        return 0
    print(f"Running {', '.join(page.name for page in pages)} …", flush=True)
    command = [sys.executable, "-m", "pytest", "--record-outputs", "-q", "--no-header", *map(str, pages)]
    return 1 if subprocess.run(command, cwd=pages[0].parent.parent, check=False).returncode else 0
