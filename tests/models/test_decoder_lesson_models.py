"""The lesson models: two hundred tokens as transformers' generate writes them, and codes in C++ as in PyTorch."""

import pytest
import torch
from compiled_builds import needs_compiler

from quantlib import RTN, CompiledDecoder, Decoder, Grid, generate_text, load_model, quantize_model
from quantlib.kernels.cpu import compiled

PROMPTS = {"SmolLM2-135M-Instruct": "The history of the printing press begins", "stories15M": "Once upon a time"}
TOKENS = 200


@pytest.mark.parametrize("name", PROMPTS)
def test_two_hundred_tokens_are_those_of_generate(name):
    loaded = load_model(name)
    prompt = loaded.tokenizer(PROMPTS[name], return_tensors="pt").input_ids
    length = prompt.shape[1]
    options = {"max_new_tokens": TOKENS, "min_new_tokens": TOKENS, "do_sample": False, "pad_token_id": 0}
    theirs = loaded.model.generate(prompt, attention_mask=torch.ones_like(prompt), **options)[0]
    decoder = Decoder(loaded.model, length + TOKENS)
    ours = decoder.generate(prompt[0].tolist(), TOKENS)
    assert ours.tolist() == theirs[length:].tolist()
    assert generate_text(loaded.model, loaded.tokenizer, PROMPTS[name], 20) == loaded.tokenizer.decode(ours[:20])

    with torch.no_grad():
        wanted = loaded.model(theirs[None, :64]).logits[0]
    decoder.lengths = [0]
    decoder.read(theirs[:length].tolist())
    for i in range(length, 64):
        got = decoder.step(theirs[i : i + 1])[0]
        assert (got - wanted[i]).abs().max() < 1e-4 * wanted[i].abs().max()


@needs_compiler
@pytest.mark.parametrize("grid", [Grid(4, 32), Grid(8, "row")], ids=str)
def test_codes_in_cpp(grid):
    """The small model: one of the two whose codes are not those of a file."""
    compiled.build()
    loaded = load_model("stories15M")
    small, head = quantize_model(loaded.model, RTN(grid))[0], Grid(8, "row")
    ids = loaded.tokenizer(PROMPTS["stories15M"])["input_ids"]
    plain, step = Decoder(small, 256, head=head), CompiledDecoder(small, 256, head=head)
    for decoder in (plain, step):
        decoder.read(ids)
    for token in loaded.tokenizer(" there was a little girl who lived in a small house with her dog")["input_ids"]:
        wanted, got = (decoder.step(torch.tensor([token])) for decoder in (plain, step))
        assert (got - wanted).abs().max() < 1e-3 * wanted.abs().max()
