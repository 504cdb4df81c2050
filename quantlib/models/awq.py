"""AWQ over a model: scales searched, folded into what makes the inputs, then rounding. Start from :class:`AWQ`.

All statistics are the float model's, collected in one pass: what a layer reads after folding is x/s, and its Gram
matrix G/(s sᵀ), so no text is read again. A method that reads text itself (GPTQ) can do the rounding; it then reads it
in the folded model, which answers what the float model answers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from quantlib.methods.awq import ALPHAS, CLIPS, Family, activation_scale, awq_clip, awq_scale
from quantlib.methods.statistics import InputStats
from quantlib.models.calibration import collect_stats
from quantlib.models.folding import Fold, find_folds, fold_in
from quantlib.models.linears import LinearLayer, linear_layers, twin_of
from quantlib.models.sequence import Calibrated
from quantlib.models.windows import checked_windows
from quantlib.numerics.grid import Grid
from quantlib.numerics.quantize import QuantizedTensor, quantize
from quantlib.progress import progress

PROBE = 16  # tokens of the text on which places to fold into are tried

Replace = Callable[[Calibrated], Tensor]


class Rounding(Protocol):
    """What rounds the layers of a model to a grid, one after the other, and reads text for it: GPTQ."""

    grid: Grid

    def quantized(self, weight: Tensor, known: Calibrated) -> tuple[QuantizedTensor, float | None]: ...

    def calibrate(
        self, model: nn.Module, layers: Sequence[LinearLayer], windows: object, replace: Replace
    ) -> None: ...


@dataclass(frozen=True)
class AWQ:
    """AWQ (quantlib.methods.awq): layers that read the same inputs share a scale, folded into what makes these.

    grid               of the weights
    clip               the grid of each group ends where the group's outputs lose least (awq_clip)
    clips              the ends that are tried, as shares of the largest weight (FINE_CLIPS: more of them)
    unclipped          layers that keep their grid's ends, by the last part of their name: the authors leave out what
                       goes into the product of queries and keys
    through_attention  value projections are judged by what attention makes of their inputs (quantlib.models.attention)
    then               the method that rounds the scaled weights: GPTQ(grid, ...). None: to nearest
    alphas, family     as in awq_scale
    scale_dtype        as in quantize

    A layer whose inputs are made by nothing that a scale can go into (behind GELU, or behind a norm that others read as
    well) keeps its weight as it is; the report names them.
    """

    grid: Grid
    clip: bool = True
    clips: Sequence[float] = CLIPS
    unclipped: Sequence[str] = ("q_proj", "k_proj")
    through_attention: bool = False
    then: Rounding | None = None
    alphas: Sequence[float] = ALPHAS
    family: Family = activation_scale
    scale_dtype: torch.dtype = torch.float16

    def __post_init__(self):
        if self.then is not None and self.then.grid != self.grid:
            raise ValueError(f"then rounds to {self.then.grid}, but scales are searched for {self.grid}: use one grid")

    def scaled(self, model: nn.Module, layers: Sequence[LinearLayer], windows: object) -> Scaled:
        """A twin of the model with scales folded in; the model itself is not changed."""
        by_name = {layer.name: layer for layer in layers}
        options = {"family": self.family, "alphas": self.alphas, "scale_dtype": self.scale_dtype}
        others = [layer.name for layer in linear_layers(model, ())[0] if layer.name not in by_name]
        stats = collect_stats(model, windows, skip=others, through_attention=self.through_attention)
        folds = find_folds(model, list(by_name), checked_windows(model, windows)[0][:PROBE])
        twin, scales, folded = twin_of(model), {}, []
        for fold in progress(folds, "AWQ", "scale"):
            if fold.source is None:
                folded.append((_readers(fold), "no scale: nothing before it takes one"))
                continue
            weights, known = zip(*((by_name[name].weight, stats[name]) for name in fold.readers), strict=True)
            try:
                found = awq_scale(weights, known, self.grid, shared=fold.channel, **options)
            except ValueError as error:
                raise ValueError(f"{_readers(fold)}: {error}") from error
            if bool((found.s == 1).all()):
                folded.append((_readers(fold), "no scale: none loses less"))
                continue
            folded.append((_readers(fold), f"into {fold.source}"))
            s = fold_in(twin, fold, found.s)
            scales |= dict.fromkeys(fold.readers, s)
            divided: dict[int, InputStats] = {}  # layers that share statistics go on sharing them
            for name in fold.readers:
                key = id(stats[name])
                divided.setdefault(key, stats[name].divided_by(s))
                stats[name] = divided[key]
        rounding = _ToNearest(self, stats) if self.then is None else self.then
        return Scaled(twin, rounding, scales, tuple(folded))


@dataclass(frozen=True, eq=False)
class Scaled:
    """model with folded scales; the method that rounds its layers; s [in] of each scaled layer; what was folded, in words."""

    model: nn.Module
    rounding: Rounding
    scales: dict[str, Tensor]
    folded: tuple[tuple[str, str], ...]


@dataclass(frozen=True, eq=False)
class _ToNearest:
    """Rounding to nearest, after the clip search, with statistics that are known already."""

    method: AWQ
    stats: dict[str, InputStats]

    @property
    def grid(self) -> Grid:
        return self.method.grid

    def quantized(self, weight: Tensor, known: Calibrated) -> tuple[QuantizedTensor, None]:
        clipped = self.method.clip and known.name.rpartition(".")[2] not in self.method.unclipped
        kept = {"scale_dtype": self.method.scale_dtype}
        clip = awq_clip(weight, known.stats, self.grid, ratios=self.method.clips, **kept) if clipped else 1.0
        return quantize(weight, self.grid, clip=clip, **kept), None

    def calibrate(self, model: nn.Module, layers: Sequence[LinearLayer], windows: object, replace: Replace) -> None:
        for layer in layers:
            replace(Calibrated(layer.name, self.stats[layer.name], None))


def _readers(fold: Fold) -> str:
    return ", ".join([fold.readers[0], *(name.rpartition(".")[2] for name in fold.readers[1:])])
