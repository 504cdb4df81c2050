"""save_quantized and load_quantized: what comes back is what went in, and the bytes are the documented ones."""

import json

import pytest
import torch
from checkpoint_cases import CASES, layers, quantized, same, state, tensors_of
from families import make, windows
from hypothesis import given, settings
from hypothesis import strategies as st
from quantized_cases import act_ordered
from safetensors.torch import save_file
from tiny import save_tiny_model
from torch import nn
from transformers import AutoTokenizer

from quantlib import RTN, Grid, LLMInt8, load_quantized, quantize, quantize_model, save_quantized
from quantlib.layers.mixed import MixedInt8Linear
from quantlib.layers.weight_only import Int4Linear, Int8Linear
from quantlib.models.checkpoints.bitsandbytes import absmax_of
from quantlib.models.checkpoints.formats import WRITERS, format_for


def saved(tmp_path, case, family="llama", **options):
    format, model = quantized(make(family), case)
    save_quantized(model, tmp_path / "out", format, **options)
    return model, tmp_path / "out"


@pytest.mark.parametrize("case", CASES)
def test_what_is_loaded_is_what_was_saved(case, tmp_path):
    model, folder = saved(tmp_path, case)
    new = load_quantized(folder)
    assert same(state(model), state(new))
    text = windows(2)
    with torch.no_grad():
        assert model(text).logits.equal(new(text).logits)


@pytest.mark.parametrize("family", ["qwen2", "gemma3", "opt-350m", "gpt2"])
@pytest.mark.parametrize("shard", [2_000_000_000, 30_000])
def test_families_and_shards(family, shard, tmp_path):
    """Biases, tied heads, scaled embeddings, post-norms, Conv1D; in one file and in several."""
    model, folder = saved(tmp_path, "gptq", family, max_shard_bytes=shard)
    files = sorted(file.name for file in folder.glob("*.safetensors"))
    assert (len(files) > 2) == (shard < 100_000) and (folder / "model.safetensors.index.json").exists() == (
        len(files) > 1
    )
    new = load_quantized(folder)
    assert same(state(model), state(new))
    assert model(windows(1)).logits.equal(new(windows(1)).logits)
    if len(files) > 1:
        index = json.loads((folder / "model.safetensors.index.json").read_text(encoding="utf-8"))
        sizes = [t.numel() * t.element_size() for t in tensors_of(folder).values()]
        assert index["metadata"]["total_size"] == sum(sizes) and set(index["weight_map"].values()) == set(files)


def test_halves_stay_halves(tmp_path):
    model = quantize_model(make("qwen2").to(torch.bfloat16), RTN(Grid(4, 32)))[0]
    save_quantized(model, tmp_path / "out", "gptq")
    new = load_quantized(tmp_path / "out")
    without = [
        {k: v for k, v in state(m).items() if "inv_freq" not in k} for m in (model, new)
    ]  # never stored: computed
    assert same(*without) and {p.dtype for p in new.parameters()} == {torch.bfloat16}
    assert new.model.layers[0].mlp.up_proj.weight.dtype == torch.bfloat16


def test_a_head_of_its_own(tmp_path):
    """Quantized, it stops being the embedding's; where readers would not look for it, it is refused."""
    model = quantize_model(make("gemma3"), RTN(Grid(4, 32)), skip=())[0]
    for format in ("gptq", "compressed-tensors"):
        save_quantized(model, tmp_path / format, format)
        new = load_quantized(tmp_path / format)
        assert same(state(model), state(new)) and "lm_head" in layers(new) and not new.config.tie_word_embeddings
    with pytest.raises(ValueError, match="keep skip="):
        save_quantized(model, tmp_path / "no", "awq")


def test_skipped_layers_are_named_where_other_tools_look(tmp_path):
    kept = "model.layers.1.mlp.down_proj"
    model = quantize_model(make("llama"), RTN(Grid(4, 32)), skip=("lm_head", kept))[0]
    mixed = quantize_model(make("llama"), LLMInt8(6.0), skip=("lm_head", kept))[0]
    found = {}
    for format in WRITERS:
        save_quantized(mixed if format == "bitsandbytes" else model, tmp_path / format, format)
        assert kept not in layers(load_quantized(tmp_path / format))
        found[format] = json.loads((tmp_path / format / "config.json").read_text(encoding="utf-8"))[
            "quantization_config"
        ]
    assert found["awq"]["modules_to_not_convert"] == found["compressed-tensors"]["ignore"] == [kept, "lm_head"]
    assert found["bitsandbytes"]["llm_int8_skip_modules"] == [kept, "lm_head"]
    assert found["gptq"]["dynamic"] == {r"-:^model\.layers\.1\.mlp\.down_proj$": {}} and not found["gptq"]["lm_head"]


def test_beside_the_weights(tmp_path):
    """The tokenizer, what generate() starts from, and a configuration that names the float dtype."""
    model, tokenizer = save_tiny_model(tmp_path / "float")
    small = quantize_model(model, RTN(Grid(4, 16)))[0]
    save_quantized(small, tmp_path / "out", "gptq", tokenizer=tokenizer)
    assert AutoTokenizer.from_pretrained(tmp_path / "out").encode("the cat sat") == tokenizer.encode("the cat sat")
    assert (tmp_path / "out" / "generation_config.json").exists()
    config = json.loads((tmp_path / "out" / "config.json").read_text(encoding="utf-8"))
    assert config["architectures"] == ["LlamaForCausalLM"] and config["dtype"] == "float32"
    assert (
        json.loads((tmp_path / "out" / "quantize_config.json").read_text(encoding="utf-8"))
        == config["quantization_config"]
    )
    assert load_quantized(tmp_path / "out").generate(torch.tensor([[1, 3]]), max_new_tokens=3).shape[1] <= 5


# --- the bytes


def test_the_words_themselves(tmp_path):
    """A symmetric grid's zeros: 7 in version 1, 8 in version 2 and in AWQ; g_idx counts the groups."""
    for format, word in (("gptq", 0x77777777), ("gptq_v2", 0x88888888), ("awq", 0x88888888)):
        model = quantize_model(make("llama"), RTN(Grid(4, 32)))[0]
        save_quantized(model, tmp_path / format, format)
        tensors = tensors_of(tmp_path / format)
        zeros = tensors["model.layers.0.self_attn.q_proj.qzeros"]
        assert {v & 0xFFFFFFFF for v in zeros.flatten().tolist()} == {word}
        if format != "awq":
            assert tensors["model.layers.0.self_attn.q_proj.g_idx"].tolist() == [0] * 32 + [1] * 32


def test_where_each_code_lies(tmp_path):
    """One weight's place in the words of every format, by hand: row 5 of the outputs, input 11."""
    model = quantize_model(make("llama"), RTN(Grid(4, 32)))[0]
    name = "model.layers.0.mlp.up_proj"
    code = int(layers(model)[name].quantized().codes[5, 11]) + 8
    for format in ("gptq", "awq", "compressed-tensors"):
        save_quantized(model, tmp_path / format, format)
    t = {format: tensors_of(tmp_path / format) for format in ("gptq", "awq", "compressed-tensors")}
    assert int(t["gptq"][f"{name}.qweight"][11 // 8, 5]) >> (4 * (11 % 8)) & 15 == code
    assert int(t["compressed-tensors"][f"{name}.weight_packed"][5, 11 // 8]) >> (4 * (11 % 8)) & 15 == code
    place = (0, 2, 4, 6, 1, 3, 5, 7).index(5 % 8)
    assert int(t["awq"][f"{name}.qweight"][11, 5 // 8]) >> (4 * place) & 15 == code


def test_awq_with_bfloat16_scales(tmp_path):
    """GPTQModel writes them so by default: read as they are, and refused where float16 is what a format keeps."""
    save_quantized(quantize_model(make("llama"), RTN(Grid(4, 32)))[0], tmp_path / "awq", "awq")
    file = tmp_path / "awq" / "model.safetensors"
    wide = {n: t.bfloat16() if n.endswith(".scales") else t for n, t in tensors_of(tmp_path / "awq").items()}
    save_file(wide, file, {"format": "pt"})
    name = "model.layers.0.mlp.up_proj"
    q = layers(load_quantized(tmp_path / "awq"))[name].quantized()
    assert q.scale.dtype == torch.bfloat16 and q.scale.t().equal(wide[f"{name}.scales"])
    with pytest.raises(ValueError, match="keeps scales in float16"):
        save_quantized(load_quantized(tmp_path / "awq"), tmp_path / "again", "awq")


# --- every shape


def held(format):
    """Methods' grids that a format holds: bits, and whether affine."""
    return {"gptq": ((2, 4, 8), False), "gptq_v2": ((2, 4, 8), True), "awq": ((4,), True)}.get(format, ((4, 8), True))


@st.composite
def weights(draw, format):
    bits, affine = held(format)
    bits = draw(st.sampled_from(bits))
    symmetric = not affine or draw(st.booleans())
    group = draw(st.sampled_from(["row", 8, 32, 64]))
    unit = 32 // bits if group == "row" else max(group, 32 // bits)
    grid = Grid(bits, group, symmetric=symmetric, narrow_range=symmetric and draw(st.booleans()))
    out, columns = 16 * draw(st.integers(1, 6)), unit * draw(st.integers(1, 5))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    w = torch.randn((out, columns), generator=generator) * 10 ** draw(st.floats(-3, 1))
    q = quantize(w, grid)
    return act_ordered(q, generator) if format.startswith("gptq") and draw(st.booleans()) else q


@pytest.mark.parametrize("format", [name for name in WRITERS if name != "bitsandbytes"])
@settings(max_examples=200, deadline=None)
@given(st.data())
def test_every_code_comes_back(format, data):
    q = data.draw(weights(format))
    layer = (Int8Linear if q.grid.bits > 4 else Int4Linear)(q)
    chosen = format_for(format, {"layer": layer})
    parts = chosen.encode(q)
    for name, wanted in chosen.parts(*q.shape).items():
        assert wanted.optional or (tuple(parts[name].shape) == wanted.shape and parts[name].dtype in wanted.dtypes)
    back = chosen.decode(parts, *q.shape)
    assert back.codes.equal(q.codes) and back.scale.equal(q.scale) and back.grid == q.grid
    assert (back.zero_point is None) == (q.zero_point is None)
    assert q.zero_point is None or back.zero_point.equal(q.zero_point)
    in_order = q.g_idx is None or q.g_idx.equal(q.g_idx.sort().values)
    assert back.g_idx is None if in_order else back.g_idx.equal(q.g_idx)


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 40), st.integers(1, 70), st.floats(-6, 4), st.integers(0, 2**31))
def test_every_row_of_int8_comes_back(out, columns, exponent, seed):
    """Scales too, bit for bit, though the file keeps 127 times as much; and rows of zeros."""
    linear = nn.Linear(columns, out)
    linear.weight.data = torch.randn((out, columns), generator=torch.Generator().manual_seed(seed)) * 10**exponent
    linear.weight.data[0] = 0
    layer = MixedInt8Linear.from_float(linear)
    chosen = format_for("bitsandbytes", {"layer": layer})
    q = layer.quantized()
    parts = chosen.encode(q)
    back = chosen.decode(parts, out, columns)
    assert back.codes.equal(q.codes) and back.scale.equal(q.scale)
    expected = linear.weight.detach().abs().amax(1)
    assert parts["SCB"][1:].allclose(expected[1:], rtol=3e-7, atol=0)


def test_a_scale_that_no_maximum_gives_is_refused():
    few = torch.linspace(1, 2, 100_001, dtype=torch.float32)
    without = few[~_has_absmax(few)]
    assert 0 < len(without) < 0.02 * len(few)
    with pytest.raises(ValueError, match="divided by 127"):
        absmax_of(without[:1])


def _has_absmax(s):
    near = s * 127
    around = [near, *(torch.nextafter(near, torch.full_like(near, d)) for d in (torch.inf, -torch.inf))]
    return torch.stack([each / 127 == s for each in around]).any(0)
