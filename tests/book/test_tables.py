"""tables.py: what a browser and a terminal get."""

import pytest

from quantlib.book.tables import exact, off_scale, show_table


@pytest.fixture
def shown(monkeypatch):
    calls = []
    monkeypatch.setattr("quantlib.book.figures.display", lambda data, metadata, raw: calls.append((data, metadata)))
    return calls


def test_html_is_one_table_with_escaped_cells_and_meanings(shown):
    show_table(["bits", "a < b"], [[16, exact("29.2")], [4, off_scale("9·10⁶")]], caption="Some text.", bars=True)
    (table, about), (caption, role) = shown
    assert table["text/html"] == (
        "<table><thead><tr><th>bits</th><th>a &lt; b</th></tr></thead><tbody>"
        '<tr><td>16</td><td class="exact">29.2</td></tr><tr><td>4</td><td class="off">9·10⁶</td></tr></tbody></table>'
    )
    assert about == {"text/html": {"caption": "Some text.", "bars": True}}
    assert caption["text/markdown"] == "Some text." and role == {"text/markdown": {"role": "caption"}}


def test_text_is_aligned(shown):
    show_table(["bits", "x"], [[16, "29.20"], [4, "5"]])
    assert shown[0][0]["text/plain"] == "bits      x\n  16  29.20\n   4      5"
    assert len(shown) == 1


def test_a_short_row_is_refused():
    with pytest.raises(ValueError, match="a row of 1 cells does not fit a header of 2"):
        show_table(["a", "b"], [[1]])
