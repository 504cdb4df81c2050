"""Buffers that kernels on a CPU write over at every call. Start from :func:`scratch`."""

from __future__ import annotations

import threading

import torch
from torch import Tensor

CHUNK_BYTES = 2**21  # of a workspace: what a second-level cache holds, and enough columns for an efficient product

_scratch = threading.local()


def scratch(name: str, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """A buffer of this thread that every call under this name writes over; fresh memory costs more than the work."""
    buffers = _scratch.__dict__.setdefault("buffers", {})
    size = 1
    for n in shape:
        size *= n
    buffer = buffers.get((name, dtype))
    if buffer is None or buffer.numel() < size:
        with torch.inference_mode(False):
            buffer = buffers[name, dtype] = torch.zeros(size, dtype=dtype)
    return buffer[:size].view(shape)
