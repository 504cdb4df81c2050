"""What every test run needs, from whichever folder it starts: the lessons are tests (tests/lesson_plugin.py)."""

pytest_plugins = ["pytester", "tests.lesson_plugin"]
