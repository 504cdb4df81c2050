"""answers.py: the same as perplexity and compare, from what enters the head."""

import pytest
import torch

from quantlib.measure.answers import answers, beside
from quantlib.measure.evaluate import compare, perplexity
from quantlib.measure.memory import extra_memory, peak_memory
from quantlib.models.convert import RTN, quantize_model
from quantlib.models.linears import dequantized
from quantlib.numerics.grid import Grid
from tests.models.families import make, windows

TOKENS = windows(count=4, length=50).flatten()


@pytest.fixture(scope="module")
def models():
    model = make("llama")
    return model, dequantized(quantize_model(model, RTN(Grid(3, 16)))[0])


def test_it_is_perplexity_and_compare_and_no_more_is_read_than_asked(models):
    before, after = models
    found = beside(answers(before, TOKENS, 50, 3), answers(after, TOKENS, 50, 3))
    torch.testing.assert_close(found.nll, perplexity(after, TOKENS, 50, 3).nll)
    known = compare(before, after, TOKENS, 50, 3)
    torch.testing.assert_close(found.kl, known.kl_tokens, rtol=1e-4, atol=1e-6)
    assert found.same.equal(known.same_top1) and 0 < found.same.double().mean() < 1
    assert found.nll.shape == (3, 49)


def test_a_model_beside_itself_has_lost_nothing(models):
    own = answers(models[0], TOKENS, 50, 3)
    found = beside(own, own)
    assert found.kl.abs().max() < 1e-6 and found.same.all() and not found.flips.any()


def test_flips_are_answers_that_were_right_or_became_right(models):
    before, after = models
    found = beside(answers(before, TOKENS, 50, 3), answers(after, TOKENS, 50, 3))
    ids = TOKENS[:150].view(3, 50)
    with torch.no_grad():
        right = [model(ids).logits[:, :-1].argmax(-1) == ids[:, 1:] for model in models]
    assert found.was_right.equal(right[0]) and found.right.equal(right[1])
    assert found.flips.equal(right[0] != right[1]) and found.flips.any()


def test_other_texts_and_logits_that_are_capped_are_refused(models):
    with pytest.raises(ValueError, match="same windows of the same text"):
        beside(answers(models[0], TOKENS, 50, 2), answers(models[0], TOKENS.flip(0), 50, 2))
    gemma = make("gemma2")
    gemma.config.final_logit_softcapping = 0.5
    with pytest.raises(ValueError, match="changes its logits behind the head"):
        answers(gemma, TOKENS, 50, 2)
    assert not gemma.lm_head._forward_pre_hooks
    with pytest.raises(ValueError, match="Linear names no head"):
        answers(torch.nn.Linear(2, 2), TOKENS, 50, 2)


def test_the_peak_of_memory_sees_what_is_gone_again():
    _, idle = peak_memory(lambda: None)
    if idle is None:
        pytest.skip("this system does not keep a process's peak of memory")
    out, busy = peak_memory(lambda: len(bytearray(b"1" * 200_000_000)))
    assert out == 200_000_000 and busy - idle > 150_000_000
    assert peak_memory(lambda: None)[1] < busy - 100_000_000  # forgotten


def test_extra_memory_is_what_comes_on_top():
    held = bytearray(b"1") * 300_000_000
    made, extra = extra_memory(lambda: bytearray(b"1") * 200_000_000)
    if extra is None:
        pytest.skip("this system does not keep a process's peak of memory")
    assert len(held) > len(made) and 190_000_000 < extra < 290_000_000
    assert extra_memory(lambda: None)[1] < 20_000_000
