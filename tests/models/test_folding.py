"""Scales folded into what makes the inputs: found in every family, exact, and refused where something else reads on."""

import copy

import pytest
import torch
from families import MAKERS, make, stages, windows
from torch import nn

from quantlib.models.calibration import quiet_twin
from quantlib.models.folding import find_folds, fold_in
from quantlib.models.linears import linear_layers

NORMS = {  # what is before the stages of a block (families.stages), by the last part of its name
    "llama": ("input_layernorm", "v_proj", "post_attention_layernorm", "up_proj"),
    "gemma2": ("input_layernorm", "v_proj", "pre_feedforward_layernorm", "up_proj"),
    "gemma3": ("input_layernorm", "v_proj", "pre_feedforward_layernorm", "up_proj"),
    "phi3": ("input_layernorm", "qkv_proj", "post_attention_layernorm", "gate_up_proj"),
    "opt": ("self_attn_layer_norm", "v_proj", "final_layer_norm", "fc1"),
    "opt-350m": (None, "v_proj", None, "fc1"),  # its norms stand behind the sum, and the sum reads on
    "gpt2": ("ln_1", "c_attn", "ln_2", None),  # GELU in between
}


def names_of(model, skip=("lm_head",)):
    return [layer.name for layer in linear_layers(model, skip)[0]]


def random_scale(fold, seed=0, spread=1.0):
    outputs = torch.randn(int(fold.channel.max()) + 1, generator=torch.Generator().manual_seed(seed))
    return (spread * outputs).exp()[fold.channel]


def folded(model, folds, spread=1.0):
    twin = quiet_twin(model)
    for seed, fold in enumerate(folds):
        if fold.source is not None:
            fold_in(twin, fold, random_scale(fold, seed, spread))
    return twin


def lively(family):
    """With norms and biases that are not what they are initialized to, so that a wrong gain is noticed."""
    model = make(family)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return model


@pytest.mark.parametrize("family", MAKERS)
def test_every_familys_places_are_found(family):
    model = make(family)
    found = find_folds(model, names_of(model), windows()[0])
    blocks = [fold for fold in found if ".1." in fold.readers[0]]
    assert [len(fold.readers) for fold in blocks] == [len(stage) for stage in stages(family)]
    for fold, stage in zip(blocks, stages(family), strict=True):
        assert all(name.endswith(end) for name, end in zip(fold.readers, stage, strict=True))
    sources = NORMS.get(family, NORMS["llama"])
    assert [fold.source and fold.source.rpartition(".")[2] for fold in blocks] == list(sources)


@pytest.mark.parametrize("family", MAKERS)
def test_the_folded_model_answers_what_the_model_answers(family):
    model = lively(family)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    twin = folded(model, find_folds(model, names_of(model), windows()[0]))
    changed = [n for n, value in twin.state_dict().items() if not value.equal(before[n])]
    assert len(changed) >= 12
    with torch.no_grad():
        expected, got = model(windows()).logits, twin(windows()).logits
    assert (got - expected).norm() <= 1e-4 * expected.norm()
    assert all(value.equal(before[name]) for name, value in model.state_dict().items())


def test_values_that_several_query_heads_read_share_their_scale():
    model = make("llama")  # 4 query heads on 2 kv heads of 16
    fold = next(f for f in find_folds(model, names_of(model), windows()[0]) if f.readers[0].endswith("o_proj"))
    heads = fold.channel.view(2, 2, 16)
    assert heads[:, 0].equal(heads[:, 1]) and heads[:, 0].flatten().equal(torch.arange(32))


@pytest.mark.parametrize("skip", [("lm_head", "k_proj"), ("lm_head", "*.0.self_attn.k_proj")])
def test_where_a_layer_that_takes_no_part_reads_as_well_nothing_is_folded(skip):
    model = make("llama")
    found = find_folds(model, names_of(model, skip), windows()[0])
    sources = {fold.readers[0]: fold.source for fold in found}
    assert sources["model.layers.0.self_attn.q_proj"] is None
    assert (sources["model.layers.1.self_attn.q_proj"] is None) == ("k_proj" in skip)  # blocks may differ
    assert sources["model.layers.1.mlp.gate_proj"] is not None
    assert "model.layers.0.self_attn.k_proj" not in {name for fold in found for name in fold.readers}


def test_a_source_that_is_to_be_left_alone_is_none():
    model = make("llama")
    found = find_folds(model, names_of(model, ("lm_head", "up_proj")), windows()[0])
    assert [fold.source for fold in found if fold.readers[0].endswith("down_proj")] == [None, None]


class Toy(nn.Module):
    """Embedding, norm, linear; `reads` says what else the norm's output flows into."""

    def __init__(self, reads):
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.norm = nn.Embedding(96, 16), nn.LayerNorm(16)
        self.a, self.b = nn.Linear(16, 16), nn.Linear(16, 16)
        self.reads = reads

    def forward(self, ids):
        x = self.norm(self.embed(ids))
        y = self.b(torch.nn.functional.leaky_relu(self.a(x)))
        return y + x if self.reads == "sum" else y * x.sigmoid() if self.reads == "gate" else y


@pytest.mark.parametrize(("reads", "source"), [("", "norm"), ("sum", None), ("gate", None)])
def test_a_norm_that_something_else_reads_is_none(reads, source):
    model = Toy(reads)
    found = {fold.readers[0]: fold.source for fold in find_folds(model, ["a", "b"], windows()[0])}
    assert found == {"a": source, "b": "a"}  # leaky ReLU keeps positive factors


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("family", ["llama", "gemma2", "opt"])
def test_a_gain_that_the_dtype_rounds_is_made_up_for(dtype, family):
    model = lively(family).to(dtype)
    folds = find_folds(model, names_of(model), windows()[0])
    assert all(fold.source for fold in folds)
    fold, twin = folds[0], quiet_twin(model)
    s = fold_in(twin, fold, random_scale(fold))
    offset = float(family == "gemma2")
    gains = [m.get_submodule(fold.source).weight.float() + offset for m in (model, twin)]
    assert torch.allclose(gains[1] * s, gains[0], rtol=1e-6)
    close = torch.isclose(s, random_scale(fold), rtol=0.05)
    assert bool((close | (s == 1)).all()) and close.sum() >= 62 and not s.equal(random_scale(fold))
    reader = fold.readers[0]
    expected = model.get_submodule(reader).weight.float() * s
    assert twin.get_submodule(reader).weight.equal(expected.to(dtype))


def test_hooks_and_modes_of_the_model_stay():
    model = make("llama").train()
    kept = copy.deepcopy(model.config.to_dict())
    find_folds(model, names_of(model), windows()[0])
    assert model.training and model.config.to_dict() == kept
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
