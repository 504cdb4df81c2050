"""The lists that every installation uses agree, and `make` does what README.md says it does."""

import ast
import os
import re
import shutil
import subprocess
import sys
import tomllib
from importlib.metadata import distribution, packages_distributions, version
from pathlib import Path

import jupytext
import pytest
import yaml
from packaging.markers import Marker
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
PIN = re.compile(r"([\w.-]+)==([\w.]+)(?:; *(.+))?")  # the third part says on which systems
FROM_CUDA = re.compile(r"nvidia-|cuda-")  # torch itself pins what it brings for CUDA


def entries(name: str) -> list[str]:
    """The lines of a requirements file without comments."""
    lines = (line.partition("#")[0].strip() for line in (ROOT / name).read_text(encoding="utf-8").splitlines())
    return [line for line in lines if line]


def pins(name: str) -> dict[str, str]:
    """{"torch": "2.13.0", ...}: a requirements file, all of whose entries have to be exact."""
    found = {}
    for line in entries(name):
        if line != "-c constraints.txt":
            match = PIN.fullmatch(line)
            assert match, f"{name}: {line!r} is not name==version"
            assert canonicalize_name(match[1]) not in found, f"{name}: {match[1]} is there twice"
            if match[3] is None or Marker(match[3]).evaluate():
                found[canonicalize_name(match[1])] = match[2]
    return found


REQUIRED, HELD = pins("requirements.txt"), pins("constraints.txt")


def ranges() -> dict[str, Requirement]:
    """What pyproject.toml asks for, its extras included."""
    extras = PROJECT["optional-dependencies"].values()
    found = [Requirement(line) for line in [*PROJECT["dependencies"], *(line for extra in extras for line in extra)]]
    return {canonicalize_name(r.name): r for r in found if r.marker is None or r.marker.evaluate()}


# --- the lists


def test_requirements_use_the_constraints_and_repeat_none_of_them():
    assert "-c constraints.txt" in entries("requirements.txt")
    assert not REQUIRED.keys() & HELD.keys()


@pytest.mark.parametrize("name", REQUIRED)
def test_what_is_installed_is_what_is_listed(name):
    assert version(name).partition("+")[0] == REQUIRED[name], "run make test, which installs what the list says"


def test_pyproject_names_the_same_packages_in_ranges_that_hold_the_tested_versions():
    assert ranges().keys() == REQUIRED.keys()
    for name, requirement in ranges().items():
        assert requirement.specifier.contains(REQUIRED[name]), f"{requirement} leaves out the tested {REQUIRED[name]}"


@pytest.mark.skipif(sys.platform != "linux", reason="other systems bring packages of their own, which float")
def test_every_package_that_comes_along_is_held():
    seen, waiting, floating = set(), [(name, "") for name in REQUIRED], set()
    while waiting:
        name, extra = waiting.pop()
        if (name, extra) in seen or FROM_CUDA.match(name):
            continue
        seen.add((name, extra))
        if name not in REQUIRED.keys() | HELD.keys():
            floating.add(name)
        for line in distribution(name).requires or []:
            needed = Requirement(line)
            if needed.marker is None or needed.marker.evaluate({"extra": extra}):
                waiting += [(canonicalize_name(needed.name), wanted) for wanted in (needed.extras or {""})]
                waiting.append((canonicalize_name(needed.name), ""))
    assert not floating, "add these to constraints.txt, at the version that is installed"
    for name in {name for name, _ in seen} & HELD.keys():
        assert version(name) == HELD[name]


@pytest.mark.skipif("triton" not in REQUIRED, reason="there is no triton for this system")
def test_triton_is_the_one_that_torch_was_built_for():
    wanted = [Requirement(line) for line in distribution("torch").requires if line.startswith("triton")]
    assert all(r.specifier.contains(REQUIRED["triton"]) for r in wanted)


def test_conda_installs_the_same_list():
    conda = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))
    *plain, by_pip = conda["dependencies"]
    assert by_pip == {"pip": ["-r requirements.txt", "-e ."]}
    assert [line.partition("=")[0] for line in plain] == ["python", "pip"], "conda pins no package of its own"
    assert "3.11" in plain[0] and PROJECT["requires-python"] == ">=3.11"


def sources() -> dict[str, str]:
    """{file: Python in it}, of everything that runs: modules, tests, experiments, site scripts, the pages' cells."""
    files = [
        p
        for folder in ("quantlib", "tests", "lessons", "site", ".")
        for p in sorted((ROOT / folder).glob("*.py" if folder in ("site", ".") else "**/*.py"))
    ]
    found = {str(p.relative_to(ROOT)): p.read_text(encoding="utf-8") for p in files}
    for page in sorted((ROOT / "lessons").glob("*.md")):
        cells = jupytext.read(page).cells
        found[page.name] = "\n".join(
            c.source for c in cells if c.cell_type == "code" and not c.source.lstrip().startswith("%")
        )
    return found


PEERS = {  # compared with where they are installed, never needed
    name.replace("-", "_") for name in re.findall(r"^([\w-]+)==", (ROOT / "peers.txt").read_text(encoding="utf-8"), re.MULTILINE)
}


def test_everything_that_is_imported_is_listed():
    found, owners, unlisted = sources(), packages_distributions(), {}
    own = {"quantlib", "tests", "lessons", *(Path(file).stem for file in found)}
    for file, source in found.items():
        for node in ast.walk(ast.parse(source)):
            modules = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.module and not node.level:
                modules = [node.module]
            for top in {module.partition(".")[0] for module in modules} - sys.stdlib_module_names - own - PEERS:
                if not any(canonicalize_name(owner) in REQUIRED for owner in owners.get(top, [])):
                    unlisted.setdefault(top, set()).add(file)
    assert not unlisted, "add these to requirements.txt and pyproject.toml, or do without them"


def test_the_package_is_found_from_any_folder(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", "import quantlib; print(quantlib.__file__)"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert Path(done.stdout.strip()) == ROOT / "quantlib" / "__init__.py"


# --- make, with a Python that only writes down what it is asked to do

FAKE_PYTHON = """#!/bin/sh
echo "$@" >> "{log}"
case "$*" in
    "-c "*) exec "{python}" -c "import sys; sys.version_info = {version}; sys.argv = ['']; exec('''$2''')" ;;
    "-m venv "*) mkdir -p "$3/bin" && cp "$0" "$3/bin/python" ;;
    "-m pip "*) exit {pip_status} ;;
esac
"""


def outside_make():
    """The environment without what a `make test` that runs this suite passes on to the make called here."""
    inherited = {"MAKEFLAGS", "MFLAGS", "MAKELEVEL", "MAKEOVERRIDES", "TEST_ARGS", "PIP_ARGS", "LAB_ARGS", "RECORD"}
    return {name: value for name, value in os.environ.items() if name not in inherited}


@pytest.fixture
def checkout(tmp_path):
    """A folder with what the Makefile reads, and `make(target, **variables)` that runs it there."""
    if not shutil.which("make"):
        pytest.skip("make is not installed")
    for name in (
        "Makefile",
        "requirements.txt",
        "constraints.txt",
        "pyproject.toml",
        ".jupyter/settings.json",
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    log = tmp_path / "log"

    def make(target, python=(3, 11, 0), pip_status=0, **variables):
        fake = tmp_path / "fake-python"
        fake.write_text(FAKE_PYTHON.format(log=log, python=sys.executable, version=python, pip_status=pip_status))
        fake.chmod(0o755)
        if (tmp_path / ".venv/bin/python").exists():
            shutil.copy(fake, tmp_path / ".venv/bin/python")
        log.write_text("")
        settings = [f"{name}={value}" for name, value in {"PYTHON": fake, **variables}.items()]
        done = subprocess.run(
            ["make", target, *settings], cwd=tmp_path, env=outside_make(), capture_output=True, text=True, check=False
        )
        return done, [line for line in log.read_text().splitlines() if line.startswith("-m")]

    make.folder = tmp_path
    return make


def test_the_first_call_installs_the_list_and_the_second_only_runs(checkout):
    done, calls = checkout("test")
    assert done.returncode == 0, done.stderr
    assert calls == ["-m venv .venv", "-m pip install -r requirements.txt -e .", "-m pytest"]
    assert done.stdout.index("Download: ") < done.stdout.index("-m pip install")
    assert checkout("test", TEST_ARGS="-k grid")[1] == ["-m pytest -k grid"]


@pytest.mark.parametrize("name", ["requirements.txt", "constraints.txt", "pyproject.toml"])
def test_a_changed_list_is_installed_again(checkout, name):
    checkout("test")
    newer = (checkout.folder / ".venv/ready").stat().st_mtime + 10
    os.utime(checkout.folder / name, (newer, newer))
    assert "-m pip install -r requirements.txt -e ." in checkout("test")[1]


def test_an_interrupted_installation_is_not_taken_for_a_whole_one(checkout):
    done, calls = checkout("test", pip_status=1)
    assert done.returncode != 0 and "-m pytest" not in calls
    assert checkout("test")[1][-2:] == ["-m pip install -r requirements.txt -e .", "-m pytest"]


def test_options_for_pip_and_jupyterlab_are_passed_on(checkout):
    _, calls = checkout("lab", PIP_ARGS="--find-links wheels", LAB_ARGS="--port=9000")
    assert "-m pip install --find-links wheels -r requirements.txt -e ." in calls
    assert calls[-1].startswith("-m jupyterlab ") and calls[-1].endswith("--port=9000")
    assert "--LabApp.default_url=/lab/tree/lessons/index.md" in calls[-1]


@pytest.mark.parametrize("python", [(3, 10, 14), (3, 6, 15)])
def test_an_older_python_is_refused_in_one_sentence_before_anything_is_made(checkout, python):
    done, calls = checkout("lab", python=python)
    assert done.returncode != 0 and not calls and not (checkout.folder / ".venv").exists()
    assert (
        f"Python 3.11 or newer is needed and {checkout.folder}/fake-python is {python[0]}.{python[1]}: name another"
        in done.stderr
    )


def test_a_newer_python_than_the_tested_ones_is_tried_and_said(checkout):
    done, calls = checkout("test", python=(3, 14, 0))
    assert done.returncode == 0 and calls[-1] == "-m pytest"
    assert "Python 3.14 is newer than the 3.11 to 3.13 that this is tested with" in done.stdout


def test_a_python_that_is_not_there_is_named(checkout):
    done, calls = checkout("lab", PYTHON="python9.9")
    assert done.returncode != 0 and not calls
    assert "'python9.9' was not found" in done.stdout


def test_help_is_the_default_and_names_every_command():
    if not shutil.which("make"):
        pytest.skip("make is not installed")
    said = subprocess.run(["make"], cwd=ROOT, env=outside_make(), capture_output=True, text=True, check=True).stdout
    commands = re.search(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE)[
        1
    ].split()
    assert re.findall(r"^make (\S+)", said, flags=re.MULTILINE) == commands


# --- README.md


def test_the_readme_runs():
    """Every Python block of README.md, in order, in one process."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)
    assert blocks
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(blocks)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_the_readme_names_only_make_commands_that_exist():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    named = set(re.findall(r"(?:^|`)make ([a-z-]+)", text, flags=re.MULTILINE))
    assert named <= set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE))
