"""A fingerprint follows what code says, not how it is laid out or explained."""

import pytest

from quantlib.fingerprint import fingerprint

CODE = '''
def scale(x, *, bits: int = 8) -> float:
    """Largest weight over largest code."""
    # absmax
    label = f"{bits!r:>{bits}} # not a comment {'a' + f'{x}'}"
    text = rf"""first
    {x}

    last"""

    return abs(x).max() / (2 ** (bits - 1) - 1), label + text


async def later(): return [i async for i in scale] if 1 != 2 else b"\\n"
'''


def test_the_same_on_every_python():
    """Records travel between machines: this figure holds on Python 3.11, 3.12 and 3.13."""
    assert fingerprint(CODE) == "d044ce022c50eac2"


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("    # absmax\n", ""),
        ("# absmax", "# the largest magnitude"),
        ('"""Largest weight over largest code."""', '"""Another docstring\n\n    of three lines."""'),
        ('    """Largest weight over largest code."""\n', ""),
        ("\n\n\n", "\n"),
        ("bits - 1", "bits-1"),
        ("def scale(x, *, bits: int = 8)", "def scale(\n    x, *, bits: int = 8\n)"),
        ("label + text", "label + text  # both"),
    ],
)
def test_layout_comments_and_docstrings_do_not_count(old, new):
    assert old in CODE and fingerprint(CODE.replace(old, new)) == fingerprint(CODE)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("- 1) - 1", "- 1)"),
        ("bits: int = 8", "bits: int = 4"),
        ("# not a comment", "# still no comment"),
        ("{x}\n\n", "{x}\n"),
        ('rf"""', 'f"""'),
        ("    return", "return"),
        ("1 != 2", "1 == 2"),
        ('b"', '"'),
    ],
)
def test_everything_else_counts(old, new):
    assert old in CODE and fingerprint(CODE.replace(old, new)) != fingerprint(CODE)


def test_a_bare_f_string_runs_code_and_counts():
    assert fingerprint('f"{work()}"') != fingerprint('f"{rest()}"')


def test_a_cell_with_a_magic_counts_as_it_stands():
    assert fingerprint("%time f(x)") != fingerprint("%time f(y)")
    assert fingerprint("!echo it's") == fingerprint("!echo it's  \n")
