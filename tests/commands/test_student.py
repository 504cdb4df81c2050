"""`make student`: notebooks without solutions, in which each exercise waits for an answer and checks it."""

import ast
import builtins
import copy
import re
import symtable

import jupytext
import nbformat
import pytest
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

from quantlib.commands.student import Unanswered, exercises, main, read_checks, student
from quantlib.records.lesson_files import lessons_folder

LESSONS = lessons_folder()
CHECKS = read_checks((LESSONS / "checks.py").read_text(encoding="utf-8"))
PAGES = {page.stem: jupytext.read(page, fmt="md:myst") for page in sorted(LESSONS.glob("[0-9]*.md"))}
WITH_EXERCISES = [stem for stem, page in PAGES.items() if any(exercises(page))]
CHEAP = [stem for stem in WITH_EXERCISES if stem[:2] in ("04", "05")]
HEADER = "---\nkernelspec: {name: python3, display_name: Python 3}\njupytext: {text_representation: {extension: .md, format_name: myst}}\n---\n"
EXAMPLE = (
    HEADER
    + """# Page

```{code-cell} ipython3
number = 20
```

:::{exercise} Double it
:label: ex-double

Write `double(n)`.
:::

```{code-cell} ipython3
:tags: [hide-cell]

def double(n):
    return n + n

print(double(number))
```

```{code-cell} ipython3
:tags: [remove-cell]

assert double(2) == 4
```

:::{dropdown} What it says
It is twice as large.
:::

More text.

:::{dropdown} Not a solution
This stays.
:::

```{code-cell} ipython3
:tags: [hide-input]

print("the end")
```
"""
)
EXAMPLE_CHECKS = """# %% ex-double
#: double: double(n), which returns twice n
given = 1
# check
assert double(4) == 8, "twice four is eight"
"""


def example():
    return student(jupytext.reads(EXAMPLE, fmt="md:myst"), read_checks(EXAMPLE_CHECKS))


def run(notebook, tmp_path):
    NotebookClient(notebook, timeout=60, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}).execute()


def failed(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code" and any(o.output_type == "error" for o in cell.outputs)]


def bound(code):
    """The names that a cell's code gives a value to, functions' own names left aside."""
    found, waiting = set(), [ast.parse(code)]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            found.add(node.id)
        if isinstance(node, ast.Import | ast.ImportFrom):
            found |= {name.asname or name.name.split(".")[0] for name in node.names}
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
        else:
            waiting += ast.iter_child_nodes(node)
    return found


def read(code):
    """The names that a cell's code takes from outside; what a function binds is its own."""
    found, waiting = set(), [symtable.symtable(code, "cell", "exec")]
    while waiting:
        scope = waiting.pop()
        outside = scope.get_symbols() if scope.get_type() == "module" else filter(symtable.Symbol.is_global, scope.get_symbols())
        found |= {symbol.get_name() for symbol in outside if symbol.is_referenced()}
        waiting += scope.get_children()
    return found


def code_before(notebook, at):
    return [cell.source for cell in notebook.cells[:at] if cell.cell_type == "code" and cell.source]


def first_answer(notebook):
    """Where the cell to answer the first exercise in stands."""
    return next(at for at, cell in enumerate(notebook.cells) if cell.metadata.get("tags") == ["answer"])


# --- a small page


def test_the_solution_goes_and_everything_else_stays():
    words = "\n".join(cell.source for cell in example().cells)
    assert "n + n" not in words and "twice as large" not in words and "double(2)" not in words
    for kept in ("# Page", "number = 20", "Write `double(n)`", "More text.", "This stays.", 'print("the end")', "given = 1"):
        assert words.count(kept) == 1, kept
    assert "# check" not in words
    assert [cell.metadata.tags for cell in example().cells if "tags" in cell.metadata] == [["answer"], ["check"], ["hide-input"]]
    assert example().cells[-1].metadata["jupyter"]["source_hidden"]
    nbformat.validate(example())


def test_the_notebook_runs_to_the_exercise_and_its_check_says_what_to_do(tmp_path):
    notebook = example()
    with pytest.raises(CellExecutionError, match="The exercise “Double it” waits for your answer: let the cell above define double, run it"):
        run(notebook, tmp_path)
    (stopped,) = failed(notebook)
    assert stopped.metadata.tags == ["check"]
    (shown,) = stopped.outputs
    assert shown.traceback == [shown.evalue], "the sentence alone, without a traceback"


@pytest.mark.parametrize(("answer", "said"), [("def double(n): return n", "twice four is eight"), ("double = lambda n: 2 * n", "")])
def test_an_answer_is_checked(tmp_path, answer, said):
    notebook = example()
    place = next(cell for cell in notebook.cells if cell.metadata.get("tags") == ["answer"])
    place.source += answer
    if said:
        with pytest.raises(CellExecutionError, match=said):
            run(notebook, tmp_path)
    else:
        run(notebook, tmp_path)
        assert notebook.cells[-1].outputs[0].text == "the end\n"


def test_an_exercise_without_check_or_solution_is_refused():
    page = jupytext.reads(EXAMPLE, fmt="md:myst")
    with pytest.raises(ValueError, match="ex-double has no answer that could be checked: write a check"):
        student(copy.deepcopy(page), {})
    page.cells = [cell for cell in page.cells if cell.cell_type == "markdown"]
    with pytest.raises(ValueError, match="write a solution in code cells"):
        student(page, read_checks(EXAMPLE_CHECKS))
    with pytest.raises(ValueError, match="must stand once"):
        read_checks("# %% ex-a\nassert True\n")


# --- the pages


@pytest.mark.parametrize("stem", PAGES)
def test_no_solution_is_left_and_every_other_cell_is_there(stem):
    page = PAGES[stem]
    solved = list(exercises(page))
    made = student(copy.deepcopy(page), CHECKS)
    solutions = {id(cell) for exercise in solved for cell in exercise.solution}
    code = [cell.source for cell in page.cells if cell.cell_type == "code" and id(cell) not in solutions]
    assert [c.source for c in made.cells if c.cell_type == "code" and not {"answer", "check"} & set(c.metadata.get("tags", ()))] == code
    assert sum("check" in cell.metadata.get("tags", ()) for cell in made.cells) == len(solved)
    before = "\n".join(cell.source for cell in page.cells if cell.cell_type == "markdown")
    after = "\n".join(cell.source for cell in made.cells if cell.cell_type == "markdown")
    gone = sum(1 for exercise in solved if page.cells[exercise.at + 1 + len(exercise.solution)].source.lstrip().startswith(":::{dropdown}"))
    assert before.count(":::{dropdown}") - after.count(":::{dropdown}") == gone
    assert re.findall(r"^#.*$", after, re.MULTILINE) == re.findall(r"^#.*$", before, re.MULTILINE)
    own = {line for text in (*code, *(CHECKS[exercise.label].given for exercise in solved)) for line in text.splitlines()}
    for exercise in solved:
        for line in {line for cell in exercise.solution for line in cell.source.splitlines()} - own:
            said = line.strip()
            if len(said) > 12 and not said.startswith(("assert", "check", '"', "for ")):
                answers = [c.source for c in made.cells if c.cell_type == "code"]
                assert not any(line in source.splitlines() for source in answers), f"{exercise.label}: {line}"


def test_every_exercise_of_the_pages_has_a_check_and_a_solution():
    labels = [exercise.label for page in PAGES.values() for exercise in exercises(page) if exercise.solution]
    texts = "\n".join(page.read_text(encoding="utf-8") for page in LESSONS.glob("[0-9]*.md"))
    assert len(labels) == texts.count(":::{exercise}") >= 15
    assert not set(labels) - CHECKS.keys(), "write their checks in lessons/checks.py"


@pytest.mark.parametrize("label", [label for label in CHECKS if any(label == e.label for p in PAGES.values() for e in exercises(p))])
def test_a_check_asks_for_what_the_solution_makes_and_the_page_did_not(label):
    """So the notebook stops there, and not before; and what the check makes no other cell reads or loses."""
    page, exercise = next((page, e) for page in PAGES.values() for e in exercises(page) if e.label == label)
    check, earlier = CHECKS[label], code_before(page, exercise.at)
    known = set().union(*map(bound, earlier))
    solution = "\n".join(cell.source for cell in exercise.solution)
    assert check.leaves.keys() <= bound(solution), "the solution does not make these names"
    assert check.leaves.keys() - known, "these names are there before the answer: the check would not notice that none was given"
    assert all(name.startswith("_") for name in bound(check.code))
    there = known | bound(check.given) | bound(check.code) | set(check.leaves) | set(dir(builtins))
    assert read(check.code) <= there and read(check.given) <= known | bound(check.given) | set(dir(builtins))


@pytest.mark.parametrize("stem", PAGES)
def test_what_later_cells_read_is_there_without_the_solution(stem):
    page = PAGES[stem]
    for exercise in exercises(page):
        check = CHECKS[exercise.label]
        known = set().union(*map(bound, code_before(page, exercise.at)), bound(check.given), check.leaves)
        made = set().union(*(bound(cell.source) for cell in exercise.solution))
        for cell in page.cells[exercise.at + 1 + len(exercise.solution) :]:
            if cell.cell_type == "code":
                assert not (read(cell.source) & made) - known - bound(cell.source), f"{exercise.label}: {cell.source[:60]}"
                known |= bound(cell.source)


@pytest.mark.parametrize("stem", WITH_EXERCISES)
def test_to_its_first_exercise_a_notebook_is_the_page_and_there_it_says_what_to_do(stem):
    """The same code, cell by cell: the run of the page, which is a test too, is the notebook's run up to there."""
    page, made = PAGES[stem], student(copy.deepcopy(PAGES[stem]), CHECKS)
    first, at = next(exercises(page)), first_answer(made)
    assert code_before(made, at) == code_before(page, first.at) != []
    assert made.metadata.kernelspec == page.metadata.kernelspec
    with pytest.raises(Unanswered) as stopped:
        exec(made.cells[at + 1].source, {})
    names = ", ".join(CHECKS[first.label].leaves)
    assert f"“{first.title}” waits for your answer: let the cell above define {names}, run it" in str(stopped.value)


@pytest.mark.parametrize("stem", CHEAP)
def test_a_notebook_runs_to_its_first_exercise_and_stops_there(tmp_path, stem):
    """In a folder of a student's. Two that are there after seconds; the test above shows it of all."""
    made = student(copy.deepcopy(PAGES[stem]), CHECKS)
    with pytest.raises(CellExecutionError, match=f"The exercise “{next(exercises(PAGES[stem])).title}” waits for your answer"):
        run(made, tmp_path)
    assert failed(made) == [made.cells[first_answer(made) + 1]]


def test_the_command_writes_a_notebook_for_every_page(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("QUANTLIB_LESSONS", str(LESSONS))
    assert main(["--out", str(tmp_path / "student")]) == 0
    written = sorted(tmp_path.glob("student/*.ipynb"))
    assert [file.stem for file in written] == list(PAGES)
    for file in written:
        nbformat.validate(nbformat.read(file, as_version=4))
    assert "3 exercises to solve" in capsys.readouterr().out
