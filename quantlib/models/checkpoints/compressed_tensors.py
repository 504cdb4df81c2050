"""compressed-tensors' files with packed integers, as llm-compressor writes. Start from :class:`CompressedTensorsFile`.

weight_packed int32 [out, ceil(in · bits / 32)] of code + 2^(bits−1), the lowest bits first along the inputs;
weight_scale [out, groups]; weight_shape int64 [2]; weight_zero_point int32 [ceil(out · bits / 32), groups], packed
along the outputs.

Only weights are quantized here (W4A16, W8A16). Source: the compressed-tensors package, compressors/pack_quantized.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from quantlib.layers.weight_only import QuantizedLinear
from quantlib.models.checkpoints.fields import Fields
from quantlib.models.checkpoints.layout import (
    FLOATS,
    Note,
    Part,
    check_bits,
    check_codes,
    group_index,
    groups_of,
    offset_codes,
    signed_codes,
    weight_only,
    weight_only_grid,
)
from quantlib.numerics.grid import Grid
from quantlib.numerics.packing import pack_words, per_word, unpack_words
from quantlib.numerics.quantize import QuantizedTensor

NAME = "compressed-tensors"


@dataclass(frozen=True)
class CompressedTensorsFile:
    """grid: of 4 or 8 bits, a scale a row ("channel") or a group."""

    grid: Grid

    marker = "weight_packed"
    layer = staticmethod(weight_only)

    @classmethod
    def of(cls, layers: Mapping[str, QuantizedLinear]) -> CompressedTensorsFile:
        """Raises ValueError for what the format cannot hold."""
        grid = weight_only_grid(layers, NAME)
        check_bits(grid, (4, 8), NAME)
        for name, layer in layers.items():
            if layer.packed.order is not None:
                raise ValueError(
                    f"{name} has a g_idx (act-order), which versions of format={NAME!r} read differently: "
                    "use format='gptq'"
                )
            if layer.transposed:
                raise ValueError(f"{name} was a Conv1D, and format={NAME!r} holds Linear only: use format='gptq'")
        return cls(grid)

    @classmethod
    def read(cls, config: Fields, note: Note | None) -> CompressedTensorsFile:
        """Of a quantization_config. Raises ValueError for what is not read here."""
        config.must_be("format", "pack-quantized", why="weights packed as integers are ('pack-quantized')")
        for key in ("kv_cache_scheme", "sparsity_config", "transform_config"):
            config.must_be(key, {}, [], why="only quantized weights are")
        groups = config.inner("config_groups").values
        if len(groups) != 1:
            raise ValueError(f"config_groups holds {len(groups)} groups, and one grid for all layers is read here")
        (name,) = groups
        group = config.inner("config_groups").inner(name)
        for key in ("input_activations", "output_activations"):
            group.must_be(key, why="activations stay floats here")
        group.must_be("format", "pack-quantized", why="weights packed as integers are ('pack-quantized')")
        if group.names("targets") != ("Linear",):
            raise ValueError(f"config_groups: targets must be ['Linear'], got {list(group.names('targets'))}")
        return cls(_grid(group.inner("weights"), note))

    def config(self, left: Sequence[str]) -> dict:
        row = self.grid.group_size == "row"
        weights = {
            "num_bits": self.grid.bits,
            "type": "int",
            "symmetric": self.grid.symmetric,
            "strategy": "channel" if row else "group",
            "group_size": None if row else self.grid.group_size,
            "dynamic": False,
            "actorder": None,
            "observer": "minmax",
        }
        group = {"targets": ["Linear"], "weights": weights, "input_activations": None, "output_activations": None}
        return {
            "quant_method": NAME,
            "format": "pack-quantized",
            "quantization_status": "compressed",
            "config_groups": {"group_0": group},
            "ignore": list(left),
            "kv_cache_scheme": None,
            "global_compression_ratio": None,
        }

    def parts(self, out: int, columns: int) -> dict[str, Part]:
        count, groups = per_word(self.grid.bits), groups_of(self.grid, columns)
        parts = {
            "weight_packed": Part((out, -(-columns // count)), (torch.int32,)),
            "weight_scale": Part((out, groups), FLOATS),
            "weight_shape": Part((2,), (torch.int64, torch.int32)),
            "weight_g_idx": Part((columns,), (torch.int32,), optional=True),
        }
        if not self.grid.symmetric:
            parts["weight_zero_point"] = Part((-(-out // count), groups), (torch.int32,))
        return parts

    def encode(self, q: QuantizedTensor) -> dict[str, Tensor]:
        bits = q.grid.bits
        parts = {
            "weight_packed": pack_words(offset_codes(q), bits),
            "weight_scale": q.scale.contiguous(),
            "weight_shape": torch.tensor(q.shape, dtype=torch.int64),
        }
        if q.zero_point is not None:
            zero = (q.zero_point.to(torch.int16) + 2 ** (bits - 1)).to(torch.uint8)  # [out, groups]
            parts["weight_zero_point"] = pack_words(zero.t(), bits).t().contiguous()
        return parts

    def decode(self, parts: Mapping[str, Tensor], out: int, columns: int) -> QuantizedTensor:
        bits = self.grid.bits
        if parts["weight_shape"].tolist() != [out, columns]:
            raise ValueError(f"weight_shape says {parts['weight_shape'].tolist()} and the model {[out, columns]}")
        codes = signed_codes(unpack_words(parts["weight_packed"], bits, columns), bits)
        zero_point = None
        if not self.grid.symmetric:
            zero = unpack_words(parts["weight_zero_point"].t().contiguous(), bits, out)  # [groups, out]
            zero_point = signed_codes(zero.t().contiguous(), bits)
        g_idx = parts.get("weight_g_idx")
        g_idx = None if g_idx is None else group_index(g_idx, self.grid, columns)
        return check_codes(QuantizedTensor(codes, parts["weight_scale"], zero_point, g_idx, self.grid))


def _grid(weights: Fields, note: Note | None) -> Grid:
    weights.must_be("type", "int", why="integers are")
    weights.must_be("dynamic", False, why="weights are quantized once")
    weights.must_be("actorder", False, "static", "weight", "group", why="an order of columns is 'static' or 'group'")
    bits = weights.whole("num_bits")
    if bits not in (4, 8):
        raise ValueError(
            f"num_bits must be 4 or 8, got {bits}: other widths cross words, differently in different versions"
        )
    strategy = weights.text("strategy", "channel")
    if strategy not in ("channel", "group"):
        raise ValueError(f"strategy must be 'channel' or 'group', got {strategy!r}")
    group_size = weights.whole("group_size") if strategy == "group" else "row"
    if strategy == "group" and group_size < 1:
        raise ValueError(f"group_size must be at least 1 with strategy='group', got {group_size}")
    symmetric = weights.truth("symmetric", True)
    narrow = note is not None and symmetric and note.narrow_range
    return Grid(bits, group_size, symmetric=symmetric, narrow_range=narrow)
