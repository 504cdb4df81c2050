"""working_memory.py against what tiny models of the families really allocate, and 7B bytes against the published shapes."""

import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from quantlib.models.sizes import REAL_MODELS, footprint, model_shape
from quantlib.models.working_memory import activations, kv_cache, logits
from quantlib.numerics.grid import Grid

TINY = {
    "vocab_size": 96, "hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 3, "num_attention_heads": 6,
    "num_key_value_heads": 2, "max_position_embeddings": 64,
}  # fmt: skip
FAMILIES = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**TINY)),
    "llama, no groups": lambda: LlamaForCausalLM(LlamaConfig(**{**TINY, "num_key_value_heads": 6})),
    "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**TINY)),
    "mistral, heads of 16": lambda: MistralForCausalLM(MistralConfig(**TINY, head_dim=16)),
}


@torch.no_grad()
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("batch", "tokens"), [(1, 7), (3, 20)])
def test_the_cache_is_what_a_model_of_the_family_allocates(family, batch, tokens):
    model = FAMILIES[family]().bfloat16().eval()
    config = model.config.to_dict()
    cache = model(torch.ones(batch, tokens, dtype=torch.long), use_cache=True).past_key_values
    held = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
    assert held == kv_cache(config, tokens, batch)
    assert 2 * held == kv_cache(config, tokens, batch, bits=32)


@torch.no_grad()
def test_the_widest_place_of_a_block_is_its_mlp():
    model = FAMILIES["llama"]().eval()
    mlp, seen = model.model.layers[1].mlp, {}
    handles = [
        mlp.register_forward_pre_hook(lambda _, args: seen.update(input=args[0], residual=args[0])),
        mlp.gate_proj.register_forward_hook(lambda _, args, out: seen.update(gate=out)),
        mlp.up_proj.register_forward_hook(lambda _, args, out: seen.update(up=out)),
        mlp.down_proj.register_forward_pre_hook(lambda _, args: seen.update(product=args[0])),
    ]
    out = model(torch.ones(2, 11, dtype=torch.long)).logits
    for handle in handles:
        handle.remove()
    assert sum(each.nbytes for each in seen.values()) == activations(model.config.to_dict(), 11, 2, bits=32)
    assert out.nbytes == logits(model.config.to_dict(), 11, 2)


def by_hand(vocabulary, width, inner, layers, kv):
    """Weights in linear layers but the head, and everything else, of a Llama with an untied head."""
    return layers * (2 * width * width + 2 * width * kv + 3 * width * inner), 2 * vocabulary * width + (2 * layers + 1) * width


@pytest.mark.parametrize(
    ("name", "shape"),
    {
        "Llama-2-7B": (32000, 4096, 11008, 32, 4096),
        "Llama-3.1-8B": (128256, 4096, 14336, 32, 1024),
        "Llama-2-70B": (32000, 8192, 28672, 80, 1024),
    }.items(),
)
def test_bytes_of_three_public_models_are_the_exact_count(name, shape):
    linear, kept = by_hand(*shape)
    found = footprint(model_shape(REAL_MODELS[name]), Grid(4, 128))
    assert found.total == linear // 2 + 2 * linear // 128 + 2 * kept  # codes, float16 scales, everything else in 16 bits
    assert found.full == 2 * (linear + kept)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**REAL_MODELS[name]))
    assert sum(p.numel() for p in model.parameters()) == linear + kept


def test_a_token_of_three_public_models():
    assert kv_cache(REAL_MODELS["Llama-2-7B"], 1) == 524_288  # half a megabyte
    assert kv_cache(REAL_MODELS["Llama-3.1-8B"], 1) == 131_072  # grouped queries: a quarter
    assert kv_cache(REAL_MODELS["Llama-2-70B"], 1) == 327_680
    with pytest.raises(ValueError, match="tokens must be a whole number from 1 on, got 0"):
        kv_cache(REAL_MODELS["Llama-2-7B"], 0)
