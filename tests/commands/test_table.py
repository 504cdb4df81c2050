"""`make table`: what it prints and writes; and that a run that was killed ends with the same table."""

import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from quantlib.commands import table as command
from quantlib.measure.ceilings import Ceilings
from quantlib.measure.machine import Machine
from quantlib.measure.measurements import Benchmark, Conditions, Measurement
from quantlib.measure.method_table import rows_of
from quantlib.records.records import read_record
from tests.measure.test_method_table import VALUES

ROOT = Path(__file__).parents[2]
RIGHT = {"float; PIQA": {"right": torch.tensor([True, True, False, True])}}


def benchmark(**seconds):
    """Two rounds of each: as it is kept in a record."""
    conditions = Conditions(2, 1, 1, "cpu", 1, 0, 0)
    return vars(Benchmark({
        name: vars(Measurement((time, time), None, 3_000_000_000)) for name, time in seconds.items()
    }, vars(conditions)))  # fmt: skip


LIMITS = vars(Ceilings(10.0, "sum of float32", 15.0, {"float32": 100.0}, "cpu", 1))
IN_LLAMA_CPP = {"nll": VALUES["eight"]["nll"] + 0.25, "perplexity": 20.5, "same first": torch.tensor([0.5, 1.0])}
FACTS = {
    "part_07.tasks": RIGHT,
    "part_07.llama_cpp": {"eight": IN_LLAMA_CPP | {"blocks": "Q8_0"}},
    "part_02.writing": {"rates": {"1": {"benchmark": benchmark(**{"int8 C++": 2.0, "int8 llama.cpp": 4.0}), "tokens": 48}}},
    "part_07.reading": {"by threads": {"2": {"ceilings": LIMITS, "512": {"seconds": benchmark(W8A8=0.5)}}}},
    "part_07.on_gpu": {"ceilings": LIMITS, "Llama-2-7B": {
        "rates": {"benchmark": benchmark(bf16=2.0), "tokens": 4}, "reading": benchmark(bf16=0.25),
        "bytes a token": {"bf16": 2_500_000_000}, "length": 512,
    }},
}  # fmt: skip


def record(name):
    values = FACTS.get(name, VALUES)
    if name == "part_07.references":
        raise FileNotFoundError(f"{name}.json does not exist: run `make record RECORD={name}`")
    return SimpleNamespace(
        values=values, model="a model", model_checksum="0" * 64, machine=Machine("a CPU", 2, ("avx2",), "a GPU"),
        parameters={"windows": 6, "window": 41, "count": 3}, versions={"torch": "2"}, date="2026-01-01",
        made=dict.fromkeys(values, "2026-01-01 on a CPU in 2 s"),
    )  # fmt: skip


@pytest.fixture
def recorded(monkeypatch):
    monkeypatch.setattr(command, "load_record", record)


def test_rows_intervals_ties_and_advice(recorded, capsys):
    assert command.main([]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "a model: 6 windows of 41 tokens; methods that read text have read 3"
    four = next(line for line in lines if line.startswith("four "))
    assert "+0.5000 +0.5000 +0.5000" in four and not four.endswith("~") and "50.0%" in four
    assert " ~" in next(line for line in lines if line.startswith("eight "))
    assert "~ ties with float. Beaten by a row no larger: float; four; large and bad" in lines
    assert "least lost within 40% of the 16-bit bytes, ties included: four, other; four, better" in lines
    assert "  float; PIQA                                   75.0% of 4" in lines


def test_what_llama_cpp_answers_and_how_fast_whole_models_are(recorded, capsys):
    assert command.main([]) == 0
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert "eight, Q8_0 20.50 +0.2500 +0.2500 +0.2500 75.0%" in lines
    assert "int8 C++ 24.0 2.00× [2.00, 2.00] of llama.cpp" in lines and "int8 llama.cpp 12.0" in lines
    assert "reading a prompt of 512 tokens, a CPU, 2 threads: tokens/s" in lines
    assert "W8A8 1024.0 6% of the float32 limit" in lines  # 3 GFLOP in half a second, of 100 in one
    assert "bf16 2500 2.0 50%; reading 2048 tokens/s" in lines


@pytest.mark.parametrize("missing", [name for name in FACTS if name != "part_07.tasks"])
def test_a_table_without_one_of_the_speeds_is_a_table(missing, monkeypatch, capsys):
    def all_but_one(name):
        if name == missing:
            raise FileNotFoundError(f"{name}.json does not exist: run `make record RECORD={name}`")
        return record(name)

    monkeypatch.setattr(command, "load_record", all_but_one)
    assert command.main([]) == 0
    printed = capsys.readouterr().out
    assert printed.count("does not exist") == 1 and f"no {missing}: {missing}.json does not exist" in printed


def test_the_numbers_in_a_new_file(recorded, tmp_path, capsys):
    file = tmp_path / "table.json"
    assert command.main(["--json", str(file)]) == 0
    written = json.loads(file.read_text())
    rows = {row["name"]: row for row in written["part_07.quality"]["rows"]}
    assert rows["four"]["total"] == 500 and rows["four"]["lost"]["mean"] == pytest.approx(0.5, abs=1e-6)
    assert rows["float"]["lost"] is None and written["part_07.quality"]["machine"]["cpu"] == "a CPU"
    assert written["part_07.tasks"]["right"] == {"float; PIQA": 0.75}
    assert "512" in written["part_07.reading"]["lines"][0] and written["part_07.on_gpu"]["machine"]["gpu"] == "a GPU"
    assert command.main(["--json", str(file)]) == 1 and "name a new file" in capsys.readouterr().err


def test_what_was_not_recorded_is_said(monkeypatch, capsys):
    def missing(name):
        raise FileNotFoundError(f"{name} does not exist: run `make record`")

    monkeypatch.setattr(command, "load_record", missing)
    assert command.main([]) == 1
    assert "part_07.quality does not exist" in capsys.readouterr().err


ROWS = ("float", "int8 row", "int4 64, rounded", "int4 64, GPTQ")
RUN = """
import sys
import quantlib.commands.record as record
from quantlib.records.miniature import miniature
from quantlib.zoo import zoo

zoo.load_model = lambda name, device: miniature()
record.record_pages = lambda pages: 0
sys.exit(record.main(["part_07.quality"]))
"""


def tiny_lessons(folder):
    """Part 7's own experiment, on fewer rows and windows."""
    source = (ROOT / "lessons" / "experiments" / "part_07.py").read_text(encoding="utf-8")
    for old, new in {
        "rows=LARGE, model=MODEL,": f"rows={ROWS}, model=MODEL,",
        "def quality(loaded, rows, *, count=8, seed=0, windows=8, window=1024, alphas=ALPHAS": (
            "def quality(loaded, rows, *, count=2, seed=0, windows=2, window=64, alphas=FEW"
        ),
        '"window": 64, "alphas": FEW, "timed": False}': '"window": 32, "alphas": FEW, "timed": False}',
    }.items():
        assert old in source
        source = source.replace(old, new, 1)
    (folder / "experiments").mkdir(parents=True)
    (folder / "experiments" / "part_07.py").write_text(source, encoding="utf-8")
    (folder / "index.md").write_text("")
    return folder


def run_until(lessons, rows):
    """Record in a process of its own, which is killed as soon as so many rows are there; None: to the end."""
    environment = {"QUANTLIB_LESSONS": str(lessons), "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    code = [sys.executable, "-c", RUN]
    process = subprocess.Popen(code, env={**os.environ, **environment}, stdout=subprocess.PIPE, text=True)
    file, deadline = lessons / "recorded" / "part_07.quality.json", time.monotonic() + 120
    while rows and process.poll() is None and time.monotonic() < deadline:
        if file.exists() and len(read_record(file).values) >= rows:
            process.send_signal(signal.SIGKILL)
            break
        time.sleep(0.01)
    process.communicate(timeout=120)
    return process.returncode


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="processes are killed as POSIX does it")
def test_killed_three_times_it_ends_with_the_same_table(tmp_path):
    whole, broken = (tiny_lessons(tmp_path / name) for name in ("whole", "broken"))
    with ThreadPoolExecutor() as pool:  # each takes one core
        undisturbed = pool.submit(run_until, whole, None)
        for rows in (1, 2, 3):
            assert run_until(broken, rows) in (-signal.SIGKILL, 0)
        assert run_until(broken, None) == 0
        assert undisturbed.result() == 0
    expected, found = (
        rows_of(read_record(folder / "recorded" / "part_07.quality.json").values) for folder in (whole, broken)
    )
    assert [row.name for row in found] == [row.name for row in expected] == list(ROWS)
    for one, other in zip(expected, found, strict=True):
        assert one.nll.equal(other.nll) and (one.kl, one.same, one.flips) == (other.kl, other.same, other.flips)
        assert (one.linear, one.kept, one.bits) == (other.linear, other.kept, other.bits)


def test_a_row_made_again_lies_within_the_recorded_interval(tmp_path):
    """On the real record: what one row gives today on two of its windows, against what it gave."""
    from quantlib.records.experiments import load_experiment
    from quantlib.records.records import load_record
    from quantlib.zoo.zoo import load_model

    kept = load_record("part_07.on_stories")
    loaded = load_model("stories15M", "cpu")
    for row in ("int8 row", "int4 32, rounded"):
        again = load_experiment("part_07.on_stories")(loaded, rows=[row], windows=4)[row]
        before = kept.values[row]
        torch.testing.assert_close(again["nll"], before["nll"][:4], rtol=1e-3, atol=1e-3)
        assert again["bytes"] == dict(before["bytes"])
        torch.testing.assert_close(again["KL of windows"], before["KL of windows"][:4], rtol=1e-2, atol=1e-4)
