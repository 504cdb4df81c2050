"""JupyterLab as `make lab` starts it: a page opens as a notebook, runs, and saving it leaves it as it was."""

import difflib
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from book_tools import CHROMIUM, NO_CHROMIUM, chromium, jupyterlab
from jupyter_server.services.contents.largefilemanager import LargeFileManager
from jupytext.sync_contentsmanager import build_sync_jupytext_contents_manager_class

from quantlib.commands.lab import _load_jupyter_server_extension

ROOT = Path(__file__).parents[2]
LESSONS = ROOT / "lessons"
KERNEL = {"name": "python3", "display_name": "Python 3 (ipykernel)", "language": "python"}

PAGE = """---
jupytext:
  text_representation:
    extension: .md
    format_name: myst
kernelspec:
  display_name: Python 3 (ipykernel)
  language: python
  name: python3
---

# Page

:::{note}
The step is $\\Delta = 2$.
:::

```{code-cell} ipython3
:tags: [hide-input]

import quantlib
print("six times seven is", 6 * 7)
```
"""


@pytest.mark.parametrize(
    "source, installed",
    [
        ("settings.json", "share/jupyter/lab/settings/overrides.d/quantization-lessons.json"),
        ("server.json", "etc/jupyter/jupyter_server_config.d/quantization-lessons.json"),
    ],
)
def test_jupyter_is_set_up_in_this_environment(source, installed):
    there = Path(sys.prefix) / installed
    assert there.read_text(encoding="utf-8") == (ROOT / ".jupyter" / source).read_text(encoding="utf-8")


def contents_of(folder: Path):
    """Jupyter's contents service for a folder, as the server sets it up: jupytext's, then ours."""
    manager = build_sync_jupytext_contents_manager_class(LargeFileManager)(root_dir=str(folder))
    _load_jupyter_server_extension(SimpleNamespace(contents_manager=manager))
    return manager


@pytest.mark.parametrize(
    "tags, folded",
    [([], False), (["a-tag"], False), (["hide-input"], True), (["hide-cell", "a-tag"], True), (["remove-cell"], True)],
)
def test_code_that_the_book_folds_is_folded(tags, folded, tmp_path):
    (tmp_path / "page.md").write_text(PAGE.replace("hide-input", ", ".join(tags)), encoding="utf-8")
    text, code = contents_of(tmp_path).get("page.md", type="notebook")["content"]["cells"]
    assert code["metadata"].get("jupyter", {}).get("source_hidden", False) == folded
    assert "jupyter" not in text["metadata"]


def test_what_is_no_page_is_read_as_ever(tmp_path):
    (tmp_path / "data.txt").write_text("text")
    contents = contents_of(tmp_path)
    assert contents.get("data.txt")["content"] == "text"
    assert [entry["name"] for entry in contents.get("")["content"]] == ["data.txt"]
    assert contents.get("data.txt", content=False)["content"] is None


def test_jupyterlab_finds_none_of_its_extensions_incompatible():
    done = subprocess.run(
        [sys.executable, "-m", "jupyter", "labextension", "list"], capture_output=True, text=True, check=True
    )
    said = done.stdout + done.stderr
    assert "jupyterlab-jupytext" in said and "jupyterlab-myst" in said
    assert "not compatible" not in said


@pytest.mark.parametrize("page", sorted(LESSONS.glob("*.md")), ids=lambda page: page.name)
def test_running_and_saving_a_page_leaves_it_as_it_was(page, tmp_path):
    shutil.copy(LESSONS / "jupytext.toml", tmp_path)
    shutil.copy(page, tmp_path)
    contents = contents_of(tmp_path)
    model = contents.get(page.name, type="notebook")
    metadata = model["content"]["metadata"]
    if metadata["kernelspec"] != KERNEL:
        metadata["kernelspec"] = KERNEL
    metadata.update(language_info={"name": "python"}, widgets={"state": {}})
    for cell in model["content"]["cells"]:  # what JupyterLab leaves in a cell that ran
        if cell["cell_type"] == "code":
            cell["metadata"] |= {"execution": {"iopub.status.busy": "now"}, "trusted": True, "scrolled": True}
            cell["execution_count"] = 1
    contents.save(model, page.name)
    before, after = (p.read_text(encoding="utf-8").splitlines() for p in (page, tmp_path / page.name))
    changes = "\n".join(difflib.unified_diff(before, after, "in git", "saved", lineterm="", n=1))
    assert not changes, f"write the page as JupyterLab saves it, or readers who run it change it\n{changes}"


@pytest.fixture
def lab(tmp_path):
    """The address of a JupyterLab that shows a folder with two pages, with settings and home of its own."""
    lessons = tmp_path / "lessons"
    lessons.mkdir()
    shutil.copy(LESSONS / "jupytext.toml", lessons)
    for name in ("index.md", "01-page.md"):
        (lessons / name).write_text(PAGE, encoding="utf-8")
    options = f"--LabApp.workspaces_dir={tmp_path}/workspaces", "--LabApp.default_url=/lab/tree/lessons/index.md"
    home = os.environ | {"HOME": str(tmp_path / "home")}
    with jupyterlab(tmp_path, *options, environment=home) as address:
        yield address


@pytest.mark.skipif(not CHROMIUM, reason=NO_CHROMIUM)
def test_a_page_opens_as_a_notebook_and_runs_in_a_real_browser(lab, tmp_path):
    from playwright.sync_api import expect

    with chromium() as browser:
        page = browser.new_page(viewport={"width": 1200, "height": 900})
        page.set_default_timeout(60_000)
        expect.set_options(timeout=60_000)
        requested = []
        page.on("request", lambda request: requested.append(request.url))

        page.goto(lab)  # opens index.md
        expect(page.locator(".jp-NotebookPanel")).to_have_count(1)
        page.locator(".jp-DirListing-item", has_text="01-page.md").dblclick()
        expect(page.locator(".jp-NotebookPanel")).to_have_count(2)
        notebook = page.locator(".jp-NotebookPanel:not(.lm-mod-hidden)")
        expect(notebook.locator(".jp-CodeCell")).to_have_count(1)
        expect(notebook.locator("aside", has_text="The step is")).to_have_count(1)  # MyST, not plain Markdown
        expect(notebook.locator("aside math")).to_have_count(1)
        expect(notebook.locator(".jp-CodeCell .jp-Cell-inputWrapper .jp-Placeholder")).to_have_count(1)  # folded
        notebook.locator(".jp-MarkdownCell").click()  # the menus act on the notebook that has the focus
        expect(page.locator("#jp-bottom-panel")).to_contain_text("Python 3 (ipykernel) | Idle")

        page.locator(".lm-MenuBar-itemLabel", has_text="Run").click()
        page.locator(".lm-Menu-itemLabel:text-is('Run All Cells')").click()
        expect(notebook.locator(".jp-OutputArea-output")).to_contain_text("six times seven is 42")
        page.keyboard.press("Control+s")
        expect(page.locator("#jp-main-dock-panel .lm-TabBar-tab", has_text="01-page.md")).not_to_have_class(
            re.compile("jp-mod-dirty")
        )
    assert all(address.startswith(("http://127.0.0.1", "ws://127.0.0.1", "data:", "blob:")) for address in requested)
    assert (tmp_path / "lessons/01-page.md").read_text(encoding="utf-8") == PAGE
