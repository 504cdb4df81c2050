"""What `make bench` records: which ways are timed, how often, and that nothing is timed that is not right."""

import sys

import pytest
import torch
from fake_clock import FakeTime

from quantlib.measure.benchmark import measure
from quantlib.measure.ceilings import READ, Ceilings
from quantlib.records.records import load_experiment

LIMITS = Ceilings(20.0, "sum of float32", 15.0, {"float32": 100.0}, "cpu", 1)


@pytest.fixture(params=["part_02", "part_03"])
def speed(request, monkeypatch):
    """(the experiment's function, its module) without the seconds that the ceilings and cold caches take."""
    found = load_experiment(f"{request.param}.speed")
    module = sys.modules[found.function.__module__]
    monkeypatch.setattr(module, "ceilings", lambda device: LIMITS)
    if request.param == "part_02":
        monkeypatch.setattr(module, "reader", lambda way, device: (lambda: torch.ones(9).sum(), 36))
    monkeypatch.setattr("quantlib.measure.benchmark.cold_buffer", lambda device: torch.ones(8))
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    return found, module


def timed(speed, **options):
    (found, _), size = speed, {"shapes": ((64, 128), (32, 256)), "counts": (1, 3)}
    measured = found(**size, **options)["cpu"]
    assert measured["ceilings"] is LIMITS
    return measured[{"part_02": "products", "part_03": "layers"}[found.name.partition(".")[0]]]


def test_every_shape_is_timed_with_every_number_of_rows_and_told(speed, capsys):
    shapes = timed(speed, rounds=2)
    assert list(shapes) == ["64x128 1", "64x128 3", "32x256 1", "32x256 3"]
    assert all(m.rounds == 2 for b in shapes.values() for m in b.measurements.values() if m.rounds > 1)
    assert all({"fp32", "bf16", "w8a8"} <= b.measurements.keys() for b in shapes.values())
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 4 and "64x128 1" in lines[0] and "100% done, 00:00 left" in lines[-1]


def test_all_race_but_what_is_no_way_to_multiply_and_there_is_an_end(speed, monkeypatch):
    asked = []

    def seen(ways, **options):
        asked.append((ways, options))
        return measure(dict.fromkeys(ways, lambda: sum(range(1000))), rounds=1)

    monkeypatch.setattr(speed[1], "measure", seen)
    timed(speed, patience=3)
    for ways, options in asked:
        apart = {name for name in ways if name == READ or name.startswith("part: ")}
        assert apart and set(options["race"]) == ways.keys() - apart
        assert options["patience"] == 3 and options["rounds"] == 11


@pytest.mark.parametrize("speed", ["part_02"], indirect=True)
def test_a_kernel_that_is_not_right_here_is_not_timed(speed, monkeypatch):
    module = speed[1]
    w = torch.randn(16, 128)
    packed = module.packings(w)
    assert {"int8 naive", "int4 naive"} <= module.products(w, packed, 2).keys()
    monkeypatch.setattr(
        module, "usable", lambda kernel, packed, x: "wrong on this CPU: 0.2" if kernel.name == "naive" else None
    )
    ways = module.products(w, packed, 2)
    assert not any("naive" in way for way in ways) and {"fp32", "bf16", "int8 workspace fp32", "w8a8"} <= ways.keys()


@pytest.mark.parametrize("speed", ["part_02"], indirect=True)
@pytest.mark.parametrize("rows", [1, 5])
def test_the_ways_are_products_with_the_matrix(speed, rows):
    w = torch.randn(48, 128)
    packed = speed[1].packings(w)
    torch.manual_seed(3)
    ways = speed[1].products(w, packed, rows)
    torch.manual_seed(3)
    expected = torch.randn(rows, 128) @ w.t()  # [rows, 48]
    for name, (call, nbytes) in ways.items():
        error = ((call().float() - expected).norm() / expected.norm()).item()
        assert error < (0.2 if name.startswith("int4") else 0.02), (name, error)
        assert nbytes >= w.numel() // 2


def test_hopeless_ways_are_in_the_table_with_one_figure(speed, monkeypatch):
    fake, module = FakeTime(), speed[1]

    def slowed(ways, **options):
        calls = {name: lambda name=name: fake.pass_(9.0 if name == "bf16" else 1.0) for name in ways}
        return measure(calls, **{**options, "clock": fake.clock()})

    monkeypatch.setattr(module, "measure", slowed)
    for benchmark in timed(speed, rounds=5).values():
        assert benchmark["bf16"].seconds == (9.0,) and str(benchmark.ratio("bf16", "fp32")) == "9.00× (one sample)"
        assert {m.rounds for name, m in benchmark.measurements.items() if name != "bf16"} == {5}
