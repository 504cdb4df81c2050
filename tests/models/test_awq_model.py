"""quantize_model with AWQ: on every family, alone and before GPTQ, and what it refuses."""

import pytest
import torch
from families import MAKERS, make, windows
from torch import nn

from quantlib import AWQ, GPTQ, RTN, Grid, Int4Linear, awq_clip, awq_scale, collect_stats, quantize, quantize_model
from quantlib.methods.awq import FINE_CLIPS, duo_scale

GRID = Grid(3, 16)
TEXT, OTHER = windows(12), windows(seed=9)


def logits(model, text=OTHER):
    with torch.no_grad():
        return model(text).logits


def distance(model, other):
    expected = logits(model)
    return ((logits(other) - expected).norm() / expected.norm()).item()


def weights(model):
    return {n: m.quantized().dequantize() for n, m in model.named_modules() if isinstance(m, Int4Linear)}


@pytest.mark.parametrize("family", MAKERS)
def test_outputs_lose_less_than_by_rounding_and_the_model_stays(family):
    model = make(family)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    new, report = quantize_model(model, AWQ(GRID), TEXT)
    assert all(value.equal(before[name]) for name, value in model.state_dict().items())
    assert distance(model, new) < distance(model, quantize_model(model, RTN(GRID))[0])
    assert sum(layer.output_error for layer in report.layers) < 0.9 * sum(l.rounding_error for l in report.layers)
    assert all(layer.tokens == TEXT.numel() and layer.damping is None for layer in report.layers)
    read = {name.split(",")[0] for name, _ in report.folded}
    assert any(where.startswith("into ") for _, where in report.folded) and len(read) >= 8
    assert "scale of " in str(report) and len(str(report).splitlines()) < 20


def test_it_is_the_methods_search_on_the_models_own_statistics():
    model = make("llama")
    new, report = quantize_model(model, AWQ(GRID), TEXT)
    stats, floats = collect_stats(model, TEXT), dict(model.named_parameters())
    mlp = "model.layers.1.mlp."
    gate, up, down = (floats[f"{mlp}{name}_proj.weight"] for name in ("gate", "up", "down"))
    into_norm = awq_scale([gate, up], stats[f"{mlp}up_proj"], GRID).s
    into_up = awq_scale(down, stats[f"{mlp}down_proj"], GRID).s
    norm = "model.layers.1.post_attention_layernorm.weight"
    assert torch.allclose(new.get_parameter(norm), floats[norm] / into_norm, rtol=1e-5)
    scaled = (up * into_norm / into_up[:, None]).detach()
    clip = awq_clip(scaled, stats[f"{mlp}up_proj"].divided_by(into_norm), GRID)
    expected = quantize(scaled, GRID, clip=clip).dequantize()
    assert ((weights(new)[f"{mlp}up_proj"] - expected).abs() < 1e-4).float().mean() > 0.99
    error = next(layer for layer in report.layers if layer.name == f"{mlp}down_proj")
    lost = [squared(down - quantize(down, GRID).dequantize(), stats[f"{mlp}down_proj"].gram), squared(down, stats[f"{mlp}down_proj"].gram)]
    assert error.rounding_error == pytest.approx(lost[0] / lost[1], rel=1e-2)


def squared(d, gram):
    return ((d.double() @ gram.double()) * d.double()).sum().item()


def test_options():
    model = make("llama")
    plain, no_clip, duo, attention, all_clipped, fine = (
        quantize_model(model, AWQ(GRID, **options), TEXT)[0]
        for options in (
            {}, {"clip": False}, {"family": duo_scale}, {"through_attention": True}, {"unclipped": ()},
            {"clips": FINE_CLIPS},
        )  # fmt: skip
    )
    q, v, up = (f"model.layers.0.{n}_proj" for n in ("self_attn.q", "self_attn.v", "mlp.up"))
    of = [weights(m) for m in (plain, no_clip, duo, attention, all_clipped, fine)]
    assert of[0][q].equal(of[1][q]) and not of[0][up].equal(of[1][up])
    assert not of[0][up].equal(of[2][up])
    assert not of[0][v].equal(of[3][v]) and of[0][up].equal(of[3][up])
    assert not of[0][q].equal(of[4][q]) and of[0][up].equal(of[4][up])
    assert of[0][q].equal(of[5][q]) and not of[0][up].equal(of[5][up])


@pytest.mark.parametrize("family", ["llama", "gemma2", "opt", "gpt2"])
def test_gptq_rounds_what_awq_scaled(family):
    model = make(family)
    then = GPTQ(GRID, through_attention=True, search_scales=True, residual=0.25)
    new, report = quantize_model(model, AWQ(GRID, then=then), TEXT)
    assert distance(model, new) < distance(model, quantize_model(model, RTN(GRID))[0])
    assert report.folded and all(layer.damping >= 0.01 for layer in report.layers)
    alone, _ = quantize_model(model, AWQ(GRID, clip=False), TEXT)
    norms = [n for n, p in new.named_parameters() if p.ndim == 1 and "norm" in n]
    assert all(new.get_parameter(n).equal(alone.get_parameter(n)) for n in norms)  # the same scales


def test_a_model_in_half_precision():
    model = make("llama").to(torch.bfloat16)
    new, _ = quantize_model(model, AWQ(GRID), TEXT)
    assert logits(new).dtype == torch.bfloat16
    assert distance(model, new) < distance(model, quantize_model(model, RTN(GRID))[0])


class WithUnused(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.used, self.expert = nn.Embedding(96, 32), nn.Linear(32, 32), nn.Linear(32, 32)

    def forward(self, ids):
        return self.used(self.embed(ids))


def test_a_layer_that_no_token_reached_is_named():
    with pytest.raises(ValueError, match="expert: no token reached this layer"):
        quantize_model(WithUnused(), AWQ(GRID), TEXT)
    new, report = quantize_model(WithUnused(), AWQ(GRID), TEXT, skip=("expert",))
    assert report.folded == (("used", "no scale: nothing before it takes one"),)


def test_refused():
    with pytest.raises(ValueError, match="AWQ reads calibration text"):
        quantize_model(make("llama"), AWQ(GRID))
    with pytest.raises(ValueError, match="then rounds to .*bits=4.*: use one grid"):
        AWQ(GRID, then=GPTQ(Grid(4, 16)))
    with pytest.raises(ValueError, match="does not divide"):
        quantize_model(make("llama"), AWQ(Grid(4, 48)), TEXT)
    dead = make("llama")
    with torch.no_grad():
        dead.model.layers[1].input_layernorm.weight.zero_()
    with pytest.raises(ValueError, match="model.layers.1.self_attn.q_proj, k_proj, v_proj: .*every input"):
        quantize_model(dead, AWQ(GRID), TEXT)


def test_dead_channels_change_nothing_else():
    model = make("llama")
    with torch.no_grad():
        model.model.layers[0].input_layernorm.weight[[3, 40]] = 0
    new, _ = quantize_model(model, AWQ(GRID), TEXT)
    assert bool(torch.isfinite(logits(new)).all())
    assert distance(model, new) < distance(model, quantize_model(model, RTN(GRID))[0])
