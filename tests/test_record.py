"""`make record`: what is run and why, what is written, and what is left alone."""

import json
import random
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from quantlib import record as command
from quantlib import zoo
from quantlib.record import all_experiments, main, plan_for, run
from quantlib.records import load_experiment, load_record
from tests.test_lesson_plugin import CHECK, page_text

ROOT = Path(__file__).parent.parent
PART_01 = """\
from quantlib.records import experiment


@experiment(sources=())
def first(*, n=3):
    return {"sum": sum(range(n))}


@experiment(sources=())
def second(*, n=4):
    return {"sum": sum(range(n))}
"""
PART_02 = """\
import random

import numpy as np
import torch

from quantlib.records import experiment


@experiment(sources=(), model="stories15M", seed=5)
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


def asked_for(plan):
    return [e.name for e, _ in plan.experiments], [page.name for page in plan.pages]


def test_without_names_everything_missing_is_run_and_then_only_what_is_stale(lessons, no_pages, capsys):
    assert main([]) == 0
    assert sorted(file.name for file in (lessons / "recorded").iterdir()) == [
        "part_01.first.json",
        "part_01.second.json",
        "part_02.third.json",
    ]
    assert "[1/3] part_01.first: no record yet, running …" in capsys.readouterr().out

    before = (lessons / "recorded" / "part_01.second.json").read_bytes()
    (lessons / "experiments" / "part_01.py").write_text(PART_01.replace("n=3", "n=5"))
    assert main([]) == 0
    printed = capsys.readouterr().out
    assert "[1/1] part_01.first: experiments/part_01.py changed, running …" in printed
    assert (
        load_record("part_01.first").values == {"sum": 10}
        and (lessons / "recorded" / "part_01.second.json").read_bytes() == before
    )

    assert main([]) == 0 and "All experiments have fresh records." in capsys.readouterr().out
    assert no_pages == [["01-grid.md", "02-int8.md", "index.md"]] * 3


def test_a_damaged_record_is_made_again(lessons, no_pages):
    main([])
    (lessons / "recorded" / "part_01.first.json").write_text("{")
    assert main([]) == 0 and load_record("part_01.first").values == {"sum": 3}


def test_what_nothing_makes_any_more_is_removed_only_without_names(lessons, no_pages):
    main([])
    for name in ("part_09.gone.json", "09-gone.outputs.json"):
        (lessons / "recorded" / name).write_text("{}")
    assert plan_for(["index"], lessons).leftovers == ()
    assert main([]) == 0 and len(list((lessons / "recorded").iterdir())) == 3


@pytest.mark.parametrize(
    ("names", "experiments", "pages"),
    [
        (["part_01.second"], ["part_01.second"], ["01-grid.md"]),
        (["part_01"], ["part_01.first", "part_01.second"], ["01-grid.md"]),
        (
            ["part_01.second", "part_02", "part_01.second"],
            ["part_01.second", "part_02.third"],
            ["01-grid.md", "02-int8.md"],
        ),
        (["index"], [], ["index.md"]),
        (["01-grid"], [], ["01-grid.md"]),
    ],
)
def test_names_choose_experiments_fresh_or_not_and_their_pages(lessons, names, experiments, pages):
    assert asked_for(plan_for(names, lessons)) == (experiments, pages)


def test_an_unknown_name_lists_the_known_ones_and_runs_nothing(lessons, no_pages, capsys):
    assert main(["part_01", "part_1"]) == 2
    assert "'part_1' is no experiment and no page: there are part_01.first" in capsys.readouterr().err
    assert not (lessons / "recorded").exists() and no_pages == []


def test_a_run_starts_from_its_seed_on_the_cpu_and_says_all_it_depended_on(lessons):
    record = run(load_experiment("part_02.third"))
    again = run(load_experiment("part_02.third"))
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
    assert (
        record.versions["torch"] == torch.__version__
        and record.machine.cpu
        and record.seconds >= 0
        and len(record.date) == 10
    )


def test_an_experiment_that_fails_leaves_its_old_record_and_those_before_it(lessons, no_pages):
    main([])
    (lessons / "experiments" / "part_01.py").write_text(PART_01.replace("n=3", "n=5").replace("n=4", "n=None"))
    with pytest.raises(TypeError):
        main([])
    assert load_record("part_01.first").values == {"sum": 10}
    assert json.loads((lessons / "recorded" / "part_01.second.json").read_text())["values"] == {"sum": 6}


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
