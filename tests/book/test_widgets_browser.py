"""Widgets on a page without a kernel, in a real browser, opened from the disk."""

import re
from html import escape

import pytest
import widget_example
from book_tools import chromium

RANGES = {"bits": 4, "clip": 3}  # stops of the sliders of `rounding`
SHELL = """<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1"><title>Test</title>
<style>:root {{ color-scheme: light dark; --ink: light-dark(#1c1b1a, #e8e5de); --paper: light-dark(#fdfcf9, #17181b); --grid: light-dark(#b8410b, #fb8d48) }}
body {{ margin: 20px; background: var(--paper); color: var(--ink) }}</style><main><h1>Page</h1><h2>Section</h2>{}</main></html>"""


@pytest.fixture(scope="module")
def browser():
    with chromium() as opened:
        yield opened


@pytest.fixture(scope="module")
def widget():
    return widget_example.rounding()


@pytest.fixture(scope="module")
def address(tmp_path_factory, widget):
    """A page with two widgets, as a file."""
    file = tmp_path_factory.mktemp("widgets") / "page.html"
    file.write_text(SHELL.format(widget.static() + widget_example.walk().static()), encoding="utf-8")
    return file.as_uri()


@pytest.fixture
def page(browser, address):
    """The page, opened; at its end nothing was requested from elsewhere and the console is empty."""
    opened = browser.new_page(viewport={"width": 1300, "height": 900})
    complaints = []
    opened.on(
        "request", lambda request: None if request.url.split("#")[0] == address else complaints.append(request.url)
    )
    opened.on("console", lambda message: complaints.append(message.text))
    opened.on("pageerror", lambda error: complaints.append(str(error)))
    opened.goto(address)
    yield opened
    opened.close()
    assert not complaints


def slider(page, name):
    return page.locator(f"#rounding input[name={name}]")


def assert_shows(page, widget, **setting):
    """The page shows the very frame that draw gives for the setting."""
    widget.setting = setting
    expected = widget.frame
    page.wait_for_function(
        "finding => document.querySelector('#rounding .stage svg').getAttribute('aria-label') === finding",
        arg=expected["finding"],
    )
    same = page.evaluate(
        "picture => { const made = document.createElement('div'); made.innerHTML = picture; return made.innerHTML === document.querySelector('#rounding .stage').innerHTML; }",
        expected["picture"],
    )
    assert same, "not the same picture"
    assert page.locator("#rounding .readouts dd").all_inner_texts() == [value for _, value in expected["readouts"]]
    assert page.locator("#rounding .readouts dd").first.get_attribute("class") == "error"
    assert page.locator("#rounding .remark").inner_text() == expected["remark"]
    for name in RANGES:
        said = page.locator(f"#rounding output[data-said={name}]").inner_text()
        assert slider(page, name).get_attribute("aria-valuetext") == f"{said}; {expected['finding']}"


def test_every_slider_reaches_both_ends_by_keyboard(page, widget):
    for key, bits, clip in (("End", 5, 1.0), ("Home", 2, 0.5)):
        for name in RANGES:
            slider(page, name).focus()
            page.keyboard.press(key)
        assert_shows(page, widget, bits=bits, per="row", clip=clip)
    page.keyboard.press("ArrowRight")
    assert_shows(page, widget, bits=2, per="row", clip=0.75)


def test_every_slider_reaches_both_ends_by_pointer(page, widget):
    for share, bits, clip in ((1, 5, 1.0), (0, 2, 0.5)):
        for name in RANGES:
            box = slider(page, name).bounding_box()
            page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
            page.mouse.down()
            page.mouse.move(box["x"] + 8 + share * (box["width"] - 16), box["y"] + box["height"] / 2, steps=5)
            page.mouse.up()
        assert_shows(page, widget, bits=bits, per="row", clip=clip)


def test_controls_answer_to_touch_and_are_44_pixels_high(browser, address):
    page = browser.new_context(has_touch=True, is_mobile=True, viewport={"width": 390, "height": 844}).new_page()
    page.goto(address)
    box = slider(page, "bits").bounding_box()
    page.touchscreen.tap(box["x"] + 10, box["y"] + box["height"] / 2)
    assert slider(page, "bits").input_value() == "0"
    page.get_by_text("matrix").tap()
    assert "scale per matrix" in page.locator("#rounding .stage svg").get_attribute("aria-label")
    for control in page.locator(".explore :is(input[type=range], select, button, .segments label)").all():
        assert control.bounding_box()["height"] >= 44
    assert page.evaluate("document.documentElement.scrollWidth") <= 390, "nothing scrolls sideways"
    page.context.close()


def test_segments_and_the_best_mark_follow(page, widget):
    page.locator("#rounding .segments input:checked").focus()
    page.keyboard.press("ArrowLeft")  # from the second to the first
    assert_shows(page, widget, bits=4, per="matrix", clip=1.0)
    mark = page.locator("#rounding [data-best=clip]")
    assert mark.is_visible() and page.locator("#rounding [data-best=bits]").is_hidden()
    assert float(mark.evaluate("mark => mark.style.getPropertyValue('--at')")) == widget.frame["best"]["clip"] / 2
    assert page.locator("#rounding .status").inner_text() == widget.frame["finding"], (
        "a change that no slider says is announced"
    )


def test_a_slider_says_its_own_value_only_once(page):
    slider(page, "bits").focus()
    page.keyboard.press("Home")
    assert page.locator("#rounding .status").inner_text() == ""


def test_the_address_keeps_the_setting(page, address, widget):
    slider(page, "clip").focus()
    page.keyboard.press("Home")
    page.wait_for_url(f"{address}#rounding:4,row,0.5")
    page.reload()
    assert_shows(page, widget, bits=4, per="row", clip=0.5)
    assert slider(page, "clip").input_value() == "0"
    page.evaluate("location.hash = '#rounding:2,matrix,0.75'")
    assert_shows(page, widget, bits=2, per="matrix", clip=0.75)
    for nonsense in ("#rounding:9,row,1", "#rounding:2", "#rounding", "#other:1,2,3", "#rounding:%,,"):
        page.evaluate(f"location.hash = '{nonsense}'")
    assert_shows(page, widget, bits=2, per="matrix", clip=0.75)


def test_start_over(page, widget, address):
    slider(page, "bits").focus()
    page.keyboard.press("Home")
    page.locator("#rounding").get_by_text("Start over").click()
    assert_shows(page, widget, bits=4, per="row", clip=1.0)
    assert page.locator("#rounding .status").inner_text() == widget.frame["finding"]
    page.wait_for_url(f"{address}#rounding:4,row,1")


def test_two_widgets_are_independent(page, widget):
    page.locator("#walk select").select_option("2")
    page.locator("#walk").get_by_text("Step", exact=True).click()
    assert page.locator("#walk .stage").inner_text() == "by size, smallest first\t1"
    assert_shows(page, widget, bits=4, per="row", clip=1.0)


def test_a_sequence_plays_pauses_and_steps(page):
    walk = page.locator("#walk")
    page.clock.install()
    walk.get_by_text("Play").click()
    assert walk.locator("output").inner_text() == "1"
    page.clock.run_for(1500)
    assert walk.locator("output").inner_text() == "3"
    walk.get_by_text("Pause").click()
    page.clock.run_for(3000)
    assert walk.locator("output").inner_text() == "3"
    walk.get_by_text("Back").click()
    assert walk.locator("output").inner_text() == "2"
    walk.get_by_text("Play").click()
    page.clock.run_for(5000)
    assert walk.locator("output").inner_text() == "4"
    assert walk.locator("[data-play]").inner_text() == "Play", "it stops at the end"
    assert walk.locator(".status").inner_text() == "Column 4 of the natural order.", "and says where"
    walk.get_by_text("Play").click()
    assert walk.locator("output").inner_text() == "0"


def test_a_step_takes_no_more_than_50_milliseconds(page):
    times = page.evaluate(
        """async () => {
          const input = document.querySelector('#rounding input[name=bits]');
          const times = [];
          for (const stop of [0, 1, 2, 3, 0, 1, 2, 3]) {
            const start = performance.now();
            input.value = stop;
            input.dispatchEvent(new Event('input', { bubbles: true }));
            document.querySelector('#rounding .stage').getBoundingClientRect();
            times.push(performance.now() - start);
          }
          return times;
        }"""
    )
    assert sorted(times)[len(times) // 2] <= 50


def test_without_javascript_the_first_frame_reads(browser, address, widget):
    page = browser.new_context(java_script_enabled=False).new_page()
    page.goto(address)
    widget.setting = {"bits": 4, "per": "row", "clip": 1.0}
    svg = page.locator("#rounding .stage svg")
    assert svg.is_visible() and svg.get_attribute("aria-label") == widget.frame["finding"]
    assert page.locator("#rounding .readouts dd").all_inner_texts() == [value for _, value in widget.frame["readouts"]]
    assert not page.locator("form.controls").first.is_visible()
    page.context.close()


def test_on_paper_there_are_picture_and_readouts(page):
    page.emulate_media(media="print")
    assert page.locator("#rounding .stage svg").is_visible() and page.locator("#rounding .readouts").is_visible()
    assert not page.locator("#rounding form").is_visible()


@pytest.mark.parametrize(("scheme", "grid"), [("light", "rgb(184, 65, 11)"), ("dark", "rgb(251, 141, 72)")])
def test_the_picture_follows_the_pages_colours(page, scheme, grid):
    page.emulate_media(color_scheme=scheme)
    strokes = page.locator("#rounding .stage path").evaluate_all(
        "paths => paths.map(path => getComputedStyle(path).stroke)"
    )
    assert grid in strokes
    chosen = page.locator("#rounding .segments label:has(:checked)").evaluate(
        "e => [getComputedStyle(e).color, getComputedStyle(e).backgroundColor]"
    )
    assert chosen[0] != chosen[1], "the words of the chosen segment stand out"


def test_focus_is_visible(page):
    slider(page, "bits").focus()
    page.keyboard.press("Tab")
    page.keyboard.press("Shift+Tab")
    assert slider(page, "bits").evaluate("e => getComputedStyle(e).outlineStyle") == "solid"


def test_every_control_has_a_name(page):
    for role, name in (
        ("slider", "Bits per weight"),
        ("slider", "The grid ends at"),
        ("radio", "this row"),
        ("group", "One scale per"),
        ("combobox", "Order"),
        ("slider", "Column"),
    ):
        assert page.get_by_role(role, name=re.compile(escape(name))).count() == 1
    assert (
        slider(page, "clip").evaluate("e => document.getElementById(e.getAttribute('aria-describedby')).textContent")
        == "of the largest weight"
    )
