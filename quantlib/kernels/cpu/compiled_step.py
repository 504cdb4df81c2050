"""A whole step of a decoder as one call into C++, where that was built. Start from :class:`CompiledStep`.

compiled_step.cpp does it; here the model is described to it, once: where its codes, scales, tables and cache lie.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from quantlib.kernels.cpu import compiled
from quantlib.kernels.packed import PackedWeight

MATRIX, POINTER = struct.Struct("q5P5q"), struct.Struct("P")  # as compiled_step.cpp declares them
MODEL = struct.Struct("7qd4P")
CALL = struct.Struct("q4P2q")
MOST_ROWS = 128  # of a batch


@dataclass(frozen=True, eq=False)
class StepMatrix:
    """weight: codes, or floats [out, in]; bias: [out] or None."""

    weight: PackedWeight | Tensor
    bias: Tensor | None


@dataclass(frozen=True, eq=False)
class StepLayer:
    """One block. norms [hidden]; keys and values float32 [batch, kv_heads, context, head_dim], which a step writes."""

    attention_norm: Tensor
    qkv: StepMatrix  # [(heads + 2 kv_heads) · head_dim, hidden]
    out: StepMatrix  # [hidden, heads · head_dim]
    mlp_norm: Tensor
    gate_up: StepMatrix  # [2 · intermediate, hidden]
    down: StepMatrix  # [hidden, intermediate]
    keys: Tensor
    values: Tensor


@dataclass(frozen=True, eq=False)
class StepModel:
    """cos and sin: [context, head_dim], sin of the first half negative. norm: the last one, [hidden]."""

    layers: Sequence[StepLayer]
    heads: int
    norm: Tensor
    head: StepMatrix  # [vocabulary, hidden]
    cos: Tensor
    sin: Tensor
    epsilon: float


def refuses(model: StepModel, library: compiled.Library | None = None) -> str | None:
    """Why C++ cannot take a model's steps, as a clause; None if it can."""
    if library is None and not compiled.available():
        return "it was not built: python -m quantlib build"
    keys = model.layers[0].keys
    if not keys.is_cpu:
        return f"it computes on the CPU, the model is on {keys.device}"
    if keys.shape[0] > MOST_ROWS:
        return f"it takes batches of up to {MOST_ROWS}, this is {keys.shape[0]}"
    for number, layer in enumerate(model.layers):
        for name in ("qkv", "out", "gate_up", "down"):
            if reason := _matrix_refused(getattr(layer, name)):
                return f"{reason} ({name} of layer {number})"
        weight, (_, width) = layer.gate_up.weight, _shape(layer.down)
        if isinstance(weight, PackedWeight) and weight.layout == "int4pack" and width % (2 * weight.data.shape[2]):
            return f"gate and up of {width} rows do not begin with a block of {2 * weight.data.shape[2]} each"
    return f"{reason} (the head)" if (reason := _matrix_refused(model.head)) else None


def _matrix_refused(matrix: StepMatrix) -> str | None:
    p = matrix.weight
    if isinstance(p, Tensor):
        return None
    if not isinstance(p, PackedWeight):
        return f"it does not know {type(p).__name__}"
    if p.layout == "int4pack" or (p.layout == "rows" and not p.nibbles and p.groups == 1 and p.grid.symmetric):
        return None
    return f"it reads PyTorch's int4 order and symmetric int8 rows with one scale each, not {p.grid} as {p.layout}"


class CompiledStep:
    """Holds what C++ reads: the description and the tensors it points to.

    x          float32 [batch, hidden]: write the embeddings of the new tokens here; a step leaves other numbers
    positions  int64 [batch]: and their places in the text, below the context
    """

    def __init__(self, model: StepModel, library: compiled.Library | None = None) -> None:
        """library: by default the one that quantlib.kernels.cpu.compiled.build makes. ValueError for what `refuses` says."""
        if reason := refuses(model, library):
            raise ValueError(f"model cannot be decoded in C++: {reason}")
        self._library = library or compiled.default()
        first, hidden = model.layers[0], model.norm.numel()
        batch, kv_heads, context, head_dim = first.keys.shape
        intermediate = _shape(first.down)[1]
        self._held: list[Tensor] = []
        layers = b"".join(self._layer(layer) for layer in model.layers)
        self._layers = torch.frombuffer(bytearray(layers), dtype=torch.uint8)
        vocabulary = _shape(model.head)[0]
        widest = max((model.heads + 2 * kv_heads) * head_dim, intermediate)
        self.x, self.positions = torch.zeros(batch, hidden), torch.zeros(batch, dtype=torch.int64)
        self._logits, work = torch.empty(batch, vocabulary), torch.empty(2 * batch * widest)
        sizes = (len(model.layers), hidden, intermediate, model.heads, kv_heads, head_dim, context)
        pointers = (self._at(model.cos), self._at(model.sin), self._layers.data_ptr(), self._at(model.norm))
        self._model = MODEL.pack(*sizes, model.epsilon, *pointers) + self._matrix(model.head)
        self._call = (batch, *map(self._at, (self.positions, self.x, self._logits, work)), widest)
        described = (MATRIX.size, len(layers) // len(model.layers), len(self._model) + CALL.size)
        if described != self._library.step_sizes:
            raise RuntimeError(f"the library describes models in {self._library.step_sizes} bytes, not {described}")

    def __call__(self) -> Tensor:
        """Logits float32 [batch, vocabulary], which the next call overwrites. Keys and values gain the new tokens'.

        Uses torch.get_num_threads() threads.
        """
        self._library.decode_step(self._model + CALL.pack(*self._call, torch.get_num_threads()))
        return self._logits

    def _layer(self, layer: StepLayer) -> bytes:
        def pointer(t: Tensor) -> bytes:
            return POINTER.pack(self._at(t))

        return b"".join(
            (
                pointer(layer.attention_norm),
                self._matrix(layer.qkv),
                self._matrix(layer.out),
                pointer(layer.mlp_norm),
                self._matrix(layer.gate_up),
                self._matrix(layer.down),
                pointer(layer.keys),
                pointer(layer.values),
            )
        )

    def _matrix(self, matrix: StepMatrix) -> bytes:
        p, bias = matrix.weight, self._at(matrix.bias)
        if isinstance(p, Tensor):
            return MATRIX.pack(32, self._at(p), 0, 0, bias, 0, *p.shape, 0, 0, 0)
        scale = p.scale if p.scale.dtype == torch.float16 else p.scale.float()
        if p.nibbles:
            scale = scale.expand(p.groups, p.out_features)
        else:
            scale = scale.expand(p.out_features, 1)
        zero = p.zero_points()
        zero = zero if zero is None else zero.expand(p.groups, p.out_features)
        pointers = map(self._at, (p.data, scale, zero))
        block = 2 * p.data.shape[2] if p.nibbles else 0
        half = scale.dtype == torch.float16
        sizes = (p.out_features, p.in_features, p.group_size, half, block)
        return MATRIX.pack(4 if p.nibbles else 8, *pointers, bias, self._at(p.order), *sizes)

    def _at(self, t: Tensor | None) -> int:
        """Where a tensor lies; it is held for as long as this object."""
        if t is None:
            return 0
        t = t.detach()
        t = (t.float() if t.is_floating_point() and t.dtype != torch.float16 else t).contiguous()
        self._held.append(t)
        return t.data_ptr()


def _shape(matrix: StepMatrix) -> tuple[int, int]:
    p = matrix.weight
    return tuple(p.shape) if isinstance(p, Tensor) else (p.out_features, p.in_features)
