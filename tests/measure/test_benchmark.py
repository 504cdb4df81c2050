"""benchmark.py, caches.py and clocks.py: what is timed, in which order, and what is made of the samples."""

import gc
import json
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from fake_clock import FakeTime
from hypothesis import given
from hypothesis import strategies as st

from quantlib.measure.benchmark import HOPELESS, LEAST_ROUNDS, SHORT, measure, using_threads
from quantlib.measure.caches import ASSUMED_CACHE_BYTES, cold_buffer, last_level_cache_bytes
from quantlib.measure.clocks import clock_of
from quantlib.measure.measurements import Benchmark, Conditions, Measurement
from quantlib.records.record_values import from_json, to_json

POSITIVE = st.floats(1e-9, 1e3)


def takes(fake, *seconds):
    """A call that takes so long: the next of these at each call, the last one from then on."""
    left = list(seconds)
    return lambda: fake.pass_(left.pop(0) if len(left) > 1 else left[0])


def benchmark(**seconds):
    measured = {name: Measurement(tuple(samples)) for name, samples in seconds.items()}
    return Benchmark(measured, Conditions(len(next(iter(seconds.values()))), 0, 1, "cpu", 1, 0, 0))


def order_of_calls(seed, names="abcd", rounds=12, warmup=2):
    calls = []
    candidates = {name: lambda name=name: calls.append(name) for name in names}
    measure(candidates, rounds=rounds, warmup=warmup, cold=False, seed=seed)
    return "".join(calls)


# --- measuring


def test_candidates_take_turns_in_an_order_drawn_for_each_round():
    calls = order_of_calls(seed=0)
    assert calls[:8] == "aabbccdd"  # the warm-up
    rounds = [calls[i : i + 4] for i in range(8, len(calls), 4)]
    assert len(rounds) == 12 and all(sorted(order) == list("abcd") for order in rounds)
    assert len(set(rounds)) > 3 and len({order[0] for order in rounds}) > 1
    assert calls == order_of_calls(seed=0) != order_of_calls(seed=1)


def test_warm_up_is_not_counted():
    fake = FakeTime()
    run = measure({"a": takes(fake, 100, 50, 1, 2, 3)}, rounds=3, warmup=2, cold=False, clock=fake.clock())
    assert run["a"].seconds == (1, 2, 3)
    assert run.conditions.rounds == 3 and run.conditions.warmup == 2
    without = measure({"a": takes(fake, 100, 1)}, rounds=2, warmup=0, cold=False, clock=fake.clock())
    assert without["a"].seconds == (100, 1)


def test_samples_stay_with_their_candidate_and_round():
    fake = FakeTime()
    candidates = {"a": takes(fake, 0.5, 1, 2, 4, 8), "b": takes(fake, 0.5, 10, 20, 40, 80)}
    run = measure(candidates, rounds=4, warmup=1, cold=False, seed=3, clock=fake.clock())
    assert run["a"].seconds == (1, 2, 4, 8) and run["b"].seconds == (10, 20, 40, 80)
    assert str(run.ratio("b", "a")) == "10.00× [10.00, 10.00]"


@pytest.mark.parametrize("cold", [True, False])
def test_a_sample_is_the_mean_of_its_launches_and_one_wait(cold):
    fake = FakeTime()
    run = measure({"a": takes(fake, 1, 2, 3, 4, 5, 9)}, rounds=2, warmup=0, launches=3, cold=cold, clock=fake.clock())
    assert run["a"].seconds == pytest.approx((2, 6))
    assert fake.synchronised == 1 + 2  # after the warm-up, and once a sample


def test_the_cache_is_emptied_before_each_call_and_not_timed(monkeypatch):
    fake, events = FakeTime(), []

    def read():
        events.append("flush")
        fake.pass_(1000)

    def call():
        events.append("call")
        fake.pass_(2)

    monkeypatch.setattr("quantlib.measure.benchmark.cold_buffer", lambda device: SimpleNamespace(sum=read, nbytes=77))
    run = measure({"a": call}, rounds=2, warmup=1, launches=2, clock=fake.clock())
    assert events == ["call", *["flush", "call"] * 4]
    assert run["a"].seconds == (2, 2) and run.conditions.cold_bytes == 77

    events.clear()
    run = measure({"a": call}, rounds=2, warmup=1, cold=False, clock=fake.clock())
    assert events == ["call"] * 3 and run.conditions.cold_bytes == 0


def test_threads_are_set_while_measuring_and_set_back():
    before = torch.get_num_threads()
    seen = []
    run = measure({"a": lambda: seen.append(torch.get_num_threads())}, rounds=1, threads=before + 1, cold=False)
    assert set(seen) == {before + 1} and torch.get_num_threads() == before
    assert run.conditions.threads == before + 1
    assert measure({"a": int}, rounds=1, launches=100, cold=False).conditions.threads == before


def test_a_candidate_that_raises_is_named_and_leaves_everything_as_it_was():
    before, error = torch.get_num_threads(), ZeroDivisionError("by zero")

    def fail():
        assert torch.get_num_threads() == before + 1 and not gc.isenabled()
        raise error

    for warmup in (0, 1):
        with pytest.raises(RuntimeError, match="candidate 'bad' failed: ZeroDivisionError: by zero") as raised:
            measure({"good": int, "bad": fail}, warmup=warmup, threads=before + 1, cold=False)
        assert raised.value.__cause__ is error
        assert torch.get_num_threads() == before and gc.isenabled()


def test_garbage_is_not_collected_while_measuring_and_the_setting_is_kept():
    enabled = []
    measure({"a": lambda: enabled.append(gc.isenabled())}, rounds=2, cold=False)
    assert not any(enabled) and gc.isenabled()
    gc.disable()
    try:
        measure({"a": lambda: None}, rounds=1, launches=100, cold=False)
        assert not gc.isenabled()
    finally:
        gc.enable()


def test_a_sleeper_is_slower_than_a_quick_one():
    run = measure({"slow": lambda: time.sleep(0.02), "quick": lambda: sum(range(10))}, rounds=5, cold=False)
    assert run["slow"].min >= 0.019 and run.ratio("slow", "quick").low > 2


@pytest.mark.parametrize(
    ("candidates", "options", "error", "words"),
    [
        ({}, {}, ValueError, "candidates is empty"),
        ({"a": 3}, {}, TypeError, "calls without arguments, got 'a': 3"),
        ({4: int}, {}, TypeError, "map names to calls"),
        ({"a": int}, {"rounds": 0}, ValueError, "rounds must be an int of at least 1, got 0"),
        ({"a": int}, {"rounds": 2.5}, ValueError, "rounds must be an int of at least 1, got 2.5"),
        ({"a": int}, {"warmup": -1}, ValueError, "warmup must be an int of at least 0, got -1"),
        ({"a": int}, {"launches": 0}, ValueError, "launches must be an int of at least 1, got 0"),
        ({"a": int}, {"threads": 0}, ValueError, "threads must be an int of at least 1, got 0"),
        ({"a": int}, {"bytes_moved": {"b": 1}}, ValueError, "bytes_moved has 'b', which is no candidate; they are a"),
        ({"a": int}, {"race": ("a", "b")}, ValueError, "race has 'b', which is no candidate; they are a"),
        ({"a": int}, {"patience": -1}, ValueError, "patience must be at least 0 seconds, got -1"),
        ({"a": int}, {"flops": {"a": 0}}, ValueError, r"flops\['a'\] must be an int of at least 1, got 0"),
        ({"a": int}, {"bytes_moved": {"a": 1.5}}, ValueError, r"bytes_moved\['a'\] must be an int"),
        ({"a": int}, {"device": "meta"}, ValueError, "device must be cpu or cuda, got meta"),
    ],
)
def test_what_cannot_be_measured_is_refused(candidates, options, error, words):
    before = torch.get_num_threads()
    with pytest.raises(error, match=words):
        measure(candidates, cold=False, **options)
    assert torch.get_num_threads() == before


def test_a_sample_that_the_clock_does_not_see_is_refused():
    with pytest.raises(ValueError, match="candidate 'a' is too short for the clock: raise launches=1"):
        measure({"a": int}, cold=False, clock=FakeTime().clock())


# --- candidates that are out of the race, and patience


def race_of(fake, calls, warmup=3, rounds=4, **seconds):
    """Candidates that note their calls and take so long, all in the race but those named "apart"."""

    def candidate(name, took):
        def call():
            calls.append(name)
            fake.pass_(took.pop(0) if len(took) > 1 else took[0])

        return call

    candidates = {name: candidate(name, list(took)) for name, took in seconds.items()}
    racing = [name for name in candidates if not name.startswith("apart")]
    return measure(candidates, rounds=rounds, warmup=warmup, race=racing, cold=False, clock=fake.clock())


def test_who_is_hopeless_is_called_once_and_keeps_that_figure():
    calls = []
    run = race_of(FakeTime(), calls, quick=[1, 1, 1, 2], close=[HOPELESS], hopeless=[HOPELESS + 0.5, 9, 9])
    assert calls.count("hopeless") == 1 and run["hopeless"].seconds == (HOPELESS + 0.5,) and run["hopeless"].rounds == 1
    assert calls.count("quick") == calls.count("close") == 3 + 4  # the call that decides is one of the warm-up
    assert run["quick"].seconds == (2,) * 4 and run["close"].seconds == (HOPELESS,) * 4 and run.conditions.rounds == 4
    rounds = [set(calls[i : i + 2]) for i in range(len(calls) - 2 * 4, len(calls), 2)]
    assert rounds == [{"quick", "close"}] * 4  # by turns, as ever


def test_the_first_calls_come_before_every_other_so_that_the_last_candidate_may_set_the_pace():
    run = race_of(FakeTime(), [], hopeless=[100], quick=[1])
    assert (run["hopeless"].rounds, run["quick"].rounds) == (1, 4)


def test_short_calls_are_never_hopeless():
    run = race_of(FakeTime(), [], quick=[SHORT / 1000], slow=[SHORT], slower=[1.01 * SHORT])
    assert [run[name].rounds for name in ("quick", "slow", "slower")] == [4, 4, 1]


def test_who_does_not_race_is_never_out_and_sets_no_pace():
    calls = []
    run = race_of(FakeTime(), calls, a=[1], b=[2], apart_quick=[0.001], apart_slow=[1000])
    assert all(run[name].rounds == 4 for name in run.measurements) and len(calls) == 4 * (3 + 4)


def test_without_warm_up_the_call_that_decides_is_still_not_counted():
    calls = []
    run = race_of(FakeTime(), calls, warmup=0, rounds=2, a=[5, 1, 2], b=[1000])
    assert run["a"].seconds == (1, 2) and calls.count("a") == 3 and run["b"].seconds == (1000,)


def test_without_a_race_all_are_measured_alike():
    fake = FakeTime()
    run = measure({"a": takes(fake, 1), "b": takes(fake, 1000)}, rounds=3, cold=False, clock=fake.clock())
    assert run["a"].rounds == run["b"].rounds == 3


def test_on_a_gpu_nobody_is_out_for_the_first_call_compiles(monkeypatch):
    fake = FakeTime()
    candidates = {"a": takes(fake, 1), "b": takes(fake, 1000, 1)}
    run = measure(candidates, rounds=2, race="ab", device="cuda", cold=False, clock=fake.clock())
    assert run["b"].seconds == (1, 1)


@pytest.mark.parametrize(("patience", "rounds"), [(0, LEAST_ROUNDS), (6.5, 7), (100, 9), (None, 9)])
def test_patience_ends_the_rounds_but_never_before_the_least(patience, rounds):
    fake = FakeTime()
    candidates = {"a": takes(fake, 0.5), "b": takes(fake, 0.5)}
    run = measure(candidates, rounds=9, patience=patience, cold=False, clock=fake.clock())
    assert run.conditions.rounds == run["a"].rounds == run["b"].rounds == rounds


def test_patience_makes_no_more_rounds_than_asked_for():
    fake = FakeTime()
    run = measure({"a": takes(fake, 1)}, rounds=2, patience=0, cold=False, clock=fake.clock())
    assert run["a"].rounds == 2


# --- what is made of the samples


def test_statistics_by_hand():
    m = Measurement(
        tuple(float(s) for s in (11, 1, 10, 2, 9, 3, 8, 4, 7, 5, 6)), bytes_moved=4 * 10**9, flops=6 * 10**9
    )
    assert (m.median, m.p10, m.p90, m.min) == (6, 2, 10, 1)
    assert m.gb_per_s == 2 and m.gflop_per_s == 3
    for figure, name in [("gb_per_s", "bytes_moved"), ("gflop_per_s", "flops")]:
        with pytest.raises(ValueError, match=f"pass {name}="):
            getattr(Measurement((1.0,)), figure)


@given(st.lists(POSITIVE, min_size=1, max_size=40))
def test_quantiles_are_numpys(seconds):
    m = Measurement(tuple(seconds))
    assert [m.p10, m.median, m.p90] == pytest.approx(np.quantile(seconds, [0.1, 0.5, 0.9]).tolist())


def test_a_ratio_is_paired_by_rounds():
    # the machine slows down fivefold half-way; medians alone would say 10 / 3
    run = benchmark(a=(2.0, 2.0, 10.0, 10.0, 10.0), b=(1.0, 1.0, 5.0, 3.0, 5.0))
    ratio = run.ratio("a", "b")
    assert (ratio.value, ratio.low, ratio.high, ratio.rounds) == (2, 2, 2, 5)
    spread = benchmark(a=(1.0, 2.0, 3.0, 4.0, 5.0), b=(1.0,) * 5).ratio("a", "b")
    assert (spread.value, spread.low, spread.high) == (3, 2, 4)


def test_a_single_sample_is_held_against_the_median_and_says_so():
    run = benchmark(a=(1.0, 2.0, 9.0), hopeless=(20.0,), worse=(80.0,))
    for ratio, value in ((run.ratio("hopeless", "a"), 10), (run.ratio("a", "hopeless"), 0.1), (run.ratio("worse", "hopeless"), 4)):
        assert (ratio.value, ratio.low, ratio.high, ratio.rounds) == (value, value, value, 1)
        assert str(ratio) == f"{value:.2f}× (one sample)"
    with pytest.raises(ValueError, match="zip"):  # two candidates of other rounds each: no measurement looks so
        benchmark(a=(1.0, 2.0, 3.0), b=(1.0, 2.0)).ratio("a", "b")


@given(st.lists(st.tuples(POSITIVE, POSITIVE), min_size=1, max_size=20))
def test_what_disturbs_both_of_a_round_leaves_the_ratio(pairs):
    a, factor = zip(*pairs, strict=True)
    ratio = benchmark(a=a, b=a).ratio("a", "b")
    disturbed = benchmark(
        a=[x * f for x, f in zip(a, factor, strict=True)], b=[2 * x * f for x, f in zip(a, factor, strict=True)]
    )
    assert ratio.value == 1 and disturbed.ratio("b", "a").value == pytest.approx(2)


def test_an_unknown_name_lists_the_measured_ones():
    with pytest.raises(KeyError, match="'c' was not measured; a, b were"):
        benchmark(a=(1.0,), b=(1.0,)).ratio("a", "c")


def test_the_table_has_a_line_for_each_candidate():
    fake = FakeTime()
    run = measure(
        {"int4": takes(fake, 0.001), "naive": takes(fake, 0.1)},
        bytes_moved={"int4": 10**7}, rounds=3, cold=False, clock=fake.clock(), threads=1,
    )  # fmt: skip
    first, quick, slow = str(run).splitlines()
    assert first.startswith("cpu, 1 threads, warm cache, 3 rounds by turns; milliseconds")
    assert "1.000 [1.000, 1.000]" in quick and "10.0 GB/s" in quick
    assert "100.000 [100.000, 100.000]" in slow and "GB/s" not in slow
    assert str(benchmark(a=(1.0, 2.0), b=(0.5,))).endswith("b    500.000 (one sample)")


def test_a_benchmark_survives_a_record():
    run = measure({"a": int, "b": list}, bytes_moved={"a": 8}, flops={"b": 2}, rounds=3, launches=100, cold=False)
    values = json.loads(json.dumps(to_json(run)))
    assert Benchmark.from_values(from_json(values)) == run == Benchmark.from_values(values)
    del values["conditions"]["seed"]
    for broken in (values, {}, {"measurements": {"a": {"seconds": [1.0], "hours": 2}}}):
        with pytest.raises(ValueError, match="are not those of a Benchmark"):
            Benchmark.from_values(broken)


def test_results_cannot_be_changed():
    run = measure({"a": int}, rounds=1, launches=100, cold=False)
    with pytest.raises(TypeError):
        run.measurements["b"] = run["a"]
    with pytest.raises(AttributeError):
        run["a"].seconds = ()


# --- threads, caches, clocks


def test_using_threads_restores_and_none_changes_nothing():
    before = torch.get_num_threads()
    with using_threads(None):
        assert torch.get_num_threads() == before
    with using_threads(before + 2):
        assert torch.get_num_threads() == before + 2
    assert torch.get_num_threads() == before


def describe(cpus, cpu, index, level, size, sharing, kind="Unified"):
    cache = cpus / f"cpu{cpu}" / "cache" / f"index{index}"
    cache.mkdir(parents=True)
    for file, text in {"level": level, "size": size, "shared_cpu_list": sharing, "type": kind}.items():
        (cache / file).write_text(f"{text}\n")


def test_the_last_level_is_summed_over_the_caches_of_the_allowed_cpus(tmp_path, monkeypatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: {0, 1, 2}, raising=False)
    for cpu in range(4):
        describe(tmp_path, cpu, 0, 1, "32K", cpu, "Data")
        describe(tmp_path, cpu, 1, 2, "1M", cpu)
        describe(tmp_path, cpu, 2, 3, "16384K", "0-1" if cpu < 2 else cpu)
    assert last_level_cache_bytes("cpu", tmp_path) == 2 * 16 * 2**20  # of 0 and 1 together, and of 2; 3 is not ours


def test_caches_of_instructions_and_incomplete_ones_do_not_count(tmp_path, monkeypatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: {0}, raising=False)
    describe(tmp_path, 0, 0, 2, "512K", "0")
    describe(tmp_path, 0, 1, 3, "64M", "0", "Instruction")
    describe(tmp_path, 0, 2, 3, "", "0")
    describe(tmp_path, 0, 3, 3, "lots", "0")
    (tmp_path / "cpu0" / "cache" / "index4").mkdir()
    assert last_level_cache_bytes("cpu", tmp_path) == 512 * 2**10
    assert last_level_cache_bytes("cpu", tmp_path / "nothing") == ASSUMED_CACHE_BYTES


def test_the_cold_buffer_is_twice_the_cache_and_really_in_memory(monkeypatch):
    assert cold_buffer("cpu").nbytes >= 2 * last_level_cache_bytes("cpu") > 0
    monkeypatch.setattr("quantlib.measure.caches.last_level_cache_bytes", lambda device: 1001)
    buffer = cold_buffer("cpu")
    assert 2002 <= buffer.nbytes < 2002 + 8 and bool(buffer.all())  # pages of zeros would all be one page


def test_a_gpu_is_timed_by_its_own_events(monkeypatch):
    gpu = SimpleNamespace(milliseconds=0.0, streams=[], waits=[])

    class Event:
        def __init__(self, enable_timing):
            assert enable_timing

        def record(self, stream):
            gpu.streams.append(stream)
            self.at = gpu.milliseconds

        def elapsed_time(self, other):
            return other.at - self.at

    def kernel():
        gpu.milliseconds += 3.0

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: f"stream of {device}")
    monkeypatch.setattr(torch.cuda, "synchronize", gpu.waits.append)
    run = measure({"a": kernel}, rounds=4, warmup=1, device="cuda:1", cold=False)
    assert run["a"].seconds == pytest.approx([0.003] * 4)
    assert run.conditions.launches == 20 and run.conditions.device == "cuda:1"
    assert set(gpu.streams) == {"stream of cuda:1"} and len(gpu.streams) == 2 * 4  # one pair for all launches
    assert gpu.waits == [torch.device("cuda:1")] * 5


def test_the_clock_of_the_cpu_is_in_seconds():
    clock = clock_of(torch.device("cpu"))
    start = clock.mark()
    time.sleep(0.01)
    assert 0.009 < clock.seconds(start, clock.mark()) < 10
