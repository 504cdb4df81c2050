"""What a record says about the machine is there, and true of this one."""

import os
import platform
from pathlib import Path

import pytest
import torch

from quantlib.measure import machine
from quantlib.measure.machine import ABILITIES, package_versions, this_machine


def test_this_machine():
    found = this_machine()
    assert found.cpu and found.cores == len(os.sched_getaffinity(0)) and set(found.abilities) <= set(ABILITIES)
    assert found.gpu is None or torch.cuda.is_available()


@pytest.mark.skipif(
    platform.machine() != "x86_64" or not Path("/proc/cpuinfo").exists(), reason="reads the flags of an x86 Linux"
)
def test_abilities_agree_with_pytorch():
    capability = torch.backends.cpu.get_cpu_capability()
    assert ("avx512f" in this_machine().abilities) == capability.startswith("AVX512") or capability == "DEFAULT"


def test_versions():
    found = package_versions()
    assert found["python"] == platform.python_version() and found["torch"] == torch.__version__


def test_a_machine_that_tells_nothing_is_unknown(monkeypatch, tmp_path):
    monkeypatch.setattr(machine, "Path", lambda _: tmp_path / "nothing")
    monkeypatch.setattr(platform, "system", lambda: "Plan9")
    monkeypatch.setattr(platform, "processor", lambda: "")
    monkeypatch.setattr(platform, "machine", lambda: "")
    found = this_machine()
    assert found.cpu == "unknown" and found.abilities == ()
