"""`make student`: the pages as notebooks without the solutions of their exercises. Start from :func:`student`.

A solution is what follows an exercise directly: code cells that the book hides or leaves out, and a dropdown. In its
place stands an empty cell for the answer, and a check. What an answer has to leave behind and how it is checked is in
lessons/checks.py; the tests run each check behind the page's own solution.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from quantlib.commands.lab import FOLDED_BY

if TYPE_CHECKING:
    from nbformat import NotebookNode

EXERCISE = re.compile(r"^:::\{exercise\} *(.*)\n:label: *(\S+)", re.MULTILINE)
DROPDOWN = re.compile(r"\A\s*:::\{dropdown\}.*?^:::$\s*", re.DOTALL | re.MULTILINE)
SOLUTION = {"hide-cell", "remove-cell"}


class Unanswered(Exception):
    """An exercise has no answer yet. A notebook shows the sentence alone: a traceback would be of code that its reader
    neither wrote nor has to mend.
    """

    def _render_traceback_(self) -> list[str]:  # what IPython shows in the place of a traceback
        return [str(self)]


def wait_for(title: str, names: Collection[str], there: Mapping[str, object]) -> None:
    """Raise Unanswered, saying what to do, unless the names that an answer leaves are there (a notebook's globals()).

    Called by the notebooks' own checks.
    """
    missing = [name for name in names if name not in there]
    if missing:
        raise Unanswered(
            f"The exercise “{title}” waits for your answer: let the cell above define {', '.join(missing)}, run it, "
            "then run this one again."
        )


@dataclass(frozen=True)
class Check:
    """Of an answer. leaves: the names it has to define, and what each is; given: code that stands in the answer's cell
    from the start; code: raises AssertionError with a sentence where the answer is wrong.
    """

    label: str
    leaves: Mapping[str, str]
    given: str
    code: str

    def source(self, title: str) -> str:
        """The check as a cell of a notebook."""
        return (
            f"# The check of “{title}”.\n"
            "from quantlib.commands.student import wait_for as _wait_for\n\n"
            f"_wait_for({title!r}, {list(self.leaves)}, globals())\n"
            f"{self.code}\n"
            f'print("{", ".join(self.leaves)}: checked")'
        )

    def answer(self, title: str) -> str:
        """The cell to answer in."""
        wanted = "".join(f"#   {name}: {what}\n" for name, what in self.leaves.items())
        return f"# Your answer to “{title}”. Let it define\n{wanted}\n{self.given}".rstrip() + "\n"


@dataclass(frozen=True)
class Exercise:
    """In a page's notebook. at: the cell that ends with it; solution: the code cells after it."""

    label: str
    title: str
    at: int
    solution: Sequence[NotebookNode] = field(repr=False)


def read_checks(text: str) -> dict[str, Check]:
    """{label: its check}, of what is in checks.py. Raises ValueError for a cell that names nothing to be left."""
    found = {}
    for block in re.split(r"^# %% ", text, flags=re.MULTILINE)[1:]:
        label, _, rest = block.partition("\n")
        leaves = dict(re.findall(r"^#: (\w+): (.+)$", rest, flags=re.MULTILINE))
        if not leaves or label in found:
            raise ValueError(f"checks.py: {label!r} must stand once, with a line `#: name: what it is` at least")
        code = re.sub(r"^#: .*\n", "", rest, flags=re.MULTILINE)
        given, mark, check = code.partition("# check\n")
        found[label] = Check(label, leaves, given.strip() if mark else "", (check if mark else given).strip())
    return found


def exercises(notebook: NotebookNode) -> Iterator[Exercise]:
    """Those of a page, in order."""
    for at, cell in enumerate(notebook.cells):
        if cell.cell_type != "markdown":
            continue
        for title, label in EXERCISE.findall(cell.source):
            after = at + 1
            while after < len(notebook.cells) and _solves(notebook.cells[after]):
                after += 1
            yield Exercise(label, title, at, notebook.cells[at + 1 : after])


def _solves(cell: NotebookNode) -> bool:
    return cell.cell_type == "code" and not SOLUTION.isdisjoint(cell.metadata.get("tags", ()))


def student(notebook: NotebookNode, checks: Mapping[str, Check]) -> NotebookNode:
    """A notebook without the solutions: each exercise is followed by a cell to answer in, and by its check.

    Raises ValueError, with the label, for an exercise that has no check or no solution in code.
    """
    import nbformat.v4 as nbf

    solved = {exercise.at: exercise for exercise in exercises(notebook)}
    cells, skip, after = [], 0, False
    for at, cell in enumerate(notebook.cells):
        if at < skip:
            continue
        if after and cell.cell_type == "markdown":
            cell = nbf.new_markdown_cell(DROPDOWN.sub("", cell.source, count=1), metadata=cell.metadata)
        after = False
        if cell.cell_type == "code" and FOLDED_BY.intersection(cell.metadata.get("tags", ())):
            cell.metadata.setdefault("jupyter", {})["source_hidden"] = True
        if cell.source:
            cells.append(cell)
        if at in solved:
            label, title, solution = solved[at].label, solved[at].title, solved[at].solution
            if label not in checks or not solution:
                what = "a solution in code cells tagged hide-cell" if label in checks else "a check in lessons/checks.py"
                raise ValueError(f"the exercise {label} has no answer that could be checked: write {what}")
            cells.append(nbf.new_code_cell(checks[label].answer(title), metadata={"tags": ["answer"]}))
            cells.append(nbf.new_code_cell(checks[label].source(title), metadata={"tags": ["check"]}))
            skip, after = at + 1 + len(solution), True
    made = nbf.new_notebook(cells=cells, metadata=notebook.metadata)
    made.metadata.pop("jupytext", None)
    for at, cell in enumerate(made.cells):
        cell.id = f"cell-{at}"
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the notebooks; 0, or 1 with a sentence where a page's exercise has no check."""
    import jupytext
    import nbformat

    from quantlib.records.lesson_files import lessons_folder

    p = argparse.ArgumentParser(description="The pages as notebooks without the solutions of their exercises.")
    p.add_argument("--out", metavar="FOLDER", type=Path, help="(default: _build/student beside lessons/)")
    options = p.parse_args(arguments)
    lessons = lessons_folder()
    out = options.out or lessons.parent / "_build" / "student"
    checks = read_checks((lessons / "checks.py").read_text(encoding="utf-8"))
    out.mkdir(parents=True, exist_ok=True)
    for page in sorted(lessons.glob("[0-9]*.md")):
        try:
            made = student(jupytext.read(page, fmt="md:myst"), checks)
        except ValueError as error:
            print(f"{page.name}: {error}", file=sys.stderr)
            return 1
        count = sum("check" in cell.metadata.get("tags", ()) for cell in made.cells)
        (out / f"{page.stem}.ipynb").write_text(nbformat.writes(made) + "\n", encoding="utf-8")
        print(f"{out / page.stem}.ipynb: {count} exercise{'s' * (count != 1)} to solve")
    return 0
