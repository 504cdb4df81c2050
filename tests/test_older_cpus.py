"""Whether the emulation of older CPUs (tests/older_cpus.py) emulates, and covers what is there."""

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest
from older_cpus import COMPILED, FILES, cpus, without_newer

ROOT = Path(__file__).parent.parent
on_x86 = pytest.mark.skipif(platform.machine().lower() not in ("x86_64", "amd64"), reason="this CPU is no x86")


def test_every_file_is_there():
    assert all((ROOT / file).exists() for file in (*FILES, *COMPILED))


def test_both_are_compared_with_bitsandbytes():
    assert all("tests/layers/test_bitsandbytes.py" in cpu.files for cpu in cpus())


@on_x86
def test_the_emulated_oneDNN_saturates_and_is_found_out():
    """At full scale 255·127 + 255·127 = 64,770 does not fit in 16 bits. Neither does it on the CPUs that are meant."""
    code = """if True:
        import torch
        from quantlib import Grid, quantize
        from quantlib.kernels import int8_matmul, pack_weight, usable
        from quantlib.kernels.cpu import ladder as cpu
        q = quantize(torch.randn(64, 256, generator=torch.Generator().manual_seed(0)), Grid(8, "row"))
        p, onednn = pack_weight(q, layout="onednn"), cpu.INT8_KERNELS[0]
        codes = torch.full((4, 256), 127, dtype=torch.int8)
        exact = (codes.double() @ q.codes.double().t()).float()
        error = (onednn.run(codes, p) - exact).norm() / exact.norm()
        print(usable(onednn, p, codes), float(error), int8_matmul(codes, p).equal(exact), sep="|")
    """
    variables = {name: value for name, value in cpus()[0].variables.items() if name != "CXX"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | variables, cwd=ROOT, capture_output=True, text=True, check=True
    )
    why, error, right = done.stdout.strip().split("|")
    assert float(error) > 0.01 and why.startswith("wrong on this CPU: ") and right == "True", done.stdout


@on_x86
@pytest.mark.parametrize(
    ("there", "flags"),
    [
        ({"__AVX2__"}, ""),
        ({"__AVX512F__", "__AVX512VNNI__"}, " -mno-avx512f"),
        ({"__AVXVNNI__"}, " -mno-avxvnni"),
        ({"__AVX512F__", "__AVX512BF16__", "__AVXVNNI__"}, " -mno-avx512f -mno-avxvnni"),
    ],
)
def test_what_the_compiler_would_use_is_forbidden_and_nothing_else(monkeypatch, there, flags):
    monkeypatch.setenv("CXX", sys.executable)  # any program that is there

    def defined(command):
        without_512 = {m for m in there if not m.startswith("__AVX512")} if "-mno-avx512f" in command else there
        return without_512 - {"__AVXVNNI__"} if "-mno-avxvnni" in command else without_512

    assert without_newer(defined) == sys.executable + flags


def test_what_cannot_be_forbidden_is_told(monkeypatch):
    monkeypatch.setenv("CXX", sys.executable)
    with pytest.raises(RuntimeError, match="still uses __AVX512VNNI__: add its flag to NEWER"):
        without_newer(lambda command: {"__AVX512VNNI__"})
