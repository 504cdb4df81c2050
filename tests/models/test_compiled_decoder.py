"""A step in C++ beside the same in PyTorch: every matrix it takes, batches, and what it refuses."""

from functools import cache

import pytest
import torch
from compiled_builds import PATHS, needs_compiler
from decoder_cases import FAMILIES, METHODS, WORDS, apart, make, windows
from hypothesis import given, settings
from hypothesis import strategies as st

from tiny import save_tiny_model

from quantlib import GPTQ, RTN, Grid, quantize_model
from quantlib.kernels.cpu import compiled
from quantlib.kernels.cpu.compiled_step import CompiledStep
from quantlib.models import compiled_decoder
from quantlib.models.compiled_decoder import CompiledDecoder, fastest_decoder, generate_text, step_model
from quantlib.models.decoder import Decoder

SAME = 5e-4  # of the largest logit: 2e-6 of float sums; where one row of x is taken in sixteen bits, up to 2e-4 here
TAKEN = [name for name in METHODS if name not in ("int8 asymmetric groups", "int4 a row", "one layer left", "LLM.int8()")]
SHAPE = {"hidden_size": 128, "intermediate_size": 192}  # blocks of 32 and of 64 rows divide what is joined


@pytest.fixture(scope="module", params=PATHS)
def library(request, libraries):
    return libraries[request.param]


def stepped(decoder, library, tokens):
    """The logits of each place, [places, batch, vocabulary]: in PyTorch, then in C++ from the same cache on."""
    in_cpp = Decoder(decoder.model, decoder.context, batch=decoder.batch)
    step = CompiledStep(step_model(in_cpp), library)
    for i, ids in enumerate(tokens):
        wanted = decoder.step(ids)
        step.x.copy_(in_cpp.embedding[ids])
        step.positions.fill_(i)
        yield wanted, step().clone()


def agree(model, library, batch=1, places=6, seed=0):
    decoder = Decoder(model, places, batch=batch)
    decoder.model = model
    tokens = torch.randint(0, WORDS, (places, batch), generator=torch.Generator().manual_seed(seed))
    for wanted, got in stepped(decoder, library, tokens):
        assert apart(got, wanted) < SAME


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family(family, library):
    agree(make(family, **SHAPE), library)
    agree(quantize_model(make(family, **SHAPE), RTN(Grid(4, 32)))[0], library)


@cache
def model_of(method):
    return METHODS[method](make("biases of q, k and v", **SHAPE))


@pytest.mark.parametrize("method", TAKEN)
def test_every_method_it_takes(method, library):
    agree(model_of(method), library)
    agree(model_of(method), library, batch=3)


@settings(deadline=None, max_examples=10)
@given(st.data())
def test_random_shapes(library, data):
    head_dim, kv_heads = data.draw(st.sampled_from([16, 32])), data.draw(st.sampled_from([2, 4]))
    shape = {
        "hidden_size": 64 * data.draw(st.integers(1, 4)), "intermediate_size": 64 * data.draw(st.integers(1, 5)),
        "head_dim": head_dim, "num_key_value_heads": kv_heads, "num_attention_heads": kv_heads * data.draw(st.integers(1, 2)),
    }  # fmt: skip
    bits = data.draw(st.sampled_from([2, 3, 4, 8]))
    grid = Grid(bits, "row" if bits == 8 else data.draw(st.sampled_from([32, 64] if head_dim * shape["num_attention_heads"] % 64 == 0 else [32])), symmetric=bits == 8 or data.draw(st.booleans()))
    model = quantize_model(make("biases everywhere", data.draw(st.integers(0, 99)), **shape), RTN(grid))[0]
    agree(model, library, batch=data.draw(st.sampled_from([1, 1, 2, 5])))


def test_large_and_small_numbers_of_x(library):
    """One channel a thousand times the others, as models have it, and a hidden state of nothing."""
    model = make("grouped queries, tied", **SHAPE)
    model.model.embed_tokens.weight.data[:, 7] *= 1000
    model.model.embed_tokens.weight.data[3] = 0
    for grid in (Grid(4, 64), Grid(8, "row")):
        agree(quantize_model(model, RTN(grid))[0], library, places=20)


def test_nan_stays_nan(library):
    model = make("a head of its own", **SHAPE)
    model.model.embed_tokens.weight.data[5, 0] = float("nan")
    for grid in (Grid(4, 64), Grid(8, "row")):
        step = CompiledStep(step_model(Decoder(quantize_model(model, RTN(grid))[0], 4)), library)
        step.x.copy_(model.model.embed_tokens.weight[5:6])
        assert step().isnan().all()


@needs_compiler
def test_the_same_text_at_one_thread_and_two():
    compiled.build()
    model = quantize_model(make("grouped queries, tied", **SHAPE), RTN(Grid(4, 64)))[0]
    before, texts = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            texts.append(CompiledDecoder(model, 100).generate([1, 2, 3], 90).tolist())
    finally:
        torch.set_num_threads(before)
    assert texts[0] == texts[1] == texts[2]


@needs_compiler
def test_batches_and_act_order_through_the_whole_decoder():
    compiled.build()
    model = quantize_model(make("grouped queries, tied", **SHAPE), GPTQ(Grid(4, 32)), windows=windows())[0]
    prompts = [[1, 2, 3], [4], [5, 6]]
    together, plain = CompiledDecoder(model, 30, batch=3), Decoder(model, 30, batch=3)
    assert together.generate(prompts, 20).tolist() == plain.generate(prompts, 20).tolist()
    assert together.cache_bytes == plain.cache_bytes


@needs_compiler
def test_what_it_does_not_take_is_left_to_pytorch():
    compiled.build()
    model = METHODS["LLM.int8()"](make("grouped queries, tied"))
    with pytest.raises(ValueError, match="cannot be decoded in C"):
        CompiledDecoder(model, 20)
    assert type(fastest_decoder(model, 20)) is Decoder
    assert type(fastest_decoder(quantize_model(make("grouped queries, tied", **SHAPE), RTN(Grid(4, 32)))[0], 20)) is CompiledDecoder
    uneven = quantize_model(make("grouped queries, tied", intermediate_size=96), RTN(Grid(8, "row")))[0]
    assert type(fastest_decoder(uneven, 20)) is CompiledDecoder
    with pytest.raises(ValueError, match="128 positions"):
        fastest_decoder(model, 1000)


@needs_compiler
def test_a_wrong_step_is_not_used(monkeypatch):
    compiled.build()
    model = make("grouped queries, tied", **SHAPE)

    class Wrong(CompiledStep):
        def __call__(self):
            return super().__call__() * 1.01

    monkeypatch.setattr(compiled_decoder, "CompiledStep", Wrong)
    with pytest.raises(RuntimeError, match="wrong on this CPU"):
        CompiledDecoder(model, 20)
    assert type(fastest_decoder(model, 20)) is Decoder


def test_text(tmp_path):
    model, tokenizer = save_tiny_model(tmp_path)
    ids = tokenizer("the cat sat", return_tensors="pt").input_ids
    wanted = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=9, min_new_tokens=9, do_sample=False)
    got = generate_text(model, tokenizer, "the cat sat", 9)
    assert got.split()[:3] == tokenizer.decode(wanted[0, 3:]).split()[:3]
    with pytest.raises(ValueError, match="at least one token"):
        generate_text(model, tokenizer, "", 9)


def test_without_the_library(monkeypatch):
    monkeypatch.setenv("QUANTLIB_COMPILED", "0")
    model = make("grouped queries, tied")
    with pytest.raises(ValueError, match="it was not built"):
        CompiledDecoder(model, 20)
    assert type(fastest_decoder(model, 20)) is Decoder
