"""On a tiny book: a quiz that is answered by keyboard and remembered, and the pages that know the whole book."""

from __future__ import annotations

import re

import nbformat
import pytest
from book_tools import build
from test_site_build import project

CLAIM = """:::{admonition} You may have seen
:class: seen warning

“It is `FP16`.”
:::

```{code-cell} ipython3
assert 1 + 1 == 2
print("float32")
```

:::{admonition} What is true
:class: seen warning

It is float32; look. And more.
:::
"""


def question(number: int, right: int) -> str:
    return f""":::{{admonition}} {number}. A question
:class: ask quiz tip
:label: quiz-{number}

Which?

- [ ] one
- [ ] two

<!--
right: {right}
-->
:::

:::{{dropdown}} Why
Because of {number}.
:::

"""


PAGES = {
    "index": "<!-- parts -->\n1. **[Claims](./01-claims.md)** Why?\n",
    "01-claims": "*The lede.*\n\n## One\n\nBy [Ann One](https://doi.org/10.1000/known).\n\n" + CLAIM,
    "quiz": "*The lede.*\n\n## Questions\n\n<!-- score -->\n\n" + question(1, 2) + question(2, 1),
    "about": "## Ran\n\n<!-- status -->\n\n## Claims\n\n<!-- claims -->\n\n## Cited\n\n<!-- bibliography -->\n",
}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    folder = project(tmp_path_factory.mktemp("tiny"), PAGES)
    done = build(folder)
    assert done.returncode == 0, done.stderr
    return folder / "_build" / "book"


def test_the_pages_that_know_the_whole_book(tiny):
    html = (tiny / "about.html").read_text()
    assert re.search(r"<td>.*?01-claims\.html.*?Page 01-claims.*?</td>", html) and "All pages:" in html and "Python 3" in html
    assert "“It is <code>FP16</code>.”" in html and "It is float32. <a href=\"01-claims.html#seen-1\">" in html
    assert 'id="seen-1"' in (tiny / "01-claims.html").read_text()
    assert re.search(r'<li id="cited-[^"]+">.*Known.*<small><a href="01-claims.html">Part 1</a></small></li>', html)
    assert "<!--" not in html.split("<article", 1)[1]


def test_a_book_with_an_address_opens_elsewhere(tiny):
    page = (tiny / "01-claims.html").read_text()
    assert "https://colab.research.google.com/github/someone/lessons/blob/gh-pages/01-claims.ipynb" in page
    assert "https://mybinder.org/v2/gh/someone/lessons/main?urlpath=lab%2Ftree%2Flessons%2F01-claims.md" in page
    first = next(c for c in nbformat.read(tiny / "01-claims.ipynb", as_version=4).cells if c.cell_type == "code")
    assert "https://github.com/someone/lessons" in first.source
    assert "Open in Colab" not in (tiny / "quiz.html").read_text(), "a page without code has nothing to run"


@pytest.fixture
def opened(browser, tiny):
    """Opens the quiz, and again, in one browser that remembers; and in one whose storage raises."""
    contexts = []

    def again(context=None, broken=False):
        if context is None:
            context = browser.new_context(viewport={"width": 390, "height": 900})
            contexts.append(context)
        page = context.new_page()
        if broken:
            page.add_init_script("Object.defineProperty(window, 'localStorage', { get() { throw new Error('storage is off') } })")
        failures = []
        page.on("pageerror", lambda error: failures.append(str(error)))
        page.goto(f"file://{tiny / 'quiz.html'}")
        assert failures == []
        return page, context

    yield again
    for context in contexts:
        context.close()


def answer(page, number, keys):
    """By keyboard alone."""
    page.locator(f"#quiz-{number} input").first.focus()
    for key in keys:
        page.keyboard.press(key)
    page.keyboard.press("Enter")


def test_the_quiz_by_keyboard_counts_and_remembers(opened):
    page, context = opened()
    score = page.locator(".score p")
    assert score.text_content() == "2 questions" and page.locator(".score button").is_disabled()
    why = page.locator("#quiz-1 > details")
    assert not why.evaluate("e => e.open")
    answer(page, 1, ["Space", "ArrowDown"])
    assert why.evaluate("e => e.open") and "Because of 1." in why.text_content()
    assert page.locator("#quiz-1 .hint").text_content() == "Right."
    answer(page, 2, ["Space", "ArrowDown"])
    assert page.locator("#quiz-2 .hint").text_content().startswith("Not so")
    assert score.text_content() == "All 2 answered, 1 right"
    later, _ = opened(context)
    assert later.locator(".score p").text_content() == "All 2 answered, 1 right"
    assert later.locator("#quiz-2 label.mine input").get_attribute("value") == "b"
    later.locator(".score button").focus()
    later.keyboard.press("Enter")
    assert later.locator(".score p").text_content() == "2 questions"
    assert later.locator("label.mine, label.right").count() == 0 and later.locator("#quiz-1 input").first.is_enabled()
    answer(later, 1, ["Space"])
    assert later.locator(".score p").text_content() == "1 of 2 answered, 0 right"


def test_without_storage_the_quiz_works_and_forgets(opened):
    page, context = opened(broken=True)
    answer(page, 1, ["Space", "ArrowDown"])
    assert page.locator(".score p").text_content() == "1 of 2 answered, 1 right"
    assert opened(context, broken=True)[0].locator(".score p").text_content() == "2 questions"


def test_without_scripts_the_reasons_can_be_read(browser, tiny):
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(f"file://{tiny / 'quiz.html'}")
    assert not page.locator(".score").is_visible() and not page.locator(".ask button").first.is_visible()
    page.locator("#quiz-1 > details summary").click()
    assert page.get_by_text("Because of 1.").is_visible()
    context.close()
