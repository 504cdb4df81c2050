"""Folders that llm-compressor wrote, loaded here: its weights bit for bit."""

import pytest
import torch
from peer_weights import apart, logits, weights
from test_checkpoints_gguf import llama, smollm_like

from quantlib import load_quantized

pytest.importorskip("llmcompressor", reason="llm-compressor is not installed: make peers")
transformers = pytest.importorskip("transformers")
datasets = pytest.importorskip("datasets")

SCHEMES = {
    "W4 g32 symmetric": {"num_bits": 4, "strategy": "group", "group_size": 32, "symmetric": True},
    "W4 g32 asymmetric": {"num_bits": 4, "strategy": "group", "group_size": 32, "symmetric": False},
    "W8 row": {"num_bits": 8, "strategy": "channel", "symmetric": True},
}


@pytest.mark.parametrize("name", SCHEMES)
@pytest.mark.parametrize("modifier", ["gptq", "rounding"])
def test_what_it_wrote_loads_here(name, modifier, tokens, tmp_path):
    model = llama(tied=False)
    model.save_pretrained(tmp_path / "float")
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "float")
    _oneshot(model, SCHEMES[name], modifier)
    model.save_pretrained(tmp_path / "out", save_compressed=True)

    ours = load_quantized(tmp_path / "out")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert apart(logits(ours, tokens), logits(theirs, tokens)) < 1e-5
    got = weights(ours)
    assert len(got) == 14
    for layer, weight in got.items():
        assert weight.equal(theirs.get_submodule(layer).weight.float()), layer


def _oneshot(model, weights, modifier):
    args = pytest.importorskip("compressed_tensors.quantization")
    groups = {"all": args.QuantizationScheme(targets=["Linear"], weights=args.QuantizationArgs(**weights))}
    module = pytest.importorskip(f"llmcompressor.modifiers.{'gptq' if modifier == 'gptq' else 'quantization'}")
    kind = module.GPTQModifier if modifier == "gptq" else module.QuantizationModifier
    ids = torch.randint(3, 250, (8, 48), generator=torch.Generator().manual_seed(0)).tolist()
    text = datasets.Dataset.from_dict({"input_ids": ids, "attention_mask": [[1] * 48] * 8})
    oneshot = pytest.importorskip("llmcompressor").oneshot
    recipe = [kind(config_groups=groups, ignore=["lm_head"])]
    oneshot(
        model=model, processor=smollm_like(), dataset=text, recipe=recipe, max_seq_length=48, num_calibration_samples=8
    )
