"""The linear layers of a model, and a twin of the model to work on. Start from :func:`linear_layers`.

Linear layers are nn.Linear and GPT-2's Conv1D, exactly; a subclass, or a weight with a parametrization, may be read by
others and is left alone.
"""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from quantlib.layers.weight_only import QuantizedLinear
from quantlib.numerics.floats import floats

HEAD = ("lm_head",)
LARGE = 0.005  # of a model's parameters


@dataclass(frozen=True, eq=False)
class LinearLayer:
    """A linear layer: the module, all the names it is reached by, its weight as [out, in]."""

    module: nn.Module
    names: tuple[str, ...]
    weight: Tensor
    bias: Tensor | None

    @property
    def name(self) -> str:
        return self.names[0]


def linear_layers(model: nn.Module, skip: Sequence[str] = HEAD) -> tuple[list[LinearLayer], list[tuple[str, str]]]:
    """Those that can be quantized, each once, in the model's order, and those left alone with the reason.

    skip  layers to leave alone: full names, last parts of a name, or patterns as in "model.layers.0.*"

    A layer whose weight another module holds as well, one that stays as it is (the embedding, of a tied head), is left
    alone too: converted, it would make the model larger. An empty skip asks for those as well.

    Raises ValueError for a skip that matches nothing.
    """
    names: dict[int, list[str]] = {}
    modules: dict[int, nn.Module] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        names.setdefault(id(module), []).append(name)
        modules[id(module)] = module
    found, left, used = [], [], set()
    for key, module in modules.items():
        if not _like_linear(module):
            continue
        patterns = {pattern for pattern in skip for name in names[key] if _matches(name, pattern)}
        used |= patterns
        reason = f"skip names it ({min(patterns)})" if patterns else _unusual(module)
        if reason:
            left.append((names[key][0], reason))
            continue
        weight = module.weight.detach()
        weight = weight.t() if is_conv1d(module) else weight  # Conv1D keeps [in, out]
        found.append(LinearLayer(module, tuple(names[key]), weight, module.bias))
    unused = [pattern for pattern in skip if pattern not in used and tuple(skip) != HEAD]
    if unused:
        raise ValueError(f"skip={unused[0]!r} matches no linear layer of the model: correct it or leave it out")
    if not skip:
        return found, left
    kept = _holders(model, {id(layer.module) for layer in found})
    tied = [(layer.name, f"its weight is also {holder}'s") for layer in found if (holder := kept.get(_key(layer.module)))]
    names_of_tied = {name for name, _ in tied}
    return [layer for layer in found if layer.name not in names_of_tied], left + tied


def _holders(model: nn.Module, without: set[int]) -> dict[int, str]:
    """id of a parameter -> the name of a module that holds it, of those that stay as they are."""
    modules = [(name, module) for name, module in model.named_modules() if id(module) not in without]
    return {id(p): name or "the model" for name, module in reversed(modules) for p in module._parameters.values()}


def _key(module: nn.Module) -> int:
    return id(module._parameters["weight"])


@dataclass(frozen=True)
class Uncovered:
    """Parameters that no rule covers: the first one's name, its shape, and how many are alike but for a number."""

    name: str
    shape: tuple[int, ...]
    count: int

    def __str__(self):
        return f"{self.name} {list(self.shape)}" + (f" and {self.count - 1} more like it" if self.count > 1 else "")


def uncovered(model: nn.Module, layers: Sequence[LinearLayer], left: Sequence[tuple[str, str]]) -> tuple[Uncovered, ...]:
    """Large floating-point parameters that are neither a layer's, nor of one that was left alone, nor an embedding's.

    Experts fused into one parameter are such, and convolutions. Large: together at least LARGE of all parameters.
    """
    known = {id(p) for layer in layers for p in layer.module.parameters()}
    known |= {id(p) for name, _ in left for p in model.get_submodule(name).parameters()}
    known |= {id(p) for m in model.modules() if isinstance(m, nn.Embedding | nn.EmbeddingBag) for p in m.parameters()}
    groups: dict[tuple[str, tuple[int, ...]], list[str]] = {}
    for name, p in model.named_parameters():
        if p.is_floating_point() and id(p) not in known:
            groups.setdefault((re.sub(r"\b\d+\b", "*", name), tuple(p.shape)), []).append(name)
    found = [Uncovered(names[0], shape, len(names)) for (_, shape), names in groups.items()]
    least = LARGE * parameters_of(model)
    return tuple(each for each in found if math.prod(each.shape) * each.count >= least)


def parameters_of(model: nn.Module) -> int:
    """How many floating-point parameters a model has, each counted once."""
    return sum(p.numel() for p in model.parameters() if p.is_floating_point())


def set_weight(module: nn.Module, weight: Tensor) -> None:
    """Give a linear layer another weight [out, in]: a new parameter, the old tensor stays as it is."""
    weight = weight.t() if is_conv1d(module) else weight
    module.weight = nn.Parameter(weight.to(module.weight.dtype).contiguous(), requires_grad=False)


def twin_of(model: nn.Module, replaced: dict[int, nn.Module] | None = None) -> nn.Module:
    """The model with module objects, Parameter objects and buffers of its own; its parameters share the model's memory.

    replaced  by id of a module of the model: what stands in its place

    Raises ValueError, naming the module, where something cannot be copied.
    """
    replaced = replaced or {}
    if id(model) in replaced:
        return replaced[id(model)]
    memo: dict[int, object] = dict(replaced)  # what deepcopy meets again, it takes from here
    memo |= {id(p): _own(p) for p in model.parameters() if type(p) is nn.Parameter}
    memo |= {id(b): b.detach().clone() for b in model.buffers() if not b.is_mkldnn}
    try:
        return copy.deepcopy(model, dict(memo))
    except Exception:  # whatever a module of others raises
        memo |= {id(t): t.detach() for m in model.modules() for t in tree_leaves(vars(m)) if _computed(t)}
    try:
        return copy.deepcopy(model, dict(memo))
    except Exception as error:
        raise ValueError(
            f"{_culprit(model, memo)} cannot be copied ({str(error).partition(chr(10))[0]}), and the new model needs a "
            "copy: take it out before, and put it into the new model afterwards"
        ) from error


def dequantized(model: nn.Module) -> nn.Module:
    """The model with float layers, in its dtype, in place of its quantized ones: what it answers depends on no kernel.

    The floats take the memory that quantizing had saved; everything else is shared with the model.
    """
    layers: dict[int, nn.Module] = {}
    for layer in model.modules():
        if isinstance(layer, QuantizedLinear):
            weight = layer.quantized().dequantize(next(model.parameters()).dtype)  # [out, in]
            linear = nn.Linear(layer.in_features, layer.out_features, False, device="meta")
            linear.weight = nn.Parameter(weight, False)
            linear.bias = layer.bias
            layers[id(layer)] = linear
    return twin_of(model, layers)


def _own(parameter: nn.Parameter) -> nn.Parameter:
    """Another Parameter over the same memory, so that .to() and gradients of one are not the other's."""
    own = nn.Parameter(parameter.detach(), requires_grad=parameter.requires_grad)
    own.__dict__.update(parameter.__dict__)
    return own


def _computed(value: object) -> bool:
    """Whether this is a tensor that deepcopy refuses: the result of a computation that keeps its gradient."""
    return isinstance(value, Tensor) and not value.is_leaf


def _culprit(model: nn.Module, memo: dict[int, object]) -> str:
    """The first module, with its attribute, that cannot be copied."""
    themselves = {id(module): module for module in model.modules()}
    for name, module in model.named_modules():
        others = {key: each for key, each in themselves.items() if key != id(module)}
        if _copies(module, memo | others):
            continue
        for attribute, value in vars(module).items():
            if not _copies(value, memo | themselves):
                return f"{name}.{attribute}".lstrip(".")
        return name or "model"
    return "model"


def _copies(value: object, memo: dict[int, object]) -> bool:
    try:
        copy.deepcopy(value, dict(memo))
    except Exception:  # whatever a module of others raises
        return False
    return True


def is_conv1d(module: nn.Module) -> bool:
    """Whether this is GPT-2's linear layer, which keeps its weight as [in, out]."""
    return type(module).__name__ == "Conv1D" and type(module).__module__.startswith("transformers.")


def _matches(name: str, pattern: str) -> bool:
    return fnmatchcase(name, pattern) or name.rpartition(".")[2] == pattern


def _like_linear(module: nn.Module) -> bool:
    return isinstance(module, (nn.Linear, QuantizedLinear)) or is_conv1d(module)


def _unusual(module: nn.Module) -> str | None:
    """Why a layer that looks linear is not converted."""
    if isinstance(module, QuantizedLinear):
        return "it is quantized already"
    if hasattr(module, "parametrizations") or "weight" not in module._parameters:
        return "its weight is computed by a parametrization"
    if type(module) is not nn.Linear and not is_conv1d(module):
        return f"it is a {type(module).__name__}, whose weight others may read"
    return None


def check_weights(layers: Sequence[LinearLayer]) -> list[tuple[float, float]]:
    """The smallest and the largest weight of each layer; 0 where there is none.

    Raises ValueError naming the first layer whose weight has no values, integers, NaN or infinite values.
    """
    extremes = []
    for layer in layers:
        name = layer.name or "model"
        if layer.weight.is_meta:
            raise ValueError(f"{name}.weight is on the meta device and has no values: load the model first")
        if not layer.weight.is_floating_point():
            raise ValueError(f"{name}.weight is {layer.weight.dtype}: quantize a model in floating point")
        ends = [(0.0, 0.0)]
        for chunk in layer.weight.split(256) if layer.weight.numel() else ():
            ends.append(tuple(end.item() for end in floats(chunk, f"{name}.weight").aminmax()))  # NaN if one is
            if not all(math.isfinite(end) for end in ends[-1]):
                raise ValueError(f"{name}.weight holds NaN or infinite values: repair the weight, or skip the layer")
        extremes.append((min(low for low, _ in ends), max(high for _, high in ends)))
    return extremes
