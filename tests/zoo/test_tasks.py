"""tasks.py: questions out of files like those of the package."""

import gzip
import hashlib
import json
from dataclasses import replace

import pyarrow
import pyarrow.ipc
import pytest

from quantlib.zoo import tasks
from quantlib.zoo.tasks import Item, load_task


def arrow(rows):
    table, sink = pyarrow.Table.from_pylist(rows), pyarrow.BufferOutputStream()
    with pyarrow.ipc.new_stream(sink, table.schema) as stream:
        stream.write_table(table)
    return sink.getvalue().to_pybytes()


@pytest.fixture
def kept(tmp_path, monkeypatch):
    """A cache that holds files such as the package's."""
    monkeypatch.setenv("QUANTLIB_CACHE", str(tmp_path))
    contents = (
        arrow([{"goal": "dry a shirt", "sol1": "hang it", "sol2": "fold it", "label": 1}]),
        arrow([{
            "id": "a", "question": "What melts?", "choices": {"text": ["ice", "stone"], "label": ["1", "2"]},
            "answerKey": "1",
        }]),
        gzip.compress((json.dumps({"request": {"context": "The dog saw the", "continuation": " cat"}}) + "\n").encode()),
    )  # fmt: skip
    files = []
    for file, content in zip(tasks.QUESTIONS.files, contents, strict=True):
        (tmp_path / file.name).write_bytes(content)
        files.append(replace(file, size=len(content), sha256=hashlib.sha256(content).hexdigest()))
    monkeypatch.setattr(tasks, "QUESTIONS", replace(tasks.QUESTIONS, files=tuple(files)))


def test_three_kinds_of_files_become_one_kind_of_item(kept):
    assert load_task("PIQA") == [Item("Question: dry a shirt\nAnswer:", (" hang it", " fold it"), 1)]
    assert load_task("ARC-Easy") == [Item("Question: What melts?\nAnswer:", (" ice", " stone"), 0)]
    assert load_task("LAMBADA") == [Item("The dog saw the", (" cat",), 0)]
