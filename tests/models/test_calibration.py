"""collect_stats against x itself, in float64; attention-aware matrices against attention written out; refusals."""

import copy
import sys

import pytest
import torch
from families import MAKERS, make, windows
from torch import nn

from quantlib import collect_stats
from quantlib.models import calibration
from quantlib.models.linears import linear_layers


def inputs_of(model, rows):
    """Every layer's inputs [tokens, in], by plain hooks, in float64."""
    model, seen = copy.deepcopy(model).double(), {}
    for layer in linear_layers(model)[0]:
        layer.module.register_forward_pre_hook(
            lambda m, args, name=layer.name: seen.setdefault(name, []).append(args[0].flatten(0, -2))
        )
    with torch.no_grad():
        for row in rows:
            model(row[None])
    return {name: torch.cat(parts) for name, parts in seen.items()}


@pytest.mark.parametrize("family", MAKERS)
def test_sums_are_those_of_the_inputs_in_float64(family):
    model, rows = make(family), windows()
    stats, expected = collect_stats(model, rows), inputs_of(model, rows)
    assert list(stats) == [layer.name for layer in linear_layers(model)[0]] and stats.keys() == expected.keys()
    for name, x in expected.items():
        gram = x.t() @ x
        assert stats[name].gram.dtype == torch.float32 and stats[name].tokens == len(x)
        assert torch.allclose(stats[name].gram.double(), gram, atol=1e-4 * gram.abs().max().item())
        assert torch.allclose(stats[name].absmean.double(), x.abs().mean(0), rtol=1e-3, atol=1e-5)
        assert torch.allclose(stats[name].absmax.double(), x.abs().amax(0), rtol=1e-3, atol=1e-5)


def test_float32_sums_of_many_tokens_stay_close_to_float64():
    """A massive activation beside ordinary ones, over 40,000 tokens."""
    generator = torch.Generator().manual_seed(0)
    embedding = nn.Embedding(96, 32)
    with torch.no_grad():
        embedding.weight.copy_(torch.randn((96, 32), generator=generator))
        embedding.weight[7, 3] = 3000.0
    model, rows = nn.Sequential(embedding, nn.Linear(32, 4)), windows(40, 1000)
    x = embedding.weight.detach().double()[rows.flatten()]
    gram, expected = collect_stats(model, rows)["1"].gram.double(), x.t() @ x
    scale = expected.diagonal().sqrt()
    assert ((gram - expected).abs() / (scale[:, None] * scale)).max() < 1e-5


def test_layers_that_read_the_same_tensor_share_their_sums():
    stats = collect_stats(make("llama"), windows())
    attention, mlp = "model.layers.0.self_attn.", "model.layers.1.mlp."
    assert stats[f"{attention}q_proj"].gram is stats[f"{attention}v_proj"].gram
    assert stats[f"{mlp}gate_proj"].gram is stats[f"{mlp}up_proj"].gram
    assert stats[f"{mlp}gate_proj"].gram is not stats["model.layers.0.mlp.gate_proj"].gram


# --- through attention


def attention_of(model, row):
    """A of every layer as transformers returns it, in float64: [heads, tokens, tokens]."""
    model = copy.deepcopy(model).double()
    model.set_attn_implementation("eager")
    with torch.no_grad():
        return [a[0] for a in model(row[None], output_attentions=True).attentions]


@pytest.mark.parametrize("family", MAKERS)
def test_a_kv_heads_matrix_is_that_of_what_its_query_heads_read(family):
    model, rows = make(family), windows(3)
    stats, x = collect_stats(model, rows, through_attention=True), inputs_of(model, rows)
    plain = collect_stats(model, rows)
    values = [name for name in stats if name.endswith(("v_proj", "c_attn"))]  # qkv_proj too
    assert len(values) == 2
    for block, name in enumerate(values):
        expected = 0
        for i, row in enumerate(rows):
            A, inputs = attention_of(model, row)[block], x[name].view(len(rows), -1, 64)[i]
            y = torch.einsum("hqt,ti->hqi", A, inputs)
            each = torch.einsum("hqi,hqj->hij", y, y)  # [heads, in, in]
            kv = 2 if name.startswith("model.layers") else 4
            expected = expected + each.unflatten(0, (kv, -1)).sum(1)  # [kv heads, in, in]
        gram = stats[name].gram.double()
        if name.endswith(("c_attn", "qkv_proj")):  # queries and keys come first: four heads, and kv heads
            assert len(gram) == 4 + 2 * kv and torch.allclose(gram[0], plain[name].gram.double(), atol=1e-2)
            assert gram[0].equal(gram[3 + kv])
            gram = gram[4 + kv :]
        assert gram.shape == expected.shape
        assert torch.allclose(gram, expected, atol=1e-4 * expected.abs().max().item())
    others = set(stats) - set(values)
    assert all(torch.allclose(stats[n].gram, plain[n].gram, rtol=1e-3, atol=1e-2) for n in others)


def test_the_sink_weighs_what_it_is_worth():
    """Where every token reads the first one only, nothing but the first one counts."""
    model = make("llama")
    rows = windows(2)
    A = torch.zeros((4, 24, 24))
    A[:, :, 0] = 1

    def all_read_the_first(module, args, output):
        return output[0], A[None]

    for block in model.model.layers:
        block.self_attn.register_forward_hook(all_read_the_first)
    stats = collect_stats(model, rows, through_attention=True)["model.layers.0.self_attn.v_proj"]
    first = inputs_of(model, rows)["model.layers.0.self_attn.v_proj"].view(2, 24, 64)[:, 0].float()
    assert torch.allclose(stats.gram[0], 2 * 24 * first.t() @ first, rtol=1e-3, atol=1e-2)


def test_the_models_own_attention_is_back_afterwards():
    model = make("llama")
    before = model.config._attn_implementation
    collect_stats(model, windows(1), through_attention=True)
    assert model.config._attn_implementation == before != "eager"


# --- padding


@pytest.mark.parametrize("front, behind", [(0, 8), (8, 0), (3, 5)])
def test_padding_does_not_enter_a_sum_nor_stand_before_the_text(front, behind):
    model, rows = make("llama"), windows(3)
    rows[rows == 95] = 94
    padded = torch.cat((torch.full((3, front), 95), rows, torch.full((3, behind), 95)), 1)
    padded = torch.cat((padded, torch.full((1, padded.shape[1]), 95)))  # and a window without text
    model.config.pad_token_id = 95
    for through_attention in (False, True):
        a, b = (collect_stats(model, r, through_attention=through_attention) for r in (rows, padded))
        for name in a:
            assert a[name].tokens == b[name].tokens == 72
            assert torch.allclose(a[name].gram, b[name].gram, rtol=1e-3, atol=1e-3 * a[name].gram.abs().max().item())
            assert torch.allclose(a[name].absmax, b[name].absmax, rtol=1e-4, atol=1e-5)


def test_padding_between_two_texts_does_not_enter_a_sum():
    model, rows = make("llama"), windows(2)
    rows[rows == 95] = 94
    rows[:, 10:12] = 95
    model.config.pad_token_id = 95
    stats = collect_stats(model, rows)["model.layers.0.self_attn.q_proj"]
    x = inputs_of(model, rows)["model.layers.0.self_attn.q_proj"].view(2, 24, 64)[:, [*range(10), *range(12, 24)]]
    gram = x.flatten(0, 1).t() @ x.flatten(0, 1)
    assert stats.tokens == 44 and torch.allclose(stats.gram.double(), gram, rtol=1e-3, atol=1e-3)


def test_padding_alone_is_no_text():
    model = make("llama")
    model.config.pad_token_id = 95
    with pytest.raises(ValueError, match="nothing but the model's padding"):
        collect_stats(model, torch.full((2, 24), 95))


# --- refused


class Sometimes(nn.Module):
    """Two layers, of which the second is never called."""

    def __init__(self):
        super().__init__()
        self.embedding, self.used, self.idle = nn.Embedding(96, 32), nn.Linear(32, 32), nn.Linear(32, 32)

    def forward(self, ids):
        return self.used(self.embedding(ids))


def broken():
    model = make("llama")
    with torch.no_grad():
        model.model.layers[0].post_attention_layernorm.weight[3] = float("nan")
    return model


@pytest.mark.parametrize(
    ("make_model", "rows", "arguments", "error", "words"),
    [
        (Sometimes, windows(), {}, ValueError, "idle: no token reached this layer"),
        (broken, windows(), {}, ValueError, "model.layers.0.mlp.gate_proj: its inputs hold NaN"),
        (lambda: make("llama"), windows()[:0], {}, ValueError, "at least one window"),
        (lambda: make("llama"), windows() + 50, {}, ValueError, "outside the model's vocabulary of 96"),
        (lambda: make("llama"), windows().float(), {}, TypeError, "windows must be int64"),
        (lambda: nn.Embedding(96, 8), windows(), {}, ValueError, "no linear layer to listen to"),
        (Sometimes, windows(), {"through_attention": True}, ValueError, "no value projection is known"),
        (lambda: "model", windows(), {}, TypeError, "model must be a torch.nn.Module"),
    ],
)
def test_refused(make_model, rows, arguments, error, words):
    with pytest.raises(error, match=words):
        collect_stats(make_model(), rows, **arguments)


def test_an_interruption_leaves_the_model_as_it_was(monkeypatch):
    model, hits = make("llama"), []
    before = {k: (v, v.clone()) for k, v in model.state_dict().items()}
    real = calibration.SharedSums.add

    def interrupted(self, *args):
        hits.append(1)
        if len(hits) == 9:
            raise KeyboardInterrupt
        return real(self, *args)

    monkeypatch.setattr(calibration.SharedSums, "add", interrupted)
    with pytest.raises(KeyboardInterrupt):
        collect_stats(model, windows(), through_attention=True)
    as_it_was(model, before)


def as_it_was(model, before):
    assert all(v.equal(before[k][1]) and v.data_ptr() == before[k][0].data_ptr() for k, v in model.state_dict().items())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert model.config._attn_implementation == "sdpa" and model.config.use_cache
    assert sys.exc_info() == (None, None, None)
