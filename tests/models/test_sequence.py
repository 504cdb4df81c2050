"""quantize_model with GPTQ: each layer calibrated behind the quantized ones, in every family; interruptions."""

import copy

import pytest
import torch
from families import MAKERS, make, stages, windows
from test_calibration import Sometimes, as_it_was
from torch import nn

from quantlib import GPTQ, Grid, Int4Linear, Int8Linear, collect_stats, gptq_quantize, quantize_model
from quantlib.layers.weight_only import QuantizedLinear
from quantlib.methods.residual import corrected_target
from quantlib.models import sequence
from quantlib.models.linears import linear_layers, set_weight

G = Grid(4, 32)


def one_by_one(model, rows, family, grid=G, through_attention=False, **options):
    """GPTQ §4 the long way: before each stage all statistics anew, from a whole model with the weights so far."""
    model, codes = copy.deepcopy(model), {}
    layers = {layer.name: layer for layer in linear_layers(model)[0]}
    inside = [n for n in layers if any(part.isdigit() for part in n.split("."))]
    blocks = sorted({n[: n.index(f".{i}.")] + f".{i}" for n in inside for i in range(2) if f".{i}." in n})
    order = [[n for n in layers if n not in inside and "in" in n]]
    order += [[n for n in inside if n.startswith(b) and n.endswith(tuple(s))] for b in blocks for s in stages(family)]
    order += [[n for n in layers if n not in inside and "in" not in n]]
    for stage in filter(None, order):
        stats = collect_stats(model, rows, through_attention=through_attention)
        for name in stage:
            codes[name] = gptq_quantize(layers[name].weight, stats[name].gram, grid, act_order=True, **options)
            set_weight(layers[name].module, codes[name].dequantize())
    return codes


def quantized(model):
    return {name: m.quantized() for name, m in model.named_modules() if isinstance(m, QuantizedLinear)}


@pytest.mark.parametrize("through_attention", [False, True])
@pytest.mark.parametrize("family", MAKERS)
def test_each_layer_is_calibrated_behind_the_quantized_ones(family, through_attention):
    model, rows = make(family).double(), windows()  # in float32 sums in another order flip codes
    if through_attention:
        model.set_attn_implementation("eager")  # Gemma 2's other attention leaves its soft cap out
    before = {k: v.clone() for k, v in model.state_dict().items()}
    new, report = quantize_model(model, GPTQ(G, through_attention=through_attention), rows)
    assert all(v.equal(before[k]) for k, v in model.state_dict().items())
    expected, got = one_by_one(model, rows, family, through_attention=through_attention), quantized(new)
    assert expected.keys() == got.keys() and all(isinstance(new.get_submodule(n), Int4Linear) for n in got)
    for name, q in expected.items():
        assert (q.codes == got[name].codes).float().mean() > 0.999, name
        assert q.scale.equal(got[name].scale)
    inside = [layer for layer in report.layers if layer.name in expected]
    assert len(inside) == len(report.layers) and all(layer.tokens == rows.numel() for layer in inside)
    assert all(layer.damping == 0.01 and layer.output_error < layer.rounding_error for layer in inside)
    assert "read 144 tokens a layer; damping up to 0.01" in str(report)


def test_the_new_model_computes_with_these_weights():
    model, rows = make("gpt2"), windows()
    new, _ = quantize_model(model, GPTQ(G), rows)
    expected = copy.deepcopy(model)
    for name, q in quantized(new).items():
        set_weight(expected.get_submodule(name), q.dequantize())
    with torch.no_grad():
        assert torch.allclose(new(rows).logits, expected(rows).logits, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_models(dtype):
    model, rows = make("llama").to(dtype), windows()
    new, report = quantize_model(model, GPTQ(G, through_attention=True, search_scales=True, residual=0.25), rows)
    assert new(rows).logits.dtype == dtype and torch.isfinite(new(rows).logits).all()
    plain = [layer for layer in report.layers if "v_proj" not in layer.name]
    assert all(layer.output_error < layer.rounding_error for layer in plain)


@pytest.mark.parametrize("grid", [Grid(2, 16), Grid(3, 64, symmetric=False), Grid(8), Grid(4, "tensor")], ids=str)
def test_other_grids(grid):
    new, report = quantize_model(make("llama"), GPTQ(grid, act_order=False, damp=0.1), windows())
    kinds = {type(m) for m in new.modules() if isinstance(m, QuantizedLinear)}
    assert kinds == {Int8Linear if grid.bits > 4 else Int4Linear}
    assert all(layer.damping == 0.1 and layer.output_error <= layer.rounding_error for layer in report.layers)


def test_one_shot_statistics_are_the_float_models():
    model, rows = make("llama"), windows()
    new, _ = quantize_model(model, GPTQ(G, act_order=False, sequential=False), rows)
    stats = collect_stats(model, rows)
    for name, q in quantized(new).items():
        assert q.codes.equal(gptq_quantize(model.get_submodule(name).weight, stats[name].gram, G).codes)


@pytest.mark.parametrize("through_attention", [False, True])
def test_the_residual_is_corrected_by_what_the_float_model_reads(through_attention):
    """α = 1 without rounding to speak of: the layer gives the float model's output from the quantized model's input."""
    model, rows, known = make("llama"), windows(12), {}
    real = sequence.Calibrated

    class Kept(real):
        def __init__(self, *fields):
            super().__init__(*fields)
            known[self.name] = self

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sequence, "Calibrated", Kept)
        quantize_model(model, GPTQ(Grid(2, 32), residual=0.25, through_attention=through_attention), rows)
    first, later = "model.layers.0.self_attn.q_proj", "model.layers.1.self_attn.v_proj"
    assert torch.allclose(known[first].cross, known[first].stats.gram, rtol=1e-3, atol=1e-2)  # nothing is changed yet
    H, cross = known[later].stats.gram.double(), known[later].cross.double()
    assert H.shape == ((2, 64, 64) if through_attention else (64, 64)) == cross.shape
    assert not torch.allclose(cross, H, rtol=0.05)
    w = model.get_submodule(later).weight.detach().double()
    target = corrected_target(w, cross, H, alpha=1.0, damp=1e-9)
    H, cross = H.view(-1, 64, 64), cross.view(-1, 64, 64)
    got, expected = torch.bmm(target.view(len(H), -1, 64), H), torch.bmm(w.view(len(H), -1, 64), cross)
    assert torch.allclose(got, expected, atol=1e-4 * expected.abs().max().item())


def test_scales_are_searched_when_asked():
    model, rows = make("llama"), windows()
    plain, _ = quantize_model(model, GPTQ(Grid(3, 32)), rows)
    searched, report = quantize_model(model, GPTQ(Grid(3, 32), search_scales=True), rows)
    name = "model.layers.0.self_attn.q_proj"
    a, b = quantized(plain)[name].scale, quantized(searched)[name].scale
    assert bool((b <= a).all()) and not a.equal(b)
    assert torch.isfinite(searched(rows).logits).all() and len(report.layers) == 14


def test_a_model_whose_blocks_cannot_be_run_alone_is_run_as_a_whole():
    class Woven(nn.Module):
        """Blocks that also read the token ids' embedding: hidden states are not all they need."""

        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.embedding, self.head = nn.Embedding(96, 32), nn.Linear(32, 96)
            self.blocks = nn.ModuleList([nn.Bilinear(32, 32, 32) for _ in range(2)])
            self.mix = nn.ModuleList([Mix() for _ in range(3)])

        def forward(self, ids):
            e = self.embedding(ids)
            x = e
            for block in self.mix:
                x = block(x, e)
            return self.head(x)

    class Mix(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(32, 32), nn.Linear(32, 32)

        def forward(self, x, e):
            return x + torch.tanh(self.b(torch.tanh(self.a(x + e))))

    model, rows = Woven(), windows()
    new, report = quantize_model(model, GPTQ(Grid(4, 32)), rows, skip=("head",))
    copied = copy.deepcopy(model)
    layers = {layer.name: layer for layer in linear_layers(copied, ("head",))[0]}
    for name in (f"mix.{i}.{part}" for i in range(3) for part in "ab"):
        stats = collect_stats(copied, rows, skip=("head",))
        q = gptq_quantize(layers[name].weight, stats[name].gram, Grid(4, 32), act_order=True)
        set_weight(layers[name].module, q.dequantize())
        assert q.codes.equal(quantized(new)[name].codes)
    assert report.left == (("head", "skip names it (head)"),)


class Part(nn.Module):
    runs = 0

    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Linear(32, 32), nn.Linear(32, 32)

    def forward(self, x):
        Part.runs += 1
        return self.two(torch.tanh(self.one(x)))


class Adding(nn.Module):
    """A block that adds in place to what its parts answer."""

    def __init__(self):
        super().__init__()
        self.first, self.second = Part(), Part()

    def forward(self, x):
        y = self.first(x)
        y += x
        z = self.second(y)
        z += y
        return z


class OfBlocks(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding, self.blocks = nn.Embedding(96, 32), nn.ModuleList([Adding(), Adding()])

    def forward(self, ids):
        x = self.embedding(ids)
        for block in self.blocks:
            x = block(x)
        return x


@pytest.mark.parametrize("residual", [0.0, 0.5])
def test_a_part_whose_layers_are_done_is_run_once_a_window(residual, monkeypatch):
    torch.manual_seed(0)
    model, method, rows = OfBlocks(), GPTQ(Grid(3, 32), residual=residual), windows()
    runs, codes = [], []
    for _ in range(2):
        Part.runs = 0
        new, _ = quantize_model(model, method, rows)
        runs.append(Part.runs)
        codes.append(quantized(new))
        monkeypatch.setattr(sequence._Walk, "keep_but", lambda self, names: None)  # the second time all is run again
    assert runs[0] < 0.8 * runs[1]
    assert len(codes[0]) == 8 and all(codes[0][name].codes.equal(q.codes) for name, q in codes[1].items())


def test_the_head_is_calibrated_behind_everything():
    model, rows = make("llama"), windows()
    new, report = quantize_model(model, GPTQ(G), rows, skip=())
    part = copy.deepcopy(model)
    for name, q in quantized(new).items():
        if name != "lm_head":
            set_weight(part.get_submodule(name), q.dequantize())
    gram = collect_stats(part, rows, skip=("q_proj",))["lm_head"].gram
    q = gptq_quantize(model.lm_head.weight, gram, G, act_order=True)
    assert (q.codes == quantized(new)["lm_head"].codes).float().mean() > 0.98
    assert report.layers[-1].name == "lm_head" and new.model.embed_tokens.weight.equal(model.model.embed_tokens.weight)


def test_layers_called_twice_or_alone():
    shared = nn.Linear(32, 32)
    model = nn.Sequential(nn.Embedding(96, 32), shared, nn.Tanh(), shared)
    new, report = quantize_model(model, GPTQ(G), windows())
    assert new[1] is new[3] and report.layers[0].tokens == 2 * 144
    new[1](torch.randn(2, 32, requires_grad=True)).sum().backward()  # not left behind as inference tensors


@pytest.mark.parametrize("through_attention", [False, True])
@pytest.mark.parametrize("family", ["llama", "opt", "gpt2"])
def test_windows_of_many_lengths(family, through_attention):
    model, long = make(family).double(), windows()
    if through_attention:
        model.set_attn_implementation("eager")
    rows = [row[: 9 + 5 * (i % 3)] for i, row in enumerate(long)]
    new, report = quantize_model(model, GPTQ(G, through_attention=through_attention), rows)
    expected, got = one_by_one(model, rows, family, through_attention=through_attention), quantized(new)
    assert all((q.codes == got[name].codes).float().mean() > 0.999 for name, q in expected.items())
    assert all(layer.tokens == sum(map(len, rows)) for layer in report.layers)


def test_padding_on_both_sides_changes_nothing():
    model, rows = make("llama").double(), windows()
    rows[rows == 95] = 94
    model.config.pad_token_id = 95
    pads = [(0, 6), (6, 0), (2, 4)]
    padded = torch.stack([
        torch.cat((torch.full((a,), 95), row, torch.full((b,), 95)))
        for row, (a, b) in zip(rows, (pads * len(rows))[: len(rows)], strict=True)
    ])  # fmt: skip
    one, other = (quantized(quantize_model(model, GPTQ(G), r)[0]) for r in (rows, padded))
    assert all(q.codes.equal(other[name].codes) for name, q in one.items())


# --- refused, warned, interrupted


@pytest.mark.parametrize(
    ("model", "method", "rows", "error", "words"),
    [
        (lambda: make("llama"), GPTQ(G), None, ValueError, "GPTQ reads calibration text"),
        (lambda: make("llama"), GPTQ(G), windows()[:0], ValueError, "at least one window"),
        (lambda: make("llama"), GPTQ(Grid(4, 48)), windows(), ValueError, "does not divide"),
        (Sometimes, GPTQ(G), windows(), ValueError, "idle: no token reached"),
        (Sometimes, GPTQ(G, through_attention=True), windows(), ValueError, "no value projection"),
    ],
)
def test_refused(model, method, rows, error, words):
    with pytest.raises(error, match=words):
        quantize_model(model(), method, rows)


def test_residual_needs_sequential_statistics():
    with pytest.raises(ValueError, match="residual corrects what quantized layers changed"):
        GPTQ(G, sequential=False, residual=0.25)


def test_damping_that_grew_is_said_with_the_layers_name():
    with pytest.warns(UserWarning, match="model.layers.0.self_attn.q_proj: H is not positive definite with damping 0"):
        _, report = quantize_model(make("llama"), GPTQ(G, damp=0.0), windows(1, 8))
    assert max(layer.damping for layer in report.layers) > 0


def test_fewer_tokens_than_inputs_are_said():
    with pytest.warns(UserWarning, match=r"down_proj read 72 tokens, fewer than its 128 inputs \(2 layers\)"):
        quantize_model(make("llama"), GPTQ(G), windows(3))


@pytest.mark.parametrize("at", [1, 2, 7, 13])
def test_an_interruption_leaves_the_model_as_it_was(at, monkeypatch):
    from quantlib.models import convert

    model, made = make("llama"), []
    before = {k: (v, v.clone()) for k, v in model.state_dict().items()}
    real = convert.gptq_with_damping

    def interrupted(*args, **kwargs):
        made.append(1)
        if len(made) == at:
            raise KeyboardInterrupt
        return real(*args, **kwargs)

    monkeypatch.setattr(convert, "gptq_with_damping", interrupted)
    with pytest.raises(KeyboardInterrupt):
        quantize_model(model, GPTQ(G, through_attention=True, residual=0.25), windows())
    as_it_was(model, before)
