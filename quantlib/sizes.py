"""What a quantized model weighs, exactly, from its configuration alone. Start from :func:`footprint`.

No weight is loaded: the model is built on PyTorch's meta device, where tensors have shapes and nothing else.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from quantlib.grid import Grid, quantize

_LLAMA_2 = dict(model_type="llama", vocab_size=32000, tie_word_embeddings=False)
REAL_MODELS = {  # the shapes in the models' own config.json
    "Llama-2-7B": _LLAMA_2
    | dict(
        hidden_size=4096, intermediate_size=11008, num_hidden_layers=32, num_attention_heads=32, num_key_value_heads=32
    ),
    "Llama-2-70B": _LLAMA_2
    | dict(
        hidden_size=8192, intermediate_size=28672, num_hidden_layers=80, num_attention_heads=64, num_key_value_heads=8
    ),
    "Llama-3.1-8B": dict(
        model_type="llama",
        vocab_size=128256,
        tie_word_embeddings=False,
        hidden_size=4096,
        intermediate_size=14336,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=8,
    ),
    "Qwen2.5-0.5B": dict(
        model_type="qwen2",
        vocab_size=151936,
        tie_word_embeddings=True,
        hidden_size=896,
        intermediate_size=4864,
        num_hidden_layers=24,
        num_attention_heads=14,
        num_key_value_heads=2,
    ),
    "SmolLM2-135M": dict(
        model_type="llama",
        vocab_size=49152,
        tie_word_embeddings=True,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
    ),
}


@dataclass(frozen=True)
class ModelShape:
    """linears: how often each (out, in) of a quantizable linear layer occurs; kept: parameters that stay in float."""

    linears: tuple[tuple[tuple[int, int], int], ...]
    kept: int

    @property
    def quantizable(self) -> int:
        """Weights in linear layers."""
        return sum(out * columns * count for (out, columns), count in self.linears)

    @property
    def parameters(self) -> int:
        """All parameters, a tied head counted once."""
        return self.quantizable + self.kept


@dataclass(frozen=True)
class Footprint:
    """Bytes: full (everything in 16 bits), and of the quantized model codes, scales (with zero_points), kept (16 bits)."""

    full: int
    codes: int
    scales: int
    kept: int
    weights: int

    @property
    def total(self) -> int:
        """Bytes of the quantized model."""
        return self.codes + self.scales + self.kept

    @property
    def times_smaller(self) -> float:
        """full / total."""
        return self.full / self.total

    @property
    def bits_per_weight(self) -> float:
        """Bits for each quantized weight, its share of scales and zero_points included."""
        return 8 * (self.codes + self.scales) / self.weights


def model_shape(model: nn.Module | dict, skip: Sequence[str] = ("lm_head",)) -> ModelShape:
    """The shape of a model, or of a configuration such as those in REAL_MODELS (model_type and sizes).

    skip names linear layers, by the last part of their name, that stay in float.
    A configuration is built on the meta device through transformers; an unknown model_type raises its ValueError.
    """
    if not isinstance(model, nn.Module):
        from transformers import AutoConfig, AutoModelForCausalLM

        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**model))
    linears = {
        id(m.weight): m.weight
        for name, m in model.named_modules()
        if isinstance(m, nn.Linear) and name.rpartition(".")[2] not in skip
    }
    kept = {id(p): p.numel() for p in model.parameters() if id(p) not in linears}
    counted = Counter(tuple(weight.shape) for weight in linears.values())
    return ModelShape(tuple(sorted(counted.items())), sum(kept.values()))


def footprint(shape: ModelShape, grid: Grid) -> Footprint:
    """What a model of this shape weighs with its linear layers on this grid, everything else in 16 bits.

    Counts what is needed (``bits_per_weight``): 3 bits count as 3, though today's kernels allocate 4.
    Raises ValueError if the group size does not divide a layer's columns, as quantize does.
    """
    codes = scales = 0
    for (out, columns), count in shape.linears:
        q = quantize(torch.empty(out, columns, device="meta"), grid)
        codes += count * grid.bits * out * columns
        scales += count * round((q.bits_per_weight - grid.bits) * out * columns)
    return Footprint(2 * shape.parameters, codes // 8, scales // 8, 2 * shape.kept, shape.quantizable)
