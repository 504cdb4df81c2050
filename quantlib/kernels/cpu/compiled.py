"""Weight-only products in C++, built on request: the last step of the ladder on a CPU.

Start from :func:`int4_matmul` and :func:`int8_matmul`.

`python -m quantlib build` compiles the .cpp files of this folder for this machine, once, with the compiler that $CXX
names, or g++ or clang++, into the cache folder of quantlib.zoo.fetch. Nothing is compiled on import and nothing has to be: every product has another kernel. QUANTLIB_COMPILED=0 leaves the library alone
even where it was built.

The file's name is a hash of the source, the flags, the compiler and the CPU, and the library contains it: what was
built for another machine, or from another source, is not found, and a file under the wrong name is not loaded.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shlex
import shutil
import struct
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

from quantlib.places import cache_folder

NAMES = ("compiled", "compiled_digits", "compiled_integers", "compiled_step")
SOURCES = tuple(Path(__file__).with_name(f"{name}.cpp") for name in NAMES)
HEADERS = tuple(Path(__file__).with_name(f"compiled_{name}.h") for name in ("products", "sixteen"))
NATIVE = "-mcpu=native" if platform.machine().lower() in ("aarch64", "arm64") else "-march=native"
FLAGS = ("-O3", "-std=c++17", "-fPIC", "-shared", "-fopenmp", NATIVE)
PRODUCT, ROWS_PRODUCT = struct.Struct("5P8q"), struct.Struct("4P5q")  # as compiled.cpp declares them
HOW = "build it with: python -m quantlib build"


@dataclass(frozen=True)
class Library:
    """The functions of a library that was built, by the bits of the codes and the dtype of x.

    All are there on any CPU but digits: None where it cannot multiply bytes (quantlib.kernels.cpu.compiled_digits).
    decode_step: a step of a whole model (quantlib.kernels.cpu.compiled_step), and the sizes of what describes it.
    multiplies_bfloat16: whether it sums products of bfloat16 itself; if not, they are summed as products of float32.
    """

    path: Path
    int4_float32: Callable[[bytes], None]
    int8_float32: Callable[[bytes], None]
    int4_bfloat16: Callable[[bytes], None]
    int8_bfloat16: Callable[[bytes], None]
    int4_digits: Callable[[bytes], int] | None
    int8_digits: Callable[[bytes], int] | None
    int8_integers: Callable[[bytes], None]
    decode_step: Callable[[bytes], None]
    step_sizes: tuple[int, int, int]
    multiplies_bfloat16: bool


_loaded: dict[tuple[str, ...], Library] = {}


def available() -> bool:
    """Whether the library was built for this machine, loads, and QUANTLIB_COMPILED does not forbid it. Never builds."""
    return default() is not None


def build(flags: tuple[str, ...] = FLAGS) -> Path:
    """The path of the library, which is compiled now (some seconds) unless it lies there already.

    Raises RuntimeError, which says what to do, without a compiler, when it fails, or when the folder takes no file.
    """
    command = _compiler()
    if command is None:
        raise RuntimeError("no C++ compiler was found: install g++ or clang++, or name yours in the variable CXX")
    if (library := load(flags)) is not None and library.path.exists():
        return library.path
    key, path = _key(command, flags), _path(command, flags)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".compiled-", dir=path.parent) as folder:
            made = Path(folder) / path.name
            arguments = [*command, *flags, f'-DQUANTLIB_KEY="{key}"', *map(str, SOURCES), "-o", str(made)]
            done = subprocess.run(arguments, check=False, capture_output=True, text=True)
            if done.returncode:
                raise RuntimeError(
                    f"{shlex.join(arguments)} failed: use another compiler by the variable CXX.\n{done.stderr.strip()}"
                )
            os.replace(made, path)  # whole or not at all, and a library that is in use stays as it was
    except OSError as error:
        raise RuntimeError(f"{path} cannot be written ({error}): set QUANTLIB_CACHE to a folder of yours") from error
    _loaded.pop(flags, None)
    if load(flags) is None:
        raise RuntimeError(f"{path} was built but does not load: use another compiler by the variable CXX")
    from quantlib.kernels.choose import forget

    forget()
    return path


def load(flags: tuple[str, ...] = FLAGS) -> Library | None:
    """What build(flags) made, in this process or earlier; None if that is not there or is something else."""
    if (library := _loaded.get(flags)) is not None:
        return library
    if (command := _compiler()) is None or not (path := _path(command, flags)).exists():
        return None
    try:
        if _key(command, flags).encode() not in path.read_bytes():
            return None
        functions = ctypes.CDLL(str(path))  # after torch, whose OpenMP threads it then shares
    except OSError:  # unreadable, damaged, or for another machine
        return None
    found = {}
    for name in ("int4_matmul_float32", "int8_matmul_float32", "int4_matmul_bfloat16", "int8_matmul_bfloat16"):
        found[name.replace("_matmul", "")] = _function(functions, name, None)
    for name in ("int4_digits", "int8_digits"):
        found[name] = _function(functions, name, ctypes.c_int)
    for name in ("int8_integers", "decode_step"):
        found[name] = _function(functions, name, None)
    found["step_sizes"] = tuple((ctypes.c_int64 * 3).in_dll(functions, "step_sizes"))
    bfloat16 = ctypes.c_int.in_dll(functions, "multiplies_bfloat16").value
    _loaded[flags] = Library(path, **found, multiplies_bfloat16=bool(bfloat16))
    return _loaded[flags]


def _function(library: ctypes.CDLL, name: str, result: type | None) -> Callable | None:
    function = getattr(library, name, None)
    if function:
        function.argtypes, function.restype = [ctypes.c_char_p], result
    return function


def int4_matmul(
    x: Tensor,
    data: Tensor,
    scale: Tensor,
    zero_point: Tensor | None,
    group_size: int,
    library: Library | None = None,
) -> Tensor:
    """y = x · Ŵᵀ with ŵ = (code − zero_point) · scale, summed in float32.

    x           float32 or bfloat16 [rows, in]; products of bfloat16 are exact, those of float32 rounded to float32
    data        uint8 [out/B, in, B/2], B = 64 or 32: byte r of a column of block b holds code + 8 of row bB + r in its
                low nibble, of row bB + r + B/2 in its high one (PackedWeight's layout "int4pack")
    scale       [groups, out]; float16 and float32 are read as they are, others are converted first
    zero_point  None, or [groups, out]; int8 and float32 are read as they are. With one, infinities in x give nan
    group_size  columns that share a scale: even, and a divisor of in
    library     by default the one that build() makes
    returns     [rows, out] in the dtype of x

    Uses torch.get_num_threads() threads. Raises TypeError for a dtype, ValueError for a shape or device that does not
    fit, RuntimeError if the library was not built.
    """
    library = library or _built()
    rows, columns, out = _check(x, data, scale, zero_point, group_size)
    dtype = x.dtype
    if not (rows and columns and out):
        return x.new_zeros((rows, out))
    x, data, scale = x.contiguous(), data.contiguous(), scale.contiguous()  # held by name while C++ reads them
    if scale.dtype is not torch.float16:
        scale = scale.float()
    if zero_point is not None:
        zero_point = zero_point.contiguous() if zero_point.dtype is torch.int8 else zero_point.float().contiguous()
    y = x.new_empty((rows, out))
    product = PRODUCT.pack(
        x.data_ptr(),
        data.data_ptr(),
        scale.data_ptr(),
        0 if zero_point is None else zero_point.data_ptr(),
        y.data_ptr(),
        rows,
        columns,
        out,
        group_size,
        scale.dtype is torch.float16,
        zero_point is not None and zero_point.dtype is torch.int8,
        data.shape[2] * 2,
        torch.get_num_threads(),
    )
    (library.int4_bfloat16 if dtype is torch.bfloat16 else library.int4_float32)(product)
    return y


def int8_matmul(x: Tensor, codes: Tensor, scale: Tensor, library: Library | None = None) -> Tensor:
    """x · Ŵᵀ for a matrix whose rows have one scale each: ŵ = code · scale. Sums are in float32.

    x        float32 or bfloat16 [rows, in], rows ≥ 0
    codes    int8 [out, in], in the order of pack_weight's layout "rows"
    scale    floating point [out, 1]; float16 as it is, others as float32
    library  by default the one that build() makes
    returns  [rows, out] in the dtype of x

    Uses torch.get_num_threads() threads. Raises TypeError for a dtype, ValueError for a shape or device that does not
    fit, RuntimeError if the library was not built.
    """
    library = library or _built()
    if x.dtype not in (torch.float32, torch.bfloat16):
        raise TypeError(f"x must be float32 or bfloat16, got {x.dtype}: call x.float()")
    if codes.dtype is not torch.int8:
        raise TypeError(f"codes must be int8, got {codes.dtype}: pack them with pack_weight(q, layout='rows')")
    if x.ndim != 2 or codes.ndim != 2 or x.shape[1] != codes.shape[1] or tuple(scale.shape) != (codes.shape[0], 1):
        raise ValueError(
            f"x must be [rows, in], codes [out, in] and scale [out, 1], got {list(x.shape)}, {list(codes.shape)} and "
            f"{list(scale.shape)}: flatten x, or quantize with one scale a row"
        )
    if not (x.is_cpu and codes.is_cpu and scale.is_cpu):
        raise ValueError(f"x, codes and scale must be on the CPU, x is on {x.device}: call .cpu()")
    dtype, (rows, columns), out = x.dtype, x.shape, codes.shape[0]
    if not (rows and columns and out):
        return x.new_zeros((rows, out))
    x, codes = x.contiguous(), codes.contiguous()  # held by name while C++ reads them
    scale = (scale if scale.dtype is torch.float16 else scale.float()).contiguous()
    y = x.new_empty((rows, out))
    pointers = (t.data_ptr() for t in (x, codes, scale, y))
    half = scale.dtype is torch.float16
    product = ROWS_PRODUCT.pack(*pointers, rows, columns, out, half, torch.get_num_threads())
    (library.int8_bfloat16 if dtype is torch.bfloat16 else library.int8_float32)(product)
    return y


def _check(x: Tensor, data: Tensor, scale: Tensor, zero_point: Tensor | None, group_size: int) -> tuple[int, int, int]:
    """rows, in, out"""
    if x.dtype not in (torch.float32, torch.bfloat16):
        raise TypeError(f"x must be float32 or bfloat16, got {x.dtype}: call x.float()")
    if data.dtype is not torch.uint8:
        raise TypeError(f"data must be uint8, got {data.dtype}: pack it with pack_weight(q, layout='int4pack')")
    if x.ndim != 2 or data.ndim != 3:
        _refuse_shapes(x, data)
    (rows, columns), (blocks, depth, half_block) = x.shape, data.shape
    if columns != depth or half_block not in (32, 16):
        _refuse_shapes(x, data)
    if type(group_size) is not int or group_size < 1 or group_size % 2 or columns % group_size:
        raise ValueError(f"group_size must be even and divide the {columns} columns, got {group_size!r}")
    out = blocks * half_block * 2
    shape = (columns // group_size, out)
    for name, per_group in (("scale", scale), ("zero_point", zero_point)):
        if per_group is not None and per_group.shape != shape:
            raise ValueError(
                f"{name} must be [groups, out] = {list(shape)}, got {list(per_group.shape)}: expand or transpose it"
            )
    if not (x.is_cpu and data.is_cpu and scale.is_cpu and (zero_point is None or zero_point.is_cpu)):
        raise ValueError(f"x, data, scale and zero_point must be on the CPU, x is on {x.device}: call .cpu()")
    return rows, columns, out


def _refuse_shapes(x: Tensor, data: Tensor) -> None:
    raise ValueError(
        f"x must be [rows, in] and data [out/B, in, B/2] with B = 64 or 32, got {list(x.shape)} and "
        f"{list(data.shape)}: flatten x, or pack with pack_weight(q, layout='int4pack')"
    )


def _built() -> Library:
    library = _loaded.get(FLAGS) or default()
    if library is None:
        raise RuntimeError(f"the compiled kernel is not available on this machine: {HOW}")
    return library


def default() -> Library | None:
    """The library of this machine if it was built and QUANTLIB_COMPILED does not forbid it."""
    return None if os.environ.get("QUANTLIB_COMPILED") == "0" else load()


# --- what a library is built by and for


def _compiler() -> tuple[str, ...] | None:
    """The command: $CXX, which may hold arguments, or the first of g++ and clang++; None if there is none."""
    for candidate in (os.environ.get("CXX"), "g++", "clang++"):
        if candidate and shutil.which(shlex.split(candidate)[0]):
            return tuple(shlex.split(candidate))
    return None


def _path(command: tuple[str, ...], flags: tuple[str, ...]) -> Path:
    return cache_folder() / f"compiled-{_key(command, flags)}.so"


@lru_cache
def _key(command: tuple[str, ...], flags: tuple[str, ...]) -> str:
    version = subprocess.run([*command, "--version"], check=False, capture_output=True).stdout
    parts = (*(file.read_bytes() for file in (*SOURCES, *HEADERS)), repr((command, flags)).encode(), version, _cpu().encode())
    return hashlib.sha256(b"\0".join(hashlib.sha256(part).digest() for part in parts)).hexdigest()[:32]


def _cpu() -> str:
    """What -march=native depends on."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = [platform.processor()]
    wanted = ("vendor_id", "cpu family", "model", "stepping", "flags", "Features", "CPU part")
    return "\n".join([platform.machine(), *sorted({line for line in lines if line.startswith(wanted)} or set(lines))])


def main() -> None:
    """Builds the library and says what it can do, or says why that failed."""
    try:
        path = build()
    except RuntimeError as error:
        sys.exit(str(error))
    library = load()
    uses = {"bfloat16": library.multiplies_bfloat16, "bytes": library.int4_digits}
    words = " and of ".join(name for name, there in uses.items() if there) or "neither bfloat16 nor bytes"
    print(f"{path} is built; it uses this CPU's dot products of {words}.")
