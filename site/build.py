"""Builds the book: python site/build.py, or make book. Start at `build`.

Three steps: run each page (execute.py, only what changed), let MyST read the text (tools.py), write the HTML
(src/static.ts). Whatever must not reach a reader, such as a cell that raises, a dead reference, a figure without
alternative text or a page over its budget, fails the build with its file, its line and what to do.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import jupytext
import nbformat
import yaml
from execute import executed
from launch import address, with_setup
from problems import BuildFailed, Problem, report
from stops import Stopped, stoppable, whole
from tools import SITE, environment, install_template, myst_problems, program

ROOT = SITE.parent
KB = 1000
PAGE_BUDGET, FONT_BUDGET = 400 * KB, 120 * 1024
PAGE_WITH_NOTEBOOK_BUDGET, SHARED_BUDGET = 480 * KB, 400 * KB  # of the whole book: for each page, and for what all share


def pages(root: Path) -> list[Path]:
    """The pages in the contents of `myst.yml`, in their order."""
    try:
        toc = yaml.safe_load((root / "myst.yml").read_text(encoding="utf-8"))["project"]["toc"]
    except (OSError, KeyError, TypeError, yaml.YAMLError) as error:
        raise BuildFailed(
            [
                Problem(
                    "myst.yml",
                    f"its contents (project: toc:) cannot be read: {error}",
                    "list every page there as - file: lessons/….md",
                )
            ]
        ) from None
    found: list[Path] = []

    def collect(entries: list[dict]) -> None:
        for entry in entries:
            if "file" in entry:
                found.append(root / entry["file"])
            collect(entry.get("children", []))

    collect(toc)
    missing = [p for p in found if not p.exists()]
    if missing:
        raise BuildFailed(
            Problem("myst.yml", f"there is no page {p.relative_to(root)}", "correct the name in project: toc:, or write the page")
            for p in missing
        )
    return found


def run_pages(root: Path, folder: Path) -> list[Problem]:
    """Runs what changed. A page that fails does not keep the others from being checked."""
    problems: list[Problem] = []
    for page in pages(root):
        start = time.perf_counter()
        try:
            _, ran = executed(page, root, folder)
        except BuildFailed as failed:
            problems += failed.problems
            continue
        print(f"{page.relative_to(root)}: {f'ran in {time.perf_counter() - start:.0f} s' if ran else 'unchanged'}", flush=True)
    return problems


def write_html(root: Path, content: Path, run: Path, out: Path) -> list[Problem]:
    command = [
        program("node"),
        str(SITE / "src" / "static.ts"),
        "--content",
        str(content),
        "--executed",
        str(run),
        "--out",
        str(out),
    ]
    done = subprocess.run(command, cwd=root, env=environment(), capture_output=True, text=True, check=False)
    if done.returncode not in (0, 1) or (done.returncode and not done.stdout):
        raise BuildFailed(
            [
                Problem(
                    "site/src",
                    f"the template failed: {done.stderr.strip()[-800:]}",
                    "this is a fault of the template, not of the page",
                )
            ]
        )
    return [Problem(p["file"], p["what"], p["remedy"], p.get("line")) for p in map(json.loads, done.stdout.splitlines())]


def write_notebooks(root: Path, out: Path) -> None:
    """The page as a notebook without outputs, for readers who want to run it elsewhere; the same bytes every time."""
    try:
        repository = address(root)
    except ValueError as error:
        raise BuildFailed([Problem("myst.yml", str(error), "write the address as the comment there shows, or leave it out")]) from None
    for page in pages(root):
        notebook = with_setup(jupytext.read(page, fmt="md:myst"), repository)
        for i, cell in enumerate(notebook.cells):
            cell.id = f"cell-{i}"
        (out / f"{page.stem}.ipynb").write_text(nbformat.writes(notebook) + "\n", encoding="utf-8")


def _size(files: list[Path]) -> int:
    return sum(f.stat().st_size for f in files)


def over_budget(out: Path) -> list[Problem]:
    """Pages, fonts and the whole book against what a reader is promised to load."""
    files = [f for f in sorted(out.rglob("*")) if f.is_file()]
    allowed = SHARED_BUDGET + PAGE_WITH_NOTEBOOK_BUDGET * sum(f.suffix == ".html" for f in files)
    checks = [
        (f"{f.name} is", [f], PAGE_BUDGET, "draw fewer marks in its figures, or move a widget to another page")
        for f in files
        if f.suffix == ".html"
    ]
    checks += [
        (
            "the fonts are",
            [f for f in files if f.suffix == ".woff2"],
            FONT_BUDGET,
            "avoid the TeX fonts that one symbol brings in, such as \\mathbb (28 kB)",
        ),
        ("the book is", files, allowed, "find what has grown: a figure, a widget's frames, a font"),
    ]
    return [
        Problem("_build/book", f"{what} {_size(group) / KB:.0f} kB, over its {limit / KB:.0f} kB", remedy)
        for what, group, limit, remedy in checks
        if _size(group) > limit
    ]


def build(root: Path = ROOT) -> Path:
    """Builds the book of the project at `root` into `_build/book` and returns that folder. Raises BuildFailed with all problems.

    The book that stands there is exchanged for the new one when that is whole and without fault, not before.
    """
    made = root / "_build"
    out, run, new = made / "book", made / "executed", made / "book.new"
    install_template()
    problems = run_pages(root, run)
    try:
        problems += myst_problems(root)
        problems += write_html(root, made / "site", run, new)
        write_notebooks(root, new)
        problems += over_budget(new)
        if not problems:
            with whole():
                exchange(new, out)
    except BuildFailed as failed:
        problems += failed.problems
    finally:
        shutil.rmtree(new, ignore_errors=True)
    if problems:
        raise BuildFailed(dict.fromkeys(problems))
    return out


def exchange(new: Path, out: Path) -> None:
    """Puts the folder `new` where `out` is, which may not exist yet."""
    old = out.with_name(f"{out.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if out.exists():
        out.rename(old)
    new.rename(out)
    shutil.rmtree(old, ignore_errors=True)


def main() -> int:
    parser = argparse.ArgumentParser(description="Build the book into _build/book.")
    parser.add_argument("--project", type=Path, default=ROOT, help="the folder of myst.yml (default: this repository)")
    root = parser.parse_args().project.resolve()
    start = time.perf_counter()
    try:
        with stoppable():
            out = build(root)
    except Stopped as stopped:
        last = root / "_build" / "book" / "index.html"
        kept = "the last book stands as it was" if last.exists() else "there is no book yet"
        print(f"stopped by {stopped}: {kept}; pages that have run need not run again", file=sys.stderr, flush=True)
        os._exit(128 + stopped.number)  # a page's thread may still wait for its kernel, which is gone
    except BuildFailed as failed:
        report(failed.problems)
        count = len(set(failed.problems))
        print(f"the book was not built: {count} problem{'s' if count > 1 else ''}", file=sys.stderr)
        return 1
    files = [f for f in out.rglob("*") if f.is_file()]
    print(f"{out}: {len(files)} files, {_size(files) / KB:.0f} kB, {time.perf_counter() - start:.1f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
