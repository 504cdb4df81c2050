"""A page that passed its tests is not run again for the book, and stands there as if it had been."""

import json

import execute
import pytest
from page_cases import page_text

CELLS = (
    ("", "from IPython.display import display\nprint('a')\nshown = display('b', display_id=True)\nprint('c')"),
    ("", "import sys\nshown.update('later')\nprint('d')\nprint('e', file=sys.stdout)"),
    ("raises-exception", "[][1]"),
    ("", "import os\nsorted(k for k in os.environ if k in ('QUANTLIB_STATIC', 'PYTHONHASHSEED', 'PYTHONPATH')), os.getcwd()[-7:]"),
    ("", "import quantlib; quantlib.ANSWER"),
    ("", "import time; time.sleep(0.3)"),
)


@pytest.fixture
def project(tmp_path):
    """A project with one page, and where its runs are kept."""
    root = tmp_path / "project"
    (root / "lessons").mkdir(parents=True)
    (root / "quantlib").mkdir()
    (root / "quantlib" / "__init__.py").write_text("ANSWER = 41\n")
    (root / "myst.yml").write_text("version: 1\n")
    (root / "lessons" / "page.md").write_text(page_text(*CELLS))
    return root


def test_what_is_kept_is_what_the_book_would_have_run(project, run, tmp_path):
    page, kept = project / "lessons" / "page.md", project / "_build" / "executed"
    assert run(page)[0] == 0
    file, ran = execute.executed(page, project, kept)
    assert not ran
    again, ran = execute.executed(page, project, tmp_path / "again")
    assert ran
    ours, theirs = (json.loads(f.read_text()) for f in (file, again))
    for output in (o for n in (ours, theirs) for cell in n["cells"] for o in cell.get("outputs", ())):
        output.pop("traceback", None)  # which the book does not show, and which counts the cells
    theirs["metadata"].pop("language_info")  # the book knows
    seconds = [[cell["metadata"].get("book", {}).pop("seconds", None) for cell in n["cells"]] for n in (ours, theirs)]
    seconds += [[n["metadata"]["book"].pop("seconds")] for n in (ours, theirs)]
    for mine, its in zip(seconds[::2], seconds[1::2], strict=True):
        assert [s is None for s in mine] == [s is None for s in its]
    assert seconds[0][-1] > 0.3 and seconds[2][0] > 0.3
    text = json.dumps(ours)
    assert "41" in text and "later" in text and "IndexError" in text
    assert ours == theirs


def test_a_run_that_failed_or_is_of_another_page_or_cpu_is_not_kept(project, run, monkeypatch):
    page, kept = project / "lessons" / "page.md", project / "_build" / "executed"
    assert run(f"{page}::line 17")[0] == 0 and not kept.exists()  # one cell of six
    changes = f"from pathlib import Path; Path({str(project / 'quantlib' / 'other.py')!r}).write_text('')"
    page.write_text(page_text(("", changes)))
    assert run(page)[0] == 0 and not kept.exists()
    page.write_text(page_text(("", "1 / 0")))
    assert run(page)[0] == 1 and not kept.exists()
    elsewhere = project / "elsewhere.md"
    elsewhere.write_text(page_text(("", "1")))
    assert run(elsewhere)[0] == 0 and not kept.exists()
    page.write_text(page_text(("", "1")))
    with monkeypatch.context() as older:
        older.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
        assert run(page)[0] == 0 and not kept.exists()
    assert run(page)[0] == 0 and kept.exists()
