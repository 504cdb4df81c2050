"""ceilings.py: the limits are those of products that are right, and of reads that read everything."""

import json
from types import MappingProxyType

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from quantlib.measure.caches import last_level_cache_bytes
from quantlib.measure.ceilings import (
    COLUMNS,
    READ,
    Ceilings,
    _copy,
    _large_buffer,
    _matmuls,
    _ways_to_read,
    ceilings,
    reader,
    roofline,
)
from quantlib.measure.clocks import Clock
from quantlib.measure.measurements import Benchmark, Conditions, Measurement
from quantlib.records.record_values import from_json, to_json

CPU = torch.device("cpu")
LIMITS = Ceilings(20.0, "sum", 15.0, MappingProxyType({"float32": 100.0, "int8": 400.0}), "cpu", 1)


@pytest.fixture
def small(monkeypatch):
    """Buffers of megabytes, whatever this machine's cache."""
    monkeypatch.setattr("quantlib.measure.ceilings.last_level_cache_bytes", lambda device: 2**19)
    monkeypatch.setattr("quantlib.measure.caches.last_level_cache_bytes", lambda device: 2**19)
    monkeypatch.setattr("quantlib.measure.ceilings.LEAST_BYTES", {"cpu": 2**20})


def test_they_are_measured_on_this_machine(small):
    found = ceilings("cpu", 1, rounds=2, matmul_size=64)
    assert found.read_gb_per_s > 0 and found.copy_gb_per_s > 0 and found.threads == 1 and found.device == "cpu"
    assert found.matmul_gflop_per_s.keys() >= {"float32", "bfloat16"}
    assert all(rate > 0 for rate in found.matmul_gflop_per_s.values())
    assert found.read_by in _ways_to_read(torch.ones(2 * COLUMNS))


def test_figures_are_bytes_and_operations_over_seconds(small):
    one_second = Clock(lambda: None, lambda a, b: 1.0, lambda: None)
    found = ceilings("cpu", rounds=2, matmul_size=64, clock=one_second)
    assert found.read_gb_per_s == found.copy_gb_per_s == pytest.approx(_large_buffer(CPU).nbytes / 1e9)
    assert list(found.matmul_gflop_per_s.values()) == pytest.approx([2 * 64**3 / 1e9] * len(found.matmul_gflop_per_s))


def test_the_fastest_way_is_the_ceiling(small, monkeypatch):
    slower = {"max of int8": 1.5, "copy": 0.1, "sum of float32": 0.5, "int8 by onednn": 0.25, "int8 by _int_mm": 0.125}

    def known(candidates, *, bytes_moved=None, flops=None, **how):
        measured = {
            name: Measurement((slower.get(name, 2.0),), (bytes_moved or {}).get(name), (flops or {}).get(name))
            for name in candidates
        }
        return Benchmark(measured, Conditions(1, 0, 1, "cpu", 5, 0, 0))

    monkeypatch.setattr("quantlib.measure.ceilings.measure", known)
    monkeypatch.setattr("quantlib.measure.ceilings._matmuls", lambda size, device: dict.fromkeys(
        ("float32 by matmul", "int8 by onednn", "int8 by _int_mm")))  # fmt: skip
    found, gigabytes = ceilings("cpu", matmul_size=64), _large_buffer(CPU).nbytes / 1e9
    assert found.read_by == "sum of float32" and found.read_gb_per_s == pytest.approx(2 * gigabytes)
    assert found.copy_gb_per_s == pytest.approx(10 * gigabytes) and found.threads == 5
    operations = 2 * 64**3 / 1e9
    assert found.matmul_gflop_per_s == {"float32": operations / 2, "int8": operations * 8}


def test_what_is_read_does_not_fit_the_cache():
    buffer = _large_buffer(CPU)
    assert buffer.nbytes >= 4 * last_level_cache_bytes("cpu") and buffer.nbytes >= 2**27
    assert len(buffer) % (2 * COLUMNS) == 0 and bool(buffer.all())


@given(st.data())
def test_each_way_reads_every_element(data):
    at = data.draw(st.integers(0, 4 * COLUMNS - 1))
    buffer = torch.ones(4 * COLUMNS)
    ways = _ways_to_read(buffer)
    before = {name: way().clone() for name, way in ways.items()}
    buffer[at] = 2.0**20  # larger than 1 as int8 and as half of an int64 too
    for name, way in ways.items():
        assert not torch.equal(way(), before[name]), name


def test_copying_reads_one_half_and_writes_the_other():
    buffer = torch.arange(8.0)
    _copy(buffer)()
    assert buffer.tolist() == [0, 1, 2, 3, 0, 1, 2, 3]


def test_the_products_are_right():
    codes = torch.randint(-64, 64, (64, 64), generator=torch.Generator().manual_seed(0), dtype=torch.int8).double()
    products = _matmuls(64, CPU)
    for name, product in products.items():
        right = codes.T if name.startswith("int8") else codes / 127**2
        expected = codes @ right
        tolerance = 0.02 if name.startswith("bfloat16") else 0 if name.startswith("int8") else 1e-5
        error = (product().double() - expected).norm() / expected.norm()
        assert error <= tolerance, (name, error)
    assert any(name.startswith("int8") for name in products)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"device": "meta"}, "device must be cpu or cuda, got meta"),
        ({"matmul_size": 20}, "matmul_size must be a multiple of 8 and at least 32, got 20"),
        ({"matmul_size": 33}, "got 33"),
        ({"matmul_size": 64, "rounds": 0}, "rounds must be an int of at least 1, got 0"),
        ({"matmul_size": 64, "threads": 0}, "threads must be an int of at least 1, got 0"),
    ],
)
def test_what_cannot_be_measured_is_refused(small, arguments, words):
    with pytest.raises(ValueError, match=words):
        ceilings(**arguments)


def test_roofline_by_hand():
    assert roofline(10**9, 10**9, LIMITS, "float32") == pytest.approx(0.05)  # 1 GB at 20 GB/s
    assert roofline(10**10, 10**9, LIMITS, torch.float32) == pytest.approx(0.1)  # 10 GFLOP at 100 GFLOP/s
    assert roofline(10**10, 10**9, LIMITS, torch.int8) == pytest.approx(0.05)  # now 0.025 s of operations
    assert roofline(0, 0, LIMITS, "int8") == 0
    with pytest.raises(ValueError, match="dtype 'float16' has no ceiling; float32, int8 have"):
        roofline(1, 1, LIMITS, torch.float16)
    with pytest.raises(ValueError, match="at least 0, got -1 and 1"):
        roofline(-1, 1, LIMITS, "int8")


def test_the_share_of_reading_is_taken_at_p10():
    m = Measurement(tuple(0.1 * s for s in range(1, 12)), bytes_moved=2 * 10**9)  # p10 is 0.2 s: 10 GB/s
    assert LIMITS.share_of_read(m) == pytest.approx(0.5)
    with pytest.raises(ValueError, match="bytes_moved"):
        LIMITS.share_of_read(Measurement((1.0,)))


def test_a_share_is_of_the_bandwidth_of_its_own_rounds():
    product, read = Measurement((0.1,), bytes_moved=10**9), Measurement((0.2,), bytes_moved=5 * 10**9)
    conditions = Conditions(1, 0, 1, "cpu", 1, 0, 0)
    beside = LIMITS.beside(Benchmark({"product": product, READ: read}, conditions))
    assert beside.share_of_read(product) == pytest.approx(10 / 25)
    assert (beside.copy_gb_per_s, beside.read_by) == (15.0, "sum") and LIMITS.read_gb_per_s == 20.0
    with pytest.raises(KeyError, match="'read' was not measured"):
        LIMITS.beside(Benchmark({"product": product}, conditions))


def test_a_reader_reads_the_buffer_of_the_ceilings(small):
    call, nbytes = reader("sum of float32")
    assert nbytes == _large_buffer(CPU).nbytes and call() == nbytes / 4
    with pytest.raises(ValueError, match="way must be one of max of int8, .* got 'sum'"):
        reader("sum")


def test_ceilings_survive_a_record_and_say_what_they_are():
    values = json.loads(json.dumps(to_json(LIMITS)))
    assert Ceilings.from_values(from_json(values)) == LIMITS == Ceilings.from_values(values)
    with pytest.raises(ValueError, match="not those of Ceilings"):
        Ceilings.from_values({**values, "colour": "red"})
    assert str(LIMITS) == "cpu, 1 threads: read 20.0 GB/s (sum), copy 15.0 GB/s; matmul float32 100, int8 400 GFLOP/s"
