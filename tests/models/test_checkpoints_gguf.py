"""GGUF: what the gguf package dequantizes is what our layers hold, and the lessons' reader reads it."""

import gguf
import pytest
import torch
from checkpoint_cases import layers
from families import make, windows
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from quantlib import RTN, Grid, LLMInt8, quantize, quantize_model, save_quantized
from quantlib.layers.weight_only import Int4Linear, Int8Linear
from quantlib.models.checkpoints.gguf import block_type, blocks, interleaved
from quantlib.zoo.readers import read_gguf, rotate_half_order


def smollm_like():
    """A byte-level BPE that splits as SmolLM's does, of 256 bytes, one merge and three special tokens."""
    pieces = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *sorted(pre_tokenizers.ByteLevel.alphabet()), "th"]
    backend = Tokenizer(models.BPE({piece: i for i, piece in enumerate(pieces)}, [("t", "h")]))
    backend.add_special_tokens(pieces[:3])
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    backend.decoder = decoders.ByteLevel()
    roles = dict(zip(("unk_token", "bos_token", "eos_token"), pieces, strict=False))
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token=pieces[2], chat_template="{{ messages }}", **roles
    )


def llama(tied=True):
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=260, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64, tie_word_embeddings=tied, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    for parameter in model.parameters():
        parameter.data *= 4 if parameter.ndim == 2 else 1
    return model


@pytest.mark.parametrize(
    "grid", [Grid(4, 32), Grid(8, "row", narrow_range=True), Grid(4, 32, symmetric=False), Grid(3, 32)]
)
@pytest.mark.parametrize("tied", [True, False])
def test_the_file_gives_the_models_answers(grid, tied, tmp_path):
    model, tokenizer = quantize_model(llama(tied), RTN(grid))[0], smollm_like()
    save_quantized(model, tmp_path / "out.gguf", "gguf", tokenizer=tokenizer)
    assert [path.name for path in tmp_path.iterdir()] == ["out.gguf"]
    new, words = read_gguf(tmp_path / "out.gguf")
    assert (
        words.encode("the 12 cats") == tokenizer.encode("the 12 cats")
        and words.chat_template == tokenizer.chat_template
    )
    for name, layer in layers(model).items():
        expected, got = layer.quantized().dequantize(), new.get_submodule(name).weight
        step = 0 if grid.symmetric else 0.01 * layer.quantized().scale.float().repeat_interleave(32, 1)  # m in float16
        assert bool(((got - expected).abs() <= step).all())
    text = windows(1)
    expected = model(text).logits
    # Q4_1's minimum is rounded once more; the others differ by the order of sums
    assert (new(text).logits - expected).norm() <= (1e-5 if grid.symmetric else 5e-3) * expected.norm()


@settings(max_examples=200, deadline=None)
@given(
    st.sampled_from([2, 3, 4, 5, 8]),
    st.sampled_from([32, 64, "row"]),
    st.integers(1, 9),
    st.integers(1, 4),
    st.integers(0, 2**31),
)
def test_every_code_is_in_its_block(bits, group, out, count, seed):
    w = torch.randn(out, 64 * count, generator=torch.Generator().manual_seed(seed))
    q = quantize(w, Grid(bits, group))
    kind = block_type((Int8Linear if bits > 4 else Int4Linear)(q))
    assert torch.from_numpy(gguf.dequantize(blocks(q, kind), kind)).equal(q.dequantize())


def test_rows_go_there_and_back():
    rows = torch.arange(48.0).unsqueeze(1)
    assert rotate_half_order(rows[interleaved(48, 4)], 4).equal(rows) and not rows[interleaved(48, 4)].equal(rows)


@pytest.mark.parametrize(
    "family, method, said",
    [
        ("llama", RTN(Grid(4, 16)), "blocks of 32 weights, which groups of 16 do not fill"),
        ("llama", RTN(Grid(8, 32, symmetric=False)), "no block of 8 bits with a minimum"),
        ("llama", RTN(Grid(4, "tensor")), "no matrix scale"),
        ("llama", LLMInt8(6.0), "nothing of int8 activations"),
        ("qwen2", RTN(Grid(4, 32)), "written for Llama models here, got 'qwen2'"),
    ],
)
def test_what_no_block_holds(family, method, said, tmp_path):
    model = quantize_model(make(family), method)[0]
    with pytest.raises(ValueError, match=said):
        save_quantized(model, tmp_path / "out.gguf", "gguf", tokenizer=smollm_like())
    with pytest.raises(ValueError, match="tokenizer must be given"):
        save_quantized(model, tmp_path / "out.gguf", "gguf")
    assert not list(tmp_path.iterdir())


def test_another_tokenizer_is_refused(tmp_path):
    words = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel({"a": 0}, unk_token="a")))
    with pytest.raises(ValueError, match="SmolLM's tokenizer"):
        save_quantized(quantize_model(llama(), RTN(Grid(4, 32)))[0], tmp_path / "out.gguf", "gguf", tokenizer=words)
    assert not list(tmp_path.iterdir())
