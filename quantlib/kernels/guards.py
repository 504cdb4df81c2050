"""Memory around a kernel's operands that nothing may read or write. Start from :func:`guarded` and :class:`GuardedResults`.

A kernel that reads beyond the end of x, or writes beyond the end of its result, answers right until other data lie
there. So in a probe x lies between rows of NaN, and what the kernel allocates in Python is a little longer than asked.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

MARK = 0x5A  # of the bytes after a result
ALLOCATORS = {
    getattr(torch.ops.aten, name).default if name != "empty" else torch.ops.aten.empty.memory_format
    for name in ("empty", "new_empty", "empty_like", "zeros", "new_zeros", "zeros_like")
}


def guarded(x: Tensor) -> tuple[Tensor, Tensor]:
    """A copy of x [rows, in], and the memory [rows + 2, in] around it: a row of NaN (of −128 for integers) at each end."""
    memory = torch.full((len(x) + 2, x.shape[1]), torch.nan if x.is_floating_point() else -128, dtype=x.dtype)
    memory[1:-1] = x
    memory = memory.to(x.device)
    return memory[1:-1], memory


class GuardedResults(TorchDispatchMode):
    """While it is active, a tensor that is allocated in Python has as many bytes more as two of its rows, all MARK."""

    def __init__(self):
        super().__init__()
        self._ends: list[Tensor] = []

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # else PyTorch loads its compiler here, which takes most of a second

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if function not in ALLOCATORS or not result.is_contiguous() or not result.numel() or result.is_mkldnn:
            return result
        extra = 2 * (result.shape[-1] if result.ndim > 1 else 64)
        memory = torch.empty(result.numel() + extra, dtype=result.dtype, device=result.device)
        end = memory[result.numel() :].view(torch.uint8)
        end.fill_(MARK)
        self._ends.append(end)
        return memory[: result.numel()].view(result.shape).copy_(result)

    def intact(self) -> bool:
        """Whether every byte after a result is as it was."""
        return all(bool((end == MARK).all()) for end in self._ends)
