"""The table of `make bench`, from speeds that are made up, so that every figure can be checked by hand."""

import pytest

from quantlib.commands import bench

CONDITIONS = {"rounds": 3, "warmup": 1, "launches": 1, "device": "cpu", "threads": 2, "cold_bytes": 8, "seed": 0}
CEILINGS = {
    "read_gb_per_s": 20.0, "read_by": "sum", "copy_gb_per_s": 10.0, "matmul_gflop_per_s": {"float32": 100.0},
    "device": "cpu", "threads": 2,
}  # fmt: skip


def timed(milliseconds, bytes_moved):
    return {"seconds": [milliseconds / 1e3] * 3, "bytes_moved": bytes_moved, "flops": None}


def measured(**ways):
    ways = {**ways, "read": (1.0, 40_000_000)}
    return {
        "ceilings": CEILINGS,
        "products": {"64x32 4": {"measurements": {n: timed(*v) for n, v in ways.items()}, "conditions": CONDITIONS}},
    }


def test_ratios_are_against_the_faster_float_route_and_ways_are_in_order():
    lines = list(bench.table(measured(fp32=(4.0, 40_000_000), bf16=(2.0, 20_000_000), int8=(1.0, 10_000_000))))
    assert "read 20.0 GB/s" in lines[0] and lines[1].startswith("64x32, rows 4: ms at p10, times as fast as bf16")
    assert [line.split()[0] for line in lines[2:]] == ["int8", "bf16", "fp32"]
    assert "1.000  2.00× [2.00, 2.00]" in lines[2] and lines[2].endswith("25%")
    assert "0.50×" in lines[4]


def test_aims_take_the_best_way_on_the_worst_shape():
    values = measured(fp32=(4.0, 4), bf16=(2.0, 4), **{"int4 slow": (9.0, 4), "int4 fast": (3.0, 4), "int4 naive": (1.0, 4)})
    values["products"] = {"64x32 64": values["products"]["64x32 4"]}
    lines = list(bench.aims(values, ("avx2", "avx512_bf16")))
    assert lines == ["aims for a CPU with avx512_bf16, on every shape:", "  int4             64 rows: 0.67× of 0.5×: met"]
    slower = measured(fp32=(4.0, 4), bf16=(2.0, 4), **{"int4 fast": (5.0, 4)})["products"]["64x32 4"]
    values["products"]["32x32 64"] = slower
    assert list(bench.aims(values, ("avx2",)))[1].endswith("0.40× of 0.6×: missed")
    assert "no aims are known" in next(bench.aims(values, ("neon",)))


def at_rows(rows, **ways):
    values = measured(**ways)
    values["products"] = {f"64x32 {rows}": values["products"]["64x32 4"]}
    return values


@pytest.mark.parametrize(
    ("cpp", "first", "gain"), [("int4 compiled", ", the C++ built,", 1.4), ("int4 int4pack", ", no C++ built,", 0.9)]
)
def test_with_avx2_the_aims_depend_on_the_cpp(cpp, first, gain):
    values = at_rows(16, fp32=(2.0, 4), bf16=(9.0, 4), w8a8=(2.0, 4), **{cpp: (2.0, 4)})
    lines = list(bench.aims(values, ("avx2",)))
    assert lines[0] == f"aims for a CPU with avx2{first} on every shape:"
    verdict = "missed" if gain > 1 else "met"
    assert lines[1:] == [f"  w8a8             16 rows: 1.00× of {gain}×: {verdict}"]


def test_a_way_that_was_out_of_the_race_stands_in_the_table_with_its_one_figure():
    values = measured(fp32=(4.0, 4), bf16=(2.0, 4), **{"int8 naive": (1.0, 4)})
    values["products"]["64x32 4"]["measurements"]["int8 naive"]["seconds"] = [0.5]
    last = list(bench.table(values))[-1]
    assert last.split()[:2] == ["int8", "naive"] and "500.000  0.00× (one sample)" in last


def test_an_aim_may_ask_for_bandwidth():
    values = measured(bf16=(2.0, 20_000_000), fp32=(4.0, 4), **{"int8 a": (0.5, 1_000_000)})
    values["products"] = {"64x32 1": values["products"]["64x32 4"]}
    assert list(bench.aims(values, ("avx512_bf16",)))[1].endswith("4.00× of 2.5×, 5% of 65% of the read bandwidth: missed")


def test_integer_activations_beside_floats_and_their_aims():
    ways = {"bf16": timed(4.0, 4), "fp32": timed(8.0, 4), "w8a8": timed(2.0, 4), "mixed": timed(5.0, 4), "part: a": timed(1.0, 4)}
    values = {"4096x4096 16": {"measurements": ways, "conditions": CONDITIONS}}
    lines = list(bench.integers(values))
    assert lines[0] == "4096x4096, rows 16: ms at p10, times as fast as bf16"
    assert [line.split()[0] for line in lines[1:5]] == ["w8a8", "bf16", "mixed", "fp32"]
    assert [line.split(":", 1)[1] for line in lines[5:]] == [" 2.00× of 1.4×: met", " 0.80× of 1.0×: missed"]
    without = list(bench.integers(values, bench.WITH_INTEGERS_OF["avx2, no C++ built"]))
    assert [line.split(":", 1)[1] for line in without[5:]] == [" 2.00× of 0.9×: met"]


def test_without_a_record_it_says_what_to_run(monkeypatch, capsys):
    def missing(name):
        raise FileNotFoundError(f"{name} was never recorded")

    monkeypatch.setattr(bench, "load_record", missing)
    assert bench.main() == 1
    assert capsys.readouterr().err == "part_02.speed was never recorded: run make bench\n"


def test_the_records_of_this_repository_can_be_shown(capsys):
    assert bench.main() == 0
    shown = capsys.readouterr().out
    for words in ("4096x4096, rows 1:", "11008x4096, rows 256:", "int4 int4pack", "w8a8", "tokens/s", "1024x1024, rows 16:", "int8 activations, cpu"):
        assert words in shown


@pytest.mark.parametrize(("fp32", "bf16", "best"), [(1.0, 2.0, "fp32"), (2.0, 1.0, "bf16")])
def test_the_best_float_route(fp32, bf16, best):
    lines = list(bench.table(measured(fp32=(fp32, 4), bf16=(bf16, 4))))
    assert f"times as fast as {best}" in lines[1]
