"""The glossary: every term once, in order, and in the part that it names."""

import re

import pytest

from quantlib.records.lesson_files import lessons_folder

LESSONS = lessons_folder()
TEXT = (LESSONS / "glossary.md").read_text(encoding="utf-8")
ENTRIES = re.findall(r"^([^\n:#-][^\n]*)\n: (.*)$", TEXT, flags=re.MULTILINE)


def test_every_term_stands_once_and_in_order():
    terms = [re.sub(r"\W", "", term.lower()) for term, _ in ENTRIES]
    assert len(terms) > 30 and terms == sorted(set(terms))
    assert len(ENTRIES) == TEXT.count("\n: ")


@pytest.mark.parametrize(("term", "words"), ENTRIES, ids=[term for term, _ in ENTRIES])
def test_the_part_that_is_named_has_the_term(term, words):
    number, file = re.search(r"\[Part\s(\d+)\]\(\./(.*?)\)$", words).groups()
    assert file.startswith(f"{int(number):02}-")
    page = (LESSONS / file).read_text(encoding="utf-8").lower()
    assert re.search(re.escape(term.lower()).replace(r"\ ", r"[\s-]"), page), f"{file} has no “{term}”"


@pytest.mark.parametrize("page", sorted(LESSONS.glob("0*.md")), ids=lambda page: page.stem)
def test_every_part_has_terms(page):
    assert TEXT.count(f"./{page.name}") >= 2
