"""The lessons are found from wherever a page runs, and files beside them are written whole or not at all."""

import json

import pytest

import quantlib.records.lesson_files as lesson_files
from quantlib.records.lesson_files import lessons_folder, read_json, write_json


@pytest.fixture(autouse=True)
def no_variable(monkeypatch):
    monkeypatch.delenv("QUANTLIB_LESSONS", raising=False)


def make_lessons(folder):
    (folder / "experiments").mkdir(parents=True)
    (folder / "index.md").touch()
    return folder


@pytest.mark.parametrize("start", ["lessons", "lessons/experiments", ".", "notes/deeper"])
def test_found_in_and_above_the_working_folder(tmp_path, monkeypatch, start):
    lessons = make_lessons(tmp_path / "lessons")
    (tmp_path / start).mkdir(parents=True, exist_ok=True)
    monkeypatch.chdir(tmp_path / start)
    assert lessons_folder() == lessons


def test_found_beside_the_package_from_a_folder_of_ones_own(tmp_path, monkeypatch):
    lessons = make_lessons(tmp_path / "checkout" / "lessons")
    monkeypatch.setattr(lesson_files, "__file__", str(tmp_path / "checkout" / "quantlib" / "records" / "lesson_files.py"))
    (tmp_path / "own").mkdir()
    monkeypatch.chdir(tmp_path / "own")
    assert lessons_folder() == lessons


def test_the_variable_goes_first_and_a_wrong_one_is_an_error(tmp_path, monkeypatch):
    make_lessons(tmp_path / "lessons")
    monkeypatch.chdir(tmp_path)
    other = make_lessons(tmp_path / "other")
    monkeypatch.setenv("QUANTLIB_LESSONS", str(other))
    assert lessons_folder() == other
    monkeypatch.setenv("QUANTLIB_LESSONS", str(tmp_path / "nowhere"))
    with pytest.raises(
        FileNotFoundError, match=r"QUANTLIB_LESSONS is '.*nowhere', but no index\.md and experiments/ are there"
    ):
        lessons_folder()


def test_not_found_says_what_to_set(tmp_path, monkeypatch):
    monkeypatch.setattr(lesson_files, "__file__", str(tmp_path / "site-packages" / "quantlib" / "records" / "lesson_files.py"))
    (tmp_path / "experiments").mkdir()  # a folder of that name alone is not the lessons'
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match="set QUANTLIB_LESSONS to the lessons/ folder of a checkout"):
        lessons_folder()


def test_written_json_is_readable_and_complete(tmp_path):
    write_json(tmp_path / "new" / "a.json", {"name": "Δ", "list": [1, 2]})
    assert (tmp_path / "new" / "a.json").read_text(
        encoding="utf-8"
    ) == '{\n "name": "Δ",\n "list": [\n  1,\n  2\n ]\n}\n'
    assert read_json(tmp_path / "new" / "a.json", "run it") == {"name": "Δ", "list": [1, 2]}


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    file = tmp_path / "a.json"
    write_json(file, {"old": 1})

    def full(self, *args, **kwargs):
        self.touch()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pathlib.Path.write_text", full)
    with pytest.raises(OSError, match="No space left"):
        write_json(file, {"new": 1})
    assert json.loads(file.read_bytes()) == {"old": 1} and list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize("content", [b'{"a": ', b"\xff\xfe", b"[1]"])
def test_a_damaged_file_is_named_with_its_remedy(tmp_path, content):
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"a\.json is damaged .*: run it$"):
        read_json(tmp_path / "a.json", "run it")


def test_a_missing_file_is_named_with_its_remedy(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"a\.json does not exist: run it$"):
        read_json(tmp_path / "a.json", "run it")
