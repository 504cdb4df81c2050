"""A model's modules without its weights. Start from :func:`skeleton`.

Parameters are on the meta device and cost nothing; buffers are computed, because no checkpoint keeps those that a
configuration gives (the frequencies of rotary embeddings).
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from quantlib.models.linears import is_conv1d

LAYERS = ("num_hidden_layers", "n_layer", "num_layers", "n_layers")
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def skeleton(config: Mapping, most_layers: int) -> nn.Module:
    """The causal language model that a config.json describes.

    most_layers  more blocks than this cannot be in the file. Raises ValueError for what transformers does not build.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    words = {key: value for key, value in config.items() if key not in ("quantization_config", "auto_map")}
    for key in LAYERS:
        if isinstance(words.get(key), int) and words[key] > most_layers:
            raise ValueError(f"config.json: {key}={words[key]} is more than the {most_layers} tensors of the file fill")
    try:
        described = AutoConfig.for_model(words.pop("model_type", None), **words)
        with _parameters_on_meta():
            model = AutoModelForCausalLM.from_config(described, dtype=dtype_of(config), trust_remote_code=False)
    except Exception as error:  # whatever a configuration of a stranger makes a model's constructor raise
        said = str(error).strip().partition("\n")[0][:200]
        raise ValueError(f"config.json describes no causal language model that can be built: {said}") from error
    return model.eval().requires_grad_(False)


def dtype_of(config: Mapping) -> torch.dtype:
    """What a config.json says of the floats. Raises ValueError for another kind."""
    said = config.get("dtype", config.get("torch_dtype")) or "float32"
    if said not in DTYPES:
        raise ValueError(f"config.json: dtype must be one of {', '.join(DTYPES)}, got {said!r:.60}")
    return DTYPES[said]


def linear_shapes(model: nn.Module) -> dict[str, tuple[int, int]]:
    """[out, in] of every layer that may be quantized, by name."""
    shapes = {}
    for name, module in model.named_modules():
        if type(module) is nn.Linear:
            shapes[name] = tuple(module.weight.shape)
        elif is_conv1d(module):
            shapes[name] = tuple(module.weight.t().shape)
    return shapes


def floats_of(model: nn.Module, layers: Collection[str]) -> Iterator[tuple[str, Tensor]]:
    """Parameters and persistent buffers by all their names, without what quantized layers hold but for their biases."""
    for owner, module in model.named_modules(remove_duplicate=False):
        kept = {k: b for k, b in module._buffers.items() if k not in module._non_persistent_buffers_set}
        for last, tensor in (module._parameters | kept).items():
            if tensor is not None and (owner not in layers or last == "bias"):
                yield f"{owner}.{last}".lstrip("."), tensor


@contextmanager
def _parameters_on_meta() -> Iterator[None]:
    """Inside, a module's parameter is on the meta device as soon as the module has it, before anything fills it."""
    register = nn.Module.register_parameter

    def on_meta(self: nn.Module, name: str, param: nn.Parameter | None) -> None:
        if param is not None and not param.is_meta:
            param = nn.Parameter(param.detach().to("meta"), requires_grad=param.requires_grad)
        register(self, name, param)

    nn.Module.register_parameter = on_meta
    try:
        yield
    finally:
        nn.Module.register_parameter = register
