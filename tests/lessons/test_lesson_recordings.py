"""Recordings of pages: which cell a recorded output belongs to, and when the file is rewritten."""

import pytest

from tests.lesson_recordings import CheckedCell, match_cells, read_recording, recording_file, write_recording


def cell(source, text="1.000"):
    return CheckedCell(source, ({"stdout": text},))


@pytest.fixture
def page(tmp_path):
    return tmp_path / "01-grid.md"


def test_unchanged_cells_match_in_order_even_when_two_are_equal():
    recorded = [cell("a", "1"), cell("a", "2"), cell("b")]
    matched = match_cells(["a", "a", "b"], recorded)
    assert matched.cells == dict(enumerate(recorded)) and not matched.reasons and not matched.gone


def test_a_changed_cell_a_new_cell_and_a_removed_cell_are_told_apart():
    recorded = [cell("a"), cell("old"), cell("b"), cell("removed"), cell("c")]
    matched = match_cells(["a", "changed", "b", "c", "new"], recorded)
    assert matched.cells == {0: recorded[0], 2: recorded[2], 3: recorded[4]}
    assert matched.reasons == {1: "changed after its output was recorded", 4: "has no recorded output"}
    assert matched.gone == [recorded[3]]


def test_a_cell_with_another_comment_is_the_same_cell():
    recorded = [cell("x = 1  # so\nprint(x)")]
    assert match_cells(["x = 1\nprint( x )"], recorded).cells == {0: recorded[0]}
    assert match_cells(["x = 2\nprint(x)"], recorded).gone == []


def test_what_is_written_is_read_back(page):
    cells = [
        cell("a", "two\nlines\n"),
        CheckedCell("b\ny", ({"text/plain": "2", "text/html": "<b>2</b>"}, {"alt": "a finding"})),
    ]
    assert write_recording(page, cells, [None, 1e-3]) and read_recording(page) == cells
    assert [file.name for file in recording_file(page).parent.iterdir()] == [
        "01-grid.outputs.json"
    ]  # no temporary file is left


def test_numbers_within_tolerance_do_not_touch_the_file(page):
    write_recording(page, [cell("a", "1.000"), cell("b", "2.000")], [1e-2, 1e-2])
    before = recording_file(page).read_bytes()
    assert not write_recording(page, [cell("a", "1.001"), cell("b", "2.001")], [1e-2, 1e-2])
    assert recording_file(page).read_bytes() == before


def test_only_cells_out_of_tolerance_are_renewed(page):
    write_recording(page, [cell("a", "1.000"), cell("b", "2.000")], [1e-2, 1e-2])
    assert write_recording(page, [cell("a", "1.001"), cell("b", "2.100")], [1e-2, 1e-2])
    assert read_recording(page) == [cell("a", "1.000"), cell("b", "2.100")]


def test_a_page_without_checked_cells_keeps_no_recording(page):
    write_recording(page, [cell("a")], [None])
    assert write_recording(page, [], []) and not recording_file(page).exists()
    assert not write_recording(page, [], []) and read_recording(page) == []


@pytest.mark.parametrize(
    "content",
    [
        "",
        '{"cells": [{"source": ["x',
        "[]",
        "{}",
        '{"cells": [{}]}',
        '{"cells": [{"source": [""], "outputs": [1]}]}',
    ],
)
def test_a_damaged_recording_is_named_and_replaced(page, content):
    recording_file(page).parent.mkdir()
    recording_file(page).write_text(content)
    with pytest.raises(ValueError, match=r"01-grid\.outputs\.json is damaged .*: run `make record RECORD=01-grid`"):
        read_recording(page)
    assert write_recording(page, [cell("a")], [None]) and read_recording(page) == [cell("a")]
