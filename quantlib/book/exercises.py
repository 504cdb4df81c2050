"""Where a notebook without solutions stops: at an exercise that waits for its answer. Start from :func:`wait_for`."""

from __future__ import annotations

from collections.abc import Collection, Mapping


class Unanswered(Exception):
    """An exercise has no answer yet. A notebook shows the sentence alone: a traceback would be of code that its reader
    neither wrote nor has to mend.
    """

    def _render_traceback_(self) -> list[str]:  # what IPython shows in the place of a traceback
        return [str(self)]


def wait_for(title: str, names: Collection[str], there: Mapping[str, object]) -> None:
    """Raise Unanswered, saying what to do, unless the names that an answer leaves are there (a notebook's globals())."""
    missing = [name for name in names if name not in there]
    if missing:
        raise Unanswered(
            f"The exercise “{title}” waits for your answer: let the cell above define {', '.join(missing)}, run it, "
            "then run this one again."
        )
