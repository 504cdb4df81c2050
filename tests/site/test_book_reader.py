"""The book in a real browser: what a reader does there: finds, chooses, predicts, copies, prints."""

from __future__ import annotations

import json
import math
import re
from urllib.parse import urlsplit

import pytest
from book_tools import ARGUMENTS, CHROMIUM, LESSON

# contents, search, theme ---------------------------------------------------------------------------------------------------


def test_contents_show_the_parts_and_follow_the_reader(visit):
    page = visit(LESSON)
    assert page.locator(".parts i").all_text_contents() == [str(n) for n in range(1, 11)]
    planned = page.locator(".parts .planned")  # none, once all parts are written
    assert planned.locator("a").count() == 0
    assert all("not yet written" in text for text in planned.all_text_contents())
    sections = page.locator("article h2").evaluate_all("all => all.map(h => h.textContent)")
    assert page.locator(".parts ol ol a").all_text_contents() == sections
    here = ".parts [aria-current=location]"
    page.locator("article h2").nth(2).evaluate("h => scrollTo(0, h.getBoundingClientRect().top + scrollY - 50)")
    page.wait_for_function(f"document.querySelector('{here}')?.textContent === {json.dumps(sections[2])}")
    mark = page.evaluate("parseFloat(document.querySelector('.parts').style.getPropertyValue('--at'))")
    line = page.locator(here).evaluate("a => a.offsetTop")
    assert line <= mark <= line + 40


@pytest.mark.parametrize("query", ["zero point", "Hessian", "outlier"])
def test_search_finds_where_it_is(visit, query):
    page = visit()
    page.keyboard.press("/")
    assert page.locator("#search").evaluate("e => e === document.activeElement")
    page.keyboard.type(query)
    page.locator(".hits a").first.wait_for()
    assert not page.locator(".parts").is_visible()
    found = page.locator(".hits mark").first.text_content().lower()
    assert found.startswith(query.lower()[:4])
    page.keyboard.press("ArrowDown")
    chosen = page.locator(".hits a").first
    assert chosen.evaluate("e => e === document.activeElement")
    href = chosen.get_attribute("href")
    page.keyboard.press("Enter")
    page.wait_for_url(f"**/{href}")
    fragment = urlsplit(href).fragment
    where = page.locator(f"#{fragment}") if fragment else page.locator("main")
    words = where.evaluate(
        "e => { let t = ''; for (let n = e; n && (n === e || !/^H[12]$/.test(n.tagName)); n = n.nextElementSibling) t += n.textContent; return t }"
    )
    assert query.lower() in words.lower()


def test_search_that_finds_nothing_helps_and_escape_leaves(visit):
    page = visit()
    page.locator("#search").fill("xqzzy")
    page.locator(".hits .none").wait_for()
    assert "Nothing found for “xqzzy”" in page.locator(".hits").text_content()
    assert len(page.locator(".hits").text_content()) > 60
    assert page.locator(".search [role=status]").text_content() == "Nothing found"
    page.keyboard.press("Escape")
    assert page.locator(".parts").is_visible() and page.locator("#search").input_value() == ""


def test_search_corrects_a_slip(visit):
    page = visit()
    page.locator("#search").fill("quantizattoin")
    page.locator(".hits li").first.wait_for()
    suggestion = page.locator(".hits button").first
    if suggestion.count():
        suggestion.click()
    page.locator(".hits a").first.wait_for()


@pytest.mark.parametrize(("query", "found"), [("λ", True), ("lambda", True), ("\\\\hat", True), ("ξ", False)])
def test_symbols_of_equations_are_found(visit, query, found):
    page = visit()
    page.locator("#search").fill(query)
    page.wait_for_selector(".hits li")
    assert (page.locator(".hits li a").count() > 0) == found


def test_a_search_that_does_not_load_says_so_and_is_tried_again(visit):
    page = visit()
    page.route("**/search-entries.js", lambda route: route.abort())
    page.locator("#search").fill("outlier")
    page.wait_for_selector(".hits .none button")
    assert "could not be loaded" in page.locator(".hits").text_content()
    assert visit.complaints == ["console: Failed to load resource: net::ERR_FAILED"]
    visit.complaints.clear()
    page.unroute("**/search-entries.js")
    page.locator(".hits .none button").click()
    page.wait_for_selector(".hits li a")
    assert "found" in page.locator(".search [role=status]").text_content()


def test_theme_follows_the_system_until_it_is_chosen_and_is_kept(visit, names):
    page = visit(color_scheme="dark")
    paper = "getComputedStyle(document.body).backgroundColor"
    dark = page.evaluate(paper)
    page.emulate_media(color_scheme="light")
    light = page.evaluate(paper)
    assert dark != light
    page.locator(".theme label", has_text="Dark").click()
    assert page.evaluate(paper) == dark
    page.goto(page.url.replace("index.html", names[0]))
    assert page.evaluate(paper) == dark and page.locator(".theme input[value=dark]").is_checked()
    page.locator(".theme label", has_text="Auto").click()
    assert page.evaluate(paper) == light


def test_the_drawer_of_a_phone(visit):
    page = visit(width=390, height=800, has_touch=True)
    assert not page.locator(".parts").is_visible()
    page.locator(".menu").click()
    assert page.locator(".parts").is_visible() and page.locator(".menu").get_attribute("aria-expanded") == "true"
    small = page.locator(".parts a:visible, .theme label:visible, .menu").evaluate_all(
        "all => all.filter(e => e.getBoundingClientRect().height < 32).length"
    )
    assert small == 0
    page.keyboard.press("Escape")
    assert not page.locator(".parts").is_visible()


def test_what_was_read_is_kept_in_this_browser(visit):
    page = visit(LESSON)
    page.locator(".done input").check()
    assert page.locator(".parts li[data-part='1']").evaluate("e => e.classList.contains('read')")
    page.goto(page.url.replace(LESSON, "index.html"))
    assert "read" in page.locator(".parts li[data-part='1']").text_content()
    assert page.locator(".map li[data-part='1'] .was-read").text_content() == "read"


KEPT = "Object.keys(localStorage).filter(name => name.startsWith('book'))"


@pytest.mark.parametrize("damage", ["null", "{", "7", '{"read": null, "said": 5, "theme": "mauve"}', '{"said": {"x": 1}, "read": []}'])
def test_a_damaged_entry_counts_as_none(visit, damage):
    page = visit(LESSON)
    page.locator(".done input").check()
    page.evaluate(f"damage => {KEPT}.forEach(name => localStorage.setItem(name, damage))", damage)
    page.reload()
    assert not page.locator(".done input").is_checked()
    assert page.evaluate("document.documentElement.dataset.theme") == "auto"
    page.locator(".done input").check()
    page.reload()
    assert page.locator(".done input").is_checked()


@pytest.mark.parametrize("other", ["folder", "title"])
def test_two_books_on_one_host_keep_what_is_their_own(visit, book, other):
    page = visit(LESSON)
    page.locator(".theme label", has_text="Dark").click()
    page.locator(".done input").check()

    def another(route):
        if route.request.resource_type != "document":
            route.fulfill(path=book / urlsplit(route.request.url).path.rpartition("/another/")[2])
            return
        text = (book / LESSON).read_text(encoding="utf-8")
        title = re.search(r'data-book="([^"]*)"', text)[1]
        route.fulfill(body=text.replace(f'data-book="{title}"', 'data-book="Another"') if other == "title" else text,
                      content_type="text/html")

    here = page.url
    there = here.replace(LESSON, f"another/{LESSON}") if other == "folder" else here
    page.route("**/another/**" if other == "folder" else f"**/{LESSON}", another)
    page.goto(there)
    assert page.evaluate("document.documentElement.dataset.theme") == "auto"
    assert not page.locator(".done input").is_checked()
    page.unroute_all()
    page.goto(here)
    assert page.evaluate("document.documentElement.dataset.theme") == "dark" and page.locator(".done input").is_checked()


# the parts of a lesson -----------------------------------------------------------------------------------------------------


def test_a_prediction_is_committed_by_keyboard_and_remembered(visit):
    page = visit(LESSON)
    ask = page.locator(".ask").first
    run = ask.locator(":scope > details")
    assert not run.evaluate("e => e.open")
    ask.locator("button[type=submit]").click()
    assert "Choose one" in ask.locator(".hint").text_content()
    ask.locator("input").first.focus()
    page.keyboard.press("Space")
    page.keyboard.press("ArrowDown")
    said = ask.locator("input:checked").get_attribute("value")
    assert said == "b"
    page.keyboard.press("Enter")
    assert run.evaluate("e => e.open") and ask.locator("button[type=submit]").is_disabled()
    right = ask.locator("label.right")
    assert right.count() == 1 and right.get_attribute("data-value")
    assert ask.locator("label.mine input").get_attribute("value") == "b"
    verdict = ask.locator(".hint").text_content()
    assert verdict.startswith("As measured" if ask.get_attribute("data-answer") == "b" else "Measured otherwise")
    page.reload()
    assert page.locator(".ask").first.locator("label.mine input").get_attribute("value") == "b"


def test_notes_stand_in_the_margin_or_unfold(visit):
    wide = visit(LESSON, width=1440)
    note = wide.locator(".note").first
    text = wide.locator("article > p").first.bounding_box()
    assert note.is_visible() and note.bounding_box()["x"] > text["x"] + text["width"]
    phone = visit(LESSON, width=390)
    note = phone.locator(".note").first
    assert not note.is_visible()
    phone.locator(".ref").first.click()
    assert note.is_visible()


def test_code_is_copied_as_it_stands(visit):
    page = visit(LESSON, permissions=["clipboard-read", "clipboard-write"])
    panel = page.locator(".cell .in").first
    panel.hover()
    panel.locator(".copy").click()
    page.wait_for_function("document.querySelector('.copy').textContent === 'Copied'")
    assert page.evaluate("navigator.clipboard.readText()") == panel.locator("pre").text_content().rstrip()


def test_colours_keep_their_meaning_in_text_code_and_equations(visit):
    page = visit(LESSON)
    exact = page.evaluate(
        "(() => { const e = document.createElement('i'); e.style.color = 'var(--exact)'; document.body.append(e); return getComputedStyle(e).color })()"
    )
    for place in (".in .exact", ".katex .exact", "article p .exact, .note .exact"):
        assert page.locator(place).first.evaluate("e => getComputedStyle(e).color") == exact, place


def test_what_is_wrong_is_underlined(visit):
    page = visit(LESSON)
    wrong = page.locator(".seen .wrong").first
    assert "wavy" in wrong.evaluate("e => getComputedStyle(e).textDecorationStyle")
    assert page.locator(".seen .claim").first.evaluate("e => getComputedStyle(e).fontStyle") == "italic"


def test_figures_have_words_numbers_and_follow_the_theme(visit):
    page = visit(LESSON, color_scheme="light")
    figures = page.locator("article figure:has(svg.fig)")
    assert figures.count() >= 1
    assert all(len(svg.get_attribute("aria-label")) > 20 for svg in page.locator("article svg.fig").all())
    numbered = page.locator("figure[id^=fig-] figcaption b").all_text_contents()
    assert numbered == [f"Figure {i + 1}." for i in range(len(numbered))] and numbered
    painted = '[...document.querySelectorAll(\'svg.fig [style*="--exact"], svg.fig [style*="--grid"]\')].map(e => getComputedStyle(e).fill + getComputedStyle(e).stroke).join()'
    light = page.evaluate(painted)
    page.emulate_media(color_scheme="dark")
    assert page.evaluate(painted) != light


def test_a_citation_leads_to_its_source(visit):
    page = visit(LESSON)
    cite = page.locator("a.cite").first
    target = page.locator(cite.get_attribute("href"))
    assert target.count() == 1 and target.evaluate("e => e.closest('.sources') !== null")


def test_on_paper_everything_is_unfolded_and_light(visit):
    page = visit(LESSON, color_scheme="dark")
    page.emulate_media(media="print")
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert page.evaluate("[...document.querySelectorAll('article .ask details, article .exercise details')].every(e => e.open)")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    for gone in (".side", ".copy", ".prev-next", ".ask button"):
        assert not page.locator(gone).first.is_visible()
    assert page.locator(".note").first.is_visible()
    assert len(page.pdf()) > 20_000


def test_after_printing_every_fold_is_as_it_was(visit):
    page = visit(LESSON)
    folds = "[...document.querySelectorAll('article details')].map(e => e.open)"
    page.locator("article .exercise details, article details").last.evaluate("e => { e.open = true }")
    before = page.evaluate(folds)
    assert True in before and False in before
    page.pdf()
    assert page.evaluate(folds) == before
    for event in ("beforeprint", "beforeprint", "afterprint", "afterprint"):
        page.evaluate(f"dispatchEvent(new Event('{event}'))")
    assert page.evaluate(folds) == before


def test_large_letters_fit_a_phone(browser, address, names):
    """A browser whose usual letters are twice as large, 390 pixels wide: nothing is cut off at the right."""
    large = browser.browser_type.launch(executable_path=CHROMIUM, args=[*ARGUMENTS, "--blink-settings=defaultFontSize=32"])
    try:
        page = large.new_page(viewport={"width": 390, "height": 800})
        for name in names:
            page.goto(address + name)
            assert page.evaluate("getComputedStyle(document.documentElement).fontSize") == "32px"
            assert page.evaluate("document.documentElement.scrollWidth") <= 390, name
    finally:
        large.close()


def test_moving_is_left_out_for_those_who_ask(visit):
    page = visit(reduced_motion="reduce")
    assert page.evaluate("getComputedStyle(document.querySelector('.parts'), '::after').transitionProperty") in ("none", "all")
    assert page.evaluate("getComputedStyle(document.querySelector('.parts'), '::after').transitionDuration") == "0s"


def test_before_and_after(visit):
    page = visit(LESSON)
    page.locator("a[rel=prev]").click()
    page.wait_for_url("**/index.html")
    page.locator(".go a").first.click()
    page.wait_for_url(f"**/{LESSON}")
    assert (
        page.locator(".prev-next .planned").count() == 0 or "not yet written" in page.locator(".prev-next .planned").text_content()
    )


@pytest.mark.parametrize("name", ["index.html", LESSON])
def test_widgets_hold_every_frame_and_reach_both_ends_by_key_and_by_pointer(visit, name):
    page = visit(name)
    widgets = page.locator(".explore").all()
    assert widgets
    for widget in widgets:
        data = json.loads(widget.locator("script[type='application/json']").text_content())
        assert len(data["frames"]) == math.prod(len(choice["keys"]) for choice in data["choices"])
        stage = widget.locator(".stage")
        for slider in widget.locator("input[type=range]").all():
            frames = {}
            for key, end in (("Home", "min"), ("End", "max")):
                slider.press(key)
                assert slider.input_value() == slider.get_attribute(end)
                frames[end] = stage.inner_html()
            assert frames["min"] != frames["max"]
            box = slider.bounding_box()
            assert box["height"] >= 44
            for end, x in (("min", 6), ("max", box["width"] - 6)):
                slider.click(position={"x": x, "y": box["height"] / 2})
                assert slider.input_value() == slider.get_attribute(end) and stage.inner_html() == frames[end]


def test_skip_link_and_focus_are_visible(visit):
    page = visit(LESSON)
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    assert page.locator(".skip").bounding_box()["height"] > 20
    page.keyboard.press("Tab")
    assert page.evaluate("parseFloat(getComputedStyle(document.activeElement).outlineWidth)") >= 2
