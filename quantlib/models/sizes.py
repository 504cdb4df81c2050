"""What a quantized model weighs, exactly, from its configuration alone. Start from :func:`footprint`.

No weight is loaded: the model is built on PyTorch's meta device, where tensors have shapes and nothing else.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from quantlib.numerics.grid import Grid
from quantlib.numerics.quantize import quantize


def _config(kind: str, words: int, width: int, inner: int, layers: int, heads: int, kv_heads: int, *, tied: bool) -> dict:
    return {
        "model_type": kind,
        "vocab_size": words,
        "tie_word_embeddings": tied,
        "hidden_size": width,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
    }


REAL_MODELS = {  # the shapes in the models' own config.json
    "Llama-2-7B": _config("llama", 32000, 4096, 11008, 32, 32, 32, tied=False),
    "Llama-2-70B": _config("llama", 32000, 8192, 28672, 80, 64, 8, tied=False),
    "Llama-3.1-8B": _config("llama", 128256, 4096, 14336, 32, 32, 8, tied=False),
    "Qwen2.5-0.5B": _config("qwen2", 151936, 896, 4864, 24, 14, 2, tied=True),
    "SmolLM2-135M": _config("llama", 49152, 576, 1536, 30, 9, 3, tied=True),
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
