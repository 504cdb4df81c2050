"""Our GGUF files in llama.cpp. It rounds the inputs of its products to int8, and keeps keys and values in float16, so its
answers are near ours: as near as on the file that the lesson model came in, which is the measure here.
"""

import pytest
import torch
from test_checkpoints_gguf import llama, smollm_like

from quantlib import RTN, Grid, load_lesson_model, load_text, quantize_model, save_quantized
from quantlib.measure.llama_cpp import LlamaCpp, available
from quantlib.zoo.zoo import SMOLLM2

if reason := available():
    pytest.skip(f"{reason}, or make peers", allow_module_level=True)

GRIDS = {"Q8_0": Grid(8, 32, narrow_range=True), "Q4_0": Grid(4, 32), "Q4_1": Grid(4, 32, symmetric=False)}


def ours(model, tokens):
    """Of every token but the first: its log-probability, and the likeliest token."""
    with torch.no_grad():
        log_probability = model(torch.tensor([tokens])).logits[0, :-1].float().log_softmax(-1)
    return log_probability.gather(1, torch.tensor(tokens[1:])[:, None])[:, 0], log_probability.argmax(-1)


def near(file, model, tokens):
    """(mean distance of the log-probabilities in nats, share of positions with the same likeliest token)."""
    with LlamaCpp(file, context=256) as peer:
        scores = peer.score(tokens)
    expected, top = ours(model, tokens)
    distance = (torch.tensor(scores.log_probabilities) - expected).abs().mean().item()
    return distance, (torch.tensor(scores.top) == top).float().mean().item()


@pytest.mark.parametrize("kind", GRIDS)
@pytest.mark.parametrize("tied", [True, False])
def test_it_loads_every_block_type(kind, tied, tokens, tmp_path):
    model = quantize_model(llama(tied), RTN(GRIDS[kind]))[0]
    save_quantized(model, tmp_path / "out.gguf", "gguf", tokenizer=smollm_like())
    distance, same = near(tmp_path / "out.gguf", model, tokens[0].tolist())
    assert distance < 0.05 and same > 0.8


@pytest.fixture(scope="module")
def lesson():
    """The lesson model, 120 tokens of text, and how near llama.cpp is on the file that it came in."""
    loaded = load_lesson_model()
    tokens = loaded.tokenizer.encode(load_text("wikitext-2", "test")[:2000])[:120]
    return loaded, tokens, near(SMOLLM2.paths[0], loaded.model, tokens)


@pytest.mark.parametrize("kind", GRIDS)
def test_our_files_of_the_lesson_model_are_as_near_as_its_own(kind, lesson, tmp_path):
    loaded, tokens, (own, own_same) = lesson
    assert own < 0.1 and own_same > 0.9
    model = quantize_model(loaded.model, RTN(GRIDS[kind]))[0]
    save_quantized(model, tmp_path / "out.gguf", "gguf", tokenizer=loaded.tokenizer)
    distance, same = near(tmp_path / "out.gguf", model, tokens)
    assert distance < 1.5 * own and same > own_same - 0.05
