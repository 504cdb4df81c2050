"""The page for teachers names exercises that exist, in the part where it says they are, and every part's exercises are set."""

import re

import jupytext
import pytest

from quantlib.commands.student import exercises
from quantlib.records.lesson_files import lessons_folder

LESSONS = lessons_folder()
TEXT = (LESSONS / "teaching.md").read_text(encoding="utf-8")
TITLES = {
    page.name: {exercise.title for exercise in exercises(jupytext.read(page, fmt="md:myst"))}
    for page in sorted(LESSONS.glob("0[1-6]-*.md"))
}


def row_of(page):
    """The part's line in the plan of six hours."""
    plan = TEXT.split("## Six hours")[1].split("## ")[0]
    return next(line for line in plan.splitlines() if line.startswith("|") and f"./{page})" in line)


@pytest.mark.parametrize("page", TITLES)
def test_all_exercises_of_a_part_are_set_in_six_hours(page):
    named = set(re.findall(r"\*([A-Z][^*]+)\*", row_of(page)))
    assert named <= TITLES[page], f"{page} has no such exercise"
    assert TITLES[page] - named <= {"Read a byte"}  # set after the first hour


def test_every_exercise_that_is_named_exists():
    known = set().union(*TITLES.values())
    plans = TEXT.split("## One hour")[1].split("## What students get wrong")[0]
    named = set(re.findall(r"(?<!\*)\*([A-Z][^*]+)\*(?!\*)", plans))
    assert len(named) > 10 and named <= known


def test_every_misconception_names_its_part_or_all():
    lines = re.findall(r"^- \*\*.*$", TEXT.split("## What students get wrong")[1], flags=re.MULTILINE)
    assert len(lines) >= 8
    assert all("](./0" in line or "the parts call them so" in line for line in lines)
    assert {n for line in lines for n in re.findall(r"\./(0\d)-", line)} == {"01", "02", "03", "04", "05", "06"}
