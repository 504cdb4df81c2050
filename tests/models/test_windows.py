"""Calibration windows: disjoint, seeded, of the text and of nothing else."""

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from quantlib import token_windows

WORDS = {word: i for i, word in enumerate(["<unk>", "<s>", "</s>", *(f"w{n}" for n in range(3000))])}


@pytest.fixture(scope="module")
def tokenizer():
    backend = Tokenizer(models.WordLevel(WORDS, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    special = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "</s>"}
    return PreTrainedTokenizerFast(tokenizer_object=backend, **special)


def words(first, last):
    return " ".join(f"w{n}" for n in range(first, last))


def test_windows_are_disjoint_pieces_of_the_text(tokenizer):
    rows = token_windows(words(0, 1000), tokenizer, 16, 20, seed=3)
    assert rows.shape == (20, 16) and rows.dtype == torch.int64
    assert bool((rows[:, 1:] - rows[:, :-1] == 1).all()) and len(rows.unique()) == 320


def test_the_seed_decides(tokenizer):
    a, b, c = (token_windows(words(0, 1000), tokenizer, 16, 20, seed=seed) for seed in (0, 0, 1))
    assert a.equal(b) and not a.equal(c)


def test_rows_are_joined_and_all_of_a_text_can_be_used(tokenizer):
    rows = token_windows([words(0, 40), "", words(40, 64)], tokenizer, 16, 4, seed=0)
    assert sorted(rows.flatten().tolist()) == [WORDS[f"w{n}"] for n in range(64)]


def test_special_tokens_are_left_out(tokenizer):
    text = f"<s> {words(0, 30)} </s> </s> unheard {words(30, 64)} </s>"
    rows = token_windows(text, tokenizer, 16, 4, seed=0)
    assert sorted(rows.flatten().tolist()) == [WORDS[f"w{n}"] for n in range(64)]


def test_a_short_text_says_how_many_windows_it_has(tokenizer):
    with pytest.raises(ValueError, match=r"text has 100 tokens, 6 windows of 16: 7 were asked for"):
        token_windows(words(0, 100), tokenizer, 16, 7, seed=0)
    with pytest.raises(ValueError, match="text has 0 tokens"):
        token_windows("", tokenizer, 16, 1, seed=0)
    with pytest.raises(ValueError, match="length must be a whole number from 1 on"):
        token_windows(words(0, 100), tokenizer, 0, 1, seed=0)


@pytest.mark.parametrize("shift", [0, 5, 37])
def test_windows_of_the_evaluation_text_are_an_error(tokenizer, shift):
    text = words(0, 2000)
    with pytest.raises(ValueError, match="overlaps the evaluation text"):
        token_windows(text, tokenizer, 128, 15, seed=0, evaluation=words(shift, shift + 1900))
    with pytest.raises(ValueError, match="overlaps the evaluation text"):
        token_windows(text, tokenizer, 128, 15, seed=0, evaluation=[words(2500, 2600), words(1000, 1200)])


def test_another_text_is_none(tokenizer):
    rows = token_windows(words(0, 1000), tokenizer, 64, 8, seed=0, evaluation=words(1500, 3000))
    assert rows.equal(token_windows(words(0, 1000), tokenizer, 64, 8, seed=0))
