"""The model in one file: what transformers answers, on every family and method, and its cache."""

import gc

import pytest
import torch
from decoder_cases import FAMILIES, METHODS, WORDS, apart, make
from hypothesis import given, settings
from hypothesis import strategies as st

from quantlib import RTN, Grid, quantize_model
from quantlib.models.decoder import Decoder, _below

SAME = 1e-4


def text(length, seed=0):
    return torch.randint(0, WORDS, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


def theirs(model, prompt, count):
    ids = torch.tensor([prompt])
    with torch.no_grad():
        out = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=count, do_sample=False, pad_token_id=0)
    return out[0, len(prompt) :].tolist()


def all_logits(model, tokens):
    with torch.no_grad():
        return model(torch.tensor([tokens])).logits[0]


def checked(model, decoder, tokens, prompt=5):
    """Reads a prompt, then steps through the rest: the logits of every place are the model's."""
    wanted = all_logits(model, tokens)
    decoder.lengths = [0]
    assert apart(decoder.read(tokens[:prompt]), wanted[prompt - 1]) < SAME
    for i in range(prompt, len(tokens)):
        assert apart(decoder.step(torch.tensor([tokens[i]]))[0], wanted[i]) < SAME


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family(family):
    model = make(family)
    decoder = Decoder(model, context=60)
    checked(model, decoder, text(20))
    prompt = text(7, seed=1)
    assert decoder.generate(prompt, 40).tolist() == theirs(model, prompt, 40)


WEIGHT_ONLY = [method for method in METHODS if method != "LLM.int8()"]


@pytest.mark.parametrize("method", WEIGHT_ONLY)
def test_every_method(method):
    model = METHODS[method](make("biases of q, k and v"))
    checked(model, Decoder(model, context=20), text(20))


def test_llm_int8():
    """What it rounds depends on the rows of a call, so only whole texts compare; a last bit may move a code."""
    model = METHODS["LLM.int8()"](make("biases of q, k and v"))
    for seed in range(5):
        assert apart(Decoder(model, context=20).read(text(20, seed)), all_logits(model, text(20, seed))[-1]) < 0.02


@settings(deadline=None, max_examples=12)
@given(
    st.integers(0, 99), st.sampled_from(list(FAMILIES)), st.sampled_from(WEIGHT_ONLY), st.integers(1, 3),
    st.sampled_from([64, 96]), st.integers(1, 9),
)  # fmt: skip
def test_family_by_method(seed, family, method, layers, intermediate, prompt):
    model = make(family, seed, num_hidden_layers=max(2, layers), intermediate_size=intermediate)
    if intermediate % 64 and method == "int4 asymmetric":
        return  # its groups do not divide
    small = METHODS[method](model)
    checked(small, Decoder(small, context=12), text(12, seed), prompt)


def test_products_are_joined_and_exact():
    model = make("grouped queries, tied")
    small = quantize_model(model, RTN(Grid(4, 32, symmetric=False)))[0]
    block, layer = Decoder(small, context=8).blocks[0], small.model.layers[0]
    parts = [layer.self_attn.q_proj, layer.self_attn.k_proj, layer.self_attn.v_proj]
    joined, wanted = block.qkv.quantized(), [part.quantized() for part in parts]
    for name in ("codes", "scale", "zero_point"):
        assert getattr(joined, name).equal(torch.cat([getattr(q, name) for q in wanted]))
    assert block.down is layer.mlp.down_proj  # shared, not copied
    other = quantize_model(model, RTN(Grid(4, 16)))[0].model.layers[0].self_attn.k_proj.quantized()
    assert _below([wanted[0], other]) is None


def test_bfloat16_follows_the_model():
    model = make("grouped queries, tied").bfloat16()
    decoder = Decoder(model, context=24)
    assert decoder.blocks[0].keys.dtype == torch.bfloat16
    assert apart(decoder.read(text(20)), all_logits(model, text(20))[-1].float()) < 0.05
    wide = Decoder(model, context=24, dtype=torch.float32)
    assert apart(wide.read(text(20)), all_logits(model.float(), text(20))[-1]) < SAME


def test_a_batch_is_its_texts():
    """Prompts of different lengths: each row keeps a place of its own."""
    model = make("grouped queries, tied")
    prompts = [text(n, seed=n) for n in (3, 9, 1, 6)]
    together = Decoder(model, context=40, batch=4).generate(prompts, 30)
    alone = Decoder(model, context=40)
    assert together.tolist() == [alone.generate(prompt, 30).tolist() for prompt in prompts]


def test_a_prompt_in_parts():
    model, tokens = make("grouped queries, tied"), text(20)
    decoder = Decoder(model, context=20)
    decoder.read(tokens[:6])
    assert apart(decoder.read(torch.tensor(tokens[6:])), all_logits(model, tokens)[-1]) < SAME


def test_the_head_rounded():
    """It is the same as a model whose head was rounded."""
    model = make("a head of its own")
    grid = Grid(8, "row", narrow_range=True)
    small = quantize_model(model, RTN(grid), skip=("model.*",))[0]
    got, wanted = Decoder(model, context=9, head=grid).read(text(9)), Decoder(small, context=9).read(text(9))
    assert got.equal(wanted) and not got.equal(Decoder(model, context=9).read(text(9)))
    with pytest.raises(ValueError, match="quantized already"):
        Decoder(small, context=9, head=grid)


def tensors():
    gc.collect()
    return sum(issubclass(type(each), torch.Tensor) for each in gc.get_objects())  # isinstance would wake lazy modules


def test_the_cache_is_its_formula_and_all_there_is():
    model = make("grouped queries, tied")
    decoder = Decoder(model, context=100, batch=3)
    assert decoder.cache_bytes == 2 * 2 * 3 * 100 * 2 * 16 * 4  # K and V, layers, batch, context, kv heads, width, bytes
    decoder = Decoder(model, context=120)
    decoder.generate(text(5), 10)
    before, held = tensors(), [block.keys.data_ptr() for block in decoder.blocks]
    decoder.generate(text(5), 110)
    assert tensors() <= before
    assert held == [block.keys.data_ptr() for block in decoder.blocks]


def test_the_model_stays_as_it_is():
    model = make("biases everywhere")
    before = {name: t.clone() for name, t in model.state_dict().items()}
    Decoder(model, context=30, head=Grid(8, "row")).generate(text(5), 20)
    assert all(t.equal(before[name]) for name, t in model.state_dict().items())


def test_more_than_the_cache_holds_is_refused():
    decoder = Decoder(make("grouped queries, tied"), context=8)
    with pytest.raises(ValueError, match=r"do not fit context=8"):
        decoder.read(text(9))
    decoder.read(text(8))
    with pytest.raises(ValueError, match=r"1 tokens after 8 do not fit"):
        decoder.step(torch.tensor([1]))
    assert decoder.lengths == [8]
    with pytest.raises(ValueError, match="need a longer cache"):
        decoder.generate(text(5), 5)
    assert len(decoder.generate(text(5), 4)) == 4  # the last one is not read


@pytest.mark.parametrize(
    "family, more, context, match",
    [
        ("a sliding window", {}, 65, "sliding window of 64"),
        ("grouped queries, tied", {}, 129, "128 positions"),
        ("grouped queries, tied", {"hidden_act": "gelu"}, 8, "SwiGLU"),
        ("grouped queries, tied", {}, 0, "at least 1"),
        (
            "grouped queries, tied",
            {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}},
            8,
            "rope_type='dynamic'",
        ),
    ],
)
def test_what_it_does_not_know_is_refused(family, more, context, match):
    with pytest.raises(ValueError, match=match):
        Decoder(make(family, **more), context)


def test_other_families_and_prompts_are_refused():
    from families import make as other

    with pytest.raises(ValueError, match="llama, mistral, qwen2, got"):
        Decoder(other("gemma3"), 8)
    decoder = Decoder(make("grouped queries, tied"), 8, batch=2)
    for prompt in ([], text(3), [text(3)], [text(3), []]):
        with pytest.raises(ValueError, match="prompt must be 2 texts"):
            decoder.generate(prompt, 2)
