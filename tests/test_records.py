"""Records: whole, exact, and refused as soon as what made them changed."""

import dataclasses
import json
import shutil

import pytest
import torch

import quantlib.experiments as experiments
from quantlib.machine import Machine
from quantlib.record_values import to_json
from quantlib.records import Record, StaleRecord, load_record, read_record, record_file, write_record

NAME = "part_01.losses"
EXPERIMENT = '''\
from quantlib.records import experiment


@experiment(sources=("grid",), model="stories15M", seed=3)
def losses(loaded, *, windows=8):
    """One loss a window."""
    return {"nll": loaded.model(windows)}
'''
NLL = torch.randn(8, 5, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def course(tmp_path, monkeypatch):
    """Lessons with one experiment, and a quantlib whose grid.py may be edited."""
    lessons, package = tmp_path / "lessons", tmp_path / "quantlib"
    (lessons / "experiments").mkdir(parents=True)
    (lessons / "index.md").touch()
    (lessons / "experiments" / "part_01.py").write_text(EXPERIMENT)
    package.mkdir()
    shutil.copy(experiments.PACKAGE / "grid.py", package)
    monkeypatch.setattr(experiments, "PACKAGE", package)
    monkeypatch.setenv("QUANTLIB_LESSONS", str(lessons))
    return tmp_path


def make_record(**changed):
    fresh = {
        "name": NAME,
        "values": {"ppl": 29.197, "nll": NLL, "verdict": "tie", "bits": [8, 4]},
        "parameters": {"windows": 8},
        "seed": 3,
        "model": "stories15M",
        "model_checksum": experiments.lesson_model_checksum("stories15M"),
        "machine": Machine("a cpu", 2, ("avx2",), None),
        "versions": {"torch": "2.13.0"},
        "date": "2026-01-31",
        "seconds": 12.5,
        "fingerprints": experiments.fingerprints(experiments.load_experiment(NAME)),
    }
    return Record(**{**fresh, **changed})


def test_a_record_comes_back_whole_and_frozen(course):
    written = make_record()
    write_record(written, record_file(NAME))
    record = load_record(NAME)
    assert torch.equal(record.values["nll"], NLL)
    for field in dataclasses.fields(Record):
        assert to_json(getattr(record, field.name)) == to_json(getattr(written, field.name)), field.name
    with pytest.raises(TypeError):
        record.values["ppl"] = 0.0
    with pytest.raises(dataclasses.FrozenInstanceError):
        record.date = "today"


def test_the_file_reads_well_and_holds_arrays_compactly(course):
    write_record(make_record(), record_file(NAME))
    text = record_file(NAME).read_text()
    content = json.loads(text)
    assert (
        content["values"]["ppl"] == 29.197
        and content["machine"]["abilities"] == ["avx2"]
        and content["model"] == "stories15M"
    )
    assert len(content["values"]["nll"]["$array"]["base64"]) == 216  # 160 bytes, a third more in base64
    assert record_file(NAME) == course / "lessons" / "recorded" / "part_01.losses.json"


def test_the_same_record_is_the_same_file(course):
    write_record(make_record(), record_file(NAME))
    first = record_file(NAME).read_bytes()
    write_record(read_record(record_file(NAME)), record_file(NAME))
    assert record_file(NAME).read_bytes() == first


@pytest.mark.parametrize(
    ("file", "old", "new", "what"),
    [
        ("lessons/experiments/part_01.py", "windows=8", "windows=9", r"experiments/part_01\.py changed"),
        ("quantlib/grid.py", "import torch", "import torch as torch", r"quantlib/grid\.py changed"),
        ("quantlib/grid.py", None, None, r"quantlib/grid\.py is gone"),
    ],
)
def test_a_change_of_code_makes_it_stale(course, file, old, new, what):
    write_record(make_record(), record_file(NAME))
    path = course / file
    if old is None:
        path.unlink()
    else:
        assert old in path.read_text()
        path.write_text(path.read_text().replace(old, new, 1))
    with pytest.raises(
        StaleRecord,
        match=rf"the record part_01\.losses of 2026-01-31 is stale: {what}; run `make record RECORD=part_01\.losses`",
    ):
        load_record(NAME)


def test_comments_and_docstrings_leave_it_fresh(course):
    write_record(make_record(), record_file(NAME))
    (course / "lessons" / "experiments" / "part_01.py").write_text(
        EXPERIMENT.replace("One loss a window", "A loss for each window") + "# the end\n"
    )
    (course / "quantlib" / "grid.py").write_text(
        '"""Another introduction."""\n' + (course / "quantlib" / "grid.py").read_text().partition('"""\n')[2]
    )
    assert load_record(NAME).seed == 3


def test_another_model_file_makes_it_stale(course):
    write_record(make_record(model_checksum="0" * 64), record_file(NAME))
    with pytest.raises(StaleRecord, match="the model stories15M is another file"):
        load_record(NAME)


def test_the_readers_own_model_does_not(course, monkeypatch):
    write_record(make_record(), record_file(NAME))
    monkeypatch.setenv("QUANTLIB_MODEL", "somebody/else")
    assert load_record(NAME).model == "stories15M"


def test_no_record_yet(course):
    with pytest.raises(
        FileNotFoundError, match=r"part_01\.losses\.json does not exist: run `make record RECORD=part_01\.losses`"
    ):
        load_record(NAME)


@pytest.mark.parametrize(
    "damage", [lambda text: text[: len(text) // 2], lambda text: "", lambda text: "[]"], ids=["half", "empty", "list"]
)
def test_a_truncated_file_is_damaged(course, damage):
    write_record(make_record(), record_file(NAME))
    record_file(NAME).write_text(damage(record_file(NAME).read_text()))
    with pytest.raises(
        ValueError, match=r"part_01\.losses\.json is damaged .*: run `make record RECORD=part_01\.losses`"
    ):
        load_record(NAME)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("29.197", "28.197"),
        ('"tie"', '"lower"'),
        ('"seconds": 12.5', '"seconds": 1.5'),
        ('"digest"', '"digests"'),
        ('"seed": 3', '"seed": 3, "extra": 1'),
    ],
)
def test_a_figure_changed_by_hand_is_refused(course, old, new):
    write_record(make_record(), record_file(NAME))
    text = record_file(NAME).read_text()
    assert old in text
    record_file(NAME).write_text(text.replace(old, new))
    with pytest.raises(ValueError, match="was changed after it was recorded"):
        load_record(NAME)


def test_a_value_that_cannot_be_recorded_leaves_the_old_record(course):
    write_record(make_record(), record_file(NAME))
    with pytest.raises(TypeError, match=r"values\['model'\] is a Linear"):
        write_record(make_record(values={"model": torch.nn.Linear(1, 1)}), record_file(NAME))
    assert load_record(NAME).values["ppl"] == 29.197
    assert [file.name for file in record_file(NAME).parent.iterdir()] == ["part_01.losses.json"]
