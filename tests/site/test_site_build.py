"""What stops a build of the book, on tiny projects: each fault is told with its file, its line and what to do."""

from __future__ import annotations

import gzip
import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import execute
import pytest
import stops
from book_tools import SITE, build
from execute import code_lines, key
from problems import BuildFailed
from tools import read_myst

HEADER = "---\nkernelspec: {name: python3, display_name: Python 3}\njupytext:\n  text_representation: {extension: .md, format_name: myst}\n---\n"
CELL = """```{{code-cell}} ipython3
{options}from IPython.display import display
def draw(**told):
    display({{"image/svg+xml": '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 432 100"><path d="M0 0h9"/></svg>'}}, raw=True, metadata={{"image/svg+xml": told}})
draw({told})
```
"""


def figure(told: str = "", label: str = "") -> str:
    return CELL.format(told=told, options=f":label: {label}\n\n" if label else "")


PAGES = {
    "raises": "```{code-cell} ipython3\nx = 1\n```\n\n```{code-cell} ipython3\n:tags: [hide-input]\n\ny = 2\nx / 0\n```\n",
    "frames": "```{code-cell} ipython3\nimport os\nassert os.environ.get('QUANTLIB_STATIC') != '1', 'widgets draw every frame'\n```\n",
    "reference": "A line.\n\nSee [Figure 1](#fig-nowhere).\n",
    "file": "See [there](./no-such-page.md).\n",
    "alt": figure(),
    "widget": "```{code-cell} ipython3\nfrom IPython.display import HTML\nHTML('<figure class=\"explore\">' + 'x' * 200_001 + '</figure>')\n```\n",
    "number": figure('alt="It falls."', "fig-one") + "\nAs [Figure 2](#fig-one) shows.\n",
    "image": "![](dot.png)\n",
    "equation": "$$\n\\nosuch{x}\n$$\n",
    "citation": "By [somebody](https://doi.org/10.0000/nothing).\n",
    "ask": ":::{admonition} Predict\n:class: ask\n:label: ask-a\n\nHow many?\n\n- [ ] one\n- [ ] two\n:::\n",
    "exercise": ":::{exercise}\n:label: ex-a\n\nDo it.\n:::\n",
}

FAULTS = {
    "raises": (16, "the cell raised ZeroDivisionError: division by zero", "mend it"),
    "frames": (10, "the cell raised AssertionError: widgets draw every frame", "mend it"),
    "reference": (10, 'No target for internal reference "#fig-nowhere"', "correct the label"),
    "file": (8, 'the link to "./no-such-page.md" leads nowhere', "in the contents of myst.yml"),
    "alt": (9, "a picture (image/svg+xml) without alternative text", "alt="),
    "widget": (9, "its widget is 200 kB, over the 200 kB", "fewer settings"),
    "number": (17, '"Figure 2" refers to "fig-one", which is Figure 1', "write [Figure 1](#fig-one)"),
    "image": (8, "has no alternative text", "write ![what it shows](file)"),
    "equation": (8, "Undefined control sequence: \\nosuch", "correct the TeX"),
    "citation": (8, "Could not find DOI", "references.bib"),
    "ask": (8, 'needs a comment with "right: 2"', "site/README.md"),
    "exercise": (11, "Exercise 1 has no solution", "hide-cell"),
}
PNG = bytes.fromhex(
    "89504e470d0a1a0a0000000d4948445200000001000000010806000000 1f15c4890000000d49444154789c6360606060000000050001a5f645400000000049454e44ae426082".replace(
        " ", ""
    )
)


def project(folder: Path, pages: dict[str, str]) -> Path:
    (folder / "lessons").mkdir(parents=True)
    (folder / "quantlib").mkdir()
    (folder / "quantlib" / "__init__.py").write_text("ANSWER = 41\n")
    (folder / "lessons" / "dot.png").write_bytes(PNG)
    (folder / "lessons" / "references.bib").write_text(
        "@book{known, title={Known}, author={Ann One}, year={2000}, doi={10.1000/known}}\n"
    )
    for name, words in {"index": "Words.\n", **pages}.items():
        (folder / "lessons" / f"{name}.md").write_text(f"{HEADER}# Page {name}\n\n{words}")
    toc = "".join(f"    - file: lessons/{name}.md\n" for name in ["index", *[n for n in pages if n != "index"]])
    (folder / "myst.yml").write_text(
        f"version: 1\nproject:\n  title: Tiny book\n  github: https://github.com/someone/lessons\n  bibliography: [lessons/references.bib]\n  toc:\n{toc}site:\n  template: {SITE}\n"
    )
    return folder


@pytest.fixture(scope="module")
def faulty(tmp_path_factory):
    return build(project(tmp_path_factory.mktemp("faulty"), PAGES))


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_fails_the_build_with_its_place_and_remedy(faulty, name):
    line, what, remedy = FAULTS[name]
    assert faulty.returncode == 1
    told = faulty.stderr.split(f"lessons/{name}.md:{line}: ", 1)
    assert len(told) == 2, f"no line about lessons/{name}.md:{line} in\n{faulty.stderr}"
    first, second = told[1].splitlines()[:2]
    assert what in first and remedy in second


def test_a_page_that_is_not_there(tmp_path):
    folder = project(tmp_path / "p", {"gone": "x"})
    (folder / "lessons" / "gone.md").unlink()
    done = build(folder)
    assert done.returncode == 1 and "myst.yml: there is no page lessons/gone.md" in done.stderr


GOOD = {
    "index": "<!-- parts -->\n1. **[One](./01-one.md)** Why?\n2. **Two** Not yet.\n",
    "01-one": """*The lede.*

- **Do** this
- **Learn** that
- **Need** nothing

## A section

Text.[^n] By [Ann One](https://doi.org/10.1000/known).

[^n]: A note.

```{code-cell} ipython3
import quantlib
print("answer", quantlib.ANSWER)
```

"""
    + figure('alt="It falls.", caption="A line."', "fig-one")
    + "\nAs [Figure 1](#fig-one) shows.\n",
}


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_a_good_project_builds_the_same_bytes_and_runs_only_what_changed(tmp_path):
    folder = project(tmp_path / "p", GOOD)
    first = build(folder)
    assert first.returncode == 0, first.stderr
    assert "01-one.md: ran" in first.stdout
    book = contents(folder / "_build" / "book")
    assert {
        "index.html",
        "01-one.html",
        "01-one.ipynb",
        "book.css",
        "book.js",
        "fonts/serif.woff2",
        "licences/source-serif-4.txt",
    } <= set(book)
    page = book["01-one.html"].decode()
    assert "answer 41" in page and "Part 1 of 2" in page and 'id="fig-one"' in page and "Known" in page
    assert 'href="https://github.com/someone/lessons/blob/main/lessons/01-one.md"' in page
    assert str(tmp_path).encode() not in b"".join(book.values())

    second = build(folder)
    assert "01-one.md: unchanged" in second.stdout and "index.md: unchanged" in second.stdout
    assert contents(folder / "_build" / "book") == book

    (folder / "quantlib" / "__init__.py").write_text("ANSWER = 42\n")
    third = build(folder)
    assert "01-one.md: ran" in third.stdout
    assert b"answer 42" in (folder / "_build" / "book" / "01-one.html").read_bytes()


@pytest.mark.parametrize(
    "code, line, what",
    [
        ("x = 1\nassert x == 2", 10, "AssertionError at: assert x == 2"),
        ("import time\ntime.sleep(60)", 9, "timed out"),
        ("import os\nos._exit(1)", 9, "died"),
    ],
)
def test_a_run_that_does_not_end_well_leaves_nothing_behind(tmp_path, monkeypatch, code, line, what):
    monkeypatch.setattr(execute, "TIMEOUT", 5)
    folder = project(tmp_path / "p", {"page": f"```{{code-cell}} ipython3\n{code}\n```\n"})
    runs = tmp_path / "runs"
    runs.mkdir()
    (runs / "page.ipynb").write_text("{}")
    with pytest.raises(BuildFailed) as failed:
        execute.executed(folder / "lessons" / "page.md", folder, runs)
    [problem] = failed.value.problems
    assert (problem.file, problem.line) == ("lessons/page.md", line) and what in problem.what
    assert not list(runs.iterdir())


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["ctrl-c", "sigterm"])
@pytest.mark.parametrize("impatient", [1, 3])
def test_a_stop_ends_the_build_at_once_and_leaves_the_last_book(tmp_path, number, impatient):
    folder, said = project(tmp_path / "p", {"01-one": "Words.\n", "02-two": "Words.\n"}), tmp_path / "kernel"
    assert build(folder).returncode == 0
    book = contents(folder / "_build" / "book")
    cell = f"```{{code-cell}} ipython3\nimport os, time\nopen({str(said)!r}, 'w').write(str(os.getpid()))\ntime.sleep(300)\n```\n"
    (folder / "lessons" / "01-one.md").write_text(f"{HEADER}# Page 1\n\n{cell}")
    command = [sys.executable, str(SITE / "build.py"), "--project", str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as building:
        wait_for(lambda: said.exists() and said.read_text())
        for _ in range(impatient):
            building.send_signal(number)
        out, words = building.communicate(timeout=20)
    assert building.returncode == 128 + number
    assert words.strip().splitlines() == [
        f"stopped by {number.name}: the last book stands as it was; pages that have run need not run again"
    ]
    assert "02-two" not in out and "Traceback" not in words
    assert contents(folder / "_build" / "book") == book and not (folder / "_build" / "book.new").exists()
    kernel = int(said.read_text())
    wait_for(lambda: not is_running(kernel))


def wait_for(happened) -> None:
    for _ in range(600):
        if happened():
            return
        time.sleep(0.1)
    raise AssertionError("it has not happened in a minute")


def is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    state = Path(f"/proc/{pid}/stat")
    return not state.exists() or state.read_text().rpartition(")")[2].split()[0] != "Z"


def test_a_build_that_fails_leaves_the_last_book(tmp_path):
    folder = project(tmp_path / "p", {"01-one": "Words.\n"})
    assert build(folder).returncode == 0
    book = contents(folder / "_build" / "book")
    (folder / "lessons" / "01-one.md").write_text(f"{HEADER}# Page 1\n\n[nowhere](#nowhere)\n")
    assert build(folder).returncode == 1
    assert contents(folder / "_build" / "book") == book and not (folder / "_build" / "book.new").exists()


def test_a_stop_waits_for_what_is_done_wholly_or_not_begun():
    done = []
    with pytest.raises(stops.Stopped, match="SIGTERM"), stops.stoppable():
        with stops.whole():
            os.kill(os.getpid(), signal.SIGTERM)
            done.append("whole")
        done.append("after")
    assert done == ["whole"]


def test_the_key_of_a_run_changes_with_everything_it_depends_on(tmp_path, monkeypatch):
    folder = project(tmp_path / "p", GOOD)
    page = folder / "lessons" / "01-one.md"
    seen = {key(page, folder)}

    def changed(path: str, words: str) -> None:
        target = folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(words)
        digest = key(page, folder)
        assert digest not in seen, path
        seen.add(digest)

    changed("lessons/01-one.md", "# other")
    changed("quantlib/__init__.py", "ANSWER = 1")
    changed("quantlib/static/explore.js", "1")
    changed("lessons/recorded/a.json", "{}")
    changed("lessons/experiments/a.py", "1")
    changed("requirements.txt", "torch==1")
    monkeypatch.setenv("QUANTLIB_MODEL", "other")
    assert key(page, folder) not in seen
    monkeypatch.delenv("QUANTLIB_MODEL")
    monkeypatch.setenv("ATEN_CPU_CAPABILITY", "avx2")
    assert key(page, folder) not in seen
    monkeypatch.delenv("ATEN_CPU_CAPABILITY")
    assert key(page, folder) in seen


def test_where_the_code_of_each_cell_begins():
    text = "# T\n```{code-cell} ipython3\na\n```\n\n```{code-cell} ipython3\n:label: fig-a\n:tags: [x]\n\nb\n```\n~~~{code-cell}\n---\ntags: [x]\n---\nc\n~~~\n"
    assert [text.splitlines()[n - 1] for n in code_lines(text)] == ["a", "b", "c"]


def test_harmless_remarks_of_myst_are_not_problems():
    said = '⚠️  lessons/a.md:3 unexpected option "jupyter" provided (in code-cell)\n⚠️  lessons/a.md:9 No target for internal reference "#x" was found.\n📖 Built lessons/a.md in 5 ms.\n'
    assert [(p.file, p.line) for p in read_myst(said)] == [("lessons/a.md", 9)]


def test_serving_needs_a_book(tmp_path):
    from serve import server

    with pytest.raises(FileNotFoundError, match="run make book first"):
        server(tmp_path)


def test_the_server_says_where_the_book_is_and_compresses_text(tmp_path):
    (tmp_path / "index.html").write_text("<p>" + "word " * 1000)
    command = [sys.executable, str(SITE / "serve.py"), "--folder", str(tmp_path), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            address = re.search(r"http://127\.0\.0\.1:\d+/", process.stdout.readline())[0]
            asked = urllib.request.Request(f"{address}index.html", headers={"Accept-Encoding": "gzip"})
            with urllib.request.urlopen(f"{address}index.html") as plain:
                assert plain.headers["Content-Encoding"] is None and plain.read() == (tmp_path / "index.html").read_bytes()
            with urllib.request.urlopen(asked) as answer:
                assert answer.headers["Content-Encoding"] == "gzip"
                assert gzip.decompress(answer.read()) == (tmp_path / "index.html").read_bytes()
        finally:
            process.terminate()
