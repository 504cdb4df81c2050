"""Widgets live: JupyterLab, its kernel, and a real browser."""

import os
import re
from pathlib import Path

import nbformat
import pytest
import widget_example
from book_tools import CHROMIUM, chromium, jupyterlab

CELLS = (
    "import sys; sys.path.insert(0, {tests!r})\nimport widget_example\nwidget = widget_example.rounding(fails_at=3)\nwidget",
    "walk = widget_example.walk()\nwalk",
    "from quantlib.book.figures import new, show\nshow(new('text')[0], alt='An empty figure of the house size.', caption='Nothing, *drawn* [in blue]{{.exact}}.')",
    "widget.setting = {{'bits': 5, 'per': 'matrix'}}",
    "print('kernel has', widget.setting)",
)
SERVER = (
    "--ServerApp.ip=127.0.0.1",
    "--LabApp.news_url=",
    "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate",
)


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """The address of a JupyterLab with one notebook."""
    if CHROMIUM is None:
        with chromium():  # skips, with the reason
            pass
    folder = tmp_path_factory.mktemp("lab")
    notebook = nbformat.v4.new_notebook(
        metadata={"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    )
    notebook.cells = [nbformat.v4.new_code_cell(cell.format(tests=str(Path(__file__).parents[1]))) for cell in CELLS]
    nbformat.write(notebook, folder / "page.ipynb")
    settings = {
        f"JUPYTER{name}_DIR": str(folder / name.lower())
        for name in ("LAB_SETTINGS", "LAB_WORKSPACES", "_CONFIG", "_RUNTIME")
    }
    environment = {name: value for name, value in os.environ.items() if name != "QUANTLIB_STATIC"} | settings
    with jupyterlab(folder, *SERVER, environment=environment) as address:
        found = re.fullmatch(r"(http://[^/]+)/\S+(token=\w+)", address)
        yield f"{found[1]}/lab/tree/page.ipynb?{found[2]}"


@pytest.fixture(scope="module")
def notebook(lab):
    """The notebook in a browser, its first three cells run."""
    with chromium() as browser:
        page = browser.new_page(viewport={"width": 1400, "height": 2600})
        page.set_default_timeout(60_000)
        page.complaints = []
        page.on("pageerror", lambda error: page.complaints.append(str(error)))
        page.goto(lab)
        page.locator(".jp-Notebook .jp-InputArea").first.click()
        page.locator("#jp-bottom-panel", has_text="| Idle").wait_for()
        for _ in range(3):
            run_next(page)
        page.locator(".explore.live").nth(1).wait_for()
        page.locator(".jp-RenderedSVG img").wait_for()
        yield page
        assert not page.complaints


def run_next(page):
    page.keyboard.press("Escape")
    page.keyboard.press("Shift+Enter")


def slider(page, name):
    return page.locator(f".explore.live input[name={name}]")


def assert_shows(page, **setting):
    """The notebook shows the very frame that the static page has for the setting."""
    static = widget_example.rounding()
    static.setting = setting
    expected = static.frame
    stage = page.locator(".explore.live .stage").first
    page.wait_for_function(
        "finding => document.querySelector('.explore.live .stage svg')?.getAttribute('aria-label') === finding",
        arg=expected["finding"],
    )
    assert stage.evaluate(
        "(stage, picture) => { const made = document.createElement('div'); made.innerHTML = picture; return made.innerHTML === stage.innerHTML; }",
        expected["picture"],
    )
    readouts = page.locator(".explore.live").first.locator(".readouts dd")
    assert readouts.all_inner_texts() == [value for _, value in expected["readouts"]]


def test_both_ends_by_keyboard(notebook):
    for key, bits, clip in (("End", 5, 1.0), ("Home", 2, 0.5)):
        for name in ("bits", "clip"):
            slider(notebook, name).focus()
            notebook.keyboard.press(key)
        assert_shows(notebook, bits=bits, per="row", clip=clip)
    notebook.keyboard.press("ArrowUp")  # which, in a notebook, would select another cell
    assert_shows(notebook, bits=2, per="row", clip=0.75)


def test_both_ends_by_pointer(notebook):
    for share, bits, clip in ((1, 5, 1.0), (0, 2, 0.5)):
        for name in ("bits", "clip"):
            box = slider(notebook, name).bounding_box()
            notebook.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
            notebook.mouse.down()
            notebook.mouse.move(box["x"] + 8 + share * (box["width"] - 16), box["y"] + box["height"] / 2, steps=6)
            notebook.mouse.up()
        assert_shows(notebook, bits=bits, per="row", clip=clip)


def test_a_failing_draw_is_told_in_its_place(notebook):
    slider(notebook, "bits").focus()
    notebook.keyboard.press("Home")
    notebook.keyboard.press("ArrowRight")
    failed = notebook.locator(".explore.live .failed")
    failed.wait_for()
    assert "draw(bits=3, " in failed.inner_text() and "ZeroDivisionError: no bits, no steps" in failed.inner_text()
    notebook.keyboard.press("Home")
    assert_shows(notebook, bits=2, per="row", clip=0.5)
    assert failed.count() == 0


def test_a_sequence_steps(notebook):
    walk = notebook.locator(".explore.live").nth(1)
    walk.get_by_text("Step", exact=True).click()
    notebook.wait_for_function("() => document.querySelectorAll('.explore.live .stage')[1].textContent === 'natural1'")
    walk.get_by_text("Start over").click()
    notebook.wait_for_function("() => document.querySelectorAll('.explore.live .stage')[1].textContent === 'natural0'")


def test_a_figure_stands_at_its_size_with_its_caption_below(notebook):
    box = notebook.locator(".jp-RenderedSVG img").bounding_box()
    assert box["width"] == pytest.approx(624, abs=1)
    caption = notebook.get_by_text("Nothing, drawn in blue.")
    assert caption.is_visible() and caption.bounding_box()["y"] >= box["y"] + box["height"]


def test_python_and_the_page_follow_each_other(notebook):
    notebook.locator(".jp-Notebook .jp-InputArea").nth(3).click()
    run_next(notebook)
    assert_shows(notebook, bits=5, per="matrix", clip=0.5)
    assert slider(notebook, "bits").input_value() == "3"
    assert notebook.locator(".explore.live .segments input:checked").get_attribute("value") == "0"
    slider(notebook, "clip").focus()
    notebook.keyboard.press("End")
    assert_shows(notebook, bits=5, per="matrix", clip=1.0)
    notebook.locator(".jp-Notebook .jp-InputArea").nth(4).click()
    run_next(notebook)
    notebook.get_by_text("kernel has {'bits': 5, 'per': 'matrix', 'clip': 1.0}").wait_for()
