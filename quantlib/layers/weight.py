"""The weight of a quantized layer, for code that reads `layer.weight`. Start from :class:`WeightView`.

Models ask their layers for a weight: for its dtype, to cast what flows in; for its shape; some multiply by it
themselves. A view answers the first kind at no cost and becomes floats only where numbers are wanted.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from quantlib.kernels import PackedWeight, unpack_weight

READ_ONLY = (
    "the weight of a quantized layer is read-only, because it is stored as codes: change the float layer and quantize "
    "it again"
)
# what Python asks of a tensor's memory, before any operator sees it
OF_MEMORY = {
    getattr(Tensor, name)
    for name in ("numpy", "tolist", "data_ptr", "storage", "untyped_storage", "__array__", "__deepcopy__", "__reduce_ex__")
}


class WeightView(Tensor):
    """A packed weight as a tensor [out, in] of a floating dtype, without its memory; read-only.

    shape, dtype and device cost nothing. Every operator dequantizes the whole matrix, each time, and returns ordinary
    tensors. Raises TypeError where something writes into it.
    """

    @staticmethod
    def __new__(cls, packed: PackedWeight, dtype: torch.dtype):
        shape = (packed.out_features, packed.in_features)
        return Tensor._make_wrapper_subclass(cls, shape, dtype=dtype, device=packed.scale.device)

    def __init__(self, packed: PackedWeight, dtype: torch.dtype):
        self._packed = packed

    def floats(self) -> Tensor:
        """The matrix [out, in] as an ordinary tensor."""
        return unpack_weight(self._packed).dequantize(self.dtype)

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        if function is Tensor.__setitem__ and isinstance(args[0], cls):
            raise TypeError(READ_ONLY)
        if function in OF_MEMORY:
            return function(args[0].floats(), *args[1:], **(kwargs or {}))
        with torch._C.DisableTorchFunctionSubclass():  # results are ordinary tensors
            return function(*args, **(kwargs or {}))

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if function is torch.ops.aten.detach.default:  # what .data is: to write into it is to write into the weight
            return cls(args[0]._packed, args[0].dtype)
        for i, argument in enumerate(function._schema.arguments):
            written = argument.alias_info is not None and argument.alias_info.is_write
            given = args[i] if i < len(args) else kwargs.get(argument.name)
            if written and isinstance(given, cls):
                raise TypeError(READ_ONLY)
        args, kwargs = tree_map(lambda t: t.floats() if isinstance(t, cls) else t, (args, kwargs))
        return function(*args, **kwargs)
