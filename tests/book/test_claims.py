"""Claims hold for the lesson's model and the machine of the text, and are set aside, in print, for any other."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch

from quantlib.book.claims import WRITTEN_ON, claims, note_on, speed_claims
from quantlib.measure.machine import Machine


@dataclass
class Loaded:
    is_lesson_model: bool


@pytest.mark.parametrize("statement", [True, np.bool_(True), torch.tensor(True), torch.ones(3).gt(0).all()])
def test_a_true_claim_passes_silently(statement, capsys):
    claims(Loaded(True))(statement, "it holds")
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("statement", [False, np.bool_(False), torch.tensor(False), float("nan") < 1])
def test_a_false_claim_fails_with_its_words(statement):
    with pytest.raises(AssertionError, match=r"^int8 costs nothing$"):
        claims(Loaded(True))(statement, "int8 costs nothing")


def test_another_model_is_not_judged(capsys):
    claims(Loaded(False))(False, "int8 costs nothing")
    assert capsys.readouterr().out == "not checked for this model: int8 costs nothing\n"


@pytest.mark.parametrize("lesson_model", [True, False])
@pytest.mark.parametrize(
    ("statement", "claim", "sentence"),
    [
        (torch.tensor([True, False]), "a claim", "many truth values"),
        (np.array([True, False]), "a claim", "many truth values"),
        (1.0, "a claim", "true or false, got 1.0"),
        ("a < b", "a claim", "true or false"),
        (True, "", "claim must say in words"),
        (True, 3, "claim must say in words"),
    ],
)
def test_a_claim_that_says_nothing_is_refused(lesson_model, statement, claim, sentence):
    with pytest.raises(TypeError, match=sentence):
        claims(Loaded(lesson_model))(statement, claim)


def test_claims_are_about_a_loaded_model():
    with pytest.raises(TypeError, match="loaded must be what load_lesson_model"):
        claims("SmolLM2-135M-Instruct")


def machine(cpu=WRITTEN_ON[0], abilities=("avx2", *WRITTEN_ON[1])):
    return Machine(cpu, 2, tuple(abilities), None)


def test_speeds_of_the_machine_that_the_text_speaks_of_are_judged(capsys):
    check = speed_claims(machine())
    check(True, "int8 is faster")
    with pytest.raises(AssertionError, match=r"^int8 is faster$"):
        check(False, "int8 is faster")
    assert capsys.readouterr().out == "" == note_on(machine())


@pytest.mark.parametrize("other", [machine(cpu="AMD EPYC"), machine(abilities=("avx2",))])
def test_speeds_of_another_machine_are_not_judged(other, capsys):
    speed_claims(other)(False, "int8 is faster")
    assert capsys.readouterr().out == "not checked for this machine: int8 is faster\n"
    assert note_on(other).startswith(" The text of this page speaks of another machine")
