"""quantlib.zoo.readers on the true files: against transformers' own GGUF loader, and against llama2.c's arithmetic, rewritten."""

import functools
import struct
from itertools import pairwise

import gguf
import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from quantlib.zoo.fetch import fetch
from quantlib.zoo.readers import read_gguf, read_llama2c, rotate_half_order
from quantlib.zoo.zoo import SMOLLM2, STORIES15M


@pytest.fixture(scope="module")
def smollm2():
    return read_gguf(*fetch(SMOLLM2))


@pytest.fixture(scope="module")
def stories():
    return read_llama2c(*fetch(STORIES15M))


@torch.no_grad()
def test_gguf_model_is_bit_for_bit_the_one_transformers_makes(smollm2, monkeypatch):
    model, tokenizer = smollm2
    monkeypatch.setattr(gguf, "GGUFReader", functools.cache(gguf.GGUFReader))  # it would read the file five times
    (path,) = fetch(SMOLLM2)
    theirs = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32).eval()
    tokens = torch.tensor([tokenizer.encode("The capital of France is")])
    assert torch.equal(model(tokens).logits, theirs(tokens).logits)
    ours = model.state_dict()
    assert ours.keys() == theirs.state_dict().keys()
    assert all(torch.equal(weight, ours[name]) for name, weight in theirs.state_dict().items())


def test_smollm2_tokenizer(smollm2):
    tokenizer = smollm2[1]
    for text in ("Hello, world!", " two  spaces\n\n\n and\ttabs ", "naïve 東京 🙂", "It's 2024: 3.14 × 10⁻³", ""):
        assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.encode("Hello world") == [19556, 905]  # no beginning-of-text token
    assert tokenizer.convert_ids_to_tokens(tokenizer.encode("a 2024")) == ["a", "Ġ", "2", "0", "2", "4"]
    # Digits are split off first, so that the spaces before one do not end in a piece of their own.
    assert tokenizer.convert_ids_to_tokens(tokenizer.encode("are : \n\n\n 1")) == ["are", "Ġ:", "ĠĊĊ", "ĊĠ", "1"]
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token) == (
        "<|im_start|>",
        "<|im_end|>",
        "<|im_end|>",
    )
    assert tokenizer.encode("<|im_end|>") == [tokenizer.eos_token_id] == [2]
    chat = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hi"}], tokenize=False, add_generation_prompt=True
    )
    assert chat.endswith("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n")


@pytest.mark.parametrize("name", ["smollm2", "stories"])
def test_read_models_are_ready_to_be_measured(name, request):
    model, _ = request.getfixturevalue(name)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert not model.training and model.dtype == torch.float32
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert all(tensor.device.type == "cpu" for tensor in (*model.parameters(), *model.buffers()))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1)  # the memory is the model's own, not the file's, which is read-only


def test_a_file_that_is_not_what_it_should_be(tmp_path):
    wrong = tmp_path / "model.bin"
    wrong.write_bytes(b"GGML" + bytes(100))
    with pytest.raises(ValueError, match="is not a GGUF file that the gguf package reads"):
        read_gguf(wrong)
    writer = gguf.GGUFWriter(wrong, "qwen2")
    writer.add_tensor("w", np.ones(32, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(ValueError, match=r"holds \('qwen2', None\), not \('llama', 'smollm'\)"):
        read_gguf(wrong)
    wrong.write_bytes(struct.pack("<7i", 8, 16, 1, 2, 2, 300, 4) + bytes(400))
    with pytest.raises(ValueError, match="holds 100 weights and its header announces"):
        read_llama2c(wrong, wrong)


def test_rotate_half_order_brings_the_pairs_together():
    rows = torch.arange(12.0).reshape(12, 1)  # two heads of six rows
    assert rotate_half_order(rows, heads=2).flatten().tolist() == [0, 2, 4, 1, 3, 5, 6, 8, 10, 7, 9, 11]


class Llama2c:
    """llama2.c's forward pass in float64, weights in the file's order, rotation of neighbours, one token at a time."""

    def __init__(self, path):
        self.dim, self.hidden, self.layers, self.heads, _, self.vocab, _ = np.fromfile(path, "<i4", 7)
        self.values = np.fromfile(path, "<f4", offset=28).astype(np.float64)
        self.position = 0
        self.embedding = self.take(self.vocab, self.dim)
        L, d, h = self.layers, self.dim, self.hidden
        self.attention_norm = self.take(L, d)
        self.q, self.k, self.v, self.o = (self.take(L, d, d) for _ in range(4))
        self.ffn_norm = self.take(L, d)
        self.gate, self.down, self.up = self.take(L, h, d), self.take(L, d, h), self.take(L, h, d)
        self.norm = self.take(d)

    def take(self, *shape):
        start, self.position = self.position, self.position + int(np.prod(shape))
        return self.values[start : self.position].reshape(shape)

    @staticmethod
    def rms(x, gain):
        return x / np.sqrt(np.mean(x * x) + 1e-5) * gain

    def rotate(self, x, position):
        pairs = x.reshape(self.heads, -1, 2)  # [heads, d/2, 2]
        size = self.dim // self.heads
        angle = position * 10000.0 ** (-np.arange(0, size, 2) / size)
        even, odd = pairs[..., 0], pairs[..., 1]
        turned = [even * np.cos(angle) - odd * np.sin(angle), even * np.sin(angle) + odd * np.cos(angle)]
        return np.stack(turned, axis=-1).reshape(self.heads, size)

    def logits(self, tokens):
        """float64 [tokens, vocab]"""
        keys, values = [[] for _ in range(self.layers)], [[] for _ in range(self.layers)]
        rows = []
        for position, token in enumerate(tokens):
            x = self.embedding[token]
            for i in range(self.layers):
                y = self.rms(x, self.attention_norm[i])
                query = self.rotate(self.q[i] @ y, position)
                keys[i].append(self.rotate(self.k[i] @ y, position))
                values[i].append((self.v[i] @ y).reshape(self.heads, -1))
                scores = np.einsum("hd,thd->ht", query, np.array(keys[i])) / np.sqrt(self.dim // self.heads)
                weights = np.exp(scores - scores.max(axis=1, keepdims=True))
                weights /= weights.sum(axis=1, keepdims=True)
                x = x + self.o[i] @ np.einsum("ht,thd->hd", weights, np.array(values[i])).reshape(-1)
                y = self.rms(x, self.ffn_norm[i])
                gate = self.gate[i] @ y
                x = x + self.down[i] @ (gate / (1 + np.exp(-gate)) * (self.up[i] @ y))
            rows.append(self.embedding @ self.rms(x, self.norm))
        return np.array(rows)


@torch.no_grad()
def test_stories15m_computes_what_llama2c_computes(stories):
    model, tokenizer = stories
    tokens = [tokenizer.bos_token_id, *tokenizer.encode("Once upon a time, there was a little dog.")]
    ours = model(torch.tensor([tokens])).logits[0].double().numpy()  # [tokens, vocab]
    theirs = Llama2c(fetch(STORIES15M)[0]).logits(tokens)
    assert np.abs(ours - theirs).max() < 1e-3 * np.abs(theirs).max()
    assert np.linalg.norm(ours - theirs) < 1e-5 * np.linalg.norm(theirs)


def test_stories15m_tells_a_story(stories):
    model, tokenizer = stories
    start = torch.tensor([[tokenizer.bos_token_id, *tokenizer.encode("Once upon a time")]])
    told = model.generate(start, attention_mask=torch.ones_like(start), max_new_tokens=20, do_sample=False)
    assert tokenizer.decode(told[0, 1:]).startswith(
        "Once upon a time, there was a little girl named Lily. She loved to play"
    )


def llama2c_encode(text, path, vocab=32000):
    """llama2.c's encoder, in its own terms: characters (or else their bytes), then the best join, again and again."""
    data, position, pieces, scores = path.read_bytes(), 4, [], []
    for _ in range(vocab):
        score, length = struct.unpack_from("<fi", data, position)
        pieces.append(data[position + 8 : position + 8 + length])
        scores.append(score)
        position += 8 + length
    ids = {piece: index for index, piece in enumerate(pieces) if index >= 259}  # below are the raw bytes
    tokens = []
    for character in " " + text:
        code = character.encode()
        tokens += [ids[code]] if code in ids else [byte + 3 for byte in code]
    while True:
        joins = [
            (scores[ids[pieces[a] + pieces[b]]], -i)
            for i, (a, b) in enumerate(pairwise(tokens))
            if pieces[a] + pieces[b] in ids
        ]
        if not joins:
            return tokens
        i = -max(joins)[1]
        tokens[i : i + 2] = [ids[pieces[tokens[i]] + pieces[tokens[i + 1]]]]


@pytest.mark.parametrize(
    "text",
    [
        "Once upon a time",
        "a",
        "It's  a\nnew line.",
        "naïve 東京 🙂",
        'Lily said, "Let\'s go to the park!" 1234',
        " led",
        "aaaaaaaa",
    ],
)
def test_stories15m_tokenizer_is_llama2cs(stories, text):
    tokenizer = stories[1]
    tokens = tokenizer.encode(text)
    assert tokens == llama2c_encode(text, fetch(STORIES15M)[1])
    assert tokenizer.decode(tokens) == text


def test_stories15m_tokenizer_finds_pieces_and_not_raw_bytes(stories):
    tokenizer = stories[1]
    assert tokenizer.encode("a") == [263] and tokenizer.encode("") == []
    assert all(token >= 259 for token in tokenizer.encode("The quick brown fox."))
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, len(tokenizer)) == (1, 2, 32000)
