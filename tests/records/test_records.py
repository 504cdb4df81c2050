"""Records: whole, exact, and refused as soon as what made them changed."""

import dataclasses
import json
import math
import re

import pytest
import torch

from quantlib.measure.machine import Machine
from quantlib.records.experiments import lesson_model_checksum, load_experiment
from quantlib.records.record_values import to_json
from quantlib.records.records import (
    Record,
    StaleRecord,
    in_words,
    load_record,
    moves,
    read_record,
    record_file,
    stale_rows,
    write_record,
)

NAME = "part_01.losses"
EXPERIMENT = '''\
from quantlib.records.records import experiment

ROWS = {"float": 0, "4 row": 4}


@experiment(rows=ROWS, model="stories15M", miniature={"windows": 1}, tolerance=1e-3, seed=3)
def losses(loaded, rows, *, windows=8):
    """One loss a window."""
    for row in rows:
        yield row, {"nll": loaded.model(ROWS[row], windows)}
'''
NLL = torch.randn(8, 5, generator=torch.Generator().manual_seed(0))


SMALL = {"float": {"nll": torch.tensor([2.0, 30.0])}, "4 row": {"nll": torch.tensor([2.5, 40.0])}}


@pytest.fixture
def course(tmp_path, monkeypatch):
    """Lessons with one experiment."""
    lessons = tmp_path / "lessons"
    (lessons / "experiments").mkdir(parents=True)
    (lessons / "index.md").touch()
    (lessons / "experiments" / "part_01.py").write_text(EXPERIMENT)
    monkeypatch.setenv("QUANTLIB_LESSONS", str(lessons))
    return tmp_path


def make_record(**changed):
    fresh = {
        "name": NAME,
        "values": {"float": {"ppl": 29.197, "nll": NLL, "verdict": "tie", "bits": [8, 4]}, "4 row": {}},
        "parameters": {"windows": 8},
        "seed": 3,
        "model": "stories15M",
        "model_checksum": lesson_model_checksum("stories15M"),
        "code": tuple(EXPERIMENT[EXPERIMENT.index("def ") :].rstrip().split("\n")),
        "miniature": SMALL,
        "made": {"float": "2026-01-31 on a cpu in 12 s", "4 row": "2026-01-30 on another in 10 s"},
        "machine": Machine("a cpu", 2, ("avx2",), None),
        "versions": {"torch": "2.13.0"},
        "date": "2026-01-31",
    }
    return Record(**{**fresh, **changed})


def test_a_record_comes_back_whole_and_frozen(course):
    written = make_record()
    write_record(written, record_file(NAME))
    record = load_record(NAME)
    assert torch.equal(record.values["float"]["nll"], NLL)
    for field in dataclasses.fields(Record):
        assert to_json(getattr(record, field.name)) == to_json(getattr(written, field.name)), field.name
    with pytest.raises(TypeError):
        record.values["float"]["ppl"] = 0.0
    with pytest.raises(dataclasses.FrozenInstanceError):
        record.date = "today"


def test_the_file_reads_well_and_holds_arrays_compactly(course):
    write_record(make_record(), record_file(NAME))
    text = record_file(NAME).read_text()
    content = json.loads(text)
    assert (
        content["values"]["float"]["ppl"] == 29.197
        and content["machine"]["abilities"] == ["avx2"]
        and content["model"] == "stories15M"
    )
    assert len(content["values"]["float"]["nll"]["$array"]["base64"]) == 216  # 160 bytes, a third more in base64
    assert record_file(NAME) == course / "lessons" / "recorded" / "part_01.losses.json"


def test_the_same_record_is_the_same_file(course):
    write_record(make_record(), record_file(NAME))
    first = record_file(NAME).read_bytes()
    write_record(read_record(record_file(NAME)), record_file(NAME))
    assert record_file(NAME).read_bytes() == first


@pytest.mark.parametrize(
    ("old", "new", "what"),
    [
        ("windows=8", "windows=9", r"the experiment has another function and another parameters \(float, 4 row\)"),
        ("seed=3", "seed=4", r"the experiment has another parameters \(float, 4 row\)"),
        ("(ROWS[row], windows)", "(ROWS[row], windows + 1)", r"the experiment has another function"),
        ('"4 row": 4', '"4 row": 4, "4 64": 5', r"no record yet \(4 64\)"),
    ],
)
def test_another_experiment_makes_it_stale(course, old, new, what):
    write_record(make_record(), record_file(NAME))
    assert old in EXPERIMENT
    (course / "lessons" / "experiments" / "part_01.py").write_text(EXPERIMENT.replace(old, new))
    with pytest.raises(
        StaleRecord,
        match=rf"the record part_01\.losses of 2026-01-31 is stale: {what}.*; run `make record RECORD=part_01\.losses`",
    ):
        load_record(NAME)


def test_comments_docstrings_and_neighbours_leave_it_fresh(course):
    write_record(make_record(), record_file(NAME))
    (course / "lessons" / "experiments" / "part_01.py").write_text(
        EXPERIMENT.replace("One loss a window", "A loss for each window") + "# the end\n\ndef other(): ...\n"
    )
    assert load_record(NAME).seed == 3


def test_a_row_whose_miniature_moved_is_stale_by_name_with_both_numbers_and_the_tolerance(course):
    record, which = make_record(), load_experiment
    within = {"float": {"nll": torch.tensor([2.001, 30.029])}, "4 row": {"nll": torch.tensor([2.5, 40.1])}}
    stale = stale_rows(record, which(NAME), within)
    assert stale == {
        "4 row": "its miniature moved: nll.1 is 40.099998474121094, was 40.0, the tolerance is 0.001",
    }
    assert stale_rows(record, which(NAME), SMALL) == stale_rows(record, which(NAME)) == {}


@pytest.mark.parametrize(
    ("was", "now", "sentence"),
    [
        ({"a": 1.0}, {"a": 1.0, "b": 2.0}, "b and others came or went"),
        (torch.ones(3), torch.ones(2), "2 and others came or went"),
        ({"a": math.nan}, {"a": 1.0}, "a is 1.0, was nan"),
        ({"a": 1.0}, {"a": math.inf}, "a is inf, was 1.0"),
        ({"a": "tie"}, {"a": "lower"}, "a is 'lower', was 'tie'"),
        ({"a": [1, 2]}, {"a": [1, 3]}, r"a\.1 is 3, was 2"),
        ({"a": None}, {"a": 0.0}, "a is 0.0, was None"),
        ({"a": 1.0, "b": 1000.0}, {"a": 1.2, "b": 1100.0}, "a is 1.2, was 1.0"),  # the farthest for its size
    ],
)
def test_whatever_moves_is_noticed(was, now, sentence):
    assert re.match(sentence, moves(was, now, 1e-2))
    assert moves(was, was, 0.0) == moves(now, now, 0.0) == ""


def test_many_reasons_are_told_in_one_sentence():
    assert in_words({}) == "" and in_words({"a": "x", "b": "x"}) == "x (a, b)"
    told = in_words({str(i): f"moved by {i}" for i in range(6)})
    assert told == "0: moved by 0; 1: moved by 1; 2: moved by 2; 3: moved by 3; and 2 more rows"


def test_a_fact_of_its_date_is_never_stale(course):
    text = EXPERIMENT.replace('miniature={"windows": 1}, ', "").replace("windows=8", "windows=9")
    (course / "lessons" / "experiments" / "part_01.py").write_text(text)
    record = make_record(miniature=None, model_checksum="0" * 64)
    write_record(record, record_file(NAME))
    assert load_record(NAME).date == "2026-01-31" and stale_rows(record, load_experiment(NAME)) == {}


def test_another_model_file_makes_it_stale(course):
    write_record(make_record(model_checksum="0" * 64), record_file(NAME))
    with pytest.raises(StaleRecord, match="the experiment has another model"):
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
        ("in 12 s", "in 1 s"),
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
    assert load_record(NAME).values["float"]["ppl"] == 29.197
    assert [file.name for file in record_file(NAME).parent.iterdir()] == ["part_01.losses.json"]
