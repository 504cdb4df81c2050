"""What every format of checkpoint has to say about itself. Start from :class:`Format`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from quantlib.layers.mixed import MixedInt8Linear
from quantlib.layers.weight_only import Int4Linear, Int8Linear, QuantizedLinear
from quantlib.numerics.grid import Grid
from quantlib.numerics.quantize import QuantizedTensor

FLOATS = (torch.float16, torch.bfloat16, torch.float32)


@dataclass(frozen=True)
class Part:
    """What a tensor of a quantized layer has to be. optional: a file may lack it."""

    shape: tuple[int, ...]
    dtypes: tuple[torch.dtype, ...]
    optional: bool = False


@dataclass(frozen=True)
class Note:
    """What a format has no word for, kept in the files' metadata: what the grid was."""

    symmetric: bool
    narrow_range: bool


class Format(Protocol):
    """How the layers of one model are kept: the same grid in all of them.

    marker  the tensor that only a quantized layer has
    """

    marker: str
    grid: Grid

    def config(self, left: Sequence[str]) -> dict:
        """quantization_config, as other tools read it. left: linear layers that stay as they are."""
        ...

    def parts(self, out: int, columns: int) -> dict[str, Part]:
        """The tensors of a layer [out, in]. Raises ValueError for a shape that the format cannot hold."""
        ...

    def encode(self, q: QuantizedTensor) -> dict[str, Tensor]:
        """A layer's tensors. Raises ValueError where they would not say what q is."""
        ...

    def decode(self, parts: Mapping[str, Tensor], out: int, columns: int) -> QuantizedTensor:
        """The layer of its tensors. Raises ValueError for values that the format does not allow."""
        ...

    def layer(self, q: QuantizedTensor, bias: Tensor | None) -> QuantizedLinear:
        """The layer as quantize_model makes it."""
        ...


def weight_only(q: QuantizedTensor, bias: Tensor | None) -> QuantizedLinear:
    """The layer of a weight whose activations stay floats."""
    return (Int8Linear if q.grid.bits > 4 else Int4Linear).from_quantized(q, bias)


def weight_only_grid(layers: Mapping[str, QuantizedLinear], format: str) -> Grid:
    """The one grid of these layers. Raises ValueError for layers with int8 activations and for several grids."""
    for name, layer in layers.items():
        if isinstance(layer, MixedInt8Linear):
            raise ValueError(
                f"{name} multiplies integers (LLM.int8()), and format={format!r} says nothing of activations: "
                "save it with format='bitsandbytes'"
            )
    first, grid = next((name, layer.grid) for name, layer in layers.items())
    for name, layer in layers.items():
        if layer.grid != grid:
            raise ValueError(
                f"{first} is on {grid} and {name} on {layer.grid}: format={format!r} holds one grid for all layers"
            )
    return grid


def check_bits(grid: Grid, held: Sequence[int], format: str) -> None:
    """Raises ValueError for bits and groups that a format does not hold."""
    if grid.bits not in held:
        said = " or ".join(map(str, held))
        raise ValueError(f"format={format!r} holds codes of {said} bits, got {grid.bits}: quantize to another grid")
    if grid.group_size == "tensor":
        raise ValueError(
            f'format={format!r} holds no scale for a whole matrix: quantize with group_size="row" or a number'
        )


def check_multiple(what: str, count: int, of: int, format: str) -> None:
    """Raises ValueError unless count is a multiple."""
    if count % of:
        raise ValueError(f"format={format!r} holds {what} in multiples of {of}, got {count}: skip this layer")


def check_scale(scale: Tensor) -> None:
    """Raises ValueError unless every scale is a positive number."""
    if not bool((torch.isfinite(scale) & (scale > 0)).all()):
        raise ValueError("a scale is not a positive number: the file is damaged")


def check_codes(q: QuantizedTensor) -> QuantizedTensor:
    """q, if its codes and zero points are on its grid. Raises ValueError if not."""
    check_scale(q.scale)
    for name, values in (("codes", q.codes), ("zero points", q.zero_point)):
        if values is not None and values.numel():
            low, high = (int(v) for v in values.aminmax())
            if low < q.grid.qmin or high > q.grid.qmax:
                raise ValueError(f"{name} reach from {low} to {high}, beyond {q.grid.qmin} to {q.grid.qmax}")
    return q


def offset_codes(q: QuantizedTensor) -> Tensor:
    """The codes as unsigned numbers uint8 [out, in], 0 to 2^bits − 1."""
    return (q.codes.to(torch.int16) + 2 ** (q.grid.bits - 1)).to(torch.uint8)


def signed_codes(values: Tensor, bits: int) -> Tensor:
    """Unsigned numbers uint8 back to codes int8."""
    return (values.to(torch.int16) - 2 ** (bits - 1)).to(torch.int8)


def groups_of(grid: Grid, columns: int) -> int:
    """How many groups a row has. Raises ValueError if they do not divide it."""
    return grid.scale_shape(1, columns)[1]


def in_order(grid: Grid, columns: int) -> Tensor:
    """The group of each column where they stand in order, int32 [in]."""
    return torch.arange(columns, dtype=torch.int32) // (columns // groups_of(grid, columns) or 1)


def group_index(g_idx: Tensor, grid: Grid, columns: int) -> Tensor | None:
    """A file's g_idx int32 [in]; None where it says that columns stand in order.

    Raises ValueError for a group that there is not, and for groups of several sizes.
    """
    groups = groups_of(grid, columns)
    if g_idx.numel() and not (0 <= int(g_idx.min()) and int(g_idx.max()) < groups):
        raise ValueError(
            f"g_idx runs from {int(g_idx.min())} to {int(g_idx.max())}, and the groups are 0 to {groups - 1}"
        )
    if g_idx.equal(in_order(grid, columns)):
        return None
    if len(set(torch.bincount(g_idx.long(), minlength=groups).tolist())) != 1:
        raise ValueError(f"g_idx does not give each of the {groups} groups as many columns as the others")
    return g_idx


def to_minus_one(group_size: int | str) -> int:
    """group_size as checkpoints write it: −1 for a row."""
    return -1 if group_size == "row" else group_size


def from_minus_one(group_size: int) -> int | str:
    """group_size as checkpoints write it, as a Grid has it. Raises ValueError for other negative numbers and 0."""
    if group_size != -1 and group_size < 1:
        raise ValueError(f"group_size must be −1 (a row) or at least 1, got {group_size}")
    return "row" if group_size == -1 else group_size


def fp16_scale(q: QuantizedTensor, format: str) -> Tensor:
    """q's scale. Raises ValueError if it is not float16, which these checkpoints keep."""
    if q.scale.dtype != torch.float16:
        raise ValueError(
            f"format={format!r} keeps scales in float16 and these are {str(q.scale.dtype).removeprefix('torch.')}: "
            "quantize with scale_dtype=torch.float16, so that codes are rounded against what is stored"
        )
    return q.scale
