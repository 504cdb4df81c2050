"""Linear layers whose weight is codes. Start from :meth:`Int8Linear.from_quantized` and :meth:`Int4Linear.from_quantized`.

All state is in buffers, and the buffers hold the packed bytes that quantlib.kernels multiplies by: after packing no
float weight is left; `weight` is a view that dequantizes (quantlib.layers.weight). What `state_dict` returns is canonical instead (quantlib.numerics.packing, whatever the machine), and
loading packs again. `.to(dtype)` changes the bias, never codes or scales; `.to(device)` packs for the new device.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn

from quantlib.kernels import PackedWeight, fields, linear, pack_checked, pack_weight, unpack_weight
from quantlib.layers.weight import READ_ONLY, WeightView
from quantlib.numerics.floats import floats
from quantlib.numerics.grid import Grid
from quantlib.numerics.packing import pack, unpack
from quantlib.numerics.quantize import QuantizedTensor

PARTS = ("data", "scale", "zero_point", "order")  # of PackedWeight, each a buffer
BITS_OF_INTEGER = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


class QuantizedLinear(nn.Module):
    """What Int8Linear and Int4Linear share: y = x · Ŵᵀ + bias with Ŵ packed.

    forward takes x [..., in] of any floating dtype and returns [..., out] in the same one.

    float_dtype  of `weight`: of the layer that was converted, else the bias's; .to(dtype) changes it
    """

    bits: range  # that this kind of layer holds
    transposed = False  # weight is [in, out], as in the Conv1D that was converted

    def __init__(self, q: QuantizedTensor, bias: Tensor | None = None, layout: str | None = None):
        super().__init__()
        if not isinstance(q, QuantizedTensor):
            raise TypeError(f"q must be a QuantizedTensor, as quantize(w, grid) returns, got {type(q).__name__}")
        if q.grid.bits not in self.bits:
            other = "Int8Linear" if q.grid.bits > 4 else "Int4Linear"
            raise ValueError(
                f"{type(self).__name__} holds codes of {self.bits[0]} to {self.bits[-1]} bits, got {q.grid.bits}: use {other}"
            )
        if bias is not None and (tuple(bias.shape) != (q.shape[0],) or not bias.is_floating_point()):
            raise ValueError(f"bias must be floating-point [{q.shape[0]}], got {bias.dtype} {list(bias.shape)}")
        bias = None if bias is None else floats(bias, "bias")
        self.float_dtype = torch.float32 if bias is None else bias.dtype
        bias = None if bias is None else nn.Parameter(bias.detach().clone(), requires_grad=False)
        self.register_parameter("bias", bias)
        self._hold(pack_weight(q, layout=layout))

    @classmethod
    def from_quantized(cls, q: QuantizedTensor, bias: Tensor | None = None):
        """The layer of a quantized weight [out, in] and a float bias [out]; both are copied.

        Raises ValueError for bits that this kind of layer does not hold and a bias of another shape.
        """
        return cls(q, bias)

    @property
    def in_features(self) -> int:
        return self.packed.in_features

    @property
    def out_features(self) -> int:
        return self.packed.out_features

    @property
    def grid(self) -> Grid:
        return self.packed.grid

    @property
    def weight(self) -> Tensor:
        """For code that reads a layer's weight: a read-only WeightView of the codes, [out, in] in float_dtype."""
        if torch.compiler.is_compiling():
            weight = torch.ops.quantlib.weight(*fields(self.packed), self.float_dtype)
        else:
            weight = WeightView(self.packed, self.float_dtype)
        return weight.t() if self.transposed else weight

    @weight.setter
    def weight(self, value: object) -> None:
        raise TypeError(READ_ONLY)

    def register_parameter(self, name: str, param: nn.Parameter | None) -> None:
        """What an assignment of a parameter calls."""
        if name == "weight":
            raise TypeError(READ_ONLY)
        super().register_parameter(name, param)

    def quantized(self) -> QuantizedTensor:
        """The weight as it was before packing, bit for bit; a copy."""
        return unpack_weight(self.packed)

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.packed, self.bias)

    def extra_repr(self) -> str:
        grid = self.grid
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}, "
            f"bits={grid.bits}, group_size={grid.group_size!r}, symmetric={grid.symmetric}, layout={self.packed.layout}"
        )

    def _hold(self, packed: PackedWeight) -> None:
        self.packed = packed
        for part in PARTS:
            self.register_buffer(part, getattr(packed, part), persistent=False)

    def __deepcopy__(self, memo: dict):
        new = type(self).__new__(type(self))
        memo[id(self)] = new
        kept = {k: v for k, v in self.__dict__.items() if k not in ("packed", "_buffers")}
        new.__dict__.update(copy.deepcopy(kept, memo), _buffers={})
        # cloned rather than deep-copied: oneDNN's blocks have no storage that Python could copy
        new._hold(self._with({part: None if t is None else t.clone() for part, t in self._parts().items()}))
        return new

    def __getstate__(self) -> dict:
        """What pickle and torch.save keep: the canonical parts, which any machine packs again."""
        kept = {k: v for k, v in self.__dict__.items() if k not in ("packed", "_buffers")}
        buffers = {name: b for name, b in self._buffers.items() if name not in PARTS}
        return {**kept, "_buffers": buffers, "canonical": self._canonical()}

    def __setstate__(self, state: dict) -> None:
        state = dict(state)
        q = quantized_from(state.pop("canonical"))
        super().__setstate__(state)
        self._hold(pack_weight(q))

    def _parts(self) -> dict[str, Tensor | None]:
        return {part: getattr(self.packed, part) for part in PARTS}

    def _with(self, parts: dict[str, Tensor | None]) -> PackedWeight:
        p = self.packed
        return PackedWeight(
            **parts, grid=p.grid, out_features=p.out_features, in_features=p.in_features, layout=p.layout
        )

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True):
        """What .to, .cuda, .half and .share_memory call: the bias follows fn, codes and scales only its device."""
        buffers, self._buffers = self._buffers, {}
        try:
            super()._apply(fn, recurse)
        finally:
            self._buffers = buffers

        def moved(t: Tensor | None) -> Tensor | None:
            if t is None:
                return None
            return fn(t.view(BITS_OF_INTEGER[t.element_size()])).view(t.dtype)  # fn casts floats and leaves integers

        here, like = self.scale.device, fn(torch.empty(0, dtype=self.float_dtype, device=self.scale.device))
        there, self.float_dtype = like.device, like.dtype
        opaque = self.packed.layout == "onednn"
        if here == there and opaque:
            return self
        if not opaque and (here.type == there.type or "meta" in (here.type, there.type)):
            self._hold(self._with({part: moved(t) for part, t in self._parts().items()}))
        else:
            q = self.quantized()
            parts = (moved(t) for t in (q.codes, q.scale, q.zero_point, q.g_idx))
            self._hold(pack_checked(QuantizedTensor.of_clamped(*parts, q.grid)))
        return self

    # --- state_dict: the same bytes on every machine

    def _save_to_state_dict(self, destination, prefix, keep_vars):
        super()._save_to_state_dict(destination, prefix, keep_vars)
        for name, tensor in self._canonical().items():
            destination[prefix + name] = tensor

    def _canonical(self) -> dict[str, Tensor]:
        q = self.quantized()
        parts = {"codes": pack(q.codes, q.grid.bits), "scale": q.scale, "grid": grid_to_tensor(q.grid, q.shape)}
        if q.zero_point is not None:
            parts["zero_point"] = q.zero_point
        if q.g_idx is not None:
            parts["g_idx"] = q.g_idx
        return parts

    def _load_from_state_dict(
        self, state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
    ):
        names = ("codes", "scale", "zero_point", "g_idx", "grid")
        given = {name: state_dict[prefix + name] for name in names if prefix + name in state_dict}
        others = {key: value for key, value in state_dict.items() if key not in {prefix + name for name in names}}
        super()._load_from_state_dict(others, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs)
        absent = [prefix + name for name in ("codes", "scale", "grid") if name not in given]
        if absent:
            missing_keys.extend(absent)
            return
        try:
            q = quantized_from(given)
            if tuple(q.shape) != (self.out_features, self.in_features):
                raise ValueError(
                    f"the weight is {list(q.shape)}, this layer's [{self.out_features}, {self.in_features}]"
                )
            if q.grid.bits not in self.bits:
                raise ValueError(
                    f"its codes have {q.grid.bits} bits, {type(self).__name__} holds {self.bits[0]} to {self.bits[-1]}"
                )
            self._hold(pack_weight(q, self.scale.device if not self.scale.is_meta else None))
        except (TypeError, ValueError) as error:
            error_msgs.append(f"{prefix.rstrip('.') or type(self).__name__}: {error}")


class Int8Linear(QuantizedLinear):
    """A weight of 5 to 8 bits, a byte each; x stays a float (W8A16)."""

    bits = range(5, 9)


class Int4Linear(QuantizedLinear):
    """A weight of 2 to 4 bits, two in a byte; x stays a float (W4A16)."""

    bits = range(2, 5)


def grid_to_tensor(grid: Grid, shape: tuple[int, int]) -> Tensor:
    """A grid and a shape as int32 [6], for checkpoints: bits, group_size (0 a row, −1 the matrix), symmetric, narrow_range, out, in."""
    group = {"row": 0, "tensor": -1}.get(grid.group_size, grid.group_size)
    return torch.tensor([grid.bits, group, grid.symmetric, grid.narrow_range, *shape], dtype=torch.int32)


def quantized_from(parts: dict[str, Tensor]) -> QuantizedTensor:
    """The QuantizedTensor of a layer's entries in a state_dict. Raises TypeError or ValueError if they do not fit each other."""
    fields = parts["grid"]
    if fields.dtype != torch.int32 or tuple(fields.shape) != (6,):
        raise ValueError(f"grid must be int32 [6], got {fields.dtype} {list(fields.shape)}: the checkpoint is damaged")
    bits, group, symmetric, narrow_range, out, columns = fields.tolist()
    grid = Grid(
        bits, {0: "row", -1: "tensor"}.get(group, group), symmetric=bool(symmetric), narrow_range=bool(narrow_range)
    )
    codes = unpack(parts["codes"], bits, columns)
    if codes.shape[0] != out:
        raise ValueError(f"codes have {codes.shape[0]} rows, grid says {out}: the checkpoint is truncated")
    scale = parts["scale"]
    if not bool((torch.isfinite(scale) & (scale > 0)).all()):
        raise ValueError("a scale is not a positive number: the checkpoint is damaged")
    try:
        return QuantizedTensor(codes, scale, parts.get("zero_point"), parts.get("g_idx"), grid)
    except ValueError as error:
        raise ValueError(f"{error}: the checkpoint is damaged") from error
