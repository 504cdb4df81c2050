"""`make record`: what is run and why, what is written, and what is left alone."""

import json
import random
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from page_cases import page_text

from quantlib.commands import record as command
from quantlib.commands.record import all_experiments, main, plan_for, run, why_record
from quantlib.records.records import load_experiment, load_record
from quantlib.zoo import zoo
from tests.lesson_pages import CHECK

ROOT = Path(__file__).parents[2]
PART_01 = """\
from quantlib.records.records import experiment

ROWS = {"three": 3, "four": 4}


@experiment(rows=ROWS, miniature={"times": 1})
def first(rows, *, times=10):
    for row in rows:
        yield row, times * sum(range(ROWS[row]))


@experiment()
def second(*, n=4):
    return {"sum": sum(range(n))}
"""
PART_02 = """\
import random

import numpy as np
import torch

from quantlib.records.records import experiment


@experiment(model="stories15M", seed=5)
def third(loaded, *, draws=2):
    return {"model": loaded, "drawn": [random.random(), np.random.rand(), torch.rand(()).item()] * draws}
"""


@pytest.fixture
def lessons(tmp_path, monkeypatch):
    folder = tmp_path / "lessons"
    (folder / "experiments").mkdir(parents=True)
    (folder / "experiments" / "part_01.py").write_text(PART_01)
    (folder / "experiments" / "part_02.py").write_text(PART_02)
    (folder / "index.md").write_text(page_text((CHECK, "print('index')")))
    (folder / "01-grid.md").write_text(page_text((CHECK, "print('grid')")))
    (folder / "02-int8.md").write_text(page_text(("", "x = 1")))
    (tmp_path / "conftest.py").write_text('pytest_plugins = ["tests.lesson_plugin"]\n')
    monkeypatch.setenv("QUANTLIB_LESSONS", str(folder))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setattr(zoo, "load_model", lambda name, device: f"{name} on {device}")
    return folder


@pytest.fixture
def no_pages(monkeypatch):
    """The pages that would be run."""
    asked = []
    monkeypatch.setattr(command, "record_pages", lambda pages: asked.append([page.name for page in pages]) or 0)
    return asked


def recorded(lessons, name):
    return json.loads((lessons / "recorded" / f"{name}.json").read_text())


def rewrite(lessons, old, new):
    assert old in PART_01
    (lessons / "experiments" / "part_01.py").write_text(PART_01.replace(old, new))


def test_without_names_everything_missing_is_run_and_then_only_what_is_stale(lessons, no_pages, capsys):
    assert main([]) == 0
    assert sorted(file.name for file in (lessons / "recorded").iterdir()) == [
        "part_01.first.json",
        "part_01.second.json",
        "part_02.third.json",
    ]
    printed = capsys.readouterr().out
    assert "[1/3] part_01.first: no record yet (three, four)" in printed and "\n      four: 0 s\n" in printed

    before = (lessons / "recorded" / "part_01.second.json").read_bytes()
    rewrite(lessons, "times=10", "times=20")
    assert main([]) == 0
    assert "[1/1] part_01.first: the experiment has another function and another" in capsys.readouterr().out
    assert load_record("part_01.first").values == {"three": 60, "four": 120}
    assert (lessons / "recorded" / "part_01.second.json").read_bytes() == before

    assert main([]) == 0 and "All experiments have fresh records." in capsys.readouterr().out
    assert no_pages == [["01-grid.md", "02-int8.md", "index.md"]] * 3


def test_a_row_more_is_recorded_without_the_others(lessons, no_pages, capsys):
    main([])
    others = recorded(lessons, "part_01.first")
    rewrite(lessons, '"three": 3, "four": 4', '"three": 3, "five": 5, "four": 4')
    capsys.readouterr()
    assert main(["part_01.first"]) == 0
    printed = capsys.readouterr().out
    assert "part_01.first: no record yet (five)" in printed and "three: " not in printed
    now = recorded(lessons, "part_01.first")
    assert now["values"] == {"three": 30, "five": 100, "four": 60} and list(now["made"]) == ["three", "five", "four"]
    assert others["made"].items() <= now["made"].items() and now["miniature"] == {"three": 3, "five": 10, "four": 6}


def test_only_the_row_whose_miniature_moved_is_recorded_again(lessons, no_pages, capsys):
    main([])
    rewrite(lessons, '"four": 4', '"four": 6')
    capsys.readouterr()
    assert why_record(load_experiment("part_01.first")) == {
        "four": "its miniature moved: it is 15, was 6, the tolerance is 1e-05"
    }
    assert load_record("part_01.first").values["four"] == 60  # a page does not run miniatures
    assert main([]) == 0 and "three: 0 s" not in capsys.readouterr().out
    assert load_record("part_01.first").values == {"three": 30, "four": 150}


def test_a_row_that_is_named_is_run_fresh_or_not_and_the_others_stay_as_stale_as_they_were(lessons, no_pages):
    main([])
    rewrite(lessons, '"three": 3, "four": 4', '"three": 5, "four": 6')
    assert main(["part_01.first:four"]) == 0
    assert recorded(lessons, "part_01.first")["values"] == {"three": 30, "four": 150}
    assert [*why_record(load_experiment("part_01.first"))] == ["three"]
    rewrite(lessons, "times * sum", "2 * times * sum")  # of another function no row is kept
    assert main(["part_01.first:four"]) == 0
    assert recorded(lessons, "part_01.first")["values"] == {"four": 120}
    assert why_record(load_experiment("part_01.first")) == {"three": "no record yet"}


def test_a_fact_of_its_date_is_measured_anew_when_it_is_named(lessons, no_pages):
    main([])
    rewrite(lessons, "n=4", "n=5")
    assert main([]) == 0 and load_record("part_01.second").values == {"sum": 6}
    assert main(["part_01"]) == 0 and load_record("part_01.second").values == {"sum": 10}


def test_a_damaged_record_is_made_again(lessons, no_pages):
    main([])
    (lessons / "recorded" / "part_01.first.json").write_text("{")
    assert main([]) == 0 and load_record("part_01.first").values == {"three": 30, "four": 60}


def test_what_nothing_makes_any_more_is_removed_only_without_names(lessons, no_pages):
    main([])
    for name in ("part_09.gone.json", "09-gone.outputs.json"):
        (lessons / "recorded" / name).write_text("{}")
    assert plan_for(["index"], lessons)[2] == []
    assert main([]) == 0 and len(list((lessons / "recorded").iterdir())) == 3


@pytest.mark.parametrize(
    ("names", "rows", "pages"),
    [
        (["part_01.second"], {"part_01.second": ["all"]}, ["01-grid.md"]),
        (["part_01"], {"part_01.first": ["three", "four"], "part_01.second": ["all"]}, ["01-grid.md"]),
        (["part_01.first:four"], {"part_01.first": ["four"]}, ["01-grid.md"]),
        (
            ["part_01.second", "part_02", "part_01.second"],
            {"part_01.second": ["all"], "part_02.third": ["all"]},
            ["01-grid.md", "02-int8.md"],
        ),
        (["index"], {}, ["index.md"]),
        (["01-grid"], {}, ["01-grid.md"]),
    ],
)
def test_names_choose_rows_and_their_pages(lessons, names, rows, pages):
    experiments, renewed, _ = plan_for(names, lessons)
    assert {e.name: [*reasons] for e, reasons in experiments.items()} == rows and [page.name for page in renewed] == pages


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("part_1", "'part_1' is no experiment and no page: there are part_01.first"),
        ("part_01.first:five", "'five' is no row of part_01.first: there are three, four"),
        ("part_01.second:all", "'all' is no row of part_01.second: there are none"),
    ],
)
def test_an_unknown_name_lists_the_known_ones_and_runs_nothing(lessons, no_pages, capsys, name, sentence):
    assert main(["part_01", name]) == 2
    assert sentence in capsys.readouterr().err
    assert not (lessons / "recorded").exists() and no_pages == []


def test_a_run_starts_from_its_seed_on_the_cpu_and_says_all_it_depended_on(lessons):
    record = run(load_experiment("part_02.third"), ["all"])
    again = run(load_experiment("part_02.third"), ["all"])
    random.seed(5), np.random.seed(5), torch.manual_seed(5)
    assert (
        record.values
        == again.values
        == {"model": "stories15M on cpu", "drawn": [random.random(), np.random.rand(), torch.rand(()).item()] * 2}
    )
    assert (
        record.model_checksum == zoo.STORIES15M.files[0].sha256
        and record.parameters == {"draws": 2}
        and record.seed == 5
    )
    assert record.versions["torch"] == torch.__version__ and record.machine.cpu
    assert re.fullmatch(rf"{record.date} on .* in 0 s", record.made["drawn"]) and len(record.date) == 10


def test_an_experiment_that_fails_keeps_the_rows_before_it(lessons, no_pages):
    rewrite(lessons, "yield row, times", "yield row, (1 / (row == 'three') if times > 1 else 1) * times")
    with pytest.raises(ZeroDivisionError):
        main([])
    rewrite(lessons, "times=10", "times=10")
    assert recorded(lessons, "part_01.first")["values"] == {"three": 30}
    assert main([]) == 0 and load_record("part_01.first").values == {"three": 30, "four": 60}


SLOW = """\
import random
import time

import torch

from quantlib.records.records import experiment


@experiment(rows="abcdefgh", seed=3, miniature={"seconds": 0.0})
def slow(rows, *, seconds=0.3):
    for row in rows:
        time.sleep(seconds)
        yield row, {"drawn": random.random(), "losses": torch.rand(1000)}
"""


def test_a_recording_killed_three_times_gives_the_same_record_and_loses_a_row_each_time(lessons, monkeypatch):
    (lessons / "experiments" / "part_03.py").write_text(SLOW)
    command = [sys.executable, "-u", "-m", "quantlib", "record", "part_03.slow"]

    def start():
        return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=lessons)

    printed = []
    for _ in range(3):
        with start() as recording:
            for line in recording.stdout:
                if re.match(r" +\w: ", line):
                    printed.append(line.split(":")[0].strip())
                    if len(printed) % 2 == 0:  # after two rows, in the middle of a third
                        recording.send_signal(signal.SIGKILL)
                        break
        assert recording.wait() == -signal.SIGKILL
        there = recorded(lessons, "part_03.slow")["values"]
        assert "".join(there)[: len(printed)] == "".join(printed)
    with start() as recording:
        rest = re.findall(r"^ +(\w): ", recording.stdout.read(), re.MULTILINE)
    assert recording.wait() == 0 and printed + rest == list("abcdefgh")
    interrupted = recorded(lessons, "part_03.slow")
    (lessons / "recorded" / "part_03.slow.json").unlink()
    run(load_experiment("part_03.slow"), "abcdefgh")
    whole = recorded(lessons, "part_03.slow")
    for told in (interrupted, whole):  # how long each row took may differ
        del told["digest"], told["made"]
    assert interrupted == whole and whole["values"]["a"] == whole["values"]["h"]
    assert [file.name for file in (lessons / "recorded").iterdir()] == ["part_03.slow.json"]


def test_pages_are_recorded_by_the_tests_own_run(lessons):
    assert command.record_pages([lessons / "01-grid.md", lessons / "02-int8.md"]) == 0
    (file,) = (lessons / "recorded").iterdir()
    assert file.name == "01-grid.outputs.json" and json.loads(file.read_text())["cells"][0]["outputs"] == [
        {"stdout": ["grid", ""]}
    ]
    (lessons / "01-grid.md").write_text(page_text((CHECK, "1 / 0")))
    assert command.record_pages([lessons / "01-grid.md"]) == 1


def test_every_experiment_of_the_lessons_belongs_to_a_part():
    """To a page, or to a part that the index announces: its figures may be there before its page is."""
    names = [e.name for e in all_experiments(ROOT / "lessons")]
    assert len(names) == len(set(names))
    index = (ROOT / "lessons" / "index.md").read_text(encoding="utf-8")
    announced = {
        int(number) for number in re.findall(r"^(\d+)\. \*\*", index.partition("<!-- parts -->")[2], re.MULTILINE)
    }
    for name in names:
        page = list((ROOT / "lessons").glob(f"{name[5:7]}-*.md"))
        assert page or int(name[5:7]) in announced, f"{name} belongs to no part"
