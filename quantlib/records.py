"""What the experiments returned, and all that it depended on. Start from :func:`load_record`.

lessons/recorded/part_NN.<function>.json is written by `make record` and read by the page:

    record = load_record("part_01.perplexity_of_grids")       # what it returned
    show_experiment("part_01.perplexity_of_grids")            # how
    run = load_experiment("part_01.perplexity_of_grids")      # again, on a small piece: run(loaded, windows=1)

A record belongs to the code and the model that made it. When either changed, load_record raises StaleRecord.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from quantlib.experiments import (
    Experiment,
    experiment,
    experiment_file,
    fingerprint_of,
    lesson_model_checksum,
    load_experiment,
    show_experiment,
)
from quantlib.lesson_files import read_json, remedy, write_json
from quantlib.machine import Machine
from quantlib.record_values import from_json, to_json

__all__ = [
    "Experiment",
    "Record",
    "StaleRecord",
    "experiment",
    "load_experiment",
    "load_record",
    "show_experiment",
]  # all a page needs


class StaleRecord(ValueError):
    """The code or the model that a record came from is no longer what it was."""


@dataclass(frozen=True, eq=False)
class Record:
    """What an experiment returned, and everything it depended on.

    values        as returned, frozen: read-only mappings, tuples, tensors on the CPU (record_values.py)
    parameters    of the function, as recorded
    model         name of the lesson model, or None;  model_checksum: SHA-256 of its file
    fingerprints  {"experiments/part_01.py": "…", "quantlib/grid.py": "…"}: what each said (fingerprint.py)
    seconds       wall time;  date: "2026-11-24"
    """

    name: str
    values: object
    parameters: Mapping[str, object]
    seed: int
    model: str | None
    model_checksum: str | None
    machine: Machine
    versions: Mapping[str, str]
    date: str
    seconds: float
    fingerprints: Mapping[str, str]


def load_record(name: str) -> Record:
    """The record of an experiment: load_record("part_01.perplexity_of_grids").values["W4 g64"]["value"].

    Raises FileNotFoundError if it was never recorded, StaleRecord if it is older than its code or its model,
    ValueError if the file is damaged or was changed by hand. No model is loaded and no experiment imported.
    """
    record = read_record(record_file(name))
    reasons = changes(record)
    if reasons:
        raise StaleRecord(f"the record {name} of {record.date} is stale: {', '.join(reasons)}; {remedy(name)}")
    return record


def changes(record: Record) -> list[str]:
    """What changed since the record was made, in words; empty if it is fresh."""
    found = []
    for file, recorded in record.fingerprints.items():
        now = fingerprint_of(file, record.name)
        if now != recorded:
            found.append(f"{file} {'changed' if now else 'is gone'}")
    if record.model is not None and lesson_model_checksum(record.model) != record.model_checksum:
        found.append(f"the model {record.model} is another file")
    return found


def record_file(name: str) -> Path:
    """Where the record of an experiment lies or will lie."""
    return experiment_file(name).parent.parent / "recorded" / f"{name}.json"


def read_record(file: Path) -> Record:
    """A record as it stands in its file, fresh or stale."""
    content = read_json(file, remedy(file.stem))
    digest = content.pop("digest", None)
    if digest != _digest(content):
        raise ValueError(f"{file} was changed after it was recorded (its digest does not fit): {remedy(file.stem)}")
    if content.keys() != {field.name for field in fields(Record)}:
        raise ValueError(f"{file} is of another version of quantlib.records: {remedy(file.stem)}")
    machine = {**content.pop("machine")}
    machine["abilities"] = tuple(machine["abilities"])
    return Record(machine=Machine(**machine), **{key: from_json(value) for key, value in content.items()})


def write_record(record: Record, file: Path) -> None:
    """Write a record, all or nothing. TypeError if a value is not one that record_values.py knows."""
    content = {field.name: to_json(getattr(record, field.name), field.name) for field in fields(record)}
    content["machine"] = asdict(record.machine)
    write_json(file, {**content, "digest": _digest(content)})


def _digest(content: Mapping[str, object]) -> str:
    canonical = json.dumps(content, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()
