"""What the checked cells of a page printed when it was recorded. Start from :func:`read_recording`.

lessons/recorded/<page>.outputs.json holds, for each checked cell in the page's order, its source and its outputs, line
by line, so that a change reads well in a diff. Another comment in a cell is no change (quantlib.records.experiments.meaning).
`make record` writes it.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from quantlib.measure.machine import package_versions, this_machine
from quantlib.records.experiments import meaning
from quantlib.records.lesson_files import read_json, remedy, write_json
from tests.lesson_outputs import differences


@dataclass(frozen=True)
class CheckedCell:
    """A checked cell as recorded: its source, its outputs."""

    source: str
    outputs: tuple[Mapping[str, str], ...]


@dataclass(frozen=True)
class Matched:
    """Which recorded cell belongs to which cell of the page.

    cells    by the checked cell's number in the page
    reasons  why a checked cell has none, by its number
    gone     recorded cells that the page no longer has
    """

    cells: Mapping[int, CheckedCell]
    reasons: Mapping[int, str]
    gone: Sequence[CheckedCell]


def recording_file(page: Path) -> Path:
    """lessons/01-….md is recorded in lessons/recorded/01-….outputs.json."""
    return page.parent / "recorded" / f"{page.stem}.outputs.json"


def read_recording(page: Path) -> list[CheckedCell]:
    """The recorded cells of a page, in its order; none if it has no recording. ValueError if the file is damaged."""
    file = recording_file(page)
    if not file.exists():
        return []
    try:
        cells = read_json(file, remedy(page.stem))["cells"]
        return [
            CheckedCell("\n".join(c["source"]), tuple({k: "\n".join(v) for k, v in o.items()} for o in c["outputs"]))
            for c in cells
        ]
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{file} is damaged ({error!r}): {remedy(page.stem)}") from None


def write_recording(page: Path, cells: Sequence[CheckedCell], tolerances: Sequence[float | None]) -> bool:
    """Record a page's checked cells; False, and the file untouched, if it already says this within the tolerances.

    A cell that still prints what is recorded keeps its recorded digits, so that only what changed shows in a diff.
    """
    try:
        old = read_recording(page)
    except ValueError:
        old = []
    before = match_cells([cell.source for cell in cells], old).cells
    kept = [_keep(before.get(i), cell, rtol) for i, (cell, rtol) in enumerate(zip(cells, tolerances, strict=True))]
    if kept == old and recording_file(page).exists() == bool(cells):
        return False
    if not cells:
        recording_file(page).unlink()
        return True
    write_json(
        recording_file(page),
        {
            "page": page.name,
            "date": datetime.now(UTC).date().isoformat(),
            "machine": asdict(this_machine()),
            "versions": package_versions(),
            "cells": [
                {
                    "source": c.source.split("\n"),
                    "outputs": [{k: v.split("\n") for k, v in o.items()} for o in c.outputs],
                }
                for c in kept
            ],
        },
    )
    return True


def _keep(old: CheckedCell | None, new: CheckedCell, rtol: float | None) -> CheckedCell:
    if old is None or differences(old.outputs, new.outputs, rtol):
        return new
    return CheckedCell(new.source, old.outputs)


def match_cells(page_cells: Sequence[str], recorded: Sequence[CheckedCell]) -> Matched:
    """Recorded cells for the sources of a page's checked cells, by what they say and their order."""
    cells, reasons, gone = {}, {}, []
    before, after = [meaning(c.source) for c in recorded], [meaning(source) for source in page_cells]
    comparison = difflib.SequenceMatcher(None, before, after, autojunk=False)
    for what, a, b, c, d in comparison.get_opcodes():
        if what == "equal":
            cells |= dict(zip(range(c, d), recorded[a:b], strict=True))
            continue
        changed = min(b - a, d - c)
        reasons |= {
            i: "changed after its output was recorded" if i < c + changed else "has no recorded output"
            for i in range(c, d)
        }
        gone += recorded[a + changed : b]
    return Matched(cells, reasons, gone)
