"""Models whose linear layers keep their weights in float8."""

import pytest
import torch
from torch import nn

from quantlib import AWQ, GPTQ, RTN, Grid, LLMInt8, collect_stats, quantize_model

KINDS = [torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e4m3fnuz]


class Tiny(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.one, self.two = nn.Embedding(20, 32), nn.Linear(32, 64), nn.Linear(64, 20)

    def forward(self, ids):
        return self.two(self.one(self.embed(ids)).relu())


def model_in(dtype, but=()):
    model = Tiny()
    for name in ("one", "two"):
        layer = model.get_submodule(name)
        if name not in but:
            layer.weight = nn.Parameter(layer.weight.detach().to(dtype), requires_grad=False)
    return model


@pytest.mark.parametrize("dtype", KINDS, ids=str)
@pytest.mark.parametrize("method", [RTN(Grid(8)), RTN(Grid(4, 32)), LLMInt8(), LLMInt8(6.0, keep_float=True)], ids=str)
def test_it_is_converted_as_the_float32_model_is(dtype, method):
    model = model_in(dtype)
    wide = Tiny()
    wide.load_state_dict({name: p.float() for name, p in model.state_dict().items()})
    new, report = quantize_model(model, method)
    other, of_wide = quantize_model(wide, method)
    ids = torch.randint(20, (2, 7))
    assert torch.allclose(new(ids), other(ids), atol=1e-5)
    assert [layer.error for layer in report.layers] == [layer.error for layer in of_wide.layers]
    assert report.bytes_before == 32 * 64 + 64 * 20 and model.one.weight.dtype == dtype
    assert new.one.weight.dtype == torch.float32


@pytest.mark.parametrize("dtype", KINDS, ids=str)
def test_what_reads_text_says_that_the_model_cannot(dtype):
    windows = torch.randint(20, (2, 8))
    for call in (
        lambda m: quantize_model(m, GPTQ(Grid(4, 32)), windows),
        lambda m: quantize_model(m, GPTQ(Grid(4, 32), sequential=False), windows),
        lambda m: quantize_model(m, AWQ(Grid(4, 32)), windows),
        lambda m: collect_stats(m, windows),
    ):
        for but, name in (((), "one"), (("one",), "two")):
            with pytest.raises(TypeError, match=rf"^{name}.weight is {dtype}, in which .* convert it with model.float\(\)$"):
                call(model_in(dtype, but))


def test_weights_that_are_no_floats_are_named():
    for dtype in (torch.int8, torch.bool, torch.complex64):
        with pytest.raises((TypeError, ValueError), match=rf"^one.weight is {dtype}: quantize a model in floating point$"):
            quantize_model(model_in(dtype), RTN(Grid(8)))


def test_nan_in_float8_is_found():
    model = model_in(torch.float8_e4m3fn)
    model.two.weight.data[1, 2] = float("nan")
    with pytest.raises(ValueError, match="two.weight holds NaN or infinite values"):
        quantize_model(model, RTN(Grid(8)))
