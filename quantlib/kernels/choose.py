"""Which kernel runs: measured on this machine, at the first use, and remembered. Start from :func:`kernel_for`.

No kernel is timed before it answered right here (quantlib.kernels.probes). And no fixed rule serves two CPUs: PyTorch's int8 operator is the fastest up to 10 rows on one and up to 4 on another, and
a compiled kernel may be there or not. So the first product of a kind (layout, shape, dtype, rows up to the next power
of two, threads) runs every kernel that can take it, a few times by turns, and keeps the fastest for the process.

QUANTLIB_KERNEL names the one kernel to use instead ("naive" works everywhere and is the same on every machine).
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from quantlib.kernels.candidates import REFERENCE, Kernel, rows_bucket
from quantlib.kernels.packed import PackedWeight
from quantlib.kernels.probes import fault_of, forget_faults

ROUNDS = 5  # of the kernels that are close; the clearly slower ones run twice
CLOSE = 2.0
HOPELESS, LONG = 8.0, 0.1  # so many times slower than the quickest, and so many seconds: such a kernel runs once


@dataclass(frozen=True)
class Choice:
    """kernel, and what was known when it was chosen.

    seconds  kernel name -> the fastest of its runs; empty if nothing had to be timed
    refused  kernel name -> why it could not take this product
    wrong    kernel name -> what was wrong with its answers on this machine
    pinned   whether QUANTLIB_KERNEL chose
    """

    kernel: Kernel
    seconds: dict[str, float]
    refused: dict[str, str]
    wrong: dict[str, str]
    pinned: bool = False


_choices: dict[tuple, Choice] = {}


def kernel_for(kernels: Callable[[], Sequence[Kernel]], x: Tensor, p: PackedWeight) -> Kernel:
    """The kernel that multiplies x [rows, in] by p. Only if this kind of product is new, kernels() are timed on x."""
    found = _choices.get(_kind(x, p))
    return choice_for(kernels(), x, p).kernel if found is None else found.kernel


def choice_for(kernels: Sequence[Kernel], x: Tensor, p: PackedWeight) -> Choice:
    """As kernel_for, with the reasons. Raises ValueError if none can, or if the pinned one cannot."""
    kind = _kind(x, p)
    found = _choices.get(kind)
    if found is None:
        found = _choices[kind] = _choose(kernels, x, p, kind[-1])
    return found


def _kind(x: Tensor, p: PackedWeight) -> tuple:
    pinned = os.environ["QUANTLIB_KERNEL"] if "QUANTLIB_KERNEL" in os.environ else None  # .get is slow where it is not
    return p.signature, x.dtype, rows_bucket(x.shape[0]), torch.get_num_threads(), pinned


def forget() -> None:
    """Choose again at the next use, and ask again what is right, as after a kernel was built."""
    _choices.clear()
    forget_faults()


def _choose(kernels: Sequence[Kernel], x: Tensor, p: PackedWeight, pinned: str | None) -> Choice:
    refused = {k.name: reason for k in kernels if (reason := k.refuses(p, x.dtype, x.shape[0]))}
    able = [k for k in kernels if k.name not in refused]
    place = place_of(x.device)
    if pinned is not None:
        names = [k.name for k in kernels]
        if pinned in refused:
            raise ValueError(f"QUANTLIB_KERNEL={pinned} cannot take this product: {refused[pinned]}")
        if pinned in names:
            kernel = kernels[names.index(pinned)]
            if fault := fault_beside(kernel, p, x):
                raise ValueError(f"QUANTLIB_KERNEL={pinned} is wrong on this {place}: {fault}; name another, or none")
            return Choice(kernel, {}, refused, {}, pinned=True)
        if pinned not in KNOWN_NAMES:
            raise ValueError(f"QUANTLIB_KERNEL={pinned} is no kernel: use one of {', '.join(sorted(KNOWN_NAMES))}")
    if not able:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in refused.items())
        raise ValueError(f"no kernel multiplies this weight on {x.device}: {reasons}")
    wrong = {k.name: fault for k in able if (fault := fault_beside(k, p, x))}
    right = [k for k in able if k.name not in wrong] or [REFERENCE]
    if len(right) == 1:
        return Choice(right[0], {}, refused, wrong)
    seconds = fastest_of(right, lambda kernel: kernel.run(x, p), synchronise=_synchronise(x.device))
    return Choice(min(right, key=lambda k: seconds[k.name]), seconds, refused, wrong)


def fault_beside(kernel: Kernel, p: PackedWeight, x: Tensor) -> str | None:
    """What is wrong with a kernel's answers to products like x · Ŵᵀ on this machine; None if nothing is."""
    return fault_of(kernel, p.layout, p.grid, p.scale.dtype, x.dtype, p.scale.device)


def usable(kernel: Kernel, p: PackedWeight, x: Tensor) -> str | None:
    """Why a kernel may not multiply x [rows, in] by p: it cannot, or is wrong on this machine. None if it may."""
    if reason := kernel.refuses(p, x.dtype, x.shape[0]):
        return reason
    fault = fault_beside(kernel, p, x)
    return f"wrong on this {place_of(x.device)}: {fault}" if fault else None


def place_of(device: torch.device) -> str:
    return "GPU" if device.type == "cuda" else "CPU"


KNOWN_NAMES = frozenset(
    "naive,compiled,compiled digits,int4pack,int8pack,workspace bf16,workspace fp32,"
    "onednn,onednn halves,compiled integers,float32,int_mm,naive int8,"
    "triton w4a16,triton w8a16,triton w8a8,tinygemm,torch.compile int4,torch.compile int8".split(",")
)


def fastest_of(
    kernels: Sequence[Kernel],
    run: Callable[[Kernel], object],
    *,
    clock: Callable[[], float] = time.perf_counter,
    synchronise: Callable[[], None] = lambda: None,
) -> dict[str, float]:
    """Seconds of the fastest run of each kernel, by turns; those far behind are not run again."""
    best = dict.fromkeys((k.name for k in kernels), float("inf"))
    first: dict[str, float] = {}
    for turn in range(1 + ROUNDS):
        limit = CLOSE * min(best.values())
        for kernel in kernels:
            if turn > 1 and best[kernel.name] > limit:
                continue
            if turn == 1 and first[kernel.name] > max(LONG, HOPELESS * min(first.values())):
                best[kernel.name] = first[kernel.name]
                continue
            start = clock()
            run(kernel)
            synchronise()
            elapsed = clock() - start
            if turn == 0:  # allocates, packs and compiles, so it counts only where it says enough
                first[kernel.name] = elapsed
            else:
                best[kernel.name] = min(best[kernel.name], elapsed)
    return best


def _synchronise(device: torch.device) -> Callable[[], None]:
    return torch.cuda.synchronize if device.type == "cuda" else lambda: None
