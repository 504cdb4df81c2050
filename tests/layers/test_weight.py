"""What other code does with the weight of a quantized layer: asks for its dtype, multiplies by it, writes into it."""

import copy
import io

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from transformers import T5Config, T5ForConditionalGeneration

from quantlib import RTN, Grid, Int4Linear, LLMInt8, quantize, quantize_model

METHODS = [RTN(Grid(8)), RTN(Grid(4, 32)), LLMInt8()]
IDS = torch.arange(12).view(1, 12)


def close(a, b, share=0.25):
    return bool((a - b).norm() < share * b.norm())


@pytest.mark.parametrize("method", METHODS, ids=lambda m: f"{type(m).__name__}{m.grid.bits}")
@torch.no_grad()
def test_pytorchs_own_transformer_still_runs(method):
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(64, 4, 128, batch_first=True)
    model = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False).eval()
    new, report = quantize_model(model, method)
    x, padding = torch.randn(2, 5, 64), torch.arange(5) > torch.tensor([[4], [2]])
    assert len(report.layers) == 4 and close(new(x), model(x))
    kept = ~padding
    assert close(new(x, src_key_padding_mask=padding)[kept], model(x, src_key_padding_mask=padding)[kept])


@torch.no_grad()
def test_t5_asks_for_the_dtype():
    torch.manual_seed(0)
    config = T5Config(
        vocab_size=96, d_model=32, d_kv=8, d_ff=64, num_layers=1, num_heads=4, decoder_start_token_id=0
    )  # fmt: skip
    model = T5ForConditionalGeneration(config).to(torch.bfloat16).eval()
    new, _ = quantize_model(model, RTN(Grid(8)))
    got, expected = (m(input_ids=IDS, decoder_input_ids=IDS).logits.float() for m in (new, model))
    assert close(got, expected)


class Multiplies(nn.Module):
    """Reads what it likes of its layers."""

    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Linear(32, 32), nn.Linear(32, 48, bias=False)

    def forward(self, x):
        x = F.linear(x.to(self.one.weight.dtype), self.one.weight[:, : x.shape[-1]], self.one.bias)
        return x @ self.two.weight.T * self.two.weight.abs().mean()


@pytest.mark.parametrize("compiled", [False, True])
def test_a_model_that_multiplies_by_the_weight_itself(compiled):
    torch.manual_seed(0)
    model, x = Multiplies().eval(), torch.randn(3, 32, requires_grad=True)
    new, _ = quantize_model(model, RTN(Grid(8)))
    run = torch.compile(new, fullgraph=True, backend="aot_eager") if compiled else new
    assert close(run(x), model(x), 0.02)
    gradients = [torch.autograd.grad(m(x).sum(), x)[0] for m in (new, model)]
    assert close(*gradients, 0.02)


def test_shape_dtype_and_device_cost_nothing(monkeypatch):
    q = quantize(torch.randn(64, 32), Grid(4, 32))
    layer = Int4Linear.from_quantized(q).to(torch.float16)
    monkeypatch.setattr("quantlib.layers.weight.unpack_weight", lambda packed: 1 / 0)
    weight = layer.weight
    assert (tuple(weight.shape), weight.dtype, weight.device) == ((64, 32), torch.float16, torch.device("cpu"))
    monkeypatch.undo()
    expected = q.dequantize(torch.float16)
    assert weight.equal(expected) and (weight.numpy() == expected.numpy()).all()
    assert copy.deepcopy(weight).equal(expected) and torch.empty(64, 32).copy_(weight).equal(expected.float())
    held = io.BytesIO()
    torch.save(weight, held)
    held.seek(0)
    assert torch.load(held).equal(expected)


def test_a_converted_conv1d_keeps_its_order():
    from transformers.pytorch_utils import Conv1D

    layer = Conv1D(48, 32)
    new, _ = quantize_model(layer, RTN(Grid(8)))
    assert new.weight.shape == layer.weight.shape and close(new.weight, layer.weight, 0.02)


@pytest.mark.parametrize(
    "write",
    [
        lambda layer: layer.weight.mul_(2),
        lambda layer: layer.weight.data.copy_(torch.ones(8, 32)),
        lambda layer: layer.weight.__setitem__(0, 1.0),
        lambda layer: nn.init.normal_(layer.weight),
        lambda layer: torch.add(layer.weight, 1, out=layer.weight),
        lambda layer: setattr(layer, "weight", nn.Parameter(torch.ones(8, 32))),
        lambda layer: setattr(layer, "weight", torch.ones(8, 32)),
    ],
)
def test_nothing_writes_into_it(write):
    layer = Int4Linear.from_quantized(quantize(torch.randn(8, 32), Grid(4)))
    before = layer.quantized().codes
    with pytest.raises(TypeError, match="the weight of a quantized layer is read-only"):
        write(layer)
    assert layer.quantized().codes.equal(before)
