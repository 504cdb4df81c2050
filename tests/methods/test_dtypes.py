"""Methods given weights and statistics in float8, integers, booleans or complex numbers."""

import pytest
import torch

from quantlib import Grid, InputStats, awq_clip, awq_scale, gptq_quantize, outlier_features, output_error, smooth_scale
from quantlib.methods.awq import duo_scale, protected
from quantlib.methods.llm_int8 import massive_activations, outlier_stats, quantize_rows
from quantlib.methods.residual import corrected_target
from quantlib.methods.scales import weighted_clip
from quantlib.methods.smoothquant import fold
from quantlib.numerics.quantize import quantize

FLOAT8 = [torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e4m3fnuz, torch.float8_e5m2fnuz, torch.float8_e8m0fnu]
NO_FLOATS = [torch.int32, torch.int8, torch.bool, torch.complex64]
G = torch.Generator().manual_seed(3)
X = torch.randn((256, 32), generator=G) @ torch.rand((32, 32), generator=G)
STATS = InputStats.of(X)
GRID = Grid(4, 16)
W = torch.rand((8, 32), generator=G) + 0.1

CALLS = {  # argument -> what is done with it
    "gptq_quantize": ("w", lambda w: gptq_quantize(w, STATS.gram, GRID).codes),
    "output_error": ("w", lambda w: torch.tensor(output_error(w, quantize(w, GRID), STATS.gram))),
    "awq_scale": ("weights[0]", lambda w: awq_scale(w, STATS, GRID).s),
    "awq_scale of two": ("weights[0]", lambda w: awq_scale([w, w], STATS, GRID).s),
    "awq_scale, duo": ("weights[0]", lambda w: awq_scale(w, STATS, GRID, family=duo_scale).s),
    "awq_clip": ("w", lambda w: awq_clip(w, STATS, GRID)),
    "weighted_clip": ("w", lambda w: weighted_clip(w, STATS.gram, GRID)),
    "protected": ("w", lambda w: protected(w, GRID, torch.tensor([1]))),
    "corrected_target": ("w", lambda w: corrected_target(w, STATS.gram * 1.1, STATS.gram)),
    "outlier_features": ("x", lambda x: outlier_features(x, 0.6)),
    "outlier_stats": ("x", lambda x: outlier_stats(x, 0.6).features),
    "massive_activations": ("x", lambda x: massive_activations(x).value),
    "quantize_rows": ("x", lambda x: quantize_rows(x).codes),
    "InputStats.of": ("x", lambda x: InputStats.of(x).gram),
    "smooth_scale": ("x_absmax", lambda w: smooth_scale(w[0], w[1], 0.5)),
    "fold": ("gain", lambda w: fold(w[0], [w], torch.full((32,), 2.0))[1][0]),
}


@pytest.mark.parametrize("dtype", FLOAT8, ids=str)
@pytest.mark.parametrize("name", CALLS)
def test_float8_is_what_float32_would_be(name, dtype):
    _, call = CALLS[name]
    w = W.to(dtype)
    assert call(w).equal(call(w.float()))


@pytest.mark.parametrize("dtype", NO_FLOATS, ids=str)
@pytest.mark.parametrize("name", CALLS)
def test_what_is_no_float_is_one_sentence(name, dtype):
    argument, call = CALLS[name]
    with pytest.raises(TypeError) as caught:
        call((W * 10).to(dtype))
    said = str(caught.value)
    assert said.startswith(("w", argument)) and "floating-point" in said and str(dtype) in said and "\n" not in said


@pytest.mark.parametrize("dtype", [*FLOAT8, *NO_FLOATS], ids=str)
def test_statistics_are_floats(dtype):
    with pytest.raises(TypeError, match="gram must be floating-point"):
        InputStats(STATS.gram.to(dtype), STATS.absmean, STATS.absmax, 3)
    with pytest.raises((TypeError, ValueError), match="absmax must be floating-point"):
        InputStats(STATS.gram, STATS.absmean, STATS.absmax.to(dtype), 3)


def test_a_gram_in_float8_is_float32():
    gram = torch.eye(32).to(torch.float8_e5m2)
    assert gptq_quantize(W, gram, GRID).codes.equal(gptq_quantize(W, gram.float(), GRID).codes)
    with pytest.raises(TypeError, match="gram must be a floating-point tensor, got a torch.int64"):
        gptq_quantize(W, torch.eye(32).long(), GRID)
