"""GPTQModel: its torch backend on our folders, through transformers, and the folders that it writes, loaded here.

It multiplies in float16, so logits agree to that and no further. What shows whether a file was understood is the weight
that its layers multiply by, which is ours in float16, bit for bit.
"""

import pytest
import torch
from checkpoint_cases import quantized
from peer_weights import apart, logits, weights
from test_checkpoints_gguf import llama, smollm_like

from quantlib import load_quantized, save_quantized

gptqmodel = pytest.importorskip("gptqmodel", reason="GPTQModel is not installed: make peers")
transformers = pytest.importorskip("transformers")

HALF = 2e-3  # of float16 products here: 4e-4 to 9e-4 were measured


def load(folder, backend):
    """Through transformers, float32 around layers that multiply in float16."""
    kind = transformers.AwqConfig if backend == "torch_awq" else transformers.GPTQConfig
    config = kind(bits=4, backend=backend)
    return transformers.AutoModelForCausalLM.from_pretrained(
        folder, quantization_config=config, device_map="cpu", dtype=torch.float32
    ).eval()


def multiplied(layer):
    """The weight [out, in] in float16 that one of its layers multiplies by, whatever it keeps."""
    with torch.no_grad():
        return layer(torch.eye(layer.in_features, dtype=torch.float16)).t()


@pytest.mark.parametrize(
    "name, backend",
    [
        ("gptq", "gptq_torch"),
        ("gptq 8 bits", "gptq_torch"),
        ("gptq_v2", "gptq_torch"),
        ("gptq_v2 asymmetric", "gptq_torch"),
        ("awq", "torch_awq"),
    ],
)
def test_it_reads_our_files(name, backend, tokens, tmp_path):
    format, model = quantized(llama(), name)
    save_quantized(model, tmp_path / "out", format)
    theirs = load(tmp_path / "out", backend)
    for layer, weight in weights(model, torch.float16).items():
        assert multiplied(theirs.get_submodule(layer)).equal(weight), layer
    assert apart(logits(theirs, tokens), logits(model, tokens)) < HALF


GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 32, "pack_impl": "original"}  # the others are compiled first
SETTINGS = {
    "gptq": {**GPTQ, "sym": True, "desc_act": False},
    "gptq act-order": {**GPTQ, "sym": True, "desc_act": True},
    "gptq_v2 asymmetric": {**GPTQ, "sym": False, "desc_act": False, "format": "gptq_v2"},
    "awq": {**GPTQ, "quant_method": "awq", "format": "gemm", "sym": False},
}


def wide():
    """All layers have a multiple of 64 outputs: its AWQ ends the process with an AssertionError for others."""
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=260, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=4, max_position_embeddings=64, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    model = transformers.LlamaForCausalLM(config).eval()
    for parameter in model.parameters():
        parameter.data *= 4 if parameter.ndim == 2 else 1
    return model


@pytest.mark.parametrize("name", SETTINGS)
def test_what_it_wrote_loads_here(name, tokens, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # it writes its logs into the folder one is in
    wide().save_pretrained(tmp_path / "float")
    smollm_like().save_pretrained(tmp_path / "float")
    config = gptqmodel.QuantizeConfig(**SETTINGS[name])
    # by default it takes float32 for bfloat16, and writes AWQ's scales so
    work = gptqmodel.GPTQModel.load(str(tmp_path / "float"), config, device="cpu", dtype=torch.float16)
    ids = torch.randint(3, 250, (16, 48), generator=torch.Generator().manual_seed(0)).tolist()
    work.quantize([{"input_ids": each, "attention_mask": [1] * 48} for each in ids], batch_size=1)
    work.save(str(tmp_path / "out"))

    ours = load_quantized(tmp_path / "out")
    theirs = load(tmp_path / "out", "torch_awq" if name == "awq" else "gptq_torch")
    got = weights(ours, torch.float16)
    assert len(got) == 14
    for layer, weight in got.items():
        assert multiplied(theirs.get_submodule(layer)).equal(weight), layer
    assert apart(logits(theirs, tokens), logits(ours.float(), tokens)) < HALF
