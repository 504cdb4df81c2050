"""The machine and the packages behind a figure, for whoever quotes it. Start from :func:`this_machine`."""

from __future__ import annotations

import os
import platform
import subprocess
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

ABILITIES = (
    "avx2",
    "avx512f",
    "avx512_vnni",
    "avx512_bf16",
    "amx_tile",
    "asimd",
    "i8mm",
    "bf16",
)  # what kernels are chosen by
PACKAGES = ("torch", "transformers", "numpy")


@dataclass(frozen=True)
class Machine:
    """cpu: its name; cores: that this process may use; abilities: of ABILITIES, those it has; gpu: name or None."""

    cpu: str
    cores: int
    abilities: tuple[str, ...]
    gpu: str | None


def this_machine() -> Machine:
    """The machine this process runs on. What cannot be found out is "unknown" or empty, never an error."""
    import torch

    name, flags = _cpu()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    gpu = torch.cuda.get_device_name(0) if torch.cuda.is_available() else None
    return Machine(name, cores, tuple(a for a in ABILITIES if a in flags), gpu)


def package_versions() -> dict[str, str]:
    """{"python": "3.11.7", "torch": "2.13.0+cpu", …}: Python and the PACKAGES that are installed."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _cpu() -> tuple[str, frozenset[str]]:
    """Name and flags, from where Linux or macOS keeps them."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        fields: dict[str, str] = {}
        for line in info.read_text(encoding="utf-8", errors="replace").splitlines():
            key, _, value = line.partition(":")
            fields.setdefault(key.strip(), value.strip())
        name = fields.get("model name") or platform.machine() or "unknown"
        return name, frozenset((fields.get("flags") or fields.get("Features") or "").split())
    if platform.system() == "Darwin":
        return _sysctl("machdep.cpu.brand_string") or "unknown", _apple_flags()
    return platform.processor() or platform.machine() or "unknown", frozenset()


def _apple_flags() -> frozenset[str]:
    names = {"FEAT_I8MM": "i8mm", "FEAT_BF16": "bf16", "AdvSIMD": "asimd"}
    return frozenset(flag for feature, flag in names.items() if _sysctl(f"hw.optional.arm.{feature}") == "1")


def _sysctl(name: str) -> str:
    try:
        return subprocess.run(
            ["sysctl", "-n", name], capture_output=True, text=True, timeout=5, check=False
        ).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""
