"""Stacked bars are as long as the bytes they stand for."""

import re

import pytest

from quantlib.book.bars import Claim, Part, gigabytes, stacked


def test_every_bar_has_its_share_of_the_whole():
    html = stacked(
        "half",
        8e9,
        [Part("codes", 2e9, "codes"), Part("scales & zeros", 1e9, "scales")],
        Claim(1e9, 2e9, "“4–8 times”"),
    )
    assert re.findall(r'class="(\w+)" style="--w:([\d.]+)%"', html) == [
        ("kept", "100"),
        ("codes", "25"),
        ("scales", "12.5"),
    ]
    assert "--from:12.5%;--to:25%" in html
    assert "scales &amp; zeros 1.00\u2009GB" in html


@pytest.mark.parametrize(
    ("count", "words"), [(13_476_831_232, "13.48\u2009GB"), (126_000_000, "126\u2009MB"), (1e9, "1.00\u2009GB")]
)
def test_bytes_in_words(count, words):
    assert gigabytes(count) == words
