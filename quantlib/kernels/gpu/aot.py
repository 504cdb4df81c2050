"""What a Triton kernel will take of a GPU, without one: compiled ahead of time and read back. Start from :func:`resources`.

The compiler and NVIDIA's assembler run anywhere; the machine code says how many registers a thread holds, how many
bytes had to be spilled to memory for want of registers, and how much shared memory a program asks for. More than 255
registers do not exist, spills cost what quantization saves, and shared memory ends at 163 KiB (sm_80) or 227 KiB (sm_90).
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from quantlib.kernels.gpu.tuning import Config

SHARED_LIMITS = {80: 163 * 1024, 90: 227 * 1024}  # bytes a program may have; CUDA C++ Programming Guide, table 21 ff.


@dataclass(frozen=True)
class Resources:
    """registers of a thread; spilled bytes of a thread; shared bytes of a program; instructions: name -> how often."""

    registers: int
    spilled: int
    shared: int
    instructions: Mapping[str, int]


def resources(
    kernel: object, config: Config, types: Mapping[str, str], constants: Mapping[str, object], sm: int
) -> Resources:
    """Compiles a kernel for compute capability sm (80, 90) and reads what it takes.

    types      each run-time argument's type, as Triton writes it: "*fp16", "i32"; "i32:16" for a multiple of 16
    constants  each constexpr but the block sizes, which come from config

    Raises RuntimeError if the assembler's output cannot be read; Triton's own errors if the kernel does not compile.
    """
    blocks = {"BLOCK_N": config.block_n, "BLOCK_M": config.block_m, "BLOCK_K": config.block_k}
    constants = {**constants, **blocks}
    names = kernel.arg_names
    signature = {n: types[n].removesuffix(":16") if n in types else "constexpr" for n in names}
    # a pointer is always aligned, as PyTorch allocates
    aligned = {
        (i,): [["tt.divisibility", 16]]
        for i, n in enumerate(names)
        if n in types and types[n][0] == "*" or types.get(n, "").endswith(":16")
    }
    source = ASTSource(kernel, signature, {(names.index(n),): v for n, v in constants.items()}, aligned)
    options = {"num_warps": config.warps, "num_stages": config.stages}
    compiled = triton.compile(source, target=GPUTarget("cuda", sm, 32), options=options)
    return read(compiled.asm["cubin"], compiled.metadata.shared)


def read(cubin: bytes, shared: int) -> Resources:
    """The resources of a cubin, of which shared is what Triton asks for at launch."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(cubin)
        usage = _cuobjdump("--dump-resource-usage", path)
        listing = _cuobjdump("-sass", path)
    found = re.search(r"REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)", usage)
    if found is None:
        raise RuntimeError(f"cuobjdump reports no resources: {usage[:400]}")
    registers, stack, static, local = map(int, found.groups())
    counts: dict[str, int] = {}
    for name in re.findall(r"/\*[0-9a-f]{4,5}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_.]*)", listing):
        counts[name] = counts.get(name, 0) + 1
    return Resources(registers, stack + local, static + shared, counts)


def _cuobjdump(option: str, path: Path) -> str:
    tool = triton.knobs.nvidia.cuobjdump.path
    return subprocess.run([tool, option, str(path)], capture_output=True, text=True, check=True).stdout
