"""A step of one shape gives what a step of growing shapes gives; as a graph where a GPU is."""

import pytest
import torch
from decoder_cases import FAMILIES, METHODS, apart, make

from quantlib.models.decoder import Decoder
from quantlib.models.graphed_decoder import FixedDecoder, GraphedDecoder

PROMPTS = [[5, 9, 2], [7], [1, 2, 3, 4, 5, 6]]


@pytest.mark.parametrize("family", FAMILIES)
def test_the_same_texts(family):
    model = make(family)
    assert FixedDecoder(model, 40).generate(PROMPTS[0], 30).equal(Decoder(model, 40).generate(PROMPTS[0], 30))
    fixed, plain = FixedDecoder(model, 30, batch=3), Decoder(model, 30, batch=3)
    assert fixed.generate(PROMPTS, 20).equal(plain.generate(PROMPTS, 20))


@pytest.mark.parametrize("method", ["int8 a row", "int4 asymmetric"])
def test_the_same_logits(method):
    model = METHODS[method](make("biases of q, k and v"))
    fixed, plain = FixedDecoder(model, 12), Decoder(model, 12)
    for token in range(12):
        token = torch.tensor([token])
        assert apart(fixed.step(token), plain.step(token)) < 1e-5


def test_what_was_in_the_cache_is_not_read():
    model = make("grouped queries, tied")
    decoder = FixedDecoder(model, 20)
    first = decoder.generate(PROMPTS[0], 15)
    for block in decoder.blocks:
        block.keys.fill_(100.0)
    assert decoder.generate(PROMPTS[0], 15).equal(first)


def test_a_cpu_has_no_graphs():
    with pytest.raises(ValueError, match="must be on a GPU"):
        GraphedDecoder(make("grouped queries, tied"), 20)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_a_graph_gives_the_same():
    model = METHODS["int4"](make("grouped queries, tied")).cuda().half()
    graphed, plain = GraphedDecoder(model, 40), Decoder(model, 40)
    for token in (3, 7, 7, 1, 9):
        token = torch.tensor([token], device="cuda")
        assert apart(graphed.step(token), plain.step(token)) < 1e-2
