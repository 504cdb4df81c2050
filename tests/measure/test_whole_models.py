"""What part 7 times of whole models, on the CPU and at sizes of a blink: that the ways run, and what is counted."""

import sys

import pytest
import torch

from quantlib import RTN, quantize_model
from quantlib.measure.ceilings import Ceilings
from quantlib.models.linears import linear_layers
from quantlib.records.experiments import load_experiment

TINY = {
    "model_type": "llama", "vocab_size": 1024, "tie_word_embeddings": False, "hidden_size": 128, "intermediate_size": 256,
    "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
}  # fmt: skip
LIMITS = Ceilings(20.0, "sum of float32", 15.0, {"float32": 100.0}, "cpu", 1)


@pytest.fixture
def module(monkeypatch):
    found = sys.modules[load_experiment("part_07.on_gpu").function.__module__]
    monkeypatch.setattr(found, "ceilings", lambda *_: LIMITS)
    monkeypatch.setattr(found, "REAL_MODELS", {"tiny": TINY, "tied": TINY | {"tie_word_embeddings": True}})
    return found


def test_what_a_gpu_is_asked_runs_on_a_cpu_as_well(module):
    torch.manual_seed(0)
    found = module.on_gpu.function(shapes=("tiny",), device="cpu", tokens=4, prompt=3, length=6, rounds=2)["tiny"]
    assert set(found["rates"].benchmark.measurements) == {"bf16", "int8", "int4"} == set(found["reading"].measurements)
    assert all(m.rounds == 2 for m in found["reading"].measurements.values())


@pytest.mark.parametrize("shape", ["tiny", "tied"])
@pytest.mark.parametrize("name", ["bf16", "int8", "int4"])
def test_bytes_of_a_token_are_those_of_a_model_that_is_there(module, shape, name):
    grid, floats = module.ON_GPU.get(name), module.invented(shape, "cpu")
    held = 2 * sum(p.numel() for p in floats.parameters())
    if shape != "tied":  # a tied table is read as the head
        held -= 2 * floats.get_input_embeddings().weight.numel()
    if grid is not None:
        report = quantize_model(floats, RTN(grid))[1]
        held += report.bytes_after - 2 * sum(layer.weight.numel() for layer in linear_layers(floats)[0])
    assert module.read_by_a_token(shape, grid) == held


def test_a_prompt_is_read_in_every_way_up_to_the_first_new_token(module):
    floats = module.invented("tiny", "cpu")

    class Peer:
        def generate(self, ids, count):
            return ids, count

    ways = module.reading_ways({"float": floats}, {"peer": Peer()}, torch.arange(5))
    assert ways["float"]().logits.shape == (1, 1, TINY["vocab_size"]) and ways["peer"]() == ([0, 1, 2, 3, 4], 1)
