"""Fixtures that files of tests share: the compiled kernels, the book in a real browser, and pages that tests run."""

from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from book_tools import ROOT, build, chromium, serving
from compiled_builds import PATHS

from quantlib.kernels.cpu import compiled


@pytest.fixture(scope="session")
def libraries(tmp_path_factory) -> dict[str, compiled.Library]:
    """The C++ for each of PATHS, built once into a folder of their own."""
    if compiled._compiler() is None:
        pytest.skip("no C++ compiler: neither $CXX, g++ nor clang++")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("QUANTLIB_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setattr(compiled, "_loaded", {})
        with ThreadPoolExecutor() as pool:  # a compiler takes one core
            list(pool.map(compiled.build, PATHS.values()))
        return {name: compiled.load(flags) for name, flags in PATHS.items()}


@pytest.fixture(scope="session")
def book() -> Path:
    """The book of this repository, built once; pages whose run is cached are not run again."""
    done = build(ROOT)
    assert done.returncode == 0, done.stderr
    return ROOT / "_build" / "book"


@pytest.fixture(scope="session")
def names(book) -> list[str]:
    """The file names of its pages."""
    return sorted(p.name for p in book.glob("*.html"))


@pytest.fixture(scope="module")
def browser():
    with chromium() as one:
        yield one


@pytest.fixture(scope="module")
def address(book, tmp_path_factory):
    """The book below a folder of its server, as on a course's site: nothing may assume that it lies at the top."""
    top = tmp_path_factory.mktemp("server")
    (top / "course").symlink_to(book, target_is_directory=True)
    with serving(top) as root:
        yield f"{root}course/"


@pytest.fixture
def visit(browser, address):
    """Opens a page and watches it: after the test, nothing may have gone to another host or to the console."""
    contexts, complaints = [], []

    def complain_of_request(request) -> None:
        if not request.url.startswith((address, "data:", "file:")):
            complaints.append(f"request to {request.url}")

    def complain_of_response(response) -> None:
        if response.status >= 400:
            complaints.append(f"{response.status} for {response.url}")

    def open_page(name: str = "index.html", *, width: int = 1280, height: int = 900, **settings):
        context = browser.new_context(viewport={"width": width, "height": height}, **settings)
        contexts.append(context)
        page = context.new_page()
        page.on("request", complain_of_request)
        page.on("response", complain_of_response)
        page.on("console", lambda message: complaints.append(f"console: {message.text}"))
        page.on("pageerror", lambda error: complaints.append(f"error: {error}"))
        page.goto(name if name.startswith("file:") else address + name)
        page.evaluate("document.fonts.ready")
        return page

    open_page.complaints = complaints  # a test that breaks something on purpose takes back what it caused
    yield open_page
    for context in contexts:
        context.close()
    assert complaints == []


@pytest.fixture
def run(pytester):
    """run(page, …): pytest with the plugin; exit status, {line of the page: outcome}, all that was printed."""

    def run(*arguments):
        result = pytester.runpytest_inprocess(
            "-p", "tests.lesson_plugin", "-p", "no:cacheprovider", "-rA", *map(str, arguments)
        )
        text = result.stdout.str()
        outcomes = re.findall(r"^(PASSED|FAILED|ERROR) \S+?::(?:line )?(\w+)", text, re.MULTILINE)
        return result.ret, {item: outcome.lower() for outcome, item in outcomes}, text

    return run
