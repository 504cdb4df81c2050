"""A model with its linear layers quantized: a new one, and a report. Start from :func:`quantize_model`.

The caller's model is never changed. The new one has modules, Parameter objects and buffers of its own. Parameters that
stay share the memory of the old ones, so converting needs the memory of the quantized layers and of one layer's
arithmetic, not of a second model. So .to(), .half(), gradients and the statistics that training keeps in buffers are each
model's own; what writes into parameters in place (an optimizer's step, load_state_dict) writes into both models, until
copy.deepcopy gives one of them memory of its own.

A method says how one layer is made: :class:`RTN` rounds the weights to nearest, :class:`LLMInt8` makes layers that
multiply integers. Others follow the same protocol: `method.layer_for(name, weight, bias) -> (layer, QuantizedTensor)`,
and `method.grid`. :class:`GPTQ` reads calibration text first; what it knows of a layer then comes as a Calibrated.
AWQ (quantlib.models.awq) scales a twin of the model first, which another method, or rounding, then quantizes.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from quantlib.layers.mixed import MixedInt8Linear
from quantlib.layers.weight_only import Int4Linear, Int8Linear, QuantizedLinear
from quantlib.methods.gptq import gptq_with_damping, squared_output
from quantlib.methods.llm_int8 import ROW_INT8
from quantlib.methods.residual import corrected_target
from quantlib.methods.scales import weighted_clip
from quantlib.models.awq import AWQ, Rounding, Scaled
from quantlib.models.calibration import collect_stats
from quantlib.models.errors import check_scales, relative_error, scale_loss
from quantlib.models.linears import (
    HEAD,
    LinearLayer,
    check_weights,
    is_conv1d,
    linear_layers,
    parameters_of,
    twin_of,
    uncovered,
)
from quantlib.models.report import LayerReport, Report
from quantlib.models.sequence import Calibrated, in_sequence
from quantlib.numerics.floats import floats
from quantlib.numerics.grid import Grid
from quantlib.numerics.quantize import QuantizedTensor, quantize
from quantlib.progress import progress


@dataclass(frozen=True)
class RTN:
    """Round to nearest: the weights alone decide, no text is read. scale_dtype: as in quantize."""

    grid: Grid
    scale_dtype: torch.dtype = torch.float16

    def layer_for(self, name: str, weight: Tensor, bias: Tensor | None) -> tuple[QuantizedLinear, QuantizedTensor]:
        """The layer of a float weight [out, in], and the weight it stands for."""
        q = quantize(weight, self.grid, scale_dtype=self.scale_dtype)
        return _weight_only(q, bias), q


@dataclass(frozen=True)
class LLMInt8:
    """LLM.int8(): int8 weights and activations, outlier columns in floating point (quantlib.layers.mixed).

    threshold   at which a column of the activations is an outlier, at run time; None: W8A8 without outliers
    keep_float  outlier columns are multiplied by the float weight, which is then kept as well
    """

    threshold: float | None = 6.0
    keep_float: bool = False

    grid, scale_dtype = ROW_INT8, torch.float32

    def layer_for(self, name: str, weight: Tensor, bias: Tensor | None) -> tuple[QuantizedLinear, QuantizedTensor]:
        """The layer of a float weight [out, in], and the weight it stands for."""
        q = quantize(weight, ROW_INT8, scale_dtype=self.scale_dtype)
        return MixedInt8Linear(q, bias, self.threshold, weight.clone() if self.keep_float else None), q


@dataclass(frozen=True)
class GPTQ:
    """GPTQ (quantlib.methods.gptq), block by block: each layer is calibrated behind layers that are quantized already.

    grid               of the weights
    act_order, damp, block_size   as in gptq_quantize
    sequential         False: every layer is calibrated on what the float model makes of the text ("one shot")
    through_attention  value projections are given the Gram matrix of what attention makes of their inputs
                       (quantlib.models.attention)
    search_scales      the grid of each group ends where the error weighted by H's diagonal is least (weighted_clip)
    residual           α of corrected_target: how much of what the quantized layers before have changed is corrected
                       here. 0.0: nothing. Needs sequential statistics, and the text passes the float model as well
    residual_damp      λ of corrected_target
    scale_dtype        as in quantize
    """

    grid: Grid
    act_order: bool = True
    damp: float = 0.01
    block_size: int = 128
    sequential: bool = True
    through_attention: bool = False
    search_scales: bool = False
    residual: float = 0.0
    residual_damp: float = 0.01
    scale_dtype: torch.dtype = torch.float16

    def __post_init__(self):
        if self.residual and not self.sequential:
            raise ValueError(
                "residual corrects what quantized layers changed; with sequential=False there are none: set it to 0"
            )

    def quantized(self, weight: Tensor, known: Calibrated) -> tuple[QuantizedTensor, float]:
        """A float weight [out, in] quantized, and the damping that was needed."""
        gram, target = known.stats.gram, weight
        if self.residual:
            target = corrected_target(weight, known.cross, gram, alpha=self.residual, damp=self.residual_damp)
        kept = {"scale_dtype": self.scale_dtype}
        clip = weighted_clip(target, gram, self.grid, **kept) if self.search_scales else 1.0
        options = {"act_order": self.act_order, "damp": self.damp, "block_size": self.block_size, **kept}
        return gptq_with_damping(target, gram, self.grid, clip=clip, **options)

    def calibrate(
        self, model: nn.Module, layers: Sequence[LinearLayer], windows: object, replace: Callable[[Calibrated], Tensor]
    ) -> None:
        """Call replace for every layer with what is known of it; it returns the weight that later layers see."""
        if self.sequential:
            options = {"through_attention": self.through_attention, "cross": bool(self.residual)}
            in_sequence(model, [layer.name for layer in layers], windows, replace, **options)
            return
        wanted = {layer.name for layer in layers}
        skip = [layer.name for layer in linear_layers(model, ())[0] if layer.name not in wanted]
        stats = collect_stats(model, windows, skip=skip, through_attention=self.through_attention)
        for layer in layers:
            replace(Calibrated(layer.name, stats[layer.name], None))


def quantize_model(
    model: nn.Module,
    method: RTN | LLMInt8 | GPTQ | AWQ,
    windows: object = None,
    skip: Sequence[str] = HEAD,
    *,
    strict: bool = False,
) -> tuple[nn.Module, Report]:
    """A new model whose linear layers are quantized, and the Report.

    model    any module, a single nn.Linear too. Not changed; parameters that stay share their memory with the new model's
    method   RTN(grid), LLMInt8(threshold), GPTQ(grid, ...) or AWQ(grid, ...)
    windows  calibration text for methods that read one (GPTQ, AWQ): int64 [count, length], as token_windows returns
    skip     layers to leave alone: full names, last parts of a name, or patterns as in "model.layers.0.*"
    strict   refuse a model with large parameters that no rule covers, such as experts fused into one parameter, which
             otherwise stay as they are and stand in the report

    Linear layers are nn.Linear and GPT-2's Conv1D, exactly; a subclass, or a weight with a parametrization, is left
    alone, and the report says so. A module in two places becomes one layer in both. A head whose weight is also the
    embedding's stays, whatever it is called; an empty skip converts it too, and the embedding keeps its floats. Hooks
    on a converted layer are not taken over; hooks elsewhere are. Layers whose scales are too small for float16 are
    converted, with a warning and a line in the report.

    All or nothing: raises ValueError, before anything is converted, for a grid that does not divide some layers
    (naming them), a weight on the meta device, NaN or infinite weights and such as make a scale overflow scale_dtype
    (naming the layer), what cannot be copied (naming the module), a skip that matches nothing, a model without linear
    layers, and what strict refuses; and what calibration raises (quantlib.models.calibration). The caller's model is as
    it was even if this is interrupted.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    reads, name = isinstance(method, GPTQ | AWQ), type(method).__name__
    if windows is not None and not reads:
        raise ValueError(f"windows: {name} reads no calibration text: leave it out")
    if windows is None and reads:
        raise ValueError(f"windows: {name} reads calibration text: pass token_windows(text, tokenizer, ...)")
    found, left = linear_layers(model, tuple(skip))
    if not found:
        raise ValueError("model has no linear layer to convert: nn.Linear and Conv1D are, and skip may name them all")
    _check_all(found, method)
    others = uncovered(model, found, left)
    if strict and others:
        names = "; ".join(map(str, others))
        raise ValueError(f"model has large parameters that no rule covers ({names}): leave strict=True out to keep them")
    parameters = parameters_of(model)
    scaled = method.scaled(model, found, windows) if isinstance(method, AWQ) else Scaled(model, method, {}, ())
    model, method = scaled.model, scaled.rounding
    found, left = linear_layers(model, tuple(skip))
    stand_ins = {id(layer.module): nn.Module() for layer in found}
    new = twin_of(model, stand_ins)  # before the work, so that what cannot be copied is known before it
    made: dict[str, tuple[nn.Module, LayerReport]] = {}
    if reads:
        by_name = {layer.name: layer for layer in found}
        with progress(found, name, "layer") as bar:

            def replace(known: Calibrated) -> Tensor:
                layer = by_name[known.name]
                made[known.name], weight = _converted(layer, method, known, scaled.scales.get(known.name))
                bar.update()
                return weight

            method.calibrate(model, found, windows, replace)
        _warn_of_few_tokens([made[layer.name][1] for layer in found])
    else:
        for layer in found:
            made[layer.name], _ = _converted(layer, method, None, None)
    for layer in found:
        stand_in, converted = stand_ins[id(layer.module)], made[layer.name][0]
        stand_in.__class__, stand_in.__dict__ = type(converted), converted.__dict__
    layers = tuple(made[layer.name][1] for layer in found)
    _warn_of_scales(layers, name)
    return new, Report(layers, tuple(left), parameters, others, scaled.folded)


def _converted(
    layer: LinearLayer, method: Rounding | RTN | LLMInt8, known: Calibrated | None, s: Tensor | None
) -> tuple[tuple[nn.Module, LayerReport], Tensor | None]:
    """The new layer and its report; and the weight it stands for, where later layers are calibrated behind it.

    s: what the columns of its weight were multiplied by before, [in], if they were.
    """
    start, name, calibrated = time.perf_counter(), layer.name or "model", {}
    given, weight = layer.weight, floats(layer.weight, f"{layer.name or 'model'}.weight")
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        try:
            if known is None:
                new, q = method.layer_for(layer.name, weight, layer.bias)
            else:
                q, damping = method.quantized(weight, known)
                new = _weight_only(q, layer.bias)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error
    for warning in said:
        warnings.warn(f"{name}: {warning.message}", warning.category, stacklevel=4)
    new.train(layer.module.training)
    new.float_dtype, new.transposed = weight.dtype, is_conv1d(layer.module)
    elapsed = time.perf_counter() - start
    if known is not None:
        total = squared_output(weight, known.stats.gram) or 1.0
        s = weight.new_ones(weight.shape[1]) if s is None else s.to(weight)
        nearest = quantize(weight / s, method.grid, scale_dtype=q.scale.dtype).dequantize() * s
        lost, by_rounding = (
            squared_output(weight - each, known.stats.gram) / total for each in (q.dequantize(), nearest)
        )
        calibrated = {"tokens": known.stats.tokens, "damping": damping}
        calibrated |= {"output_error": lost, "rounding_error": by_rounding}
    report = LayerReport(
        layer.name,
        tuple(weight.shape),
        q.bits_per_weight,
        relative_error(weight, q),
        elapsed,
        given.numel() * given.element_size(),
        new.packed.nbytes,
        **calibrated,
        scale_loss=scale_loss(weight, q),
    )
    return (new, report), None if known is None else q.dequantize(weight.dtype)


def _warn_of_few_tokens(reports: list[LayerReport]) -> None:
    few = [layer for layer in reports if layer.tokens < layer.shape[1]]
    if few:
        warnings.warn(
            f"{few[0].name or 'model'} read {few[0].tokens} tokens, fewer than its {few[0].shape[1]} inputs "
            f"({len(few)} layers): H is singular there: of what the text does not show nothing is known; calibrate on more",
            stacklevel=3,
        )


def _warn_of_scales(reports: tuple[LayerReport, ...], method: str) -> None:
    small = sorted((layer for layer in reports if layer.scale_loss), key=lambda layer: -layer.scale_loss)
    if small:
        more = f" and {len(small) - 1} more layers have" if len(small) > 1 else " has"
        warnings.warn(
            f"{small[0].name or 'model'}{more} scales that are too small for float16, and rounding errs up to "
            f"{small[0].scale_loss:.3g} times as far as with float32 scales: pass scale_dtype=torch.float32, as in "
            f"{method}(grid, scale_dtype=torch.float32)",
            stacklevel=3,
        )


def _weight_only(q: QuantizedTensor, bias: Tensor | None) -> QuantizedLinear:
    return (Int8Linear if q.grid.bits > 4 else Int4Linear).from_quantized(q, bias)


def _check_all(found: list[LinearLayer], method: RTN | LLMInt8 | GPTQ | AWQ) -> None:
    """What can be known to fail does so before the first layer is converted."""
    grid = method.grid
    extremes = check_weights(found)
    does_not_divide = []
    for layer in found:
        try:
            grid.scale_shape(*layer.weight.shape)
        except ValueError as error:
            does_not_divide.append((layer.name or "model", str(error)))
    if does_not_divide:
        names = ", ".join(name for name, _ in does_not_divide[:4]) + (", …" if len(does_not_divide) > 4 else "")
        raise ValueError(f"{does_not_divide[0][1]}. Layers it does not fit ({len(does_not_divide)}): {names}")
    check_scales(found, extremes, grid, getattr(method, "scale_dtype", torch.float16))
