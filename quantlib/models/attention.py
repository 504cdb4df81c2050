"""What a value projection is really multiplied by. Start from :func:`value_layers`.

Nobody reads the values v = x W_vᵀ of a token as they are: query head h reads A_h v, with A_h [tokens, tokens] its
attention weights. What W_v has to keep is A_h x W_vᵀ, so its Gram matrix is Σ_h (A_h x)ᵀ(A_h x) over the query heads
that share a kv head: one matrix for each kv head, for the rows of W_v that make its values. A token that everybody
reads, the attention sink, weighs there what it is worth; in xᵀx it is one token among all.

The weights A come from transformers' eager attention, which returns them whatever the family: grouped queries, rotary
or learned positions, sliding windows, soft caps are all in A already.

Source: Kim et al. 2024 (BoA, arXiv:2406.13474), section 3, has this as the value's part of its attention Hessians.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

QUERIES = 128  # at once


@dataclass(frozen=True, eq=False)
class ValueLayer:
    """A linear layer that makes values: the attention it belongs to, and which of its rows are values.

    attention  returns (output, weights [batch, heads, queries, keys]) when attention is eager
    first      the rows before it make something else (GPT-2 stacks queries, keys and values in one layer)
    head_dim   rows of each kv head
    heads      how many kv heads
    """

    attention: nn.Module
    first: int
    head_dim: int
    heads: int


def value_layers(model: nn.Module) -> dict[str, ValueLayer]:
    """The value projections of a transformers model, by the layer's name; empty for a model without any that is known.

    Known are attention modules with a head_dim whose values are made by a linear `v_proj` (Llama, Qwen, Gemma, OPT, …),
    by the last rows of `qkv_proj` (Phi-3), or by the last third of `c_attn` (GPT-2).
    """
    found = {}
    for name, module in model.named_modules():
        head_dim = getattr(module, "head_dim", None)
        if not isinstance(head_dim, int):
            continue
        for child in ("v_proj", "c_attn", "qkv_proj"):
            layer = getattr(module, child, None)
            if not isinstance(layer, nn.Module) or not hasattr(layer, "weight"):
                continue
            if child == "c_attn":
                rows = layer.weight.shape[1] // 3  # a Conv1D keeps [in, out]
                out = 3 * rows
            elif child == "qkv_proj":
                out, rows = layer.weight.shape[0], head_dim * module.config.num_key_value_heads
            else:
                out = rows = layer.weight.shape[0]
            found[f"{name}.{child}"] = ValueLayer(module, out - rows, head_dim, rows // head_dim)
            break
    return found


def read_by_rows(
    x: Tensor, attention: Tensor | None, value: ValueLayer | None, text: Tensor | None
) -> Iterator[Tensor]:
    """What the rows of a weight are multiplied by, [samples, in] each: x, or for values what attention makes of it.

    x          [tokens, in]
    attention  A of a value layer, [query heads, queries, tokens]; its query heads lie below each other in samples
    text       bool [tokens]: only what these tokens read; None for all

    Of a value layer with other rows first (value.first), x comes first, for all of those.
    """
    said = x if text is None else x[text.to(x.device)]
    if value is None or value.first:
        yield said
    if value is not None:
        queries = attention if text is None else attention[:, text.to(attention.device)]
        for weights in queries.unflatten(0, (value.heads, -1)):  # [query heads of one kv head, queries, tokens]
            yield torch.cat([_made(some, x) for some in weights.to(x.dtype).split(QUERIES, 1)])


def _made(weights: Tensor, x: Tensor) -> Tensor:
    """A x for some queries [heads, queries, tokens], without the tokens that none of them reads: [heads · queries, in]."""
    read = weights.flatten(0, 1).any(0).nonzero()  # causal: half of all products are with 0
    end = int(read[-1]) + 1 if len(read) else 0
    return weights[..., :end].flatten(0, 1) @ x[:end]


@contextmanager
def eager(model: nn.Module) -> Iterator[None]:
    """Inside, the model's attention returns its weights. The model's configuration is changed and put back."""
    config = model.config
    before = config._attn_implementation
    config._attn_implementation = "eager"
    try:
        yield
    finally:
        config._attn_implementation = before
