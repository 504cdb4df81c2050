"""The decoder with its steps in C++. Start from :func:`generate_text` and :func:`fastest_decoder`.

Prompts are read as :class:`~quantlib.models.decoder.Decoder` reads them; each further token is one call into
quantlib/kernels/cpu/compiled_step.cpp. It sums in float32. On CPUs with AVX2 and no more, what codes are multiplied by is
taken in sixteen bits where the batch is one text: on the lesson model that moves logits by up to 3e-4 of the largest.
"""

from __future__ import annotations

from contextlib import suppress

import torch
from torch import Tensor, nn

from quantlib.kernels.cpu import compiled
from quantlib.kernels.cpu.compiled_step import CompiledStep, StepLayer, StepMatrix, StepModel
from quantlib.layers.weight_only import Int4Linear, Int8Linear
from quantlib.models.decoder import Decoder
from quantlib.numerics.grid import Grid

TOLERANCE = 3e-3  # of the largest logit: ten times what sixteen bits were seen to move


class CompiledDecoder(Decoder):
    """A Decoder in float32 whose steps are C++. Raises ValueError, as it is made, for what C++ cannot take."""

    def __init__(self, model: nn.Module, context: int, *, batch: int = 1, head: Grid | None = None) -> None:
        """As Decoder. RuntimeError if the first steps are not what PyTorch answers on this machine."""
        super().__init__(model, context, batch=batch, head=head, dtype=torch.float32)

    def _make_ready(self) -> None:
        self._compiled = CompiledStep(step_model(self))
        self._compare()

    def _step(self, tokens: Tensor, starts: list[int]) -> Tensor:
        self._compiled.x.copy_(self.embedding[tokens.view(-1)])  # [batch, hidden]
        self._compiled.positions.copy_(torch.tensor(starts))
        return self._compiled().clone()  # [batch, vocabulary]

    def _compare(self) -> None:
        """Two tokens in both ways, before anyone relies on this one."""
        for start in range(min(2, self.context)):
            tokens, starts = torch.full((self.batch,), start), [start] * self.batch
            wanted, got = super()._step(tokens, starts), self._step(tokens, starts)
            fault = float((got - wanted).abs().max() / wanted.abs().max())
            if not fault < TOLERANCE:
                raise RuntimeError(f"the compiled step is wrong on this CPU (relative error {fault:.1g}): use Decoder")


def step_model(decoder: Decoder) -> StepModel:
    """A decoder as quantlib.kernels.cpu.compiled_step reads it."""
    layers = [
        StepLayer(
            block.attention_norm, _matrix(block.qkv), _matrix(block.out),
            block.mlp_norm, _matrix(block.gate_up), _matrix(block.down), block.keys, block.values,
        )
        for block in decoder.blocks
    ]  # fmt: skip
    tables = decoder.cos, decoder.sin
    return StepModel(layers, decoder.heads, decoder.norm, _matrix(decoder.head), *tables, decoder.epsilon)


def fastest_decoder(model: nn.Module, context: int, *, batch: int = 1, head: Grid | None = None) -> Decoder:
    """A CompiledDecoder where C++ was built, takes this model and answers right here; else a Decoder."""
    if compiled.available():
        with suppress(ValueError, RuntimeError):
            return CompiledDecoder(model, context, batch=batch, head=head)
    return Decoder(model, context, batch=batch, head=head)  # which says what is wrong with the arguments


def generate_text(model: nn.Module, tokenizer: object, prompt: str, tokens: int = 48, *, head: Grid | None = None) -> str:
    """What a model writes after a prompt, the likeliest token every time, by the fastest decoder of this machine.

    head  as in Decoder. Raises ValueError for an empty prompt and what Decoder raises.
    """
    ids = tokenizer(prompt)["input_ids"]
    if not ids:
        raise ValueError(f"prompt must hold at least one token, got {prompt!r}")
    decoder = fastest_decoder(model, len(ids) + tokens, head=head)
    return tokenizer.decode(decoder.generate(ids, tokens))


def _matrix(layer: nn.Module) -> StepMatrix:
    if isinstance(layer, nn.Linear):
        return StepMatrix(layer.weight.detach(), layer.bias)
    if isinstance(layer, Int4Linear | Int8Linear):
        return StepMatrix(layer.packed, layer.bias)
    return StepMatrix(layer, None)  # which is refused
