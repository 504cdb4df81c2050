"""accuracy.py: answers scored behind a question that is read once."""

import pytest
import torch

from quantlib.measure.accuracy import score
from quantlib.zoo.tasks import Item, load_task
from tests.models.families import make


class Numbers:
    """A tokenizer of numbers."""

    def encode(self, text):
        return [int(word) for word in text.split()]


ITEMS = [
    Item("5 9 31 2", (" 7 8", " 1", " 40 41 42 43"), 1),
    Item("11", (" 3 3 3", " 60"), 0),
    Item("80 1 4", (" 17 18 19",), 0),
]


def alone(model, item, choice):
    """Log-likelihood of a choice, everything read anew, in one piece."""
    context, said = Numbers().encode(item.context), Numbers().encode(choice)
    with torch.no_grad():
        logits = model(torch.tensor([context + said])).logits[0].log_softmax(-1)
    return sum(logits[len(context) + i - 1, token].item() for i, token in enumerate(said))


@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_the_likelihoods_are_those_of_reading_everything_anew(family):
    model = make(family)
    found = score(model, Numbers(), ITEMS)
    for item, row, right in zip(ITEMS, found.log_likelihoods, found.right, strict=True):
        expected = [alone(model, item, choice) for choice in item.choices]
        assert row[: len(expected)].tolist() == pytest.approx(expected, rel=1e-4, abs=1e-4)
        assert row[len(expected) :].isnan().all()
        if len(expected) > 1:
            assert bool(right) == (expected.index(max(expected)) == item.right)


def test_a_single_choice_is_right_if_greedy_decoding_writes_it():
    model, context = make("llama"), [80, 1, 4]
    for _ in range(3):
        with torch.no_grad():
            context.append(model(torch.tensor([context])).logits[0, -1].argmax().item())
    written, other = context[3:], [*context[3:5], (context[5] + 1) % 96]
    items = [Item("80 1 4", (" ".join(map(str, said)),), 0) for said in (written, other)]
    assert score(model, Numbers(), items).right.tolist() == [True, False]
    assert score(model, Numbers(), items).accuracy == 0.5


def test_what_cannot_be_scored_is_refused():
    with pytest.raises(ValueError, match="at least one question"):
        score(make("llama"), Numbers(), [])
    with pytest.raises(ValueError, match="without tokens"):
        score(make("llama"), Numbers(), [Item("1 2", ("3", ""), 0)])
    with pytest.raises(ValueError, match="'MMLU' is no task of the lessons: use one of PIQA, ARC-Easy, LAMBADA"):
        load_task("MMLU")
