"""GGUF, llama.cpp's and Ollama's file, out of our own codes. Start from :func:`save_gguf`.

Blocks of 32 weights of a row, each with a float16 scale d. Q8_0: w = d·q; Q4_0: w = d·(q − 8); Q4_1: w = d·q + m,
with a float16 minimum m. So symmetric grids go in bit for bit, larger groups too: their blocks repeat a scale.
An asymmetric grid of four bits becomes Q4_1 with m = −zero · scale, rounded to float16 (under 0.01 of a step).

What is not quantized is stored in the dtype it has, vectors in float32. Query and key rows change their order:
llama.cpp rotates neighbours, transformers rotates halves.

Source: ggml's ggml-common.h (block_q4_0, block_q4_1, block_q8_0), as the gguf package reads them.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import gguf
import numpy as np
import torch
from torch import Tensor, nn

from quantlib.layers.mixed import MixedInt8Linear
from quantlib.layers.weight_only import QuantizedLinear
from quantlib.models.checkpoints.folder import new_file
from quantlib.models.checkpoints.skeleton import floats_of
from quantlib.numerics.packing import pack
from quantlib.numerics.quantize import QuantizedTensor
from quantlib.progress import progress

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

BLOCK = 32
TYPES = gguf.GGMLQuantizationType
FILE_TYPES = {
    TYPES.Q8_0: gguf.LlamaFileType.MOSTLY_Q8_0,
    TYPES.Q4_0: gguf.LlamaFileType.MOSTLY_Q4_0,
    TYPES.Q4_1: gguf.LlamaFileType.MOSTLY_Q4_1,
}
FLOATS = {torch.float16: TYPES.F16, torch.bfloat16: TYPES.BF16, torch.float32: TYPES.F32}


def save_gguf(
    model: nn.Module,
    path: str | os.PathLike[str],
    layers: dict[str, QuantizedLinear],
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    """Write a quantized Llama into one file, which appears whole or not at all.

    layers     its quantized layers by name
    tokenizer  SmolLM's: llama.cpp asks for the name of what splits the text, and this is the one that is known here

    Raises ValueError for another architecture or tokenizer, for a rotary embedding that is scaled, and for grids and
    shapes that no block type holds.
    """
    config = model.config
    kinds, vocabulary = check_gguf(model, layers, tokenizer)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    with new_file(Path(path)) as work:
        writer = gguf.GGUFWriter(work, "llama")
        _describe(writer, model, FILE_TYPES[next(iter(kinds.values()))])
        _add_vocabulary(writer, tokenizer, vocabulary)
        for name, data, kind in progress([*_tensors(model, layers, kinds)], "writing", "tensor"):
            found = names.get_name(name, try_suffixes=(".weight", ".bias"))
            if found is None:
                raise ValueError(f"{name} has no name in a Llama's GGUF file")
            writer.add_tensor(found, data, raw_dtype=kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()


def check_gguf(
    model: nn.Module, layers: dict[str, QuantizedLinear], tokenizer: PreTrainedTokenizerBase
) -> tuple[dict[str, gguf.GGMLQuantizationType], dict]:
    """What each layer becomes, and the vocabulary. Raises what save_gguf raises, before anything is written."""
    config = model.config
    if config.model_type != "llama":
        raise ValueError(f"format='gguf' is written for Llama models here, got {config.model_type!r}")
    if (rope := config.rope_parameters).get("rope_type", "default") != "default":
        raise ValueError(f"format='gguf' is written here without scaled rotary embeddings, got {rope!r:.100}")
    kinds = {name: block_type(layer) for name, layer in layers.items()}
    return kinds, _vocabulary(tokenizer, config.vocab_size)


def block_type(layer: QuantizedLinear) -> gguf.GGMLQuantizationType:
    """What holds a layer's codes. Raises ValueError, saying why, if nothing does."""
    grid = layer.grid
    if isinstance(layer, MixedInt8Linear):
        raise ValueError("format='gguf' says nothing of int8 activations: quantize with RTN, GPTQ or AWQ")
    if grid.group_size == "tensor" or layer.packed.order is not None:
        raise ValueError(
            "format='gguf' keeps the scales of neighbouring weights of a row: no act-order, no matrix scale"
        )
    size = layer.in_features if grid.group_size == "row" else grid.group_size
    if size % BLOCK:
        raise ValueError(
            f"format='gguf' has blocks of {BLOCK} weights, which groups of {size} do not fill: use {BLOCK} or 64"
        )
    if not grid.symmetric and grid.bits > 4:
        raise ValueError(f"format='gguf' has no block of {grid.bits} bits with a minimum: quantize symmetrically")
    return (TYPES.Q4_0 if grid.bits <= 4 else TYPES.Q8_0) if grid.symmetric else TYPES.Q4_1


def blocks(q: QuantizedTensor, kind: gguf.GGMLQuantizationType) -> np.ndarray:
    """Bytes uint8 [out, bytes] of a matrix. Raises ValueError for scales that float16 does not hold."""
    out, columns = q.shape
    count = columns // BLOCK
    d = q.scale.repeat_interleave(count // q.scale.shape[1], dim=1)  # [out, blocks]
    if not d.to(torch.float16).to(d.dtype).equal(d):
        raise ValueError("format='gguf' keeps scales in float16: quantize with scale_dtype=torch.float16")
    parts = [_bytes(d.to(torch.float16))]
    if kind == TYPES.Q8_0:
        parts.append(q.codes.view(torch.uint8).view(out, count, BLOCK))
    else:
        if q.zero_point is not None:
            zero = (q.zero_point.float() + 8).repeat_interleave(count // q.scale.shape[1], dim=1)
            parts.append(_bytes((-zero * d.float()).to(torch.float16)))
        halves = q.codes.view(out, count, 2, BLOCK // 2)  # a byte holds weight j and weight j + 16
        pairs = halves.transpose(2, 3).reshape(out * count, BLOCK)
        parts.append(pack(pairs, 4).view(out, count, BLOCK // 2))
    return torch.cat(parts, dim=2).flatten(1).numpy()


def _bytes(values: Tensor) -> Tensor:
    return values.contiguous().view(torch.uint8).view(*values.shape, 2)


def _tensors(
    model: nn.Module, layers: dict[str, QuantizedLinear], kinds: dict
) -> Iterator[tuple[str, np.ndarray, gguf.GGMLQuantizationType]]:
    heads = {"q_proj": model.config.num_attention_heads, "k_proj": model.config.num_key_value_heads}
    for name, layer in layers.items():
        q = layer.quantized()
        if count := heads.get(name.rpartition(".")[2]):
            rows = interleaved(q.shape[0], count)
            zero = None if q.zero_point is None else q.zero_point[rows]
            q = QuantizedTensor(q.codes[rows], q.scale[rows], zero, None, q.grid)
        try:
            yield f"{name}.weight", blocks(q, kinds[name]), kinds[name]
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error
    seen: set[int] = set()
    for name, tensor in floats_of(model, layers):
        if id(tensor) in seen:
            continue
        seen.add(id(tensor))
        if count := heads.get(name.split(".")[-2]):
            tensor = tensor[interleaved(tensor.shape[0], count)]
        kind = FLOATS[tensor.dtype] if tensor.ndim > 1 else TYPES.F32
        tensor = tensor.detach().cpu() if tensor.ndim > 1 else tensor.detach().cpu().float()
        data = tensor.contiguous().view(torch.uint8).numpy() if kind == TYPES.BF16 else tensor.contiguous().numpy()
        yield name, data, kind


def interleaved(rows: int, heads: int) -> Tensor:
    """Which row of transformers' order each row of llama.cpp's is: pairs side by side, not half a head apart."""
    order = torch.arange(rows).view(heads, 2, rows // heads // 2)  # [heads, half, d/2]
    return order.transpose(1, 2).flatten()


def _describe(writer: gguf.GGUFWriter, model: nn.Module, file_type: gguf.LlamaFileType) -> None:
    config = model.config
    writer.add_type(gguf.GGUFType.MODEL)
    writer.add_name(os.path.basename(config.name_or_path) or type(model).__name__)
    writer.add_file_type(file_type)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_vocab_size(config.vocab_size)


def _vocabulary(tokenizer: PreTrainedTokenizerBase, size: int) -> dict:
    """What tokenizer.json says. Raises ValueError unless it splits text as SmolLM's does and fills the embedding."""
    facts = json.loads(tokenizer.backend_tokenizer.to_str()) if getattr(tokenizer, "is_fast", False) else {}
    splits = [
        (each["type"], each.get("individual_digits"))
        for each in (facts.get("pre_tokenizer") or {}).get("pretokenizers", [])
    ]
    if splits != [("Digits", True), ("ByteLevel", None)] or facts["model"]["type"] != "BPE":
        raise ValueError(
            "format='gguf' is written here with SmolLM's tokenizer, whose name llama.cpp knows: this is another"
        )
    if len(tokenizer) > size:
        raise ValueError(f"the tokenizer has {len(tokenizer)} tokens and the model {size}")
    return facts


def _add_vocabulary(writer: gguf.GGUFWriter, tokenizer: PreTrainedTokenizerBase, facts: dict) -> None:
    pieces = {index: piece for piece, index in tokenizer.get_vocab().items()}
    special = {each["id"] for each in facts["added_tokens"] if each["special"]}
    size = max(pieces) + 1
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list([pieces.get(i, f"[PAD{i}]") for i in range(size)])
    kind = {True: gguf.TokenType.CONTROL, False: gguf.TokenType.NORMAL}
    writer.add_token_types([kind[i in special] if i in pieces else gguf.TokenType.UNUSED for i in range(size)])
    merges = facts["model"]["merges"]
    writer.add_token_merges([each if isinstance(each, str) else " ".join(each) for each in merges])
    ids = {"bos": tokenizer.bos_token_id, "eos": tokenizer.eos_token_id}
    ids |= {"unk": tokenizer.unk_token_id, "pad": tokenizer.pad_token_id}
    for role, index in ids.items():
        if index is not None:
            getattr(writer, f"add_{role}_token_id")(index)
    writer.add_add_bos_token(False)
    writer.add_add_space_prefix(False)
    if tokenizer.chat_template:
        writer.add_chat_template(tokenizer.chat_template)
