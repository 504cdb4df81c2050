"""Claims about the lesson model, or about a machine: checked in a page, and set aside for any other.

Start from :func:`claims` and :func:`speed_claims`. A reader may point the lessons at a model of their own
(QUANTLIB_MODEL), and `make bench` puts the speeds of their own machine in the place of the recorded ones. Every cell
still runs; what the text says of the lesson's model and of the machine it was written on is no claim about theirs:
check then prints "not checked for this model: …" and never fails. Else it raises AssertionError with the claim where
the statement is false.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from quantlib.measure.machine import Machine
    from quantlib.zoo.zoo import LoadedModel

WRITTEN_ON = "Intel(R) Xeon(R) Processor", ("avx512_vnni", "avx512_bf16")  # the CPU whose speeds the pages speak of
WRITTEN_ON_GPU = "NVIDIA H200"  # and the GPU
Check = Callable[["bool | Tensor", str], None]


def claims(loaded: LoadedModel) -> Check:
    """check(statement, claim), for claims about this model.

        check = claims(load_lesson_model())
        check(w8.value < 1.005 * fp32.value, "8 bits a row cost less than half a percent of perplexity")
    """
    if not hasattr(loaded, "is_lesson_model"):
        raise TypeError(f"loaded must be what load_lesson_model() or load_model() returned, got {loaded!r}")
    return partial(_check, loaded.is_lesson_model, "model")


def speed_claims(machine: Machine) -> Check:
    """check(statement, claim), for claims about the speeds that a machine recorded (a record's machine)."""
    return partial(_check, is_written_on(machine), "machine")


def gpu_claims(machine: Machine) -> Check:
    """speed_claims, of a record made on a GPU: set aside for another than the pages' own."""
    return partial(_check, machine.gpu == WRITTEN_ON_GPU, "GPU")


def is_written_on(machine: Machine) -> bool:
    """Whether a machine has the CPU whose speeds the pages speak of."""
    cpu, abilities = WRITTEN_ON
    return machine.cpu == cpu and set(abilities) <= set(machine.abilities)


def note_on(machine: Machine) -> str:
    """A sentence for a caption where the text and the figures are not of the same machine; empty where they are."""
    return "" if is_written_on(machine) else f" The text of this page speaks of another machine: {WRITTEN_ON[0]}."


def _check(applies: bool, to: str, statement: bool | Tensor, claim: str) -> None:
    if not isinstance(claim, str) or not claim:
        raise TypeError(f"claim must say in words what is claimed, got {claim!r}")
    try:
        true = statement.item() if hasattr(statement, "item") else statement  # an array that holds one bool
    except (RuntimeError, ValueError):
        raise TypeError("statement holds many truth values: end it with .all() or .any()") from None
    if not isinstance(true, bool):
        raise TypeError(f"statement must be true or false, got {true!r}: write the comparison out")
    if not applies:
        print(f"not checked for this {to}: {claim}")
    elif not true:
        raise AssertionError(claim)
