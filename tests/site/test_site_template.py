"""The template's own tests, which are written in its language: types checked, then node's test runner."""

import subprocess

from book_tools import SITE
from tools import environment, install_template, program


def npm(*arguments: str) -> str:
    install_template(with_tests=True)
    done = subprocess.run(
        [program("npm"), "run", "--silent", *arguments], cwd=SITE, env=environment(), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{done.stdout[-4000:]}\n{done.stderr[-2000:]}"
    return done.stdout


def test_types():
    npm("check")


def test_units():
    said = npm("test")
    assert "fail 0" in said and "pass 0" not in said


def test_the_lock_names_no_registry():
    assert "http" not in (SITE / "package-lock.json").read_text().replace("https://opencollective.com", "").replace(
        "https://github.com/sponsors", ""
    )
