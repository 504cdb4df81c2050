"""What the lessons keep beside their pages is fresh, and the pages work outside this repository's own test run.

The pages themselves are collected and run by tests/lesson_plugin.py.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from quantlib.commands.record import all_experiments, leftovers, why_record
from quantlib.records.experiments import load_experiment
from quantlib.records.records import in_words, record_file
from tests.lesson_recordings import read_recording
from tests.side_by_side import asked, processes

ROOT = Path(__file__).parents[2]
LESSONS = ROOT / "lessons"
PAGES = sorted(LESSONS.glob("*.md"))
EXPERIMENTS = all_experiments(LESSONS)


@pytest.fixture(autouse=True)
def these_lessons(monkeypatch):
    monkeypatch.setenv("QUANTLIB_LESSONS", str(LESSONS))


def reasons_to_record(name):
    return in_words(why_record(load_experiment(name)))


@pytest.fixture(scope="module")
def reasons(request):
    """{experiment: a future of why it has to be recorded}, of those that this run of the tests asks for.

    A miniature computes on one thread, so several are run side by side.
    """
    with pytest.MonkeyPatch.context() as patch, processes() as pool:
        patch.setenv("QUANTLIB_LESSONS", str(LESSONS))
        yield {each["experiment"]: pool.submit(reasons_to_record, each["experiment"].name) for each in asked(request)}


@pytest.mark.parametrize("experiment", EXPERIMENTS, ids=lambda e: e.name)
def test_every_experiment_has_a_fresh_record(experiment, reasons):
    if experiment.gpu and not record_file(experiment.name).exists():
        pytest.skip("no machine with a GPU has recorded it; pages do not read it")
    assert reasons[experiment].result() == ""


def test_nothing_is_recorded_that_nothing_makes():
    assert leftovers(EXPERIMENTS, PAGES, LESSONS) == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_recording_is_whole(page):
    read_recording(page)


def test_a_page_converted_to_a_notebook_passes_stock_nbval_from_another_folder(tmp_path):
    """As a reader's: no conftest of ours, no variable set, a folder of their own."""
    notebook = tmp_path / "mine" / "page.ipynb"
    notebook.parent.mkdir()
    environment = {name: value for name, value in os.environ.items() if name not in ("QUANTLIB_LESSONS", "PYTHONPATH")}

    def reader_runs(*arguments):
        return subprocess.run(
            [sys.executable, "-m", *arguments], cwd=notebook.parent, env=environment, capture_output=True, text=True
        )

    assert reader_runs("jupytext", "--to", "ipynb", LESSONS / "index.md", "-o", notebook).returncode == 0
    done = reader_runs("pytest", "--nbval", "-p", "no:cacheprovider", notebook)
    assert done.returncode == 0, done.stdout + done.stderr
