"""The lessons' pytest plugin, on small pages made here: what must pass passes, and what must fail fails.

Each run of pytest below starts one kernel a page (about a second), so a page holds many cases.
"""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch  # noqa: F401  pytester forgets what a run imported, and PyTorch, which a recording asks for the GPU, cannot be imported twice
from page_cases import page_text

ROOT = Path(__file__).parents[2]


def write_page(folder, name, *cells, **options):
    path = folder / name
    path.write_text(page_text(*cells, **options), encoding="utf-8")
    return path


def complains(text, line, reason):
    """Whether the reason is given, with this line of the page under it."""
    return re.search(rf"^{re.escape(reason)}.*\n\n.*\.md:{line}:$", text, re.MULTILINE)


def edit_recording(file, change):
    recording = json.loads(file.read_text(encoding="utf-8"))
    change(recording["cells"])
    file.write_text(json.dumps(recording), encoding="utf-8")


CHECK = "nbval-check-output"


def test_a_recorded_page_passes_and_every_kind_of_drift_fails(tmp_path, run):
    cells = [
        (f"{CHECK}, rtol=1e-2", "print('error', 1.2345)"),  # line 17
        (f"{CHECK}, rtol=1e-2", "print('error', 2.3456)"),  # 23
        (CHECK, "print('never recorded')"),  # 29
        (CHECK, "print('int8')"),  # 35
        (CHECK, "print('source changes')"),  # 41
        (CHECK, "12"),  # 47
        ("", "import time; time.time()"),  # 53: not compared
        (f"{CHECK}, raises-exception", "int('x')"),  # 59
        ("", "import sys; assert sys.executable == " + repr(sys.executable)),  # 65
    ]
    page = write_page(tmp_path, "01-page.md", *cells)
    file = tmp_path / "recorded" / "01-page.outputs.json"

    _, outcomes, text = run(page)
    assert outcomes.pop("17") == "failed" and complains(
        text, 17, "has no recorded output: run `make record RECORD=01-page`"
    )

    status, outcomes, _ = run("--record-outputs", page)
    assert status == 0 and set(outcomes.values()) == {"passed"}
    as_recorded = file.read_bytes()

    status, outcomes, _ = run("--record-outputs", page)
    assert status == 0 and file.read_bytes() == as_recorded

    def drift(recorded):
        assert recorded[0]["outputs"][0] == {"stdout": ["error 1.2345", ""]}
        recorded[0]["outputs"][0]["stdout"][0] = "error 1.2300"  # within 1e-2
        recorded[1]["outputs"][0]["stdout"][0] = "error 2.3000"  # beyond it
        recorded[3]["outputs"][0]["stdout"][0] = "int4"
        recorded[5]["outputs"][0]["text/plain"][0] = "13"
        del recorded[2]
        recorded.append({"source": ["print('gone')"], "outputs": []})

    edit_recording(file, drift)
    cells[4] = (CHECK, "print('source changed')")
    write_page(tmp_path, "01-page.md", *cells)
    _, outcomes, text = run(page)
    assert outcomes == {
        "17": "passed", "23": "failed", "29": "failed", "35": "failed", "41": "failed", "47": "failed",
        "53": "passed", "59": "passed", "65": "passed", "recording": "failed",
    }  # fmt: skip
    assert "2.3000 was recorded, 2.3456 is computed (0.046 apart, 0.023 allowed), in: error 2.3456" in text
    assert "-int4\n+int8" in text
    assert complains(text, 29, "has no recorded output: run `make record RECORD=01-page`")
    assert complains(text, 41, "changed after its output was recorded: run `make record RECORD=01-page`")
    assert complains(text, 47, "13 was recorded, 12 is computed")
    assert "a recorded cell is no longer in the page (print('gone')): run `make record RECORD=01-page`" in text


def test_what_a_cell_must_not_do(tmp_path, run):
    page = write_page(
        tmp_path,
        "bad.md",
        ("", "def f(x):\n    return undefined_name\n\nf(1)"),  # 17
        ("", "import warnings\nwarnings.warn('old call')"),  # 26
        ("remove-stderr", "warnings.warn('shown to nobody')"),  # 33
        ("raises-exception", "3"),  # 39
        (CHECK, "x = 3"),  # 45
        ("nbval-skip", "raise SystemExit"),  # 51
        ("", "assert x == 4, 'three is four'"),  # 57
    )
    _, outcomes, text = run("--record-outputs", page)
    assert outcomes == {
        "17": "failed",
        "26": "failed",
        "33": "passed",
        "39": "failed",
        "45": "failed",
        "57": "failed",
        "recording": "failed",
    }
    assert complains(text, 20, "NameError: name 'undefined_name' is not defined") and ">    20  f(1)" in text
    assert "----> 4 f(1)" in text  # the traceback
    assert complains(text, 26, "writes to stderr") and "UserWarning: old call" in text
    assert complains(text, 39, "is tagged raises-exception, and raised nothing")
    assert complains(text, 45, "is tagged nbval-check-output, and shows nothing that is compared")
    assert complains(text, 57, "AssertionError: three is four")
    assert (
        "bad.md is not recorded: the cell at line 17 failed or did not run" in text
        and not (tmp_path / "recorded").exists()
    )


def test_a_kernel_that_dies_or_hangs_ends_the_page_soon(tmp_path, run):
    died = write_page(tmp_path, "died.md", ("", "import os; os._exit(1)"), ("", "1"))
    hangs = write_page(tmp_path, "hangs.md", ("", "import time; time.sleep(60)"))
    _, outcomes, text = run("--nbval-cell-timeout", "1", died, hangs)
    assert set(outcomes.values()) == {"failed"} and complains(
        text, 17, "the kernel died in this cell (was there memory enough?)"
    )
    assert complains(text, 17, "Timeout of 1 seconds exceeded executing cell")


def test_each_page_has_a_kernel_of_its_own_and_a_cell_alone_finds_what_it_needs(tmp_path, run):
    first = write_page(tmp_path, "first.md", ("", "x = 1"), ("", "y = x + 1"), ("", "assert y == 2"))
    second = write_page(tmp_path, "second.md", ("", "assert 'x' not in dir()"))
    status, outcomes, _ = run(f"{first}::line 29", second)
    assert outcomes == {"29": "passed", "17": "passed"} and status == 0


def test_a_page_that_could_not_be_tested_as_meant_is_an_error(tmp_path, run):
    pages = {
        "kernel.md": page_text(("", "1"), kernel="julia"),
        "header.md": "```{code-cell} ipython3\n1\n```\n",
        "nested.md": page_text(("", "1")) + "\n````{solution}\n```{code-cell} ipython3\n2\n```\n````\n",
        "tag.md": page_text(("nbval-check-ouput", "1")),
        "tolerance.md": page_text((f"{CHECK}, rtol=1%", "1")),
        "alone.md": page_text(("rtol=1e-3", "1")),
    }
    for name, text in pages.items():
        (tmp_path / name).write_text(text)
    status, _, text = run(*(tmp_path / name for name in pages))
    assert status == 2 and f"{len(pages)} errors" in text
    for complaint in (
        "kernel.md:1: asks for the kernel 'julia', lessons run on 'python3'",
        "header.md:1: has code cells but no jupytext header with format_name: myst",
        "nested.md:21: a code cell inside another block is no notebook cell",
        "tag.md:17: 'nbval-check-ouput' is no tag of nbval",
        "tolerance.md:17: 'rtol=1%' is no tolerance: write rtol=1e-3",
        "alone.md:17: a tolerance is stated but nothing is compared",
    ):
        assert complaint in text


def test_with_the_readers_own_model_cells_run_and_nothing_is_compared(tmp_path, run, monkeypatch):
    page = write_page(tmp_path, "page.md", (CHECK, "print('theirs')"), ("", "1 / 0"))
    monkeypatch.setenv("QUANTLIB_MODEL", "their/model")
    _, outcomes, text = run(page)
    assert outcomes == {"17": "passed", "23": "failed", "recording": "passed"}
    assert "lessons: outputs are not compared, QUANTLIB_MODEL is their/model" in text
    _, _, text = run("--record-outputs", page)
    assert "recordings are of SmolLM2-135M-Instruct: unset QUANTLIB_MODEL, which is their/model" in text
    monkeypatch.setenv("QUANTLIB_MODEL", "SmolLM2-135M-Instruct")
    assert run(page)[1]["17"] == "failed"


def test_a_damaged_recording_fails_the_page_and_names_the_file(tmp_path, run):
    page = write_page(tmp_path, "page.md", (CHECK, "1"))
    (tmp_path / "recorded").mkdir()
    (tmp_path / "recorded" / "page.outputs.json").write_text('{"cells": [')
    _, outcomes, text = run(page)
    assert outcomes == {"17": "failed", "recording": "failed"} and "page.outputs.json is damaged" in text


def test_markdown_without_code_cells_is_left_alone(tmp_path, run):
    (tmp_path / "README.md").write_text("# Read me\n")
    _, _, text = run(tmp_path / "README.md")
    assert "no tests ran" in text


def test_a_converted_page_passes_stock_nbval_in_another_folder(tmp_path):
    """Nothing of this repository is loaded here: no conftest, no plugin, only nbval."""
    page = tmp_path / "page.md"
    page.write_text(page_text((f"{CHECK}, rtol=1e-2", "print(1.5)"), ("raises-exception", "int('x')")))
    notebook = tmp_path / "elsewhere" / "page.ipynb"
    notebook.parent.mkdir()
    subprocess.run(
        [sys.executable, "-m", "jupytext", "--to", "ipynb", page, "-o", notebook], check=True, capture_output=True
    )
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "--nbval", "-p", "no:cacheprovider", notebook],
        cwd=notebook.parent,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0 and "2 passed" in done.stdout, done.stdout


def test_the_repository_collects_tests_and_lessons_without_flags():
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "--collect-only", "-q", ROOT / "lessons", __file__],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert "lessons/index.md::line " in done.stdout and "test_markdown_without_code_cells" in done.stdout, (
        done.stdout + done.stderr
    )


SOLVED = page_text(("", "n = 2")) + """
:::{exercise} Double it
:label: ex-double

Write it.
:::

```{code-cell} ipython3
:tags: [hide-cell]

def double(n):
    return n + n
```
"""


@pytest.mark.parametrize(("claim", "outcome"), [("double(n) == 4", "passed"), ("double(n) == 5", "failed")])
def test_a_solution_has_to_pass_the_check_of_the_readers_answers(run, pytester, claim, outcome):
    page = pytester.path / "page.md"
    page.write_text(SOLVED)
    (pytester.path / "checks.py").write_text(f"# %% ex-double\n#: double: double(n)\nassert {claim}, 'not doubled'\n")
    status, outcomes, text = run(page)
    assert list(outcomes.values()) == ["passed", outcome] and (status == 0) == (outcome == "passed")
    assert ("does not pass its check in checks.py (AssertionError: not doubled)" in text) == (outcome == "failed")
