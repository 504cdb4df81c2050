"""Experiments: found by name, shown as they stand, and fingerprinted by what they use."""

import pytest

import quantlib.experiments as experiments
from quantlib.experiments import experiment, fingerprints, load_experiment, load_experiments, show_experiment

FILE = '''\
"""What part 1 measures."""

import math

from quantlib.experiments import experiment

LEVELS = {8: 256}
LEVELS |= {4: 16}
OTHER = 3


def noise(bits):
    return 1 / LEVELS[bits] ** 2 / 12


def unused(x):
    return OTHER * x


@experiment(sources=("grid",), seed=7)
def error_of_bits(*, bits=(8, 4)):
    """Uniform noise."""
    # one figure a width
    return {str(b): noise(b) for b in bits}


@experiment(sources=())
def neighbour(*, x=1):
    return {"y": unused(x)}
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
    assert run() == {"8": 1 / 786432, "4": 1 / 3072} and run(bits=(4,)) == {"4": 1 / 3072}
    assert (run.name, run.sources, run.model, run.seed, run.parameters) == (
        "part_01.error_of_bits",
        ("grid",),
        None,
        7,
        {"bits": (8, 4)},
    )


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
    source = FILE[FILE.index('@experiment(sources=("grid",)') : FILE.index("\n\n\n@experiment(sources=())")]
    assert shown == [{"text/plain": source, "text/markdown": f"````python\n{source}\n````"}]
    with pytest.raises(ValueError, match=r"part_01\.py has error_of_bits, neighbour"):
        show_experiment("part_01.noise")


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("# one figure a width", "# each width"),
        ('"""Uniform noise."""', '"""Noise that is uniform."""'),
        ("return OTHER * x", "return OTHER + x"),  # only the neighbour uses it
        ("OTHER = 3", "OTHER = 4"),
        ("def neighbour(*, x=1)", "def neighbour(*, x=2)"),
        ("\n\n\n@experiment(sources=())", "\n\n\ndef later(): ...\n\n\n@experiment(sources=())"),
    ],
)
def test_what_an_experiment_does_not_use_leaves_it_fresh(lessons, old, new):
    before = fingerprints(load_experiment("part_01.error_of_bits"))
    assert old in FILE
    (lessons / "experiments" / "part_01.py").write_text(FILE.replace(old, new))
    assert fingerprints(load_experiment("part_01.error_of_bits")) == before


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("{str(b): noise(b)", "{str(b): 2 * noise(b)"),
        ("seed=7", "seed=8"),
        ("bits=(8, 4)", "bits=(8, 4, 8)"),
        ("** 2 / 12", "** 2 / 13"),  # through noise
        ("{4: 16}", "{4: 15}"),  # through noise and LEVELS
        ("import math", "import cmath"),
    ],
)
def test_what_an_experiment_uses_makes_it_stale(lessons, old, new):
    before = fingerprints(load_experiment("part_01.error_of_bits"))
    assert old in FILE
    (lessons / "experiments" / "part_01.py").write_text(FILE.replace(old, new))
    after = fingerprints(load_experiment("part_01.error_of_bits"))
    assert after.keys() == before.keys() == {"experiments/part_01.py", "quantlib/grid.py"}
    assert (
        after["experiments/part_01.py"] != before["experiments/part_01.py"]
        and after["quantlib/grid.py"] == before["quantlib/grid.py"]
    )


def test_a_source_may_be_a_package_or_a_module_in_one(tmp_path, monkeypatch):
    package = tmp_path / "quantlib"
    (package / "kernels").mkdir(parents=True)
    for file in ("kernels/__init__.py", "kernels/cpu.py"):
        (package / file).write_text("x = 1\n")
    monkeypatch.setattr(experiments, "PACKAGE", package)

    @experiment(sources=("kernels", "kernels.cpu"))
    def layered():
        return 1

    assert layered() == 1 and layered.sources == ("kernels", "kernels.cpu")


def test_what_could_not_be_recorded_is_refused_where_it_is_written():
    with pytest.raises(TypeError, match=r"sources must be a tuple of module names, got 'grid': write \('grid',\)"):
        experiment(sources="grid")
    with pytest.raises(ValueError, match="sources names 'grit', but quantlib has no module of that name"):
        experiment(sources=("grit",))
    with pytest.raises(ValueError, match="model='gpt2' is no lesson model"):
        experiment(sources=(), model="gpt2")
    with pytest.raises(TypeError, match=r"parameter 'bits' of experiment test_experiments\.f has no default"):

        @experiment(sources=())
        def f(bits): ...

    @experiment(sources=(), model="stories15M")
    def g(loaded, *, bits=4): ...

    assert g.parameters == {"bits": 4}
