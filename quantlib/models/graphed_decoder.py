"""The decoder's step as one graph of a GPU. Start from :class:`GraphedDecoder`.

On a GPU a step of a small model waits for Python to launch its kernels: some twenty a layer. A graph is launched once. It
replays the same kernels on the same memory, so nothing in a step may depend on how long the text is: every step reads
the whole cache, and a mask leaves out what is not written yet. :class:`FixedDecoder` is that step, which runs anywhere.
"""

from __future__ import annotations

import torch
from torch import Tensor

from quantlib.models.decoder import Decoder

WARM_UP = 3  # steps in which kernels are compiled, chosen and given their memory


class FixedDecoder(Decoder):
    """A Decoder whose steps have one shape and read their tokens and places from the same memory."""

    def _make_ready(self) -> None:
        self._tokens, self._at = (torch.zeros(self.batch, 1, dtype=torch.int64, device=self.device) for _ in range(2))

    def _step(self, tokens: Tensor, starts: list[int]) -> Tensor:
        self._tokens.copy_(tokens.view(-1, 1))
        self._at.copy_(torch.tensor(starts)[:, None])
        return self._pass()

    def _pass(self) -> Tensor:
        with torch.no_grad():
            hidden = self._hidden(self._tokens, self._at, slice(None), self.context, None)
            return self._logits(hidden[:, 0])  # [batch, vocabulary]


class GraphedDecoder(FixedDecoder):
    """A FixedDecoder on a GPU whose steps are replayed. ValueError for a model that is not on one.

    Making it takes some steps at place 0, for the graph; nothing of them stays.
    """

    def _make_ready(self) -> None:
        super()._make_ready()
        if self.device.type != "cuda":
            raise ValueError(f"model must be on a GPU, it is on {self.device}: model.cuda(), or use fastest_decoder")
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):  # as PyTorch asks for before a capture
            for _ in range(WARM_UP):
                super()._pass()
        torch.cuda.current_stream().wait_stream(stream)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            self._logits_of_graph = super()._pass()

    def _pass(self) -> Tensor:
        self._graph.replay()
        return self._logits_of_graph.clone()
