"""bitsandbytes' INT8 through transformers: our files there, theirs here, and both roundings of the same weights."""

import pytest
import torch
from checkpoint_cases import layers, quantized
from peer_weights import apart, logits
from test_checkpoints_gguf import llama

from quantlib import load_quantized, save_quantized

pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed: make peers")
transformers = pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """The float model, what we make of it, and what bitsandbytes makes of it."""
    top = tmp_path_factory.mktemp("bitsandbytes")
    model = llama(tied=False).half().float()  # it rounds in float16
    model.save_pretrained(top / "float")
    save_quantized(quantized(model, "bitsandbytes")[1], top / "ours", "bitsandbytes")
    config = transformers.BitsAndBytesConfig(load_in_8bit=True, llm_int8_threshold=6.0)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        top / "float", quantization_config=config, device_map="cpu", dtype=torch.float32
    )
    theirs.save_pretrained(top / "theirs")
    return top


def load(folder):
    return transformers.AutoModelForCausalLM.from_pretrained(folder, device_map="cpu", dtype=torch.float32).eval()


def test_it_reads_our_codes_and_scales(folders):
    ours, there = layers(load_quantized(folders / "ours")), load(folders / "ours")
    assert len(ours) == 14
    for name, layer in ours.items():
        q, got = layer.quantized(), there.get_submodule(name)
        assert got.weight.dtype is torch.int8 and got.weight.equal(q.codes), name
        assert (got.weight.SCB / 127).equal(q.scale[:, 0]) and got.state.threshold == 6.0, name


def test_we_read_its_codes_and_scales(folders):
    ours, there = layers(load_quantized(folders / "theirs")), load(folders / "theirs")
    assert len(ours) == 14
    for name, layer in ours.items():
        q, source = layer.quantized(), there.get_submodule(name)
        assert q.codes.equal(source.weight) and q.scale[:, 0].equal(source.weight.SCB / 127), name


def test_both_round_the_same_weights_alike(folders):
    """It multiplies by 127/absmax in float16 before it rounds, so a few codes fall to the other side: 0.01 % here."""
    ours, theirs = (layers(load_quantized(folders / name)) for name in ("ours", "theirs"))
    moved = []
    for name, layer in ours.items():
        q, other = layer.quantized(), theirs[name].quantized()
        assert q.scale.equal(other.scale), name
        moved.append((q.codes.int() - other.codes.int()).abs().flatten())
    moved = torch.cat(moved)
    assert moved.max() <= 1 and (moved > 0).float().mean() < 0.01


def test_a_file_of_ours_writes_what_a_file_of_its_own_writes(folders, tokens):
    """Where it is not the same, a code has moved and activations were rounded after that: 0.005 was measured."""
    assert apart(logits(load(folders / "ours"), tokens), logits(load(folders / "theirs"), tokens)) < 0.02
