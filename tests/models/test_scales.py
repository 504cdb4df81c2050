"""Scales that float16 does not hold: too small, and the report is loud; too large, and nothing is converted."""

import warnings

import pytest
import torch
from torch import nn

from quantlib import AWQ, GPTQ, RTN, Grid, LLMInt8, quantize, quantize_model
from quantlib.models.errors import relative_error, scale_loss

SMALL = "scales that are too small for float16, .*: pass scale_dtype=torch.float32, as in {}"


class Tiny(nn.Module):
    def __init__(self, one=0.1, two=0.1):
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.one, self.two = nn.Embedding(20, 64), nn.Linear(64, 64), nn.Linear(64, 64)
        self.one.weight.data.normal_(std=one)
        self.two.weight.data.normal_(std=two)

    def forward(self, ids):
        return self.two(self.one(self.embed(ids)))


def silent(call):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return call()


@pytest.mark.parametrize("sigma", [1e-7, 3e-6, 1e-9])
@pytest.mark.parametrize("grid", [Grid(8), Grid(8, 32, symmetric=False), Grid(4, 32)], ids=str)
def test_small_weights_are_loud_and_the_remedy_is_one(sigma, grid):
    model = Tiny(two=sigma)
    if sigma == 3e-6 and grid.bits == 4:
        silent(lambda: quantize_model(model, RTN(grid)))  # float16 holds these well enough
        return
    with pytest.warns(UserWarning, match="^two has " + SMALL.format(r"RTN\(grid, scale_dtype=torch.float32\)")):
        _, report = quantize_model(model, RTN(grid))
    one, two = report.layers
    fine = relative_error(model.two.weight.detach(), quantize(model.two.weight, grid, scale_dtype=torch.float32))
    assert one.scale_loss is None and two.scale_loss == pytest.approx(two.error / fine) and two.scale_loss > 1.05
    line = str(report).splitlines()[1]
    assert line.startswith("SCALES TOO SMALL for float16 in 1 layers") and line.endswith(": two")
    _, better = silent(lambda: quantize_model(model, RTN(grid, scale_dtype=torch.float32)))
    assert better.layers[1].error == pytest.approx(fine) and "SCALES" not in str(better)


def test_several_layers_are_counted():
    with pytest.warns(UserWarning, match="^(one|two) and 1 more layers have scales"):
        _, report = quantize_model(Tiny(1e-7, 1e-8), RTN(Grid(8)))
    assert "in 2 layers" in str(report) and "one, two" in str(report)


def test_a_row_of_small_weights_beside_ordinary_ones_costs_the_layer_nothing_and_is_not_worth_a_word():
    model = Tiny()
    model.one.weight.data[3] *= 1e-6
    silent(lambda: quantize_model(model, RTN(Grid(8))))
    model.one.weight.data[3] = 0
    silent(lambda: quantize_model(model, RTN(Grid(8))))


def test_other_scale_dtypes_hold_them():
    model = Tiny(1e-7, 1e-9)
    for dtype in (torch.float32, torch.bfloat16):
        _, report = silent(lambda dtype=dtype: quantize_model(model, RTN(Grid(8), scale_dtype=dtype)))
        assert max(layer.error for layer in report.layers) < 0.01
    silent(lambda: quantize_model(model, LLMInt8()))


@pytest.mark.parametrize("method", [GPTQ, AWQ], ids=lambda m: m.__name__)
def test_methods_that_read_text_say_it_too_and_take_the_remedy(method):
    windows, model = torch.randint(20, (8, 32)), Tiny(two=1e-7)
    with pytest.warns(UserWarning, match=SMALL.format(rf"{method.__name__}\(grid, scale_dtype=torch.float32\)")):
        _, report = quantize_model(model, method(Grid(8, 32)), windows)
    assert "SCALES TOO SMALL" in str(report)
    _, better = silent(lambda: quantize_model(model, method(Grid(8, 32), scale_dtype=torch.float32), windows))
    assert better.layers[1].output_error < 0.01 * report.layers[1].output_error


@pytest.mark.parametrize("grid", [Grid(4, 32), Grid(8, narrow_range=True), Grid(8, "tensor", symmetric=False)], ids=str)
@pytest.mark.parametrize("reads", [False, True])
def test_weights_too_large_are_named_before_anything_is_converted(grid, reads, monkeypatch):
    sigma = 1e9 if grid.bits == 8 else 1e6
    model = Tiny(two=sigma)
    method, windows = (GPTQ(grid), torch.randint(20, (8, 32))) if reads else (RTN(grid), None)
    monkeypatch.setattr("quantlib.models.convert._converted", lambda *_: pytest.fail("converted already"))
    with pytest.raises(ValueError, match="^two: a scale of .* overflows scale_dtype torch.float16: pass scale_dtype="):
        quantize_model(model, method, windows)


def test_large_weights_with_scales_that_hold_them():
    model, ids = Tiny(two=1e6), torch.randint(20, (8, 32))
    for method in (RTN(Grid(4, 32), torch.float32), GPTQ(Grid(4, 32), scale_dtype=torch.float32), LLMInt8()):
        new, report = quantize_model(model, method, ids if isinstance(method, GPTQ) else None)
        assert report.layers[1].error < 0.2 and bool(torch.isfinite(new(ids)).all())
    silent(lambda: quantize_model(Tiny(two=1e3), RTN(Grid(4, 32))))  # large, but float16 holds the scales


def test_the_loss_is_asked_only_where_a_scale_is_small():
    w = torch.randn(8, 64)
    assert scale_loss(w, quantize(w, Grid(8))) is None
    w[0] *= 1e-7
    assert scale_loss(w, quantize(w, Grid(8))) is None  # of the whole weight it is nothing
    assert scale_loss(w[:1], quantize(w[:1], Grid(8))) > 2
    assert scale_loss(torch.zeros(8, 64), quantize(torch.zeros(8, 64), Grid(8))) is None
