"""Small MyST pages for the tests of what runs pages."""

HEADER = """\
---
jupytext:
  text_representation:
    extension: .md
    format_name: myst
kernelspec:
  display_name: Python 3
  language: python
  name: {kernel}
---

# A page

"""


def page_text(*cells, kernel="python3"):
    """A MyST page of (tags, source) cells; cell number n begins at line 16 + what stands before it."""
    return HEADER.format(kernel=kernel) + "\n".join(
        f"```{{code-cell}} ipython3\n:tags: [{tags}]\n\n{source}\n```\n" for tags, source in cells
    )
