"""Whether a kernel answers right on this machine, asked before it may run. Start from :func:`fault_of`.

A kernel that is right on one processor may be wrong on another, silently: on x86 without VNNI oneDNN's int8 product
adds pairs of products in 16 bits, which saturate. So at the first use of a kernel for a layout, a grid and a dtype on
a device, small products built to break it are compared with float64. What is not within its dtype's rounding is out
for the process.

Where a scale is a power of two, a row of x with a single 1 returns a column of codes, rounded nowhere: a code that is
off by one shows. Elsewhere the bound is that of rounding (quantlib.kernels.reference). Codes stand at both ends, whole
rows of one sign among them; zero points at both ends; scales far apart; x of one magnitude, of all magnitudes; one row
of x and many, odd and even numbers of them.

Sources: pytorch/pytorch #103646, uxlfoundation/oneDNN #717, microsoft/onnxruntime #6004 and pytorch/ao #4266, where the
same saturation was met.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import lru_cache

import torch
from torch import Tensor

from quantlib.kernels.candidates import Kernel
from quantlib.kernels.gpu.tuning import untuned
from quantlib.kernels.guards import GuardedResults, guarded
from quantlib.kernels.packed import PackedWeight, cannot_hold, pack_weight
from quantlib.kernels.reference import linear_reference
from quantlib.numerics.grid import Grid
from quantlib.numerics.quantize import QuantizedTensor

MOST_COLUMNS = 1024  # of a probe, unless a single group has more
MOST_UNITS = 260  # rows of x with a single 1
LONG = 4099  # columns: float32 sums of products of codes are exact up to 1,040
UNKNOWN = "no probe fits what it takes, so nothing is known about it"
ROWS = (1, 3)  # of x, besides all at once, which are even
ROWS_ON_GPU = (1, 3, 20, 40)  # of each height of the Triton kernels' blocks
CLOSE = 2**-10  # relative, of an exact result that its dtype holds: less than the step of the shortest dtype


@dataclass(frozen=True, eq=False)
class Probe:
    """One product whose answer is known.

    x          [rows, in];  rows: what it holds, in words
    expected   float64 [rows, out];  tolerance  float64 [rows, out]
    """

    words: str
    packed: PackedWeight
    x: Tensor
    expected: Tensor
    tolerance: Tensor


_faults: dict[tuple, str | None] = {}


def forget_faults() -> None:
    """Ask again at the next use, as after a kernel was built."""
    _faults.clear()
    _probes.cache_clear()


def fault_of(
    kernel: Kernel, layout: str, grid: Grid, scale_dtype: torch.dtype, dtype: torch.dtype, device: torch.device
) -> str | None:
    """What is wrong with a kernel's answers on this machine, as a clause with the figure; None if nothing is.

    layout, grid, scale_dtype  of the weight;  dtype  of x, int8 for integer products

    Found out once for the process: some milliseconds, more where the kernel is compiled at its first run.
    """
    key = kernel, layout, grid, scale_dtype, dtype, device
    if key not in _faults:
        threads = torch.get_num_threads()
        try:
            with torch.no_grad():
                torch.set_num_threads(1)  # so little work is not worth sharing; on a busy machine it would wait
                probes = _probes(layout, grid, scale_dtype, dtype, device)
                _faults[key] = _find_fault(kernel, probes, threads)
        finally:
            torch.set_num_threads(threads)
    return _faults[key]


def faults_of(kernel: Kernel) -> list[str]:
    """Everything that was found wrong with a kernel so far."""
    return [fault for (known, *_), fault in _faults.items() if known == kernel and fault not in (None, UNKNOWN)]


def _find_fault(kernel: Kernel, probes: tuple[Probe, ...], threads: int) -> str | None:
    """The first probe is run by so many threads, the others by one."""
    tried = False
    for probe in probes:
        if kernel.refuses(probe.packed, probe.x.dtype, len(probe.x)):
            continue
        if not tried:
            torch.set_num_threads(threads)
        y = _run(kernel, probe)
        torch.set_num_threads(1)
        tried = True
        if isinstance(y, str):
            return f"{y} with {probe.words}"
        missed = y.double() - probe.expected
        if not bool((missed.abs() <= probe.tolerance).all()):  # also for NaN
            error = (missed.norm() / probe.expected.norm()).item()
            return f"relative error {error:.2g} with {probe.words}"
    return None if tried else UNKNOWN


def _run(kernel: Kernel, probe: Probe) -> Tensor | str:
    """The kernel's answer, or what it did instead of answering."""
    x, memory = guarded(probe.x)
    before = memory.clone()
    results = GuardedResults()
    try:
        with untuned(), results if kernel.guarded else nullcontext():
            y = kernel.run(x, probe.packed)
    except Exception as error:  # whatever it is, another kernel has to do the work
        return f"it fails ({type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no words'})"
    dtype = torch.float32 if x.dtype == torch.int8 else x.dtype
    if y.dtype != dtype or y.shape != probe.expected.shape:
        return f"it returns {y.dtype} {list(y.shape)} for {dtype} {list(probe.expected.shape)}".replace("torch.", "")
    if not memory.view(torch.uint8).equal(before.view(torch.uint8)):
        return "it writes into x or around it"
    return y if results.intact() else "it writes beyond the end of its result"


# --- what they are asked


@lru_cache(maxsize=8)  # the kernels of one product are asked one after another
def _probes(
    layout: str, grid: Grid, scale_dtype: torch.dtype, dtype: torch.dtype, device: torch.device
) -> tuple[Probe, ...]:
    generator = torch.Generator().manual_seed(0)
    found = []
    for out, columns, exact in _shapes(layout, grid, dtype):
        q = _weight(out, columns, grid, scale_dtype, exact, generator)
        if not cannot_hold(layout, q, device):
            x = (_integers if dtype == torch.int8 else _floats)(columns, generator).to(dtype)
            found += _products(x, q, pack_weight(q, device, layout), exact)
    return tuple(found)


def _shapes(layout: str, grid: Grid, dtype: torch.dtype) -> Iterator[tuple[int, int, int]]:
    """(out, in, how many rows of the matrix have a power of two for a scale): whole blocks for every kernel, then ragged."""
    group = 16 if isinstance(grid.group_size, str) else grid.group_size
    columns = math.lcm(group, 128)
    if columns > MOST_COLUMNS:
        columns = group
    yield 128, columns * max(1, 256 // columns), 128 if grid.group_size == "tensor" else 64
    yield 64 if layout == "int4pack" else 37, 131 if isinstance(grid.group_size, str) else 3 * group, 0
    if grid.bits > 4 and isinstance(grid.group_size, int):
        yield 37, group, 37  # one group a row: kernels for a scale a row take it
    if dtype == torch.int8:
        yield 9, LONG, 9


def _weight(out: int, columns: int, grid: Grid, scale_dtype: torch.dtype, exact: int, generator) -> QuantizedTensor:
    codes = torch.randint(grid.qmin, grid.qmax + 1, (out, columns), dtype=torch.int8, generator=generator)
    codes[0], codes[1], codes[-1] = grid.qmax, grid.qmin, grid.qmax
    codes[2, 0::2], codes[2, 1::2] = grid.qmin, grid.qmax
    rows, groups = grid.scale_shape(out, columns)
    exponent = (3 * torch.arange(rows)[:, None] + 5 * torch.arange(groups)) % 11  # [out|1, groups]
    scale = torch.exp2(-exponent.float())
    scale[exact:] *= torch.rand((rows, groups), generator=generator)[exact:] + 0.5
    zero_point = None
    if not grid.symmetric:
        ends = torch.tensor([grid.qmin, grid.qmax, 0, grid.qmin + 1], dtype=torch.int8)
        zero_point = ends[(torch.arange(rows)[:, None] + 3 * torch.arange(groups)) % 4]
    return QuantizedTensor(codes, scale.to(scale_dtype), zero_point, None, grid)


def _floats(columns: int, generator) -> Tensor:
    """x [rows, in] for a float product: units first, then ordinary numbers, then rows of one magnitude."""
    full = 2.0 ** (15 - math.ceil(math.log2(256 * columns)))  # no sum leaves float16
    ordinary = torch.randn((14, columns), generator=generator)
    spread = torch.exp2(torch.randint(-12, 1, (14, columns), generator=generator).float())
    return torch.cat([_units(columns), ordinary, ordinary * spread, _ends(columns) * full])


def _integers(columns: int, generator) -> Tensor:
    """x [rows, in] for an integer product: units, any codes, codes at the ends."""
    anything = torch.randint(-128, 128, (14, columns), generator=generator)
    lowest = torch.full((2, columns), -128)
    ends = torch.cat([lowest, 127 * _ends(columns)])
    return torch.cat([anything[:2], ends] if columns == LONG else [_units(columns), anything, ends])


def _units(columns: int) -> Tensor:
    """Rows of the identity, all of them or every n-th, the last column first."""
    return torch.eye(columns).flip(0)[:: -(-columns // MOST_UNITS)]


def _ends(columns: int) -> Tensor:
    """[4, in] of 1 and −1: in turns twice, then all of one sign."""
    signs = torch.ones(columns)
    signs[1::2] = -1
    return torch.stack([-signs, signs, -torch.ones(columns), torch.ones(columns)])


def _magnitude(q: QuantizedTensor) -> Tensor:
    """(|code| + |zero_point|) · scale, float64 [out, in]."""
    bytes_ = replace(q.grid, bits=8, symmetric=True, narrow_range=False)  # |code| may lie beyond the grid
    apart = QuantizedTensor(q.codes.clamp(min=-127).abs(), q.scale, None, None, bytes_)
    size = apart.dequantize(torch.float64)
    if q.zero_point is None:
        return size
    zeros = (q.zero_point.double().abs() * q.scale.double()).expand(size.shape[0], -1)  # [out, groups]
    return size + zeros.repeat_interleave(size.shape[1] // zeros.shape[1], 1)


def _products(x: Tensor, q: QuantizedTensor, packed: PackedWeight, exact: int) -> Iterator[Probe]:
    """The rows of x all at once, an even number of them, then a few of its first and of its last."""
    x = x[len(x) % 2 :]
    if x.dtype == torch.int8:
        expected = (x.double() @ q.codes.double().t()).float().double()  # [rows, out], float64 sums them exactly
        tolerance = torch.zeros_like(expected)
    else:
        expected = linear_reference(x, q)
        # as rounding_bound, but equal numbers err in one direction, and a code and its zero point are rounded apart
        sums_in = torch.finfo(x.dtype if x.dtype == torch.float64 else torch.float32)
        magnitude = x.double().abs() @ _magnitude(q).t()  # [rows, out]
        tolerance = (4 * torch.finfo(x.dtype).eps + q.shape[1] * sums_in.eps) * magnitude + torch.finfo(x.dtype).tiny
        units = (x != 0).sum(1) == 1
        tolerance[units, :exact] = CLOSE * expected[units, :exact].abs()  # one product each, which every dtype holds
    x, expected, tolerance = (t.to(packed.scale.device) for t in (x, expected, tolerance))
    counts = ROWS if packed.scale.device.type == "cpu" else ROWS_ON_GPU
    for part in (slice(None), *(slice(rows) for rows in counts), *(slice(-rows, None) for rows in counts)):
        some = x[part]
        words = f"{len(some)} rows" if len(some) > 1 else "a row"
        yield Probe(f"{words} of x beside [{q.shape[0]}, {q.shape[1]}]", packed, some, expected[part], tolerance[part])
