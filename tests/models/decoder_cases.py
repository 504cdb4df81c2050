"""Small random models of the families that quantlib.models.decoder reads, and the methods that quantize them."""

import torch
import transformers
from families import SHARED

from quantlib import AWQ, GPTQ, RTN, Grid, LLMInt8, quantize_model

WORDS = SHARED["vocab_size"]
SHAPE = {
    **SHARED, "max_position_embeddings": 128, "tie_word_embeddings": True,
    "bos_token_id": None, "eos_token_id": None, "attn_implementation": "eager",
}  # fmt: skip
FAMILIES = {
    "grouped queries, tied": ("Llama", {}),
    "a head of its own": ("Llama", {"tie_word_embeddings": False}),
    "a key for each query": ("Llama", {"num_key_value_heads": 4}),
    "one key for all": ("Llama", {"num_key_value_heads": 1, "head_dim": 32}),
    "biases everywhere": ("Llama", {"attention_bias": True, "mlp_bias": True}),
    "llama 3's angles": (
        "Llama",
        {"rope_parameters": {"rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0,
                             "high_freq_factor": 4.0, "original_max_position_embeddings": 32}},
    ),
    "biases of q, k and v": ("Qwen2", {}),
    "a sliding window": ("Mistral", {"sliding_window": 64}),
}  # fmt: skip


def make(family, seed=0, **more):
    """Weights large enough that texts differ."""
    name, other = FAMILIES[family]
    torch.manual_seed(seed)
    config = getattr(transformers, f"{name}Config")(**{**SHAPE, **other, **more})
    model = getattr(transformers, f"{name}ForCausalLM")(config).eval()
    for parameter in model.parameters():
        noise = torch.randn_like(parameter)
        parameter.data = parameter.data * 6 if parameter.ndim == 2 else parameter.data + noise / 4
    return model


def windows():
    return torch.randint(0, WORDS, (8, 32), generator=torch.Generator().manual_seed(1))


def rounded(grid):
    return lambda model: quantize_model(model, RTN(grid))[0]


METHODS = {
    "int8 a row": rounded(Grid(8, "row")),
    "int8 a matrix": rounded(Grid(8, "tensor")),
    "int8 asymmetric groups": rounded(Grid(8, 16, symmetric=False)),
    "int4": rounded(Grid(4, 32)),
    "int4 asymmetric": rounded(Grid(4, 64, symmetric=False)),
    "int4 a row": rounded(Grid(4, "row")),
    "int3": rounded(Grid(3, 32)),
    "int2 asymmetric": rounded(Grid(2, 32, symmetric=False)),
    "the head too": lambda model: quantize_model(model, RTN(Grid(4, 32)), skip=())[0],
    "one layer left": lambda model: quantize_model(
        model, RTN(Grid(4, 32)), skip=("lm_head", "model.layers.1.self_attn.k_proj")
    )[0],
    "GPTQ": lambda model: quantize_model(model, GPTQ(Grid(4, 32)), windows=windows())[0],
    "AWQ": lambda model: quantize_model(model, AWQ(Grid(4, 32)), windows=windows())[0],
    "LLM.int8()": lambda model: quantize_model(model, LLMInt8(6.0))[0],
}


def apart(a, b):
    """The largest difference over the largest logit."""
    return float((a - b).abs().max() / b.abs().max())
