"""MixedInt8Linear against bitsandbytes' Linear8bitLt, where that is installed: pip install --no-deps bitsandbytes==0.50.2."""

import pytest
import torch
from torch import nn

from quantlib.layers.mixed import MixedInt8Linear
from quantlib.methods.llm_int8 import quantize_rows

bnb = pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed: pip install --no-deps bitsandbytes==0.50.2")


def case(out=256, columns=512, tokens=33, outliers=0, bias=True):
    """Weights that float16 holds, in which bitsandbytes rounds; activations with so many outlier columns."""
    torch.manual_seed(0)
    linear = nn.Linear(columns, out, bias=bias)
    with torch.no_grad():
        for p in linear.parameters():
            p.copy_(p.half().float())
    x = torch.randn(tokens, columns).clamp(-5.5, 5.5)
    x[:, :outliers] *= 20
    x[0, :outliers] = 50.0
    return linear, x.half()


def theirs(linear, threshold):
    layer = bnb.nn.Linear8bitLt(
        linear.in_features, linear.out_features, linear.bias is not None, has_fp16_weights=False, threshold=threshold
    )
    layer.load_state_dict(linear.state_dict())
    return layer.to("cpu").eval()  # in training it ignores the threshold on a CPU


@pytest.mark.parametrize("outliers", [0, 1, 5])
@pytest.mark.parametrize("tokens, bias", [(33, True), (2, False)])
def test_outputs_agree(outliers, tokens, bias):
    linear, x = case(tokens=tokens, outliers=outliers, bias=bias)
    with torch.no_grad():
        expected, got = theirs(linear, 6.0)(x).float(), MixedInt8Linear.from_float(linear, 6.0)(x).float()
    assert (got - expected).norm() < 1e-3 * expected.norm()


def test_weights_have_the_same_scales_and_codes():
    linear, _ = case()
    q, layer = MixedInt8Linear.from_float(linear).quantized(), theirs(linear, 6.0)
    assert (layer.weight.SCB / 127).equal(q.scale[:, 0])
    apart = (layer.weight.data.int() - q.codes.int()).abs()
    assert apart.max() <= 1 and (apart > 0).float().mean() < 1e-3


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("outliers", [0, 3])
def test_activations_have_the_same_scales_and_codes(dtype, outliers):
    x = case(outliers=outliers)[1].to(dtype)
    codes, largest, columns = bnb.functional.int8_vectorwise_quant(x.half(), threshold=6.0)
    q = quantize_rows(x, 6.0)
    assert (largest / 127).equal(q.scale[:, 0]) and len(columns) == outliers
    apart = (codes.int() - q.codes.int()).abs()
    assert apart.max() <= 1 and (apart > 0).float().mean() < 1e-3
