"""Pages as notebooks: where each cell begins, and what its tags ask for."""

import pytest
from page_cases import HEADER, page_text

from tests.lesson_pages import has_cells, read_page

PAGE = (
    HEADER.format(kernel="python3")
    + """\
```{code-cell} ipython3
first = 1
```

Text with a list:

- an item

```{code-cell} ipython3
:label: tab-second
:tags: [hide-input, nbval-check-output, rtol=2e-3]

second = 2
second
```

```{code-cell} ipython3
---
tags: [raises-exception]
---
third()
```

```python
not_a_cell()
```

```{code-cell} ipython3
:tags: [nbval-skip]
fourth
```
"""
)


def test_cells_know_their_line_and_what_is_asked_of_them(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(PAGE)
    notebook, cells = read_page(page)
    lines = PAGE.split("\n")
    assert [lines[cell.line - 1] for cell in cells] == ["first = 1", "second = 2", "third()", "fourth"]
    assert [cell.rtol for cell in cells] == [None, 2e-3, None, None]
    assert [cell.options["check"] for cell in cells] == [False, True, False, False]
    assert [cell.options["check_exception"] for cell in cells] == [False, False, True, False]
    assert [cell.options["skip"] for cell in cells] == [False, False, False, True]
    assert notebook.metadata.kernelspec.name != "python3"  # a kernel of this Python, not the one of that name


@pytest.mark.parametrize(
    "text",
    [
        "```{code-cell}\n1\n```",
        ":::{code-cell} ipython3\n1\n:::",
        "> ```{code-cell}\n> 1\n> ```",
        "1. ```{code-cell}\n",
    ],
)
def test_a_cell_is_found_wherever_it_stands(tmp_path, text):
    (tmp_path / "page.md").write_text(f"# Title\n\n{text}\n")
    assert has_cells(tmp_path / "page.md")


def test_prose_about_cells_is_no_cell(tmp_path):
    (tmp_path / "page.md").write_text("A `{code-cell}` is written\n\n    with a fence\n")
    assert not has_cells(tmp_path / "page.md")


@pytest.mark.parametrize("tag", ["rtol", "rtol=", "rtol=1%", "rtol=-1", "rtol=1", "rtol=nan", "rtol: 1e-3", "rtol=inf"])
def test_a_tolerance_is_a_share(tmp_path, tag):
    (tmp_path / "page.md").write_text(page_text((f"nbval-check-output, '{tag}'", "1.5")))
    with pytest.raises(ValueError, match=r"page\.md:17: .* is no tolerance: write rtol=1e-3, from 0 to below 1"):
        read_page(tmp_path / "page.md")
