"""What depends on the CPU, tested again as on older ones: make test-older-cpus. Start from :data:`FILES` and :func:`cpus`.

An x86 CPU without AVX-512 and VNNI is emulated by its libraries' own switches, and the C++ is compiled without them: so
oneDNN takes its 16-bit sums of pairs, which saturate, and PyTorch its AVX2 loops. A second run has PyTorch's loops for
any CPU at all. On a CPU that is no x86 only that second run says anything.

Words after the command are pytest's: python tests/older_cpus.py -k bitsandbytes.
"""

from __future__ import annotations

import os
import platform
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
COMPILED = (
    "tests/kernels/test_compiled.py",
    "tests/kernels/test_compiled_digits.py",
    "tests/kernels/test_integers.py",
    "tests/models/test_compiled_decoder.py",
)
FILES = (
    "tests/layers/test_bitsandbytes.py",
    "tests/kernels/test_product.py",
    "tests/kernels/test_packed.py",
    "tests/kernels/test_probes.py",
    "tests/layers/test_weight_only.py",
    "tests/layers/test_mixed.py",
    "tests/methods/test_llm_int8.py",
    "lessons/03-keep-the-outliers-apart.md",
)
# what the compiler says it uses -> the flag that forbids it; the first takes all of AVX-512 with it, VNNI and bfloat16 too
NEWER = {
    "__AVX512F__": "-mno-avx512f",
    "__AVXVNNI__": "-mno-avxvnni",
    "__AVXVNNIINT8__": "-mno-avxvnniint8",
    "__AVXVNNIINT16__": "-mno-avxvnniint16",
    "__AVX10_1__": "-mno-avx10.1",
}


@dataclass(frozen=True)
class OlderCPU:
    """variables: that make processes take this CPU for it; files: what is tested"""

    name: str
    variables: Mapping[str, str]
    files: Sequence[str]


def cpus() -> list[OlderCPU]:
    """Those that this machine can stand for."""
    plain = OlderCPU("any CPU", {"ATEN_CPU_CAPABILITY": "default"}, FILES)
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return [plain]
    avx2 = {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2"}
    if (compiler := without_newer(defined)) is not None:
        avx2["CXX"] = compiler
    return [OlderCPU("x86 with AVX2", avx2, (*COMPILED, *FILES)), plain]


def without_newer(defined: Callable[[Sequence[str]], set[str]]) -> str | None:
    """The command of this machine's C++ compiler, told to use nothing of NEWER; None where there is none.

    defined(command): the macros of the compiler with -march=native. Compilers know no flag for what they know nothing of,
    so only what is there is forbidden. Raises RuntimeError if it is used all the same.
    """
    found = (shlex.split(c) for c in (os.environ.get("CXX"), "g++", "clang++") if c)
    command = next((c for c in found if shutil.which(c[0])), None)
    if command is None:
        return None
    command += [flag for macro, flag in NEWER.items() if macro in defined(command)]
    left = sorted(m for m in defined(command) if m in NEWER or m.startswith(("__AVX512", "__AVX10")))
    if left:
        raise RuntimeError(f"{shlex.join(command)} -march=native still uses {', '.join(left)}: add its flag to NEWER")
    return shlex.join(command)


def defined(command: Sequence[str]) -> set[str]:
    asked = [*command, "-march=native", "-dM", "-E", "-x", "c++", os.devnull]
    said = subprocess.run(asked, capture_output=True, text=True, check=True).stdout
    return {line.split()[1] for line in said.splitlines()}


def main(words: Sequence[str]) -> int:
    """The first exit status of pytest that is not 0."""
    failed = 0
    for cpu in cpus():
        environment, start = os.environ | cpu.variables, time.monotonic()
        shown = " ".join(f"{name}={shlex.quote(value)}" for name, value in cpu.variables.items())
        print(f"\n=== as on {cpu.name}: {shown}", flush=True)
        if "CXX" in cpu.variables:  # its library has a name of its own in the cache, and stays there
            subprocess.run([sys.executable, "-m", "quantlib", "build"], cwd=ROOT, env=environment, check=True)
        tests = [sys.executable, "-m", "pytest", "-q", *cpu.files, *words]
        done = subprocess.run(tests, cwd=ROOT, env=environment, check=False)
        print(f"=== as on {cpu.name}: {time.monotonic() - start:.0f} s", flush=True)
        failed = failed or done.returncode
    return failed


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
