"""steps.py: the share that is done and the time left, where nobody and where somebody looks."""

import pytest
from fake_clock import FakeTime

from quantlib.measure.steps import steps


def test_a_log_gets_a_line_after_each_step_with_the_share_and_the_time_left(capsys):
    fake = FakeTime()
    for step in steps("speed", {"small": 1, "large": 3, "last": 4}, clock=lambda: fake.now):
        fake.pass_({"small": 10, "large": 50, "last": 70}[step])
    assert capsys.readouterr().err.splitlines() == [
        "      speed, small: 12% done, 01:10 left",  # an eighth in 10 s
        "      speed, large: 50% done, 01:00 left",
        "      speed, last: 100% done, 00:00 left",
    ]


def test_steps_come_in_their_order_and_an_error_ends_them(capsys):
    assert list(steps("a", dict.fromkeys("cab", 1.0))) == ["c", "a", "b"]
    with pytest.raises(ZeroDivisionError):
        for step in steps("a", {1: 1.0, 0: 1.0, 2: 1.0}):
            1 / step
    assert "0: " not in capsys.readouterr().err.splitlines()[-1]


def test_a_terminal_gets_one_bar(capsys, monkeypatch):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    assert list(steps("speed", {"a": 1, "b": 3})) == ["a", "b"]
    shown = capsys.readouterr().err
    assert "\n" not in shown
    assert "speed, b: 25 % done|" in shown and "left" in shown
