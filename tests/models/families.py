"""Tiny random models of the families that quantize_model is tested on, and windows for them."""

import torch
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

SHARED = {
    "vocab_size": 96, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 64, "pad_token_id": None,
}  # fmt: skip
SLIDING = {**SHARED, "head_dim": 16, "sliding_window": 8, "query_pre_attn_scalar": 16}


def _opt(**changed):
    config = {
        "vocab_size": 96, "hidden_size": 64, "ffn_dim": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
        "max_position_embeddings": 64, "word_embed_proj_dim": 64, "pad_token_id": None,
    }  # fmt: skip
    return OPTForCausalLM(OPTConfig(**{**config, **changed}))


MAKERS = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SHARED)),
    "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**SHARED)),
    "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(**SHARED, head_dim=32)),
    "gemma2": lambda: Gemma2ForCausalLM(Gemma2Config(**SLIDING)),
    "gemma3": lambda: Gemma3ForCausalLM(
        Gemma3TextConfig(**SLIDING, layer_types=["sliding_attention", "full_attention"])
    ),
    "phi3": lambda: Phi3ForCausalLM(Phi3Config(**SHARED)),
    "opt": _opt,
    "opt-350m": lambda: _opt(word_embed_proj_dim=32, do_layer_norm_before=False),
    "gpt2": lambda: GPT2LMHeadModel(GPT2Config(vocab_size=96, n_embd=64, n_layer=2, n_head=4, n_positions=64)),
}
STAGES = {  # the layers of a block that read the same tensor, in the order of their calls
    "llama": [["q_proj", "k_proj", "v_proj"], ["o_proj"], ["gate_proj", "up_proj"], ["down_proj"]],
    "phi3": [["qkv_proj"], ["o_proj"], ["gate_up_proj"], ["down_proj"]],
    "opt": [["q_proj", "k_proj", "v_proj"], ["out_proj"], ["fc1"], ["fc2"]],
    "gpt2": [["attn.c_attn"], ["attn.c_proj"], ["mlp.c_fc"], ["mlp.c_proj"]],
}


def stages(family):
    return STAGES.get(family.partition("-")[0], STAGES["llama"])


def make(family, seed=0):
    """A model whose logits are not near uniform, so that a wrong input is noticed."""
    torch.manual_seed(seed)
    model = MAKERS[family]().eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 2:
                parameter.mul_(4)
    return model


def windows(count=6, length=24, seed=0):
    return torch.randint(0, 96, (count, length), generator=torch.Generator().manual_seed(seed))
