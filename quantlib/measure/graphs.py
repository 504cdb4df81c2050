"""A call on a GPU without the time that Python takes to launch it. Start from :func:`graphed`.

A kernel of ten microseconds waits for the fifty that PyTorch needs to launch it, and then every way to multiply takes
equally long. A model that is to write fast records its step once as a CUDA graph and replays it; so do measurements of
kernels, and say so.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

WARMUP = 3  # calls before the recording: what compiles, tunes and allocates once must not be recorded


def graphed(call: Callable[[], object]) -> Callable[[], object]:
    """`call` recorded as a CUDA graph: the same kernels on the same tensors, launched at once.

    The result is the same object at every replay, with new values in it. Raises RuntimeError where CUDA is missing, or
    where the call does what cannot be recorded, as reading a number back to the CPU.
    """
    if not torch.cuda.is_available():
        raise RuntimeError("a CUDA graph needs a CUDA device, and PyTorch finds none: time the call itself")
    aside = torch.cuda.Stream()
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):
        for _ in range(WARMUP):
            call()
    torch.cuda.current_stream().wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = call()

    def replay() -> object:
        graph.replay()
        return result

    return replay
