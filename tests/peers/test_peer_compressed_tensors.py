"""Our compressed-tensors folders in transformers, which reads them with the package of that name."""

import pytest
import torch
from checkpoint_cases import CASES, quantized
from peer_weights import apart, logits, weights
from test_checkpoints_gguf import llama

from quantlib import save_quantized

pytest.importorskip("compressed_tensors", reason="compressed-tensors is not installed: make peers")
transformers = pytest.importorskip("transformers")


@pytest.mark.parametrize("name", [name for name in CASES if name.startswith("compressed-tensors")])
def test_transformers_gives_our_logits_and_our_weights(name, tokens, tmp_path):
    format, model = quantized(llama(), name)
    save_quantized(model, tmp_path / "out", format)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert theirs.dtype is torch.float32
    assert apart(logits(theirs, tokens), logits(model, tokens)) < 1e-5  # the order of sums
    expected = weights(model)
    assert len(expected) == 14
    for layer, weight in expected.items():  # its first product has unpacked them
        assert theirs.get_submodule(layer).weight.float().equal(weight), layer
