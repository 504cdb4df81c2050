"""Claims about the lesson model: checked in a page, and set aside for any other model. Start from :func:`claims`.

A reader may point the lessons at a model of their own (QUANTLIB_MODEL). Every cell still runs; what was measured on
the lesson's model then is no claim about theirs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from quantlib.zoo import LoadedModel


def claims(loaded: LoadedModel) -> Callable[[bool | Tensor, str], None]:
    """check(statement, claim), for claims about this model.

        check = claims(load_lesson_model())
        check(w8.value < 1.005 * fp32.value, "8 bits a row cost less than half a percent of perplexity")

    check raises AssertionError with the claim if the statement is false. With another model than the lesson's
    it prints "not checked for this model: …" and never fails.
    """
    if not hasattr(loaded, "is_lesson_model"):
        raise TypeError(
            f"loaded must be what load_lesson_model() or load_model() returned, got {type(loaded).__name__}"
        )

    def check(statement: bool | Tensor, claim: str) -> None:
        if not isinstance(claim, str) or not claim:
            raise TypeError(f"claim must say in words what is claimed, got {claim!r}")
        true = _truth(statement)
        if not loaded.is_lesson_model:
            print(f"not checked for this model: {claim}")
        elif not true:
            raise AssertionError(claim)

    return check


def _truth(statement: object) -> bool:
    """A bool, or an array that holds one: a claim about many values has to say all() or any()."""
    try:
        value = statement.item() if hasattr(statement, "item") else statement
    except (RuntimeError, ValueError):
        raise TypeError("statement holds many truth values: end it with .all() or .any()") from None
    if not isinstance(value, bool):
        raise TypeError(f"statement must be true or false, got {value!r}: write the comparison out")
    return value
