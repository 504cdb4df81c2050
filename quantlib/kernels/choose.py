"""Which kernel runs: measured on this machine, at the first use, and remembered. Start from :func:`kernel_for`.

No fixed rule serves two CPUs: PyTorch's int8 operator is the fastest up to 10 rows on one and up to 4 on another, and
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

from quantlib.kernels.candidates import Kernel
from quantlib.kernels.packed import PackedWeight

ROUNDS = 5  # of the kernels that are close; the clearly slower ones run once or twice
CLOSE = 2.0
MOST_ROWS = 1024  # beyond it the order no longer changes


@dataclass(frozen=True)
class Choice:
    """kernel, and what was known when it was chosen.

    seconds  kernel name -> the fastest of its runs; empty if nothing had to be timed
    refused  kernel name -> why it could not take this product
    pinned   whether QUANTLIB_KERNEL chose
    """

    kernel: Kernel
    seconds: dict[str, float]
    refused: dict[str, str]
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


def rows_bucket(rows: int) -> int:
    """The next power of two, and at most MOST_ROWS: 1, 2, 4, …, 1024."""
    return min(1 << (rows - 1).bit_length(), MOST_ROWS) if rows > 1 else 1


def forget() -> None:
    """Choose again at the next use, as after a kernel was built."""
    _choices.clear()


def _choose(kernels: Sequence[Kernel], x: Tensor, p: PackedWeight, pinned: str | None) -> Choice:
    refused = {k.name: reason for k in kernels if (reason := k.refuses(p, x.dtype, x.shape[0]))}
    able = [k for k in kernels if k.name not in refused]
    if pinned is not None:
        names = [k.name for k in kernels]
        if pinned in refused:
            raise ValueError(f"QUANTLIB_KERNEL={pinned} cannot take this product: {refused[pinned]}")
        if pinned in names:
            return Choice(kernels[names.index(pinned)], {}, refused, pinned=True)
        if pinned not in KNOWN_NAMES:
            raise ValueError(f"QUANTLIB_KERNEL={pinned} is no kernel: use one of {', '.join(sorted(KNOWN_NAMES))}")
    if not able:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in refused.items())
        raise ValueError(f"no kernel multiplies this weight on {x.device}: {reasons}")
    if len(able) == 1:
        return Choice(able[0], {}, refused)
    seconds = fastest_of(able, lambda kernel: kernel.run(x, p), synchronise=_synchronise(x.device))
    return Choice(min(able, key=lambda k: seconds[k.name]), seconds, refused)


KNOWN_NAMES = {
    *("naive", "compiled", "compiled digits", "int4pack", "int8pack", "workspace bf16", "workspace fp32", "onednn", "int_mm"),
    *(
        "triton w4a16",
        "triton w8a16",
        "triton w8a8",
        "tinygemm",
        "torch.compile int4",
        "torch.compile int8",
        "naive int8",
    ),
}


def fastest_of(
    kernels: Sequence[Kernel],
    run: Callable[[Kernel], object],
    *,
    clock: Callable[[], float] = time.perf_counter,
    synchronise: Callable[[], None] = lambda: None,
) -> dict[str, float]:
    """Seconds of the fastest run of each kernel, by turns; those far behind are not run again."""
    best = dict.fromkeys((k.name for k in kernels), float("inf"))
    for turn in range(1 + ROUNDS):
        limit = CLOSE * min(best.values())
        for kernel in kernels:
            if turn > 1 and best[kernel.name] > limit:
                continue
            start = clock()
            run(kernel)
            synchronise()
            elapsed = clock() - start
            if turn > 0:  # the first run allocates, packs and compiles
                best[kernel.name] = min(best[kernel.name], elapsed)
    return best


def _synchronise(device: torch.device) -> Callable[[], None]:
    return torch.cuda.synchronize if device.type == "cuda" else lambda: None
