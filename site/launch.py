"""The page as a notebook elsewhere: what its first cell has to do where there is no checkout. Start at :func:`with_setup`.

Only where `github:` of myst.yml says where the course lies; pages then also have links to Colab and Binder
(src/launch.ts). Colab opens the notebooks of the published book, in the branch gh-pages; Binder builds environment.yml.
"""

from __future__ import annotations

import re
from pathlib import Path

import nbformat
import yaml
from nbformat import NotebookNode

GITHUB = re.compile(r"https://github\.com/([\w.-]+)/([\w.-]+?)(?:\.git)?/?")
SETUP = """\
# Where the course is not installed, as on Colab: fetch it (a few minutes). Elsewhere this does nothing.
import importlib.util, os, subprocess, sys, tomllib

if importlib.util.find_spec("quantlib") is None:
    course = os.path.abspath("{name}")
    if not os.path.isdir(course):
        subprocess.run(["git", "clone", "--quiet", "--depth", "1", "{address}", course], check=True)
    with open(os.path.join(course, "pyproject.toml"), "rb") as file:
        needed = tomllib.load(file)["project"]["dependencies"]
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", *needed], check=True)
    os.environ["QUANTLIB_LESSONS"] = os.path.join(course, "lessons")
    sys.path.insert(0, course)
"""


def address(root: Path) -> str | None:
    """The repository that myst.yml names, `https://github.com/OWNER/REPOSITORY`; None where it names none.

    Raises ValueError for another address: no link to Colab or Binder could be made of it.
    """
    named = yaml.safe_load((root / "myst.yml").read_text(encoding="utf-8"))["project"].get("github")
    if named and not GITHUB.fullmatch(named):
        raise ValueError(f"github: in myst.yml must be https://github.com/OWNER/REPOSITORY, got {named!r}")
    return named.removesuffix("/").removesuffix(".git") if named else None


def setup(repository: str) -> str:
    """The code of the first cell, for a repository that git can clone."""
    return SETUP.format(address=repository, name=repository.rsplit("/", 1)[1].removesuffix(".git"))


def with_setup(notebook: NotebookNode, repository: str | None) -> NotebookNode:
    """The notebook with that cell in front, if it has code and the course has an address."""
    if repository and any(cell.cell_type == "code" for cell in notebook.cells):
        notebook.cells.insert(0, nbformat.v4.new_code_cell(setup(repository)))
    return notebook
