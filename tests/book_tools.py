"""What the tests of the book share: building a project, serving a folder, a browser that reaches nothing but this machine."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from http.server import ThreadingHTTPServer
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SITE = ROOT / "site"
if str(SITE) not in sys.path:
    sys.path.insert(0, str(SITE))

from serve import Quiet

LESSON = "01-round-weights-to-a-grid.html"
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
NO_CHROMIUM = "no Chromium on this machine, so nothing is tested in a browser: apt-get install chromium"
ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
]


def build(project: Path) -> subprocess.CompletedProcess[str]:
    """`make book` for the project in a folder."""
    return subprocess.run(
        [sys.executable, str(SITE / "build.py"), "--project", str(project)],
        capture_output=True,
        text=True,
        timeout=1800,
        check=False,
    )


@contextmanager
def serving(folder: Path) -> Iterator[str]:
    """The address, with its last slash, under which the files of `folder` are served."""
    http = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder)))
    thread = threading.Thread(target=http.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{http.server_address[1]}/"
    finally:
        http.shutdown()
        http.server_close()
        thread.join()


@contextmanager
def jupyterlab(folder: Path, *options: str, environment: Mapping[str, str]) -> Iterator[str]:
    """The address, with its token, that a JupyterLab over a folder prints; it is stopped whatever happens."""
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", "--port=0"]
    command += [f"--ServerApp.root_dir={folder}", *options]
    log = folder / "log"
    with log.open("w") as stream:
        server = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=stream, stderr=stream, env=environment)
    try:
        for _ in range(240):
            found = re.search(r"http://127\.0\.0\.1:\d+/\S+token=\w+", log.read_text())
            if found:
                break
            assert server.poll() is None, log.read_text()
            time.sleep(0.25)
        assert found, f"JupyterLab printed no address in a minute:\n{log.read_text()}"
        yield found[0]
    finally:
        server.terminate()
        server.wait(timeout=30)


@contextmanager
def chromium() -> Iterator[object]:
    """A Playwright browser, or a skipped test with the reason."""
    if CHROMIUM is None:
        pytest.skip(NO_CHROMIUM)
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        try:
            yield browser
        finally:
            browser.close()


def open_everything(page) -> None:
    """Unfolds whatever folds, so that it is looked at too."""
    page.evaluate("for (const fold of document.querySelectorAll('details')) fold.open = true")
