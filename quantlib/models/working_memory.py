"""What a model holds in memory beside its weights, from its configuration alone. Start from :func:`kv_cache`.

Keys and values of every token that was read are kept in every layer: for long contexts and many readers at once they
outweigh quantized weights. Activations are gone after each layer; what counts is the widest place. Configurations are
those of quantlib.models.sizes (model_type and sizes). A model whose layers look back over a window only (Mistral's
sliding_window) keeps no more than that window: pass it as `tokens`.
"""

from __future__ import annotations

from collections.abc import Mapping


def kv_cache(config: Mapping[str, int], tokens: int, batch: int = 1, *, bits: float = 16) -> int:
    """Bytes of keys and values: 2 · layers · key-value heads · head size · tokens · batch, of so many bits each.

    bits  16 as they are mostly kept; 8.5 and 4.5 are llama.cpp's Q8_0 and Q4_0, a float16 scale for 32 values
    """
    _check(tokens=tokens, batch=batch)
    heads, layers = config["num_attention_heads"], config["num_hidden_layers"]
    size = config.get("head_dim") or config["hidden_size"] // heads
    shared = config.get("num_key_value_heads") or heads
    return round(2 * layers * shared * size * tokens * batch * bits / 8)


def activations(config: Mapping[str, int], tokens: int, batch: int = 1, *, bits: float = 16) -> int:
    """Bytes at the widest place of a block, its MLP: what goes around it, its input, gate, up and their product.

    tokens  that pass at once: those of the prompt while it is read, 1 while writing. Attention is taken to be computed
            piece by piece, without a matrix of tokens by tokens
    """
    _check(tokens=tokens, batch=batch)
    return round((2 * config["hidden_size"] + 3 * config["intermediate_size"]) * tokens * batch * bits / 8)


def logits(config: Mapping[str, int], tokens: int, batch: int = 1, *, bits: float = 32) -> int:
    """Bytes of the logits of so many tokens of each text: 1 to write on, all of them to measure perplexity."""
    _check(tokens=tokens, batch=batch)
    return round(config["vocab_size"] * tokens * batch * bits / 8)


def _check(**counts: int) -> None:
    for name, value in counts.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"{name} must be a whole number from 1 on, got {value!r}")
