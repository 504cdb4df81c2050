"""`make record`: run the slow experiments, then record what the pages print. Start from :func:`main`.

python -m quantlib.record                               experiments whose record is missing or stale, then every page
python -m quantlib.record part_01.perplexity_of_grids   this experiment, fresh or not, then its page
python -m quantlib.record part_01                       all experiments of page 01, then the page
python -m quantlib.record index                         what the page prints, no experiment
"""

from __future__ import annotations

import argparse
import random
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import torch

from quantlib.experiments import Experiment, fingerprints, lesson_model_checksum, load_experiments
from quantlib.lesson_files import lessons_folder
from quantlib.machine import package_versions, this_machine
from quantlib.records import Record, changes, read_record, record_file, write_record


@dataclass(frozen=True)
class Plan:
    """What to record: experiments with the reason for each, pages, and files that nothing makes any more."""

    experiments: tuple[tuple[Experiment, str], ...]
    pages: tuple[Path, ...]
    leftovers: tuple[Path, ...]


def main(arguments: Sequence[str] | None = None) -> int:
    """Record what the arguments name, or what is not fresh; return 0, 1 if a page failed, 2 for an unknown name."""
    parser = argparse.ArgumentParser(
        prog="python -m quantlib.record", description="Run slow experiments and record what the pages print."
    )
    parser.add_argument(
        "names",
        nargs="*",
        metavar="name",
        help="an experiment (part_01.perplexity_of_grids), all of a page (part_01), or a page (index)",
    )
    names = parser.parse_args(arguments).names
    try:
        plan = plan_for(names, lessons_folder())
    except (ValueError, FileNotFoundError) as error:
        print(error, file=sys.stderr)
        return 2
    for number, (which, reason) in enumerate(plan.experiments, 1):
        print(f"[{number}/{len(plan.experiments)}] {which.name}: {reason}, running …", flush=True)
        record = run(which)
        write_record(record, record_file(which.name))
        print(f"      {record.seconds:.0f} s, kept in {record_file(which.name)}", flush=True)
    if not names and not plan.experiments:
        print("All experiments have fresh records.", flush=True)
    for file in plan.leftovers:
        file.unlink()
        print(f"Removed {file}: nothing makes it any more.", flush=True)
    return record_pages(plan.pages)


def plan_for(names: Sequence[str], lessons: Path) -> Plan:
    """What the names ask for; without names, all that is missing or stale. ValueError for a name that is nothing."""
    experiments = all_experiments(lessons)
    pages = sorted(lessons.glob("*.md"))
    if not names:
        reasons = [(e, reason) for e in experiments if (reason := why_record(e))]
        return Plan(tuple(reasons), tuple(pages), tuple(leftovers(experiments, pages, lessons)))
    chosen: dict[str, Experiment] = {}
    renewed: list[Path] = []
    for name in names:
        matching = [e for e in experiments if name in (e.name, e.name.partition(".")[0])]
        chosen |= {e.name: e for e in matching}
        part = name.partition(".")[0].removeprefix("part_")
        own = [page for page in pages if page.stem == name or (matching and page.stem.startswith(f"{part}-"))]
        if not matching and not own:
            known = [*(e.name for e in experiments), *(page.stem for page in pages)]
            raise ValueError(f"{name!r} is no experiment and no page: there are {', '.join(known) or 'none'}")
        renewed += own
    return Plan(tuple((e, "asked for") for e in chosen.values()), tuple(dict.fromkeys(renewed)), ())


def all_experiments(lessons: Path) -> list[Experiment]:
    """Every experiment of the lessons, by file and then in the file's order."""
    return [e for file in sorted((lessons / "experiments").glob("part_*.py")) for e in load_experiments(file)]


def why_record(which: Experiment) -> str:
    """Why an experiment has to be recorded: "no record yet", "quantlib/grid.py changed"; empty if it is fresh."""
    file = record_file(which.name)
    if not file.exists():
        return "no record yet"
    try:
        record = read_record(file)
    except ValueError as error:
        return str(error)
    return ", ".join(changes(record))


def leftovers(experiments: Sequence[Experiment], pages: Sequence[Path], lessons: Path) -> list[Path]:
    """Recorded files whose experiment or page is gone."""
    wanted = {f"{e.name}.json" for e in experiments} | {f"{page.stem}.outputs.json" for page in pages}
    return [file for file in sorted((lessons / "recorded").glob("*.json")) if file.name not in wanted]


def run(which: Experiment) -> Record:
    """Run an experiment on the CPU, from its seed, and keep all that its result depended on."""
    from quantlib.zoo import load_model

    loaded = [] if which.model is None else [load_model(which.model, device="cpu")]
    random.seed(which.seed)
    np.random.seed(which.seed)
    torch.manual_seed(which.seed)
    before = fingerprints(which)  # of the files as they are read now, even if someone edits them meanwhile
    start = time.perf_counter()
    values = which(*loaded)
    seconds = round(time.perf_counter() - start, 1)
    checksum = None if which.model is None else lesson_model_checksum(which.model)
    today = datetime.now(UTC).date().isoformat()
    return Record(
        which.name,
        values,
        which.parameters,
        which.seed,
        which.model,
        checksum,
        this_machine(),
        package_versions(),
        today,
        seconds,
        before,
    )


def record_pages(pages: Sequence[Path]) -> int:
    """Run pages and record what their checked cells print: the tests' own run, told to write instead of compare."""
    if not pages:
        return 0
    print(f"Running {', '.join(page.name for page in pages)} …", flush=True)
    command = [sys.executable, "-m", "pytest", "--record-outputs", "-q", "--no-header", *map(str, pages)]
    return 1 if subprocess.run(command, cwd=pages[0].parent.parent, check=False).returncode else 0


if __name__ == "__main__":
    sys.exit(main())
