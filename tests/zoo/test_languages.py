"""languages.py: the parts of a text out of files like those of the package."""

import hashlib
from dataclasses import replace

import pytest

from quantlib.zoo import languages
from quantlib.zoo.languages import load_declaration

PAGE = """<html><head><title>Deutsch</title></head><body><h1>Erkl&auml;rung</h1>
<header><h2>Pr&auml;ambel</h2><p>Da die
  Anerkennung</p></header>
<article><h2>Artikel 1</h2><ol><li><p>Alle Menschen</p></li><li><p>sind frei.</p></li></ol></article></body></html>"""


@pytest.fixture
def kept(tmp_path, monkeypatch):
    """A cache that holds such a page for every language."""
    monkeypatch.setenv("QUANTLIB_CACHE", str(tmp_path))
    content, files = PAGE.encode(), []
    for file in languages.DECLARATION.files:
        (tmp_path / file.name).write_bytes(content)
        files.append(replace(file, size=len(content), sha256=hashlib.sha256(content).hexdigest()))
    monkeypatch.setattr(languages, "DECLARATION", replace(languages.DECLARATION, files=tuple(files)))


def test_a_page_becomes_its_parts_without_its_title(kept):
    assert load_declaration("German") == ["Präambel Da die Anerkennung", "Artikel 1 Alle Menschen sind frei."]


def test_a_language_that_is_not_kept_is_named(kept):
    with pytest.raises(ValueError, match=r"'Klingon' is none .* English, German"):
        load_declaration("Klingon")
