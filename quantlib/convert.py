"""A model with its linear layers quantized: a new one, and a report. Start from :func:`quantize_model`.

The caller's model is never changed. The new one has module objects of its own and shares every tensor that stays as it
was, so converting needs the memory of the quantized layers and of one layer's arithmetic, not of a second model.

A method says how one layer is made: :class:`RTN` rounds the weights to nearest, :class:`LLMInt8` makes layers that
multiply integers. Others follow the same protocol: `method.layer_for(name, weight, bias) -> (layer, QuantizedTensor)`,
and `method.grid`.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn

from quantlib.grid import Grid, QuantizedTensor, quantize
from quantlib.layers import Int4Linear, Int8Linear, QuantizedLinear
from quantlib.mixed import MixedInt8Linear
from quantlib.outliers import ROW_INT8

HEAD = ("lm_head",)


@dataclass(frozen=True)
class RTN:
    """Round to nearest: the weights alone decide, no text is read."""

    grid: Grid

    def layer_for(self, name: str, weight: Tensor, bias: Tensor | None) -> tuple[QuantizedLinear, QuantizedTensor]:
        """The layer of a float weight [out, in], and the weight it stands for."""
        q = quantize(weight, self.grid)
        kind = Int8Linear if self.grid.bits > 4 else Int4Linear
        return kind.from_quantized(q, bias), q


@dataclass(frozen=True)
class LLMInt8:
    """LLM.int8(): int8 weights and activations, outlier columns in floating point (quantlib.mixed).

    threshold   at which a column of the activations is an outlier, at run time; None: W8A8 without outliers
    keep_float  outlier columns are multiplied by the float weight, which is then kept as well
    """

    threshold: float | None = 6.0
    keep_float: bool = False

    grid = ROW_INT8

    def layer_for(self, name: str, weight: Tensor, bias: Tensor | None) -> tuple[QuantizedLinear, QuantizedTensor]:
        """The layer of a float weight [out, in], and the weight it stands for."""
        q = quantize(weight, ROW_INT8, scale_dtype=torch.float32)
        return MixedInt8Linear(q, bias, self.threshold, weight.clone() if self.keep_float else None), q


@dataclass(frozen=True)
class LayerReport:
    """name, shape (out, in), bits_per_weight, error = ‖W − Ŵ‖/‖W‖, seconds, and the weight's bytes before and after."""

    name: str
    shape: tuple[int, int]
    bits_per_weight: float
    error: float
    seconds: float
    bytes_before: int
    bytes_after: int


@dataclass(frozen=True)
class Report:
    """What was converted, in the model's order, and what was left alone: (name, why)."""

    layers: tuple[LayerReport, ...]
    left: tuple[tuple[str, str], ...]

    @property
    def bytes_before(self) -> int:
        return sum(layer.bytes_before for layer in self.layers)

    @property
    def bytes_after(self) -> int:
        return sum(layer.bytes_after for layer in self.layers)

    @property
    def bits_per_weight(self) -> float:
        weights = [layer.shape[0] * layer.shape[1] for layer in self.layers]
        return sum(l.bits_per_weight * n for l, n in zip(self.layers, weights, strict=True)) / max(1, sum(weights))

    def __str__(self):
        head = (
            f"{len(self.layers)} linear layers: {self.bytes_before / 1e6:,.1f} MB to {self.bytes_after / 1e6:,.1f} MB, "
            f"{self.bits_per_weight:.2f} bits a weight, {sum(l.seconds for l in self.layers):.1f} s"
        )
        ranked = sorted(self.layers, key=lambda layer: -layer.error)
        worst = [f"  {layer.error:8.4f}  {layer.name} {list(layer.shape)}" for layer in ranked[:5]]
        words = [f"  left as it was: {name}, {why}" for name, why in self.left]
        return "\n".join([head, "largest relative errors of a weight:", *worst, *words])


@dataclass(frozen=True, eq=False)
class _Found:
    """A linear layer: the module, all the names it is reached by, its weight as [out, in]."""

    module: nn.Module
    names: tuple[str, ...]
    weight: Tensor
    bias: Tensor | None


def quantize_model(
    model: nn.Module, method: RTN | LLMInt8, windows: object = None, skip: Sequence[str] = HEAD
) -> tuple[nn.Module, Report]:
    """A new model whose linear layers are quantized, and the Report.

    model    any module, a single nn.Linear too. Not changed; tensors that stay are shared with the new model
    method   RTN(grid) or LLMInt8(threshold)
    windows  calibration text for methods that read one; these two read none
    skip     layers to leave alone: full names, last parts of a name, or patterns as in "model.layers.0.*"

    Linear layers are nn.Linear and GPT-2's Conv1D, exactly; a subclass, or a weight with a parametrization, is left
    alone, and the report says so. A module in two places becomes one layer in both. A head whose weight is also the
    embedding's is converted only if skip says so, and the embedding keeps its floats. Hooks on a converted layer are
    not taken over; hooks elsewhere are.

    All or nothing: raises ValueError, before anything is converted, for a grid that does not divide some layers
    (naming them), a weight on the meta device, NaN or infinite weights (naming the layer), a skip that matches
    nothing, and a model without linear layers.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    if windows is not None:
        raise ValueError(f"windows: {type(method).__name__} reads no calibration text: leave it out")
    found, left = _linear_layers(model, tuple(skip))
    if not found:
        raise ValueError("model has no linear layer to convert: nn.Linear and Conv1D are, and skip may name them all")
    _check_all(found, method.grid)
    made, reports = {}, []
    for layer in found:
        start = time.perf_counter()
        try:
            new, q = method.layer_for(layer.names[0], layer.weight, layer.bias)
        except ValueError as error:
            raise ValueError(f"{layer.names[0] or 'model'}: {error}") from error
        new.train(layer.module.training)
        error = _relative_error(layer.weight, q)
        elapsed = time.perf_counter() - start
        before = layer.weight.numel() * layer.weight.element_size()
        shape = tuple(layer.weight.shape)
        reports.append(LayerReport(layer.names[0], shape, q.bits_per_weight, error, elapsed, before, new.packed.nbytes))
        made[id(layer.module)] = new
    return _rebuilt(model, made), Report(tuple(reports), tuple(left))


def _linear_layers(model: nn.Module, skip: tuple[str, ...]) -> tuple[list[_Found], list[tuple[str, str]]]:
    """Those to convert, each once, and those left alone with the reason."""
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
        weight = weight.t() if _is_conv1d(module) else weight  # Conv1D keeps [in, out]
        found.append(_Found(module, tuple(names[key]), weight, module.bias))
    unused = [pattern for pattern in skip if pattern not in used and skip != HEAD]
    if unused:
        raise ValueError(f"skip={unused[0]!r} matches no linear layer of the model: correct it or leave it out")
    return found, left


def _matches(name: str, pattern: str) -> bool:
    return fnmatchcase(name, pattern) or name.rpartition(".")[2] == pattern


def _is_conv1d(module: nn.Module) -> bool:
    return type(module).__name__ == "Conv1D" and type(module).__module__.startswith("transformers.")


def _like_linear(module: nn.Module) -> bool:
    return isinstance(module, (nn.Linear, QuantizedLinear)) or _is_conv1d(module)


def _unusual(module: nn.Module) -> str | None:
    """Why a layer that looks linear is not converted."""
    if isinstance(module, QuantizedLinear):
        return "it is quantized already"
    if hasattr(module, "parametrizations") or "weight" not in module._parameters:
        return "its weight is computed by a parametrization"
    if type(module) is not nn.Linear and not _is_conv1d(module):
        return f"it is a {type(module).__name__}, whose weight others may read"
    return None


def _check_all(found: list[_Found], grid: Grid) -> None:
    """What can be known to fail does so before the first layer is converted."""
    does_not_divide = []
    for layer in found:
        name = layer.names[0] or "model"
        if layer.weight.is_meta:
            raise ValueError(f"{name}.weight is on the meta device and has no values: load the model first")
        if not layer.weight.is_floating_point():
            raise ValueError(f"{name}.weight is {layer.weight.dtype}: quantize a model in floating point")
        for chunk in layer.weight.split(256):
            if not torch.isfinite(chunk).all():
                raise ValueError(f"{name}.weight holds NaN or infinite values: repair the weight, or skip the layer")
        try:
            grid.scale_shape(*layer.weight.shape)
        except ValueError as error:
            does_not_divide.append((name, str(error)))
    if does_not_divide:
        names = ", ".join(name for name, _ in does_not_divide[:4]) + (", …" if len(does_not_divide) > 4 else "")
        raise ValueError(f"{does_not_divide[0][1]}. Layers it does not fit ({len(does_not_divide)}): {names}")


def _relative_error(weight: Tensor, q: QuantizedTensor) -> float:
    """‖W − Ŵ‖/‖W‖ over all weights, a few rows at a time."""
    missed = total = 0.0
    for rows, codes, number in _by_rows(weight, q):
        part = QuantizedTensor(codes, *number, q.g_idx, q.grid).dequantize()
        missed += (rows.float() - part).double().square().sum().item()
        total += rows.double().square().sum().item()
    return (missed / total) ** 0.5 if total else 0.0


def _by_rows(weight: Tensor, q: QuantizedTensor) -> Iterator[tuple[Tensor, Tensor, tuple[Tensor, Tensor | None]]]:
    for start in range(0, weight.shape[0], 256):
        rows = slice(start, start + 256)
        each = slice(None) if q.scale.shape[0] == 1 else rows
        yield weight[rows], q.codes[rows], (q.scale[each], None if q.zero_point is None else q.zero_point[each])


def _rebuilt(model: nn.Module, made: dict[int, nn.Module]) -> nn.Module:
    """The model with new module objects, the made layers in their places, and every other tensor shared."""
    if id(model) in made:
        return made[id(model)]
    memo: dict[int, object] = dict(made)  # what deepcopy meets again, it takes from here
    for tensor in (*model.parameters(), *model.buffers()):
        memo[id(tensor)] = tensor
    return copy.deepcopy(model, memo)
