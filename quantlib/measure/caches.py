"""How large the processor's cache is, and how to empty it. Start from :func:`cold_buffer`."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from torch import Tensor

CPUS = Path("/sys/devices/system/cpu")
ASSUMED_CACHE_BYTES = 64 * 2**20  # where the system does not tell: more than the CPUs of most laptops have
SIZE_UNITS = {"K": 2**10, "M": 2**20, "G": 2**30}


def cold_buffer(device: str | torch.device) -> Tensor:
    """int64 of at least twice the last-level cache. Reading it leaves nothing else there.

    Twice, because caches do not replace the oldest line strictly: after a buffer of the cache's own size, part of
    what was there before still is.
    """
    elements = -(-2 * last_level_cache_bytes(device) // 8)
    return torch.ones(elements, dtype=torch.int64, device=device)  # not zeros: untouched pages are all one page


def last_level_cache_bytes(device: str | torch.device = "cpu", cpus: Path = CPUS) -> int:
    """Bytes of the last level of cache: of a GPU its L2; else of the CPUs this process may use, each cache once.

    cpus is where Linux describes them. ASSUMED_CACHE_BYTES where nothing is described.
    """
    device = torch.device(device)
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).L2_cache_size
    allowed = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
    shared = {}  # (level, the CPUs that share it) -> bytes
    for cpu in allowed:
        for cache in (cpus / f"cpu{cpu}" / "cache").glob("index*"):
            try:
                level, size, sharing, kind = (
                    (cache / file).read_text().strip() for file in ("level", "size", "shared_cpu_list", "type")
                )
                if kind != "Instruction":
                    shared[int(level), sharing] = int(size[:-1]) * SIZE_UNITS[size[-1]]
            except (OSError, ValueError, KeyError, IndexError):
                continue  # virtual machines may leave out any of these
    last = max((level for level, _ in shared), default=0)
    return sum(size for (level, _), size in shared.items() if level == last) or ASSUMED_CACHE_BYTES
