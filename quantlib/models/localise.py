"""Which layer of a quantized model is broken, not merely rounded. Start from :func:`find_faulty_layer`.

A quantized model that talks nonsense has one bad layer, or a grid that is too coarse everywhere; a perplexity does not
tell which. So every layer is held against the reference's on the reference's own inputs, where no other layer's error
reaches it, and against what its grid explains: weights rounded to steps of Δ are off by Δ²/12 in the mean square, and
an input of size x makes an output error of x²·Δ²/12 of that. The layer is cut into cells, the weights of a row that
share a scale, because a single bad one is lost in the error of the whole.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from quantlib.layers.weight_only import QuantizedLinear
from quantlib.methods.gptq import squared_output
from quantlib.models.calibration import collect_stats
from quantlib.models.linears import HEAD, is_conv1d, linear_layers
from quantlib.numerics.floats import floats
from quantlib.numerics.grid import Grid
from quantlib.numerics.rounding import group_extremes, scale_and_zero_point

BEYOND = 2.5  # so many times what rounding explains is a fault; rounding to nearest stays below √3 (Δ/2 over Δ/√12)
CELL = 32  # columns of a cell where no grid says it
TINY = 1e-30
CLOSE = 1e-2  # of a parameter's size: what a cast to bfloat16 may move


@dataclass(frozen=True)
class LayerCheck:
    """One layer on the reference's inputs.

    error   ‖(Ŵ − W) x‖ / ‖W x‖ over all tokens
    times   how far its worst cell is beyond what its grid explains: 1 is rounding to nearest
    row, column  where that cell begins
    """

    name: str
    kind: str
    error: float
    times: float
    row: int
    column: int


@dataclass(frozen=True)
class Localised:
    """Every layer, in the model's order; `faulty` has those beyond `limits` (by kind of layer), the worst first."""

    layers: tuple[LayerCheck, ...]
    limits: dict[str, float]

    @property
    def faulty(self) -> tuple[LayerCheck, ...]:
        bad = (layer for layer in self.layers if layer.times > self.limits[layer.kind])
        return tuple(sorted(bad, key=lambda layer: -layer.times))

    @property
    def name(self) -> str | None:
        """The worst faulty layer's name; None if all are explained by their grids."""
        return self.faulty[0].name if self.faulty else None

    def __str__(self):
        ranked = sorted(self.layers, key=lambda layer: -layer.times)[:5]
        head = f"{len(self.faulty)} of {len(self.layers)} layers beyond what rounding explains; the worst cells:"
        return "\n".join([head, *(
            f"  {l.times:8.2f} times in row {l.row} from column {l.column}, {l.name} (error {l.error:.4f})" for l in ranked
        )])  # fmt: skip


def find_faulty_layer(
    model: nn.Module, reference: nn.Module, windows: Tensor | Sequence[Tensor], *, skip: Sequence[str] = HEAD
) -> Localised:
    """Hold every linear layer of a quantized model against the reference's, on the reference's inputs.

    model      as quantize_model returns, or with float layers that were rounded elsewhere. Not changed
    reference  the float model it was made of, with the same names. Not changed
    windows    int64 [count, length]: text, a few windows will do
    skip       layers to leave out, as in quantize_model

    A cell is beyond what rounding explains if its weights and its output both are: methods that read text move weights
    where no input notices. Where a layer is float its grid is not known, and the median of the layers of its kind (the
    last part of the name) stands for it. A kind whose layers are all off by more than their grids say sets its own
    limit. What a layer multiplies by is judged; what it does with activations is not.

    Raises ValueError for layers that the other model does not have or has in another shape, and for embeddings, norms
    and biases that differ: a model with folded scales (AWQ, SmoothQuant) has other layers than its reference, so pass
    the folded floats. TypeError for what is no model; and what collect_stats raises for windows.
    """
    for argument, value in (("model", model), ("reference", reference)):
        if not isinstance(value, nn.Module):
            raise TypeError(f"{argument} must be a torch.nn.Module, got {type(value).__name__}")
    trained = {layer.name: floats(layer.weight, f"{layer.name}.weight") for layer in linear_layers(reference, skip)[0]}
    if not trained:
        raise ValueError("reference has no float linear layer: pass the model as it was before it was quantized")
    modules = dict(model.named_modules())
    pairs = {name: (w, *_rounded(name, w, modules.get(name))) for name, w in trained.items()}
    _check_the_rest(model, reference, {f"{name}.weight" for name in trained})
    stats = collect_stats(reference, windows, skip=skip)
    cells = {name: _cells(*pair, stats[name].gram) for name, pair in pairs.items()}
    units = _units(cells)
    checks = tuple(_check(name, *cells[name], *units[name]) for name in cells)
    usual = {}
    for kind in {c.kind for c in checks}:
        kin = [c.times for c in checks if c.kind == kind]
        usual[kind] = statistics.median_low(kin if len(kin) > 1 else [c.times for c in checks])
    return Localised(checks, {kind: BEYOND * max(1.0, times) for kind, times in usual.items()})


def _rounded(name: str, w: Tensor, module: nn.Module | None) -> tuple[Tensor, Grid | None]:
    """What the model's layer of this name multiplies by, [out, in], and its grid if it has one."""
    if isinstance(module, QuantizedLinear):
        q = module.quantized()
        w_hat, grid = q.dequantize(torch.float32), q.grid
    elif isinstance(module, nn.Linear) or (module is not None and is_conv1d(module)):
        w_hat, grid = floats(module.weight.detach(), f"{name}.weight"), None
        w_hat = w_hat.t() if is_conv1d(module) else w_hat
    else:
        kind = "nothing" if module is None else f"a {type(module).__name__}"
        raise ValueError(f"{name} is a linear layer of the reference and {kind} in model: pass the model made of it")
    if w_hat.shape != w.shape:
        raise ValueError(f"{name} is {list(w_hat.shape)} in model and {list(w.shape)} in reference: pass the model made of it")
    if not bool(torch.isfinite(w_hat).all()):
        raise ValueError(f"{name} holds NaN or infinite weights in model: that is the fault")
    return w_hat, grid


def _check_the_rest(model: nn.Module, reference: nn.Module, judged: set[str]) -> None:
    """All parameters but the judged weights must be the same, but for a cast."""
    theirs = dict(model.named_parameters())
    for name, p in reference.named_parameters():
        other = theirs.get(name)
        if name in judged or p.is_meta or (other is None and name.rpartition(".")[2] == "weight"):
            continue  # a head that skip does not name, quantized too
        apart = None if other is None or other.shape != p.shape else (other.float() - p.float()).norm().item()
        if apart is None or not apart <= CLOSE * p.float().norm().item():
            raise ValueError(
                f"{name} is another in model than in reference: either it is the fault, or scales were folded into it "
                "(AWQ, SmoothQuant), and then the folded float model is the reference"
            )


Cells = tuple[Tensor, Tensor, Tensor, Tensor, float, int]


def _cells(w: Tensor, w_hat: Tensor, grid: Grid | None, gram: Tensor) -> Cells:
    """Of every cell [out, cells]: the squared error of its weights and of its output, and what explains them (by the
    grid's steps; without one, its own size); then the layer's relative error, and the columns of a cell.
    """
    w, w_hat = w.to(gram), w_hat.to(gram)  # float32, or float64 of a float64 model
    out, columns = w.shape
    by_group = grid is not None and isinstance(grid.group_size, int)
    wide = grid.group_size if by_group else CELL if columns % CELL == 0 else columns
    diagonal = gram.view(columns // wide, wide, columns // wide, wide).diagonal(dim1=0, dim2=2).permute(2, 0, 1)
    size = diagonal.diagonal(dim1=1, dim2=2)  # [cells, wide]: the squares of each input, summed over tokens
    d = (w_hat - w).view(out, -1, wide)

    def outputs(v: Tensor) -> Tensor:
        return torch.einsum("rgi,gij,rgj->rg", v, diagonal, v).clamp(min=0)

    if grid is None:
        explained = w.view(out, -1, wide).square().sum(-1), outputs(w.view(out, -1, wide))
    else:
        step = scale_and_zero_point(*group_extremes(w, grid), grid, torch.float32)[0].to(w)  # [out or 1, groups]
        share = (step.square() / 12).expand(out, -1).expand(out, size.shape[0])
        explained = share * wide, share * size.sum(-1)
    error = (squared_output(w_hat - w, gram) / max(TINY, squared_output(w, gram))) ** 0.5
    return d.square().sum(-1), outputs(d), *explained, error, wide if grid else -wide


def _units(cells: dict[str, Cells]) -> dict[str, tuple[float, float]]:
    """What the errors of a layer are counted in: 1 on a grid; else the median share of its kind, of weights and outputs."""
    by_kind: dict[str, list[tuple[float, float]]] = {}
    for name, (weights, outputs, of_weights, of_outputs, _, wide) in cells.items():
        shares = [(a / b.clamp(min=TINY)).median().item() for a, b in ((weights, of_weights), (outputs, of_outputs))]
        by_kind.setdefault(_kind(name), []).append((1.0, 1.0) if wide > 0 else tuple(shares))
    least = torch.finfo(torch.bfloat16).eps ** 2 / 12  # what a cast may have cost
    return {
        name: (1.0, 1.0) if wide > 0 else tuple(max(least, statistics.median(v)) for v in zip(*by_kind[_kind(name)], strict=True))
        for name, (*_, wide) in cells.items()
    }  # fmt: skip


def _check(
    name: str, weights: Tensor, outputs: Tensor, of_weights: Tensor, of_outputs: Tensor, error: float, wide: int,
    unit: float, unit_out: float,
) -> LayerCheck:  # fmt: skip
    """The worst cell: how many times what is explained both its weights and its output are off."""
    floor = [max(TINY, 1e-6 * t.mean().item()) for t in (of_weights, of_outputs)]  # a cell of zeros explains nothing
    ratios = [
        (found / (u * explained.clamp(min=low))).sqrt()
        for found, explained, u, low in zip((weights, outputs), (of_weights, of_outputs), (unit, unit_out), floor, strict=True)
    ]
    times = torch.minimum(*ratios)  # [out, cells]
    row, cell = divmod(times.argmax().item(), times.shape[1])
    return LayerCheck(name, _kind(name), error, times[row, cell].item(), row, cell * abs(wide))


def _kind(name: str) -> str:
    return name.rpartition(".")[2]
