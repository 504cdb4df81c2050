"""Running a page elsewhere: the first cell of its notebook where there is no checkout, and the container that editors open."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import jupytext
import nbformat
import pytest
import yaml
from book_tools import ROOT
from jupyter_client import KernelManager
from jupyter_client.kernelspec import KernelSpec
from launch import address, setup, with_setup
from nbclient import NotebookClient

PAGE = "# Page\n\n```{code-cell} ipython3\nx = 1\n```\n"
PACKAGE = '''
import os
from quantlib.records.lesson_files import lessons_folder
print("lessons in", lessons_folder(), "package in", os.path.dirname(__import__("quantlib").__file__))
'''


def myst(folder: Path, github: str = "") -> Path:
    (folder / "myst.yml").write_text(f"version: 1\nproject:\n  title: T\n{github}")
    return folder


@pytest.mark.parametrize("written", ["https://github.com/someone/lessons", "https://github.com/someone/lessons.git", "https://github.com/someone/lessons/"])
def test_one_setting_says_where_the_course_lies(tmp_path, written):
    assert address(myst(tmp_path)) is None
    assert address(myst(tmp_path, f"  github: {written}\n")) == "https://github.com/someone/lessons"


def test_another_address_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"must be https://github\.com/OWNER/REPOSITORY, got 'someone/lessons'"):
        address(myst(tmp_path, "  github: someone/lessons\n"))


def test_the_cell_stands_first_and_only_where_it_can_work():
    notebook = jupytext.reads(PAGE, fmt="md:myst")
    assert len(with_setup(jupytext.reads(PAGE, fmt="md:myst"), None).cells) == len(notebook.cells)
    cells = with_setup(jupytext.reads(PAGE, fmt="md:myst"), "https://github.com/someone/lessons").cells
    assert cells[0].source.count("https://github.com/someone/lessons") == 1 and len(cells) == len(notebook.cells) + 1
    assert len(with_setup(jupytext.reads("# Words\n", fmt="md:myst"), "https://github.com/someone/lessons").cells) == 1
    nbformat.validate(nbformat.v4.new_notebook(cells=cells))


def test_where_the_course_is_installed_the_cell_does_nothing(tmp_path):
    code = setup("https://github.com/nobody/nothing") + PACKAGE
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory):
    """(python, repository, variables): an environment that has the packages (by a path, so that nothing is downloaded) and
    not the course, the course as git clones it, and what is set there.
    """
    if not shutil.which("git") or not (ROOT / ".git").exists():
        pytest.skip("needs git and a repository")
    folder = tmp_path_factory.mktemp("elsewhere")
    repository = folder / "lessons-of-someone"
    subprocess.run(["git", "clone", "--quiet", "--bare", "--depth", "1", f"file://{ROOT}", repository], check=True)
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder / "venv"], check=True)
    python = folder / "venv" / "bin" / "python"
    site = subprocess.run([python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], capture_output=True, text=True, check=True)
    Path(site.stdout.strip(), "shared.pth").write_text(sysconfig.get_path("purelib") + "\n")
    clean = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "QUANTLIB_LESSONS")} | {"PIP_NO_INDEX": "1"}
    return python, f"file://{repository}", clean


def test_in_a_fresh_environment_the_first_cell_fetches_the_course(elsewhere, tmp_path):
    python, repository, clean = elsewhere

    def run(code):
        return subprocess.run([python, "-c", code], cwd=tmp_path, env=clean, capture_output=True, text=True, check=False)

    assert "No module named 'quantlib'" in run("import quantlib").stderr
    done = run(setup(repository) + PACKAGE)
    assert done.returncode == 0, done.stderr
    course = tmp_path / "lessons-of-someone"
    assert done.stdout == f"lessons in {course / 'lessons'} package in {course / 'quantlib'}\n"
    assert run(setup(repository) + PACKAGE).returncode == 0, "a second run finds what the first fetched"


def test_there_a_notebook_alone_runs(elsewhere, tmp_path):
    """Part 1 as it is downloaded, to its first figure, in a kernel of that environment; then it reads a recording."""
    python, repository, clean = elsewhere
    notebook = with_setup(jupytext.read(ROOT / "lessons" / "01-round-weights-to-a-grid.md", fmt="md:myst"), repository)
    figure = next(i for i, cell in enumerate(notebook.cells) if cell.cell_type == "code" and "show(" in cell.source)
    reading = f"{PACKAGE}\nfrom quantlib.records import load_record\nload_record('part_01.stories')"
    notebook.cells[figure + 1 :] = [nbformat.v4.new_code_cell(reading)]

    class There(KernelManager):
        kernel_spec = KernelSpec(argv=[str(python), "-m", "ipykernel_launcher", "-f", "{connection_file}"], language="python")

    client = NotebookClient(notebook, km=There(), timeout=120, resources={"metadata": {"path": str(tmp_path)}})
    client.execute(env=clean)
    drawn, read = notebook.cells[-2:]
    assert any("image/svg+xml" in output.get("data", {}) for output in drawn.outputs)
    assert f"package in {tmp_path / 'lessons-of-someone' / 'quantlib'}\n" in read.outputs[0].text
    assert [path.name for path in tmp_path.iterdir()] == ["lessons-of-someone"]


def test_the_container_installs_what_make_installs():
    told = json.loads((ROOT / ".devcontainer" / "devcontainer.json").read_text(encoding="utf-8"))
    python = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))["dependencies"][0].partition("=")[2]
    assert told["image"].endswith(f":{python}")
    target, arguments = re.fullmatch(r"make (\S+) PIP_ARGS='(.*)'", told["postCreateCommand"]).groups()
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert re.search(rf"^{target}: \$\(READY\)", makefile, re.MULTILINE) and arguments in makefile
