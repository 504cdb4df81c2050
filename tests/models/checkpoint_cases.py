"""Tiny quantized models for the tests of checkpoints, and what makes two of them the same."""

import itertools

import torch
from safetensors.torch import load_file

from quantlib import RTN, Grid, LLMInt8, quantize_model
from quantlib.layers.weight_only import QuantizedLinear

CASES = {  # name -> format, method
    "gptq": ("gptq", RTN(Grid(4, 32))),
    "gptq row": ("gptq", RTN(Grid(4, "row"))),
    "gptq 8 bits": ("gptq", RTN(Grid(8, 32, narrow_range=True))),
    "gptq 2 bits": ("gptq", RTN(Grid(2, 16))),
    "gptq_v2": ("gptq_v2", RTN(Grid(4, 32))),
    "gptq_v2 asymmetric": ("gptq_v2", RTN(Grid(4, 32, symmetric=False))),
    "awq": ("awq", RTN(Grid(4, 32, symmetric=False))),
    "awq symmetric": ("awq", RTN(Grid(4, "row"))),
    "awq narrow": ("awq", RTN(Grid(4, 16, narrow_range=True))),
    "compressed-tensors": ("compressed-tensors", RTN(Grid(4, 32))),
    "compressed-tensors asymmetric": ("compressed-tensors", RTN(Grid(4, 32, symmetric=False))),
    "compressed-tensors 8 bits": ("compressed-tensors", RTN(Grid(8, "row", narrow_range=True))),
    "compressed-tensors 8 bits asymmetric": ("compressed-tensors", RTN(Grid(8, 32, symmetric=False))),
    "bitsandbytes": ("bitsandbytes", LLMInt8(6.0)),
    "bitsandbytes, no outliers": ("bitsandbytes", LLMInt8(None)),
}


def quantized(model, name):
    """(format, the model by the method of this case)."""
    format, method = CASES[name]
    return format, quantize_model(model, method)[0]


def layers(model):
    """Name -> quantized layer."""
    return {name: module for name, module in model.named_modules() if isinstance(module, QuantizedLinear)}


def state(model):
    """All that a model is: {name: tensor or value}, codes and scales as QuantizedTensor has them, and the floats."""
    found = {}
    for name, layer in layers(model).items():
        q = layer.quantized()
        found |= {
            f"{name}.codes": q.codes,
            f"{name}.scale": q.scale,
            f"{name}.zero": q.zero_point,
            f"{name}.g": q.g_idx,
        }
        found |= {f"{name}.kind": (type(layer), q.grid, getattr(layer, "threshold", None))}
    found |= dict(model.named_parameters())
    return found | dict(model.named_buffers(remove_duplicate=True))


def same(a, b):
    """Whether two such states are equal, bit for bit; packed buffers apart, whose order is the machine's affair."""
    names = {key for key in a.keys() | b.keys() if not key.endswith((".data", ".order", ".zero_point"))}
    return all(key in a and key in b and _equal(a[key], b[key]) for key in names)


def tensors_of(folder):
    """Every tensor of a folder's files."""
    return dict(itertools.chain.from_iterable(load_file(file).items() for file in sorted(folder.glob("*.safetensors"))))


def _equal(a, b):
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        return a.dtype == b.dtype and a.shape == b.shape and bool(torch.equal(a, b))
    return type(a) is type(b) and a == b
