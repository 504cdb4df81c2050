"""The book in a real browser: what holds for every page, light and dark, wide and on a phone, online and from the disk."""

from __future__ import annotations

import re
from itertools import pairwise, product
from pathlib import Path
from urllib.parse import urlsplit

import nbformat
from book_tools import ROOT, SITE, open_everything
from tools import install_template

WIDE = """() => [...document.querySelectorAll("main *")]
    .filter((e) => e.getBoundingClientRect().right > innerWidth + 1 && !e.closest("pre, .scroll, .eq, .vh"))
    .slice(0, 5).map((e) => e.outerHTML.slice(0, 100))"""


def test_every_page_is_quiet_and_has_its_marks(visit, names):
    for name in names:
        page = visit(name)
        assert page.locator("h1").count() == 1
        assert page.locator(".parts [aria-current=page]").count() == 1
        assert page.title()
        levels = page.locator("h1, h2, h3, h4").evaluate_all("all => all.map(h => Number(h.tagName[1]))")
        assert all(b - a <= 1 for a, b in pairwise(levels)), f"{name}: a level of headings is left out: {levels}"
        ids = page.locator("[id]").evaluate_all("all => all.map(e => e.id)")
        assert len(ids) == len(set(ids)), f"{name}: ids that stand twice: {sorted({i for i in ids if ids.count(i) > 1})}"


def test_every_link_of_the_book_leads_somewhere(book, names):
    pages = {name: (book / name).read_text() for name in names}
    for name, html in pages.items():
        for href in re.findall(r'href="([^"]*)"', html):
            url = urlsplit(href)
            if url.scheme or url.netloc:
                continue
            target = url.path or name
            assert (book / target).exists(), f"{name} links to {href}"
            if url.fragment and target in pages:
                assert f'id="{url.fragment}"' in pages[target], f"{name} links to {href}"


def test_no_serious_finding_of_axe(visit, names):
    """In both schemes, wide and on a phone: each page is loaded once, as it is when a reader turns the phone or the theme."""
    install_template(with_tests=True)
    axe = (SITE / "node_modules" / "axe-core" / "axe.min.js").read_text()
    rules = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]
    options = {"runOnly": rules, "resultTypes": ["violations"]}  # describes what passes for one element only
    for name in names:
        page = visit(name)
        open_everything(page)
        page.evaluate(axe)
        for width, scheme in product((1280, 390), ("light", "dark")):
            page.set_viewport_size({"width": width, "height": 900})
            page.emulate_media(color_scheme=scheme)
            found = page.evaluate("options => axe.run(options)", options)
            bad = [
                (v["id"], v["impact"], [n["html"][:120] for n in v["nodes"][:3]])
                for v in found["violations"]
                if v["impact"] in ("serious", "critical")
            ]
            assert bad == [], f"{name}, {scheme}, {width}"


def test_no_page_scrolls_sideways(visit, names):
    for name in names:
        page = visit(name)
        open_everything(page)
        for width in (320, 360, 768, 1280, 1440):
            page.set_viewport_size({"width": width, "height": 900})
            assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), (
                f"{name} at {width}: {page.evaluate(WIDE)}"
            )


def test_budgets(book, names, browser, address):
    files = [p for p in book.rglob("*") if p.is_file()]
    assert sum(p.stat().st_size for p in files) <= 400_000 + 480_000 * len(names)
    assert sum(p.stat().st_size for p in files if p.suffix == ".woff2") <= 120 * 1024
    assert all((book / name).stat().st_size <= 400_000 for name in names)


def test_what_is_transferred(book, names, browser, address):
    """All of the book with a search in it, as a web server sends it; and one page with the program of the search, from a server that compresses nothing."""
    sent: dict[str, int] = {}
    context = browser.new_context()
    page = context.new_page()
    page.on("requestfinished", lambda request: sent.__setitem__(urlsplit(request.url).path, request.sizes()["responseBodySize"]))
    for name in names:
        page.goto(address + name)
        page.evaluate("document.fonts.ready")
    page.locator("#search").fill("scale")
    page.locator(".hits li").first.wait_for()
    context.close()
    assert sum(sent.values()) <= 100_000 + 100_000 * len(names), sorted(sent.items(), key=lambda item: -item[1])[:8]
    shared = {
        path.rsplit("/", 1)[1] if "fonts/" not in path else path.split("course/")[1] for path in sent if not path.endswith(".html")
    }
    entries = "search-entries.js"  # one file for all pages, fetched when somebody searches
    assert (book / entries).stat().st_size <= 45_000 * len(names)
    plain = sum((book / name).stat().st_size for name in shared - {entries})
    assert all(plain + (book / name).stat().st_size <= 600_000 for name in names)


def test_first_paint_within_a_second(visit, names):
    painted = "performance.getEntriesByName('first-contentful-paint')[0]?.startTime"
    for name in names:
        times = []
        while len(times) < 3 and (not times or min(times) > 1000):  # a busy machine may be late once or twice
            times.append(visit(name).wait_for_function(painted).json_value())
        assert min(times) <= 1000, f"{name}: {min(times):.0f} ms"


def test_readable_without_scripts(visit, names):
    for name in names:
        page = visit(name, java_script_enabled=False)
        assert page.locator("article :is(p, dd):visible").count() >= 1
        assert all(
            figure.is_visible()
            for figure in page.locator("article figure svg.fig").all()
            if not figure.evaluate("e => e.closest('details')")
        )
        for control in (".search", ".theme", ".copy", ".ask button", ".controls", ".done"):
            assert page.locator(control).all() == [] or not page.locator(control).first.is_visible(), (
                f"{name}: {control} promises what it cannot do"
            )
        fold = page.locator("article details").first
        if fold.count():
            fold.locator("summary").click()
            assert fold.evaluate("e => e.open")
    phone = visit(names[0], java_script_enabled=False, width=360)
    assert phone.locator(".parts a").first.is_visible()


def test_opens_from_the_disk(visit, book):
    page = visit(f"file://{book / 'index.html'}")
    page.locator(".map a").first.click()
    page.wait_for_url("**/01-*.html")
    page.locator("#search").fill("scale")
    page.locator(".hits a").first.wait_for()
    page.locator(".brand").click()
    page.wait_for_url("**/index.html")


def test_downloads_are_notebooks(book, names):
    for name in names:
        notebook = nbformat.read(book / name.replace(".html", ".ipynb"), as_version=4)
        nbformat.validate(notebook)
        assert notebook.cells and all(not c.get("outputs") for c in notebook.cells)


def test_no_address_of_this_machine(book):
    for path in book.rglob("*"):
        if path.is_file() and path.suffix != ".woff2":
            words = path.read_text()
            assert str(ROOT) not in words and str(Path.home()) + "/" not in words, path.name
