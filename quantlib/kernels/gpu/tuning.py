"""Block sizes of the Triton kernels: which were fastest on this GPU. Start from :func:`fastest_config`.

A Triton kernel is one text with free numbers: how large a block of the product one program computes, with how many
warps, how deep its loads are pipelined, and over how many programs the sum is split. The best ones depend on the shape,
the rows of x and the GPU. So each kernel has a plain tuple of configs; the first product of a kind times them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from quantlib.kernels.candidates import rows_bucket


@dataclass(frozen=True)
class Config:
    """The free numbers of a kernel.

    block_n, block_m, block_k  rows of W, rows of x and columns of both in one block; powers of two
    warps, stages              of one program; how many blocks ahead it loads
    split                      programs that share one sum; 1 unless few rows leave the GPU idle
    """

    block_n: int
    block_m: int
    block_k: int
    warps: int
    stages: int
    split: int = 1


INTERPRETED = Config(block_n=32, block_m=16, block_k=32, warps=1, stages=1, split=2)  # small, and every branch runs

_fastest: dict[tuple, Config] = {}
_untuned: ContextVar[bool] = ContextVar("untuned", default=False)


@contextmanager
def untuned() -> Iterator[None]:
    """Inside, fastest_config takes the first config that runs: a probe asks what is right, of many small products."""
    token = _untuned.set(True)
    try:
        yield
    finally:
        _untuned.reset(token)


def fastest_config(
    key: tuple,
    configs: Sequence[Config],
    launch: Callable[[Config], Tensor],
    seconds: Callable[[Callable[[], object]], float] | None = None,
) -> Config:
    """The config with which launch(config) takes least time; remembered under key for the process.

    launch may raise for a config that this GPU has no room for; that one is passed over. So is one that answers
    something else than the first that ran, which is the one that quantlib.kernels.probes has asked.
    seconds: default seconds_on_gpu. Raises RuntimeError, with the last reason, if none is left.
    """
    if key not in _fastest:
        measured, reason, answer = {}, None, None
        for config in configs:
            try:
                y = launch(config)
                if _untuned.get():
                    return config
                answer = y if answer is None else answer
                if agree(y, answer):
                    measured[config] = (seconds or seconds_on_gpu)(lambda config=config: launch(config))
                else:
                    reason = RuntimeError(f"{config} answers something else than the first")
            except Exception as error:  # Triton has no common class for "does not fit", and ptxas raises its own
                reason = error
        if not measured:
            raise RuntimeError(f"none of {len(configs)} block sizes runs for {key}: {reason}") from reason
        _fastest[key] = min(measured, key=measured.get)
    return _fastest[key]


def agree(a: Tensor, b: Tensor) -> bool:
    """Whether two answers differ by no more than another order of summation explains; integers not at all."""
    if not a.is_floating_point():
        return torch.equal(a, b)
    far = (a.double() - b.double()).abs() > 4 * torch.finfo(a.dtype).eps * b.abs().amax().double()
    return not bool((far & torch.isfinite(b)).any())


def candidates_for(configs: Sequence[Config], rows: int, group_size: int) -> tuple[Config, ...]:
    """The configs worth timing for so many rows of x and columns that share a scale.

    A block of x no larger than the rows need, nor so small that W is read again and again. A block of columns never
    crosses a group, so a wider one than the group would be idle in part. Sums are split only while rows are few.
    """
    block_m = min(max(16, rows_bucket(rows)), max(c.block_m for c in configs))
    widest = max(32, 1 << (group_size - 1).bit_length())
    chosen = []
    for c in configs:
        if c.block_m == block_m:
            fitted = replace(c, block_k=min(c.block_k, widest), split=c.split if rows <= 64 else 1)
            chosen += [fitted] if fitted not in chosen else []
    return tuple(chosen)


def seconds_on_gpu(launch: Callable[[], object]) -> float:
    """The fastest of some runs, each with a cold cache, as decoding meets every weight."""
    from triton.testing import do_bench

    return 1e-3 * do_bench(launch, warmup=5, rep=20, return_mode="min")


def interpreting(kernel: object) -> bool:
    """Whether Triton's interpreter runs this kernel, because TRITON_INTERPRET=1 was set when it was defined."""
    from triton import JITFunction

    return not isinstance(kernel, JITFunction)


def check_operands(kernel: object, **tensors: Tensor | None) -> None:
    """Raises ValueError for tensors that are on another device than CUDA or not dense, TypeError for what the
    interpreter gets wrong. The first tensor is the one that the others must be beside."""
    present = {name: t for name, t in tensors.items() if t is not None}
    name, first = next(iter(present.items()))
    if not interpreting(kernel):
        if first.device.type != "cuda":
            raise ValueError(
                f"{name} is on {first.device}, and this kernel runs on CUDA: move it with .to('cuda'), "
                "use quantlib.kernels.linear, or set TRITON_INTERPRET=1 before the first import for a slow check"
            )
    elif torch.bfloat16 in [t.dtype for t in present.values()]:
        raise TypeError(
            "Triton's interpreter computes bfloat16 wrongly: pass float16 or float32 while TRITON_INTERPRET=1"
        )
    for other, tensor in present.items():
        if tensor.device != first.device:
            raise ValueError(f"{other} is on {tensor.device} and {name} on {first.device}: move one with .to(device)")
        if not tensor.is_contiguous():
            raise ValueError(f"{other} {list(tensor.shape)} has strides {tensor.stride()}: pass {other}.contiguous()")


def check_x(x: Tensor, dtypes: Sequence[torch.dtype], name: str = "x") -> None:
    """Raises TypeError unless x is a matrix in one of the dtypes."""
    if x.dtype not in dtypes:
        allowed = ", ".join(str(d).removeprefix("torch.") for d in dtypes)
        raise TypeError(f"{name} must be {allowed}, got {x.dtype}: convert it with {name}.to(dtype)")
    if x.ndim != 2:
        raise ValueError(f"{name} must be [rows, in], got {list(x.shape)}: use {name}.reshape(-1, {name}.shape[-1])")


def device_key(x: Tensor) -> str:
    """What timings belong to: the kind of device, so that two equal GPUs share them."""
    return torch.cuda.get_device_name(x.device) if x.device.type == "cuda" else x.device.type
