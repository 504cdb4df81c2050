"""The Triton kernels without a GPU: their numbers in Triton's interpreter, their complaints, the choice of block sizes."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from quantlib.kernels.gpu import tuning
from quantlib.kernels.gpu.tuning import Config, candidates_for, fastest_config

HERE = Path(__file__).parents[1]
needs_triton = pytest.mark.skipif(
    find_spec("triton") is None, reason="the triton package exists for Linux only (pip install triton)"
)


@needs_triton
def test_interpreted_kernels_agree_with_float64():
    """tests/triton_interpreted.py, in a process that has TRITON_INTERPRET=1 before the kernels are defined."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(HERE / "triton_interpreted.py"), "-k"]
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}

    def run(part):
        return subprocess.run([*command, part], env=environment, capture_output=True, text=True, cwd=HERE.parent, timeout=600)

    with ThreadPoolExecutor() as pool:  # the interpreter takes one core
        for done in pool.map(run, ("test_w4a16", "not test_w4a16")):
            assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]


@needs_triton
class TestComplaints:
    """Each names the argument, its value and what to do. The kernels are not interpreted here, so a CPU is one of them."""

    x = torch.zeros((2, 16), dtype=torch.float16)
    codes = torch.zeros((4, 16), dtype=torch.int8)
    nibbles = torch.zeros((4, 8), dtype=torch.uint8)
    scale = torch.ones((4, 1), dtype=torch.float16)

    @pytest.mark.parametrize(
        ("error", "words", "change"),
        [
            (ValueError, r"x is on cpu.*\.to\('cuda'\)", {}),
            (TypeError, r"x must be float16, bfloat16, float32, got torch\.float64", {"x": x.double()}),
            (ValueError, r"x must be \[rows, in\], got \[1, 2, 16\].*reshape", {"x": x[None]}),
            (TypeError, r"codes must be int8 \[N, K\], got torch\.uint8", {"codes": nibbles}),
            (ValueError, r"x \[2, 15\] must have the 16 columns of codes", {"x": x[:, 1:]}),
            (TypeError, r"scale must be a floating-point tensor, got torch\.int8", {"scale": codes[:, :1]}),
            (ValueError, r"scale must be \[4 or 1, groups\].*got \[4, 3\]", {"scale": scale.expand(4, 3)}),
            (ValueError, r"scale must be .* got \[3, 1\]", {"scale": scale[1:]}),
            (ValueError, r"zero_point must be int8 \[4, 1\], got torch\.int8 \[4, 2\]", {"zero_point": codes[:, :2]}),
        ],
    )
    def test_w8a16(self, error, words, change):
        from quantlib.kernels.gpu.triton_w8a16 import w8a16

        with pytest.raises(error, match=words):
            w8a16(**{"x": self.x, "codes": self.codes, "scale": self.scale, **change})

    @pytest.mark.parametrize(
        ("error", "words", "change"),
        [
            (ValueError, r"x is on cpu", {}),
            (TypeError, r"x must be float16", {"x": codes}),
            (TypeError, r"codes must be uint8 \[N, K/2\], got torch\.int8 \[4, 16\]", {"codes": codes}),
            (ValueError, r"x \[2, 14\] must have two columns for each byte .*\[4, 8\]", {"x": x[:, 2:]}),
            (ValueError, r"scale must be \[groups, 4 or 1\].*got \[4, 1, 1\]", {"scale": scale[:, None]}),
            (ValueError, r"scale must be .*divide 16 columns, got \[3, 1\]", {"scale": scale[1:]}),
            (TypeError, r"scale must be a floating-point tensor", {"scale": nibbles[:, :1]}),
            (
                ValueError,
                r"zero_point must be uint8 \[1, 2\] nibbles.*torch\.int8 \[1, 4\]",
                {"zero_point": codes[:1, :4]},
            ),
        ],
    )
    def test_w4a16(self, error, words, change):
        from quantlib.kernels.gpu.triton_w4a16 import w4a16

        with pytest.raises(error, match=words):
            w4a16(**{"x": self.x, "codes": self.nibbles, "scale": self.scale.t(), **change})

    @pytest.mark.parametrize(
        ("error", "words", "change"),
        [
            (ValueError, r"x is on cpu", {}),
            (TypeError, r"x must be int8, got torch\.float16", {"x": x}),
            (TypeError, r"codes must be int8", {"codes": nibbles}),
            (ValueError, r"x \[2, 8\] must have the 16 columns", {"x": codes[:2, :8]}),
            (TypeError, r"dtype must be .*got torch\.int64", {"dtype": torch.int64}),
            (TypeError, r"dtype must be floating-point for a scaled product", {"dtype": torch.int32}),
            (ValueError, r"row_scale and column_scale belong together", {"column_scale": None}),
            (ValueError, r"row_scale must be \[2\], got \[1\]", {"row_scale": torch.ones(1)}),
            (ValueError, r"column_scale must be \[4\], got \[4, 1\].*reshape", {"column_scale": scale}),
            (TypeError, r"column_scale must be a floating-point tensor", {"column_scale": codes[:, 0]}),
            (
                ValueError,
                r"x has 131072 columns, int32 sums up to 131071",
                {"x": codes[:1, :1].expand(1, 2**17), "codes": codes[:1, :1].expand(1, 2**17)},
            ),
        ],
    )
    def test_w8a8(self, error, words, change):
        from quantlib.kernels.gpu.triton_w8a8 import w8a8

        given = {"x": self.codes[:2], "codes": self.codes, "row_scale": torch.ones(2), "column_scale": torch.ones(4)}
        with pytest.raises(error, match=words):
            w8a8(**{**given, "dtype": torch.float16, **change})

    @pytest.mark.parametrize("name", ("w8a16", "w4a16", "w8a8"))
    def test_operands_apart_or_not_dense(self, name, monkeypatch):
        kernel = object()
        monkeypatch.setattr(tuning, "interpreting", lambda kernel: True)
        with pytest.raises(ValueError, match=r"codes is on meta and x on cpu.*\.to\(device\)"):
            tuning.check_operands(kernel, x=self.x, codes=self.codes.to("meta"))
        with pytest.raises(ValueError, match=r"codes \[16, 4\] has strides .*codes\.contiguous"):
            tuning.check_operands(kernel, x=self.x, codes=self.codes.t())


class TestFastestConfig:
    configs = tuple(Config(n, 16, 64, 4, 3) for n in (16, 32, 64))

    @staticmethod
    def launch(config):
        """A launch whose answer is right; what is timed below is not how long it takes."""
        return torch.ones(2)

    def fastest(self, seconds, launch=None, name="test"):
        """The config with the least seconds(config)."""
        launched = []

        def note(config):
            launched.append(config)
            return (launch or self.launch)(config)

        return fastest_config((name, object()), self.configs, note, lambda call: (call(), seconds(launched[-1]))[1])

    def test_the_fastest_of_a_fake_timer_is_remembered(self):
        asked = []

        def seconds(call):
            asked.append(call())
            return {16: 3.0, 32: 1.0, 64: 2.0}[int(asked[-1][0])]

        def launch(config):
            return torch.tensor([config.block_n, 1e9])  # so different that they count as equal

        key = ("test", object())
        assert fastest_config(key, self.configs, launch, seconds).block_n == 32
        assert fastest_config(key, self.configs, launch, seconds).block_n == 32
        assert len(asked) == len(self.configs)

    def test_another_key_is_timed_again(self):
        assert self.fastest(lambda c: c.block_n).block_n == 16
        assert self.fastest(lambda c: -c.block_n).block_n == 64

    def test_what_does_not_fit_is_passed_over(self):
        def launch(config):
            if config.block_n == 16:
                raise MemoryError("out of shared memory")
            return self.launch(config)

        assert self.fastest(lambda c: c.block_n, launch).block_n == 32
        with tuning.untuned():
            assert self.fastest(lambda c: -c.block_n, launch).block_n == 32, "the first that runs"

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int32])
    def test_what_answers_differently_from_the_first_is_passed_over(self, dtype):
        def launch(config):
            y = torch.tensor([100, -3, 7]).to(dtype)
            return y + 10 if config.block_n == 64 else y

        assert self.fastest(lambda c: -c.block_n, launch).block_n == 32

    def test_nothing_fits(self):
        def launch(config):
            raise MemoryError("out of shared memory")

        with pytest.raises(RuntimeError, match="none of 3 block sizes runs for .*out of shared memory"):
            self.fastest(lambda c: 1.0, launch)


@needs_triton
@pytest.mark.parametrize("name", ("w8a16", "w4a16", "w8a8"))
@pytest.mark.parametrize("rows", (1, 2, 16, 17, 48, 64, 65, 128, 129, 100_000))
@pytest.mark.parametrize("group_size", (1, 24, 32, 128, 4096))
def test_every_number_of_rows_has_candidates(name, rows, group_size):
    configs = import_module(f"quantlib.kernels.gpu.triton_{name}").CONFIGS
    chosen = candidates_for(configs, rows, group_size)
    assert chosen and len(set(chosen)) == len(chosen)
    assert len({c.block_m for c in chosen}) == 1
    assert chosen[0].block_m >= min(rows, 128), "a second block would read the weight again"
    assert all(c.block_k < 2 * max(32, group_size) for c in chosen), "more than half of a block would be idle"
    assert all(c.block_k >= 32 for c in chosen), "int8 tensor cores multiply 32 columns at once"
    assert rows <= 64 or all(c.split == 1 for c in chosen)
    for c in chosen:
        for size in (c.block_n, c.block_m, c.block_k):
            assert size & (size - 1) == 0


def test_kernels_import_no_triton():
    code = (
        "import sys, quantlib, quantlib.kernels, quantlib.layers.weight_only, quantlib.kernels.gpu.ladder, quantlib.kernels.gpu.tuning\n"
        "assert 'triton' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=HERE.parent)
