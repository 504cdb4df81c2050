"""A quantized model into a folder that other tools load. Start from :func:`save_quantized`."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor, nn

from quantlib.layers.weight_only import QuantizedLinear
from quantlib.models.checkpoints.folder import Shards, check_new, new_folder, write_json
from quantlib.models.checkpoints.formats import format_for
from quantlib.models.checkpoints.headers import metadata_of
from quantlib.models.checkpoints.layout import Format, Note
from quantlib.models.checkpoints.skeleton import floats_of
from quantlib.models.linears import is_conv1d
from quantlib.progress import progress

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SHARD_BYTES = 2_000_000_000


def save_quantized(
    model: nn.Module,
    folder: str | os.PathLike[str],
    format: str,
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    max_shard_bytes: int = SHARD_BYTES,
) -> None:
    """Write a model that quantize_model returned, so that transformers, vLLM and others load it, and load_quantized.

    folder           a new one; it appears under this name whole or not at all, whenever the process ends
    format           "gptq" (version 1: symmetric grids), "gptq_v2", "awq", "compressed-tensors" or "bitsandbytes";
                     "gguf" (Q8_0, Q4_0, Q4_1) writes one file of this name
    tokenizer        is written beside it, and into a GGUF file
    max_shard_bytes  a larger model is split into several files with an index

    Parameters that were not quantized are written in the dtype they have: model.to(torch.bfloat16) before halves them
    and leaves codes and scales as they are.

    Raises ValueError, with what to do, for an existing folder, and rather than write what other tools would read
    wrongly: grids, shapes, orders of columns and layers that a format cannot hold.
    """
    target = Path(folder)
    check_new(target.expanduser().absolute())
    layers = quantized_layers(model)
    if format == "gguf":
        from quantlib.models.checkpoints.gguf import save_gguf  # reads its package only where it is wanted

        if tokenizer is None:
            raise ValueError("tokenizer must be given for format='gguf': the file holds it")
        save_gguf(model, target, layers, tokenizer)
        return
    chosen = format_for(format, layers)
    left = [name for name, module in model.named_modules() if isinstance(module, nn.Linear) or is_conv1d(module)]
    config = config_of(model, chosen, left, format)
    note = Note(chosen.grid.symmetric, chosen.grid.narrow_range)
    with new_folder(target) as work:
        shards = Shards(work, max_shard_bytes, lambda held: metadata_of(held, note))
        for name, tensor in _tensors(model, chosen, layers):
            shards.add(name, tensor)
        shards.close()
        if getattr(model, "generation_config", None) is not None and model.can_generate():
            model.generation_config.save_pretrained(work)
        if tokenizer is not None:
            tokenizer.save_pretrained(work)
        if config["quantization_config"]["quant_method"] == "gptq":
            write_json(work / "quantize_config.json", config["quantization_config"])  # for older readers
        write_json(work / "config.json", config)


def check_format(model: nn.Module, format: str, tokenizer: PreTrainedTokenizerBase | None = None) -> None:
    """Raises what save_quantized would of this model and format, before hours are spent and without writing."""
    layers = quantized_layers(model)
    if format != "gguf":
        config_of(model, format_for(format, layers), [], format)
        return
    if tokenizer is None:
        raise ValueError("tokenizer must be given for format='gguf': the file holds it")
    from quantlib.models.checkpoints.gguf import check_gguf  # reads its package only where it is wanted

    check_gguf(model, layers, tokenizer)


def quantized_layers(model: nn.Module) -> dict[str, QuantizedLinear]:
    """The quantized layers of a causal language model, by every name. Raises ValueError for another kind of model."""
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING

    config = getattr(model, "config", None)
    if MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), None) is not type(model):
        raise ValueError(
            f"model must be a causal language model of transformers, quantized by quantize_model; "
            f"got {type(model).__name__}"
        )
    named = model.named_modules(remove_duplicate=False)
    layers = {name: module for name, module in named if isinstance(module, QuantizedLinear)}
    if not layers:
        raise ValueError("model has no quantized layer: quantize_model(model, method) returns one")
    for name, tensor in floats_of(model, layers):
        if tensor.is_meta:
            raise ValueError(f"{name} is on the meta device and has no values: load the model first")
    return layers


def config_of(model: nn.Module, chosen: Format, left: list[str], format: str) -> dict:
    """config.json as transformers writes it, with what it asks for of a quantized model."""
    config = json.loads(model.config.to_json_string(use_diff=True))
    for key in ("torch_dtype", "_name_or_path", "auto_map"):
        config.pop(key, None)
    config["architectures"] = [type(model).__name__]
    config["dtype"] = str(next(p.dtype for p in model.parameters() if p.is_floating_point())).removeprefix("torch.")
    if isinstance(model.get_output_embeddings(), QuantizedLinear):
        if format in ("awq", "bitsandbytes"):
            raise ValueError(
                f"the head is quantized, and readers of format={format!r} leave heads in floating point: "
                "keep skip=('lm_head',)"
            )
        config["tie_word_embeddings"] = False  # the embedding has floats of its own
    return config | {"quantization_config": chosen.config(left)}


def _tensors(model: nn.Module, chosen: Format, layers: dict[str, QuantizedLinear]) -> Iterator[tuple[str, Tensor]]:
    """Every tensor of the file, one layer's at a time; of tied parameters the first."""
    with progress([*layers.items()], "writing", "layer") as bar:
        for name, layer in bar:
            try:
                parts = chosen.encode(layer.quantized())
            except ValueError as error:
                raise ValueError(f"{name}: {error}") from error
            for part, tensor in parts.items():
                yield f"{name}.{part}", tensor
    seen: set[int] = set()
    for name, tensor in floats_of(model, layers):
        if id(tensor) not in seen:
            seen.add(id(tensor))
            yield name, tensor
