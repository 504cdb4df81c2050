"""Experiments: found by name, run row by row, shown as they stand; and what their code says."""

import random

import numpy as np
import pytest
import torch

from quantlib.records.experiments import experiment, load_experiment, load_experiments, meaning, show_experiment

FILE = '''\
"""What part 1 measures."""

import random

from quantlib.records.experiments import experiment

LEVELS = {"8": 256, "4": 16}


@experiment(
    rows=LEVELS,
    seed=7,
)
def error_of_bits(rows, *, divisor=12):
    """Uniform noise."""
    for row in rows:
        # one figure a width
        yield row, 1 / LEVELS[row] ** 2 / divisor


@experiment()
def neighbour(*, x=1):
    return {"y": x}
'''


@pytest.fixture
def lessons(tmp_path, monkeypatch):
    folder = tmp_path / "lessons"
    (folder / "experiments").mkdir(parents=True)
    (folder / "index.md").touch()
    (folder / "experiments" / "part_01.py").write_text(FILE)
    monkeypatch.setenv("QUANTLIB_LESSONS", str(folder))
    return folder


def test_an_experiment_runs_as_a_function_on_any_piece(lessons):
    run = load_experiment("part_01.error_of_bits")
    assert run() == {"8": 1 / 786432, "4": 1 / 3072} and run(rows=["4"], divisor=3) == {"4": 1 / 768}
    assert (run.name, run.rows, run.model, run.seed, run.parameters, run.miniature) == (
        "part_01.error_of_bits",
        ("8", "4"),
        None,
        7,
        {"divisor": 12},
        None,
    )
    assert load_experiment("part_01.neighbour")(x=3) == {"y": 3}
    with pytest.raises(ValueError, match=r"'2' is no row of part_01\.error_of_bits: there are 8, 4"):
        run(rows=["4", "2"])


def test_a_row_is_the_same_whichever_went_before():
    @experiment(rows=["a", "b", "c"], seed=5)
    def drawn(rows):
        for row in rows:
            yield row, (random.random(), np.random.rand(), torch.rand(()).item())

    every = dict(drawn.seeded())
    assert dict(drawn.seeded(rows=["c"])) == {"c": every["c"]} and every["a"] == every["b"]


def test_a_file_gives_its_experiments_in_order(lessons):
    assert [e.name for e in load_experiments(lessons / "experiments" / "part_01.py")] == [
        "part_01.error_of_bits",
        "part_01.neighbour",
    ]


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        (
            "part_01.nothing",
            r"'part_01\.nothing' is no experiment: part_01\.py has part_01\.error_of_bits, part_01\.neighbour",
        ),
        ("part_02.nothing", r"'part_02\.nothing' is no experiment: .*experiments has part_01\.py"),
        ("../part_01.x", r"name must be a file and a function, as part_01\.perplexity_of_grids, got '\.\./part_01\.x'"),
        ("part_01", "name must be"),
        (None, "name must be"),
    ],
)
def test_a_name_that_is_none_lists_what_there_is(lessons, name, sentence):
    with pytest.raises(ValueError, match=sentence):
        load_experiment(name)


def test_what_a_page_shows_is_the_source_as_it_stands(lessons, monkeypatch):
    shown = []
    monkeypatch.setattr("IPython.display.display", lambda data, raw: shown.append(data))
    show_experiment("part_01.error_of_bits")
    source = FILE[FILE.index("@experiment(\n") : FILE.index("\n\n\n@experiment()")]
    assert shown == [{"text/plain": source, "text/markdown": f"````python\n{source}\n````"}]
    with pytest.raises(ValueError, match=r"part_01\.py has part_01\.error_of_bits, part_01\.neighbour"):
        show_experiment("part_01.noise")
    assert load_experiment("part_01.error_of_bits").code == source[source.index("def ") :]


CODE = '''\
def f(x, *, bits=4):
    """What f does."""
    if x:
        """Only said."""
    return f"{x:.3f}" + ("a"
        "b")
'''


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("What f does.", "What it does."),
        ("    if x:\n", "    # why\n    if x:\n\n"),
        ('("a"\n        "b")', '("ab")'),
        ('"""Only said."""', "pass"),
        ("x, *, bits=4", "x, *,\n      bits = 4,"),
    ],
)
def test_comments_docstrings_and_layout_mean_nothing(old, new):
    assert old in CODE and meaning(CODE.replace(old, new)) == meaning(CODE)


@pytest.mark.parametrize(
    ("old", "new"), [("bits=4", "bits=8"), ("if x", "if not x"), (".3f", ".2f"), ('"b"', '"c"'), ("def f", "def g")]
)
def test_everything_else_means_something(old, new):
    assert old in CODE and meaning(CODE.replace(old, new)) != meaning(CODE)


def test_what_is_not_python_counts_as_it_stands():
    assert meaning("%time f(x)") != meaning("%time f(y)") and meaning("!echo it's") == meaning("!echo it's  \n")


def test_what_could_not_be_recorded_is_refused_where_it_is_written():
    with pytest.raises(ValueError, match="model='gpt2' is no lesson model"):
        experiment(model="gpt2")
    with pytest.raises(TypeError, match=r"parameter 'bits' of experiment test_experiments\.f has no default"):

        @experiment(rows=["a"])
        def f(rows, bits): ...

    @experiment(rows=["a"], model="stories15M")
    def g(loaded, rows, *, bits=4): ...

    assert g.parameters == {"bits": 4}
