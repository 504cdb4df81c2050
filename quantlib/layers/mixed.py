"""LLM.int8() as a layer: integer products, and outlier columns in floating point. Start from :meth:`MixedInt8Linear.from_float`.

Both sides of the product are int8: the weight with a scale a row, x with a scale a token, found at run time. Columns of
x that reach the threshold are taken out first and multiplied as floats.

The outlier columns of the weight are read through the integer product itself, so that the codes may lie in whatever
order the fast kernel wants, and no second copy of them is kept. There are two ways, and the one with fewer rows is
taken: rows of the identity, multiplied along with x, come back as columns of codes, one for each outlier column; or the
outliers of each row of x, which eight bits cannot hold, are written as two or three rows that can (quantlib.methods.digits).

Source: Dettmers et al. 2022 (arXiv:2208.07339), section 3. The plain version is quantlib.methods.llm_int8.matmul_mixed.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from quantlib.kernels import WEIGHT, PackedWeight, fields, from_fields, int8_matmul, pack_for_integers, unpack_weight
from quantlib.layers.weight_only import QuantizedLinear
from quantlib.methods.digits import digits
from quantlib.methods.llm_int8 import ROW_INT8, outlier_features, quantize_rows
from quantlib.numerics.floats import FLOATS, floats
from quantlib.numerics.quantize import QuantizedTensor, quantize

CHUNK_BYTES = 2**21  # of float32: what a core's second-level cache holds


class MixedInt8Linear(QuantizedLinear):
    """y = x · Ŵᵀ + bias, with x and W in int8 but for the outlier columns of x.

    threshold     at which a column of x is an outlier in this call; None: none ever is (W8A8), 0.0: all are
    float_weight  None, or the weight [out, in] as it was, which outlier columns are then multiplied by. It costs as
                  many bytes as the float layer: the saving is gone, and what remains is the speed.
    """

    bits = range(8, 9)
    integer_products = True  # for explain

    def __init__(self, q: QuantizedTensor, bias: Tensor | None, threshold: float | None, float_weight: Tensor | None):
        if q.grid != ROW_INT8:
            raise ValueError(f"q must be on {ROW_INT8}, got {q.grid}: quantize(weight, ROW_INT8)")
        outlier_features(torch.empty(0, 1), threshold)  # refuses what is no threshold
        super().__init__(q, bias)
        self.threshold = threshold
        self.register_buffer("float_weight", float_weight)

    @classmethod
    def from_float(cls, linear: nn.Linear, threshold: float | None = 6.0, *, keep_float: bool = False):
        """The layer of a float linear layer, which is not changed; its weight is rounded to absmax/127 a row.

        keep_float  outlier columns are multiplied by the float weight, which is then kept, and not by the dequantized
                    codes, as in bitsandbytes

        Raises TypeError for another module, ValueError for a weight with NaN or infinite values and for a threshold
        that is negative or NaN.
        """
        if not isinstance(linear, nn.Linear):
            raise TypeError(f"linear must be a torch.nn.Linear, got {type(linear).__name__}")
        weight = floats(linear.weight, "linear.weight").detach()
        q = quantize(weight, ROW_INT8, scale_dtype=torch.float32)
        new = cls(q, linear.bias, threshold, weight.clone() if keep_float else None)
        new.float_dtype = weight.dtype
        return new

    def forward(self, x: Tensor) -> Tensor:
        if not isinstance(x, Tensor) or x.dtype not in FLOATS:
            given = getattr(x, "dtype", type(x).__name__)
            raise TypeError(f"x must be a floating-point tensor, got {given}: call x.float()")
        if x.ndim == 0 or x.shape[-1] != self.in_features:
            raise ValueError(f"x must end in the {self.in_features} features of the weight, got shape {list(x.shape)}")
        device = x.device.type
        if device != "meta" and torch.is_autocast_enabled(device) and x.dtype != torch.float64:
            x = x.to(torch.get_autocast_dtype(device))
            with torch.autocast(device, enabled=False):  # which would round what is computed in float32
                return self.forward(x)
        rows = x.reshape(-1, self.in_features)  # [rows, in]
        if torch.compiler.is_compiling() or (torch.is_grad_enabled() and x.requires_grad):
            y = torch.ops.quantlib.mixed_product(rows, *fields(self.packed), self.threshold, self.float_weight)
        else:
            y = mixed_product(rows, self.packed, self.threshold, self.float_weight)
        y = y.to(torch.promote_types(x.dtype, torch.float32)).view(*x.shape[:-1], self.out_features)
        return (y if self.bias is None else y + self.bias.to(y.dtype)).to(x.dtype)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, threshold={self.threshold}, keep_float={self.float_weight is not None}"

    def _hold(self, packed: PackedWeight) -> None:
        """In the order of the fastest integer kernel that is right here, where the device has one of its own."""
        if packed.layout == "rows" and packed.data.device.type == "cpu":
            packed = pack_for_integers(unpack_weight(packed))
        super()._hold(packed)

    def __deepcopy__(self, memo: dict):
        new = super().__deepcopy__(memo)
        new.register_buffer("float_weight", None if self.float_weight is None else self.float_weight.clone())
        return new

    def _apply(self, fn, recurse: bool = True):
        kept = self.float_weight
        super()._apply(fn, recurse)
        self.register_buffer("float_weight", None if kept is None else fn(kept))
        return self

    def _canonical(self) -> dict[str, Tensor]:
        threshold = torch.nan if self.threshold is None else self.threshold  # safetensors holds tensors only
        return {**super()._canonical(), "threshold": torch.tensor(threshold, dtype=torch.float64)}

    def _load_from_state_dict(
        self, state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
    ):
        name = f"{prefix}threshold"
        others = {key: value for key, value in state_dict.items() if key != name}
        super()._load_from_state_dict(others, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs)
        if name not in state_dict:
            missing_keys.append(name)
            return
        threshold = state_dict[name].item()
        if threshold < 0:
            error_msgs.append(f"{name} must be at least 0, or NaN for none, got {threshold}: the checkpoint is damaged")
        else:
            self.threshold = None if threshold != threshold else threshold


def quantize_in_pieces(x: Tensor, threshold: float | None, outliers: Tensor) -> QuantizedTensor:
    """quantize_rows, so few rows at a time that what it computes on the way stays in cache."""
    rows = max(1, CHUNK_BYTES // (4 * max(1, x.shape[1])))
    parts = [quantize_rows(chunk, threshold, outliers) for chunk in x.split(rows)] or [quantize_rows(x)]
    codes, scales = (torch.cat(tensors) for tensors in zip(*((part.codes, part.scale) for part in parts), strict=True))
    return QuantizedTensor.of_clamped(codes, scales, None, None, ROW_INT8)


def mixed_product(x: Tensor, packed: PackedWeight, threshold: float | None, float_weight: Tensor | None) -> Tensor:
    """x [rows, in] -> float32 [rows, out], not yet in the dtype of x: float16 might overflow before the bias."""
    outliers = outlier_features(x, threshold) if len(x) else outlier_features(x, None)
    kept = outliers.nonzero()[:, 0]  # [k]
    q = quantize_in_pieces(x, threshold if len(kept) else None, outliers)
    scale = packed.scale.view(1, -1)  # [1, out]

    def scaled(product: Tensor, step: Tensor) -> Tensor:
        return product.mul_(step.float()).mul_(scale)  # in place: large new tensors cost more than their arithmetic

    if not len(kept):
        y = scaled(int8_matmul(q.codes, packed), q.scale)
    elif float_weight is not None:
        y = scaled(int8_matmul(q.codes, packed), q.scale)
        y.addmm_(x[:, kept].float(), float_weight[:, kept].t().float())
    elif (count := 2 if x.itemsize == 2 else 3) * len(x) < len(kept) and bool(torch.isfinite(x).all()):
        parts = [q, *digits(x.masked_fill(~outliers, 0), count)]
        products = int8_matmul(torch.cat([part.codes for part in parts]), packed)  # [(1 + count) rows, out]
        y = scaled(products, torch.cat([part.scale for part in parts])).view(len(parts), len(x), -1).sum(0)
    else:
        units = torch.zeros((len(kept), packed.in_features), dtype=torch.int8, device=x.device)
        units[torch.arange(len(kept), device=x.device), kept] = 1
        products = int8_matmul(torch.cat((q.codes, units)), packed)  # [rows + k, out]
        y = scaled(products[: len(x)], q.scale)
        y.addmm_(x[:, kept].float(), products[len(x) :].mul_(scale))
    return y


# --- for torch.compile, which cannot follow how many columns are kept, and for gradients: one operator


operators = torch.library.Library("quantlib", "FRAGMENT")
operators.define(f"mixed_product(Tensor x, {WEIGHT}, float? threshold, Tensor? float_weight) -> Tensor")


@torch.library.impl(operators, "mixed_product", "CompositeExplicitAutograd")
def _(x: Tensor, *arguments) -> Tensor:
    *weight, threshold, float_weight = arguments
    return mixed_product(x, from_fields(*weight), threshold, float_weight)


@torch.library.register_fake("quantlib::mixed_product", lib=operators)
def _(x, data, scale, zero_point, order, group_size, options, layout, threshold, float_weight):
    return x.new_empty((x.shape[0], options[3]), dtype=torch.float32)


def _remember(ctx, inputs, output):
    x, data, scale, zero_point, order, *rest = inputs
    ctx.save_for_backward(data, scale, zero_point, order)
    ctx.rest, ctx.dtype = rest[:3], x.dtype


def _backward(ctx, grad: Tensor):
    """The gradient of the float layer that the codes stand for; rounding x has the gradient 1."""
    return torch.ops.quantlib.product_backward(grad.to(ctx.dtype), *ctx.saved_tensors, *ctx.rest), *[None] * 9


torch.library.register_autograd("quantlib::mixed_product", _backward, setup_context=_remember, lib=operators)
