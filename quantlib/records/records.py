"""What the experiments gave, and what that depended on. Start from :func:`load_record`.

lessons/recorded/part_NN.<function>.json is written by `make record` and read by the page. A record is stale when the
experiment says something else or its model is another: then load_record raises StaleRecord. Of what the experiment
calls, not the text counts but what it does: the record keeps what every row gave on a model so small that the tests run
all of it again (:func:`stale_rows`).
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path

from torch import Tensor

from quantlib.measure.machine import Machine
from quantlib.records.experiments import (
    Experiment,
    experiment,
    experiment_file,
    lesson_model_checksum,
    load_experiment,
    meaning,
)
from quantlib.records.lesson_files import read_json, remedy, write_json
from quantlib.records.record_values import from_json, to_json

__all__ = ["Experiment", "Record", "StaleRecord", "experiment", "load_experiment", "load_record"]


class StaleRecord(ValueError):
    """The code or the model that a record came from is no longer what it was."""


@dataclass(frozen=True, eq=False)
class Record:
    """What an experiment gave.

    values      {row: value}, frozen: read-only mappings, tuples, tensors on the CPU (record_values.py)
    parameters  of the function, as recorded
    model       name of the lesson model, or None;  model_checksum: SHA-256 of its file
    code        lines of the function
    miniature   {row: what it gave on quantlib.records.miniature's model}; None for a fact of its date and machine
    made        {row: "2026-11-24 on AMD EPYC in 42 s"}; the last of them on `machine` with `versions`, on `date`
    """

    name: str
    values: Mapping[str, object]
    parameters: Mapping[str, object]
    seed: int
    model: str | None
    model_checksum: str | None
    code: tuple[str, ...]
    miniature: Mapping[str, object] | None
    made: Mapping[str, str]
    machine: Machine
    versions: Mapping[str, str]
    date: str


def load_record(name: str) -> Record:
    """The record of an experiment: load_record("part_01.perplexity_of_grids").values["4 64"]["perplexity"].

    Raises FileNotFoundError if it was never recorded, StaleRecord if the experiment or its model is another by now,
    ValueError if the file is damaged or was changed by hand. No model is loaded and no miniature run.
    """
    record = read_record(record_file(name))
    reasons = "" if record.miniature is None else in_words(stale_rows(record, load_experiment(name)))
    if reasons:
        raise StaleRecord(f"the record {name} of {record.date} is stale: {reasons}; {remedy(name)}")
    return record


def stale_rows(record: Record, of: Experiment, now: Mapping[str, object] | None = None) -> dict[str, str]:
    """The rows that have to be recorded again, each with the reason.

    now  what the miniature gives today; None: it is not asked. Of a record without a miniature no row is ever stale.
    """
    if of.miniature is None:
        return {}
    differ = {
        "function": meaning("\n".join(record.code)) != meaning(of.code),
        "parameters": (to_json(record.parameters), record.seed) != (to_json(of.parameters), of.seed),
        "model": (record.model, record.model_checksum) != (of.model, lesson_model_checksum(of.model)),
    }
    rows, others = of.rows or tuple(record.values), [what for what, differs in differ.items() if differs]
    if others:
        return dict.fromkeys(rows, f"the experiment has another {' and another '.join(others)}")
    missing = {row: "no record yet" for row in rows if row not in record.values}
    if now is None:
        return missing
    moved = {row: moves(record.miniature[row], now.get(row), of.tolerance) for row in rows if row not in missing}
    return missing | {row: f"its miniature moved: {how}" for row, how in moved.items() if how}


def moves(was: object, now: object, tolerance: float) -> str:
    """The number that moved most, in words; empty if none moved by more than tolerance · max(1, |was|)."""
    old, new = (dict(_numbers(from_json(to_json(value)))) for value in (was, now))
    if old.keys() != new.keys():
        return f"{', '.join(sorted(old.keys() ^ new.keys())[:3])} and others came or went"
    most = max(old, key=lambda name: _apart(old[name], new[name]), default=None)
    if most is None or _apart(old[most], new[most]) <= tolerance:
        return ""
    return f"{most or 'it'} is {new[most]!r}, was {old[most]!r}, the tolerance is {tolerance:g}"


def in_words(stale: Mapping[str, str], most: int = 4) -> str:
    """Reasons by row in one sentence; one reason of all rows is said once."""
    if len(set(stale.values())) == 1:
        return f"{next(iter(stale.values()))} ({', '.join(stale)})"
    more = [f"and {len(stale) - most} more rows"] * (len(stale) > most)
    return "; ".join([f"{row}: {reason}" for row, reason in stale.items()][:most] + more)


def record_file(name: str) -> Path:
    """Where the record of an experiment lies or will lie."""
    return experiment_file(name).parent.parent / "recorded" / f"{name}.json"


def read_record(file: Path) -> Record:
    """A record as it stands in its file, fresh or stale."""
    name = file.name.removesuffix(".json")
    content = read_json(file, remedy(name))
    digest = content.pop("digest", None)
    if digest != _digest(content):
        raise ValueError(f"{file} was changed after it was recorded (its digest does not fit): {remedy(name)}")
    if content.keys() != {field.name for field in fields(Record)}:
        raise ValueError(f"{file} is of another version of quantlib.records.records: {remedy(name)}")
    values = from_json(content)
    return Record(**{**values, "machine": Machine(**values["machine"])})


def write_record(record: Record, file: Path) -> None:
    """Write a record, all or nothing. TypeError if a value is not one that record_values.py knows."""
    content = to_json(record, "record")
    write_json(file, {**content, "digest": _digest(content)})


def _digest(content: Mapping[str, object]) -> str:
    canonical = json.dumps(content, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()


def _numbers(value: object, name: str = "") -> Iterator[tuple[str, object]]:
    """("nll.0.3", 2.5), … of everything in a value."""
    value = value.tolist() if isinstance(value, Tensor) else value
    if isinstance(value, (Mapping, list, tuple)):
        for key, item in value.items() if isinstance(value, Mapping) else enumerate(value):
            yield from _numbers(item, f"{name}.{key}".lstrip("."))
    else:
        yield name, value


def _apart(was: object, now: object) -> float:
    if was == now or (was != was and now != now):  # NaN as before
        return 0.0
    numbers = all(isinstance(value, (int, float)) and math.isfinite(value) for value in (was, now))
    return abs(now - was) / max(1.0, abs(was)) if numbers else math.inf
