"""Model files into transformers models. Start from `read_gguf` (llama.cpp's format) or `read_llama2c` (llama2.c's).

Both give an ordinary float32 `LlamaForCausalLM` with its own copy of the weights, and a tokenizer: they can be saved,
copied and moved like any other. Neither adds a beginning-of-text token when it encodes; `tokenizer.bos_token_id` is
there for those who want one. GGUF files are parsed and dequantized by the gguf package; transformers' own loader, which
uses it too, takes several times as long, keeps a quantization config that refuses `save_pretrained`, and gives this
tokenizer the wrong end-of-text token.
"""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import torch
from gguf import MODEL_ARCH, GGUFReader, TokenType, dequantize, get_tensor_name_map
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import generate_merges
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

GGUF_SIZES = {  # LlamaConfig's name → GGUF's, in the order of llama2.c's header
    "hidden_size": "embedding_length",
    "intermediate_size": "feed_forward_length",
    "num_hidden_layers": "block_count",
    "num_attention_heads": "attention.head_count",
    "num_key_value_heads": "attention.head_count_kv",
    "vocab_size": "vocab_size",
    "max_position_embeddings": "context_length",
}
LLAMA2C_HEADER = struct.Struct("<7i")
FIRST_PIECE = 259  # llama2.c's vocabulary: unknown, begin, end, the 256 bytes, then the pieces


def read_gguf(path: Path) -> tuple[LlamaForCausalLM, PreTrainedTokenizerFast]:
    """The model and tokenizer of a Llama GGUF file with a SmolLM vocabulary; weights dequantized to float32, on the CPU.

    Raises ValueError for a GGUF file of another architecture or vocabulary.
    """
    try:
        reader = _Reader(path)
    except ValueError as error:
        raise ValueError(f"path={str(path)!r} is not a GGUF file that the gguf package reads: {error}") from error
    facts = {name: field.contents() for name, field in reader.fields.items()}
    kind = (facts.get("general.architecture"), facts.get("tokenizer.ggml.pre"))
    if kind != ("llama", "smollm"):
        raise ValueError(f"path={str(path)!r} holds {kind}, not ('llama', 'smollm'): give it to transformers instead")
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    config = LlamaConfig(
        **{size: facts[f"llama.{name}"] for size, name in GGUF_SIZES.items()},
        rms_norm_eps=facts["llama.attention.layer_norm_rms_epsilon"],
        rope_parameters={"rope_type": "default", "rope_theta": facts["llama.rope.freq_base"]},
        tie_word_embeddings="output.weight" not in tensors,
        bos_token_id=facts["tokenizer.ggml.bos_token_id"],
        eos_token_id=facts["tokenizer.ggml.eos_token_id"],
        pad_token_id=facts["tokenizer.ggml.padding_token_id"],
    )
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    names = get_tensor_name_map(MODEL_ARCH.LLAMA, config.num_hidden_layers)  # 'model.norm' → 'output_norm'
    named = {names.get_name(name, try_suffixes=(".weight",)): name for name in model.state_dict()}
    floats = {named[name]: dequantize(tensor.data, tensor.tensor_type) for name, tensor in tensors.items()}
    # writeable, hence with memory of their own: plain floats are still the file's, which is read-only
    weights = {name: torch.from_numpy(np.require(values, requirements="W")) for name, values in floats.items()}
    return _filled(model, weights), _smollm_tokenizer(facts)


def read_llama2c(model_path: Path, tokenizer_path: Path) -> tuple[LlamaForCausalLM, PreTrainedTokenizerFast]:
    """The model (float32, on the CPU) and tokenizer of llama2.c's two files, in its first ("version 0") format.

    Raises ValueError if the model file's length is not what its header announces.
    """
    with open(model_path, "rb") as stream:
        sizes = dict(zip(GGUF_SIZES, LLAMA2C_HEADER.unpack(stream.read(LLAMA2C_HEADER.size)), strict=True))
    values = np.fromfile(model_path, dtype="<f4", offset=LLAMA2C_HEADER.size)
    vocab = sizes["vocab_size"]
    config = LlamaConfig(
        **sizes | {"vocab_size": abs(vocab)},
        rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        tie_word_embeddings=vocab > 0,  # a negative size announces a head of its own, which llama2.c puts last
        bos_token_id=1,
        eos_token_id=2,
    )
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    weights = _split_llama2c(torch.from_numpy(values), model, model_path)
    return _filled(model, weights), _llama2c_tokenizer(tokenizer_path, abs(vocab))


def rotate_half_order(weight: Tensor, heads: int) -> Tensor:
    """Query or key rows [heads · d, in] from llama.cpp's and llama2.c's order to the one transformers rotates.

    Both rotate the same d/2 pairs of a head's outputs, but the former keep a pair side by side, (0, 1), (2, 3), …, and
    transformers keeps it d/2 apart: (0, d/2), (1, d/2 + 1), … A model in the wrong order loads, and talks nonsense.
    """
    out_features, in_features = weight.shape
    pairs = weight.reshape(heads, out_features // heads // 2, 2, in_features)  # [heads, d/2, 2, in]
    return pairs.transpose(1, 2).reshape(out_features, in_features)  # [heads · 2 · d/2, in]


class _Reader(GGUFReader):
    """The gguf package's, three times as fast: it slices its data for every token, and slicing a memmap is slow."""

    data = property(lambda self: self._data, lambda self, mapped: setattr(self, "_data", mapped.view(np.ndarray)))


def _filled(model: LlamaForCausalLM, weights: dict[str, Tensor]) -> LlamaForCausalLM:
    """The model with these very tensors: none is copied, and no random weight was drawn before."""
    config = model.config
    for layer in range(config.num_hidden_layers):
        for projection, heads in (("q_proj", config.num_attention_heads), ("k_proj", config.num_key_value_heads)):
            name = f"model.layers.{layer}.self_attn.{projection}.weight"
            weights[name] = rotate_half_order(weights[name], heads)
    missing, unexpected = model.load_state_dict(weights, strict=False, assign=True)
    if unexpected or set(missing) - ({"lm_head.weight"} if config.tie_word_embeddings else set()):
        raise ValueError(f"the file's tensors are not those of its config: missing {missing}, unexpected {unexpected}")
    model.tie_weights()
    model.model.rotary_emb = LlamaRotaryEmbedding(config)  # its buffers are computed, never stored
    return model.eval().requires_grad_(False)


def _smollm_tokenizer(facts: dict) -> PreTrainedTokenizerFast:
    """Byte-level BPE, as GPT-2's, except that every digit is a token of its own."""
    pieces = facts["tokenizer.ggml.tokens"]
    merges = [tuple(merge.split(" ")) for merge in facts["tokenizer.ggml.merges"]]
    backend = Tokenizer(models.BPE({piece: index for index, piece in enumerate(pieces)}, merges))
    kinds = facts["tokenizer.ggml.token_type"]
    special = [piece for piece, kind in zip(pieces, kinds, strict=True) if kind == TokenType.CONTROL]
    backend.add_special_tokens(special)
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    backend.decoder = decoders.ByteLevel()
    roles = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        chat_template=facts["tokenizer.chat_template"],
        clean_up_tokenization_spaces=False,
        **{role: pieces[facts[f"tokenizer.ggml.{name}_token_id"]] for role, name in roles.items()},
    )


def _split_llama2c(values: Tensor, model: LlamaForCausalLM, path: Path) -> dict[str, Tensor]:
    """llama2.c writes one kind of matrix after another, each for all layers, and RoPE's tables at the end."""
    parts = (
        "input_layernorm", "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj",
        "post_attention_layernorm", "mlp.gate_proj", "mlp.down_proj", "mlp.up_proj",
    )  # fmt: skip
    config, shapes = model.config, {name: weight.shape for name, weight in model.state_dict().items()}
    layers = [f"model.layers.{layer}.{part}.weight" for part in parts for layer in range(config.num_hidden_layers)]
    names = ["model.embed_tokens.weight", *layers, "model.norm.weight", "cosines", "sines"]
    names += [] if config.tie_word_embeddings else ["lm_head.weight"]
    table = torch.Size([config.max_position_embeddings, config.head_dim // 2])
    sizes = [shapes.get(name, table).numel() for name in names]
    if sum(sizes) != len(values):
        raise ValueError(
            f"path={str(path)!r} holds {len(values)} weights and its header announces {sum(sizes)}: fetch it again"
        )
    pieces = zip(names, values.split(sizes), strict=True)
    # clone: views of one buffer would keep the whole file alive and make safetensors take every weight for a shared one
    return {name: piece.reshape(shapes[name]).clone() for name, piece in pieces if name in shapes}


def _llama2c_tokenizer(path: Path, vocab: int) -> PreTrainedTokenizerFast:
    """SentencePiece's BPE, from llama2.c's list of (score, length, text).

    The list holds raw bytes before FIRST_PIECE, so that "a" stands in it twice: as the byte 0x61, for letters that have
    no piece of their own, and as the piece. Only the second may be found by its text.
    """
    data, position = path.read_bytes(), 4  # the length of the longest piece comes first
    scores, names = [], ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    for index in range(vocab):
        score, length = struct.unpack_from("<fi", data, position)
        position += 8 + length
        scores.append(score)
        if index >= FIRST_PIECE:
            names.append(data[position - length : position].decode("utf-8").replace(" ", "▁"))
    ids = {name: index for index, name in enumerate(names)}
    # A piece is joined out of any two pieces that make it up, the piece with the best score first.
    merges = generate_merges(ids, dict(zip(names[FIRST_PIECE:], scores[FIRST_PIECE:], strict=True)))
    backend = Tokenizer(models.BPE(ids, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    backend.add_special_tokens(names[:3])
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", left=1)]
    )
    kinds = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=backend, clean_up_tokenization_spaces=False, **kinds)
