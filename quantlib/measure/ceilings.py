"""What this machine can do at best, measured: the limits that a kernel's figures are quoted against.

Start from :func:`ceilings`. A product can finish no sooner than its bytes can be read and no sooner than its
operations can be done: :func:`roofline` is the larger of the two times (Williams, Waterman, Patterson, "Roofline: An
Insightful Visual Performance Model for Multicore Architectures", CACM 52(4), 2009). Data sheets promise more than
any program gets; these ceilings are what PyTorch itself reaches on the same machine.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

import torch
import torch.nn.functional as F
from torch import Tensor

from quantlib.measure.benchmark import measure
from quantlib.measure.caches import last_level_cache_bytes
from quantlib.measure.clocks import Clock
from quantlib.measure.measurements import Benchmark, Measurement

CACHES = 4  # times the last-level cache: the least that is read
LEAST_BYTES = {"cpu": 2**27, "cuda": 2**30}  # shorter reads do not reach full speed
MATMUL_SIZE = {"cpu": 2048, "cuda": 8192}
COLUMNS = 8192  # of the matrix that the one-row product reads
READ = "read"  # the candidate of a benchmark that reads and does nothing else


@dataclass(frozen=True)
class Ceilings:
    """The fastest that was seen, at p10 of the rounds. GB are 1e9 bytes, GFLOP 1e9 operations.

    read_gb_per_s       reading a buffer of at least four times the last-level cache
    read_by             the way of reading that was the fastest
    copy_gb_per_s       copying it; a byte that is read and written counts twice
    matmul_gflop_per_s  "float32", "bfloat16", "int8" -> rate of a large square product, a multiply-add as 2; a dtype
                        that this machine's PyTorch cannot multiply is missing
    """

    read_gb_per_s: float
    read_by: str
    copy_gb_per_s: float
    matmul_gflop_per_s: Mapping[str, float]
    device: str
    threads: int

    @classmethod
    def from_values(cls, values: Mapping) -> Ceilings:
        """From a mapping of the fields, as JSON or a record keeps it. ValueError if one is missing or unknown."""
        try:
            return cls(**{**values, "matmul_gflop_per_s": MappingProxyType(dict(values["matmul_gflop_per_s"]))})
        except (KeyError, TypeError) as error:
            raise ValueError(f"values are not those of Ceilings: {error!r}") from None

    def beside(self, benchmark: Benchmark) -> Ceilings:
        """These limits with the bandwidth of a benchmark's candidate READ, which took turns with the others.

        Neighbours on the same memory leave more of it in one minute than in the next, so a share is of the bandwidth
        of its own rounds. KeyError if reading was not among the candidates.
        """
        return replace(self, read_gb_per_s=benchmark[READ].gb_per_s)

    def share_of_read(self, measurement: Measurement) -> float:
        """The bandwidth of a candidate over that of reading, both at p10; 1 is the limit.

        More than 1 means that the candidate did not read bytes_moved from memory: a warm cache, or a wrong count.
        ValueError if its bytes_moved is not known.
        """
        return measurement.gb_per_s / self.read_gb_per_s

    def __str__(self):
        rates = ", ".join(f"{dtype} {rate:.0f}" for dtype, rate in self.matmul_gflop_per_s.items())
        return (
            f"{self.device}, {self.threads} threads: read {self.read_gb_per_s:.1f} GB/s ({self.read_by}), "
            f"copy {self.copy_gb_per_s:.1f} GB/s; matmul {rates} GFLOP/s"
        )


def ceilings(
    device: str | torch.device = "cpu",
    threads: int | None = None,
    *,
    rounds: int = 7,
    warmup: int = 1,
    matmul_size: int | None = None,
    clock: Clock | None = None,
) -> Ceilings:
    """Measure the ceilings of a device, with so many PyTorch threads (default: as they are). Takes seconds.

    Reading: the fastest of the maximum of int8 and of int64, the sum of float32, a dot product of two halves and a
    one-row F.linear, all over one buffer. Copying: one half of it onto the other. Matmul: two random square matrices
    of matmul_size (default MATMUL_SIZE); int8 with int32 accumulators, by torch._int_mm, and on a CPU by oneDNN's
    linear layer with unsigned activations. float32 is full float32 unless the caller allowed TF32.

    Raises ValueError as measure does, and for matmul_size below 32 or not a multiple of 8 (which int8 on a GPU needs).
    """
    device = torch.device(device)
    if device.type not in MATMUL_SIZE:
        raise ValueError(f"device must be cpu or cuda, got {device}")
    size = MATMUL_SIZE[device.type] if matmul_size is None else matmul_size
    if not isinstance(size, int) or size < 32 or size % 8:
        raise ValueError(f"matmul_size must be a multiple of 8 and at least 32, got {size!r}")
    how = {"rounds": rounds, "warmup": warmup, "device": device, "threads": threads, "clock": clock}

    buffer = _large_buffer(device)
    ways = _ways_to_read(buffer)
    streams = {**ways, "copy": _copy(buffer)}
    moved = measure(streams, bytes_moved=dict.fromkeys(streams, buffer.nbytes), **how)

    matmuls = _matmuls(size, device)
    operations = dict.fromkeys(matmuls, 2 * size**3)
    products = measure(matmuls, flops=operations, race=matmuls, cold=False, **how)
    fastest = min(ways, key=lambda way: moved[way].p10)
    return Ceilings(
        moved[fastest].gb_per_s,
        fastest,
        moved["copy"].gb_per_s,
        MappingProxyType(_by_dtype(products)),
        str(device),
        moved.conditions.threads,
    )


def reader(way: str, device: str | torch.device = "cpu") -> tuple[Callable[[], Tensor], int]:
    """A call that reads a large buffer in one of the ways of `ceilings` (its read_by), and the buffer's bytes.

    As the candidate READ of a benchmark it gives the bandwidth for `Ceilings.beside`. Raises ValueError for a way that
    there is not.
    """
    buffer = _large_buffer(torch.device(device))
    ways = _ways_to_read(buffer)
    if way not in ways:
        raise ValueError(f"way must be one of {', '.join(ways)}, got {way!r}")
    return ways[way], buffer.nbytes


def roofline(flops: int, bytes_moved: int, ceilings: Ceilings, dtype: str | torch.dtype) -> float:
    """Seconds that a call takes at least: max(bytes_moved / read bandwidth, flops / matmul rate).

    dtype  in which it multiplies: torch.int8 or "int8" for W8A8, the activations' dtype for weight-only

    Raises ValueError for negative counts, or a dtype that has no ceiling.
    """
    name = str(dtype).removeprefix("torch.")
    if name not in ceilings.matmul_gflop_per_s:
        raise ValueError(f"dtype {name!r} has no ceiling; {', '.join(ceilings.matmul_gflop_per_s)} have")
    if flops < 0 or bytes_moved < 0:
        raise ValueError(f"flops and bytes_moved must be at least 0, got {flops} and {bytes_moved}")
    reading = bytes_moved / (ceilings.read_gb_per_s * 1e9)
    multiplying = flops / (ceilings.matmul_gflop_per_s[name] * 1e9)
    return max(reading, multiplying)


def _large_buffer(device: torch.device) -> Tensor:
    """float32 of at least CACHES last-level caches, in whole pairs of COLUMNS."""
    least = max(CACHES * last_level_cache_bytes(device), LEAST_BYTES[device.type])
    rows = 2 * -(-least // (2 * 4 * COLUMNS))
    return torch.ones(rows * COLUMNS, device=device)  # not zeros: untouched pages are all one page


def _ways_to_read(buffer: Tensor) -> dict[str, Callable[[], Tensor]]:
    """Each reads the whole buffer once."""
    matrix, row = buffer.view(-1, COLUMNS), buffer[:COLUMNS].clone().unsqueeze(0)  # [rows, COLUMNS], [1, COLUMNS]
    half, other_half = buffer.chunk(2)
    return {
        "max of int8": buffer.view(torch.int8).max,
        "max of int64": buffer.view(torch.int64).max,
        "sum of float32": buffer.sum,
        "dot of float32": lambda: torch.dot(half, other_half),
        "linear of float32": lambda: F.linear(row, matrix),
    }


def _copy(buffer: Tensor) -> Callable[[], Tensor]:
    """Reads one half and writes the other: in all, as many bytes as the buffer has."""
    source, target = buffer.chunk(2)
    return lambda: target.copy_(source)


def _matmuls(size: int, device: torch.device) -> dict[str, Callable[[], Tensor]]:
    """ "dtype by operator" -> a product of two matrices [size, size]; without those that PyTorch refuses here."""
    generator = torch.Generator().manual_seed(0)
    # seven bits: with eight, oneDNN's sums of pairs saturate at 16 bits where the CPU has no VNNI
    codes = torch.randint(-64, 64, (size, size), generator=generator, dtype=torch.int8).to(device)
    products: dict[str, Callable[[], Tensor]] = {}
    for dtype in (torch.float32, torch.bfloat16):
        x = codes.to(dtype) / 127
        columns = x.t().contiguous().t()  # as a layer's weight lies; in rows bfloat16 is 20 times slower on AVX2
        products[f"{str(dtype).removeprefix('torch.')} by matmul"] = lambda x=x, columns=columns: x @ columns
    if device.type == "cpu":
        _add_if_it_runs(products, "int8 by onednn", lambda: _onednn(codes))
        if "int8 by onednn" in products and not torch.cpu._is_vnni_supported():
            return products  # there _int_mm is a scalar loop, a hundred times slower
    _add_if_it_runs(products, "int8 by _int_mm", lambda: lambda: torch._int_mm(codes, codes.t()))
    return products


def _onednn(codes: Tensor) -> Callable[[], Tensor]:
    """oneDNN's int8 product. Its activations are unsigned: signed ones fall to a reference kernel."""
    weight = torch.ops.onednn.qlinear_prepack(codes, None)
    unsigned = codes.view(torch.uint8) ^ 128
    ones, zeros = torch.ones(len(codes)), torch.zeros(len(codes), dtype=torch.int32)
    return lambda: torch.ops.onednn.qlinear_pointwise(
        unsigned, 1.0, 128, weight, ones, zeros, None, 1.0, 0, torch.float32, "none", [], ""
    )


def _add_if_it_runs(products: dict[str, Callable], name: str, build: Callable[[], Callable[[], Tensor]]) -> None:
    try:
        product = build()
        product()
    except (AttributeError, NotImplementedError, RuntimeError):  # PyTorch was built without it, or for no such device
        return
    products[name] = product


def _by_dtype(products: Benchmark) -> dict[str, float]:
    """dtype -> GFLOP/s of its fastest operator."""
    rates: dict[str, float] = {}
    for name, measurement in products.measurements.items():
        dtype = name.partition(" by ")[0]
        rates[dtype] = max(rates.get(dtype, 0.0), measurement.gflop_per_s)
    return rates
