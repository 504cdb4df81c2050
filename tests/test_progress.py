"""quantlib.progress: a person sees a download move, a recorded notebook never changes because of one."""

import io
import itertools
import re
import sys

import pytest
from jupyter_client.manager import start_new_kernel

from quantlib.progress import can_redraw, megabytes, show_message, show_progress

CELL = """
from quantlib import progress
with progress.show_progress("The file", 2_000_000, "kept") as report:
    report(1_000_000)
progress.show_message("a message")
print(progress.can_redraw())
"""


@pytest.fixture(scope="module")
def kernel():
    manager, client = start_new_kernel()
    yield client
    client.stop_channels()
    manager.shutdown_kernel(now=True)


def run(kernel, allow_stdin):
    """What the cell sends, in order: (kind of message, its text)."""
    sent = []

    def collect(message):
        content = message["content"]
        if message["msg_type"] in ("stream", "display_data", "update_display_data", "error"):
            text = content.get("text") or content.get("data", {}).get("text/plain") or str(content.get("traceback"))
            sent.append((content.get("name") or message["msg_type"], text.strip()))

    kernel.execute_interactive(CELL, allow_stdin=allow_stdin, output_hook=collect, timeout=60)
    return sent


def test_a_notebook_run_by_a_program_stays_as_it_was(kernel):
    assert run(kernel, allow_stdin=False) == [("stdout", "False")]


def test_a_person_at_a_notebook_sees_one_output_that_moves(kernel):
    sent = run(kernel, allow_stdin=True)
    (bar,) = [text for kind, text in sent if kind == "display_data"]
    assert bar.startswith("The file:   0%")
    assert [text for kind, text in sent if kind == "stdout"] == ["True"]
    said = "\n".join(text for kind, text in sent if kind == "stderr")
    assert said == "The file: 2.0 MB to download\nThe file: kept\na message"


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_a_terminal_gets_one_line_that_is_rewritten(monkeypatch):
    monkeypatch.setattr(sys, "stderr", Terminal())
    monkeypatch.setattr("tqdm.std.time", itertools.count().__next__)  # a second passes between two looks at the clock
    with show_progress("The file", 2_000_000, "kept") as report:
        report(1_000_000)
        report(500_000)  # a second attempt
        report(3_000_000)  # more than announced: the bar stays full
    text = sys.stderr.getvalue()
    assert "2.0 MB to download" in text
    for share, size in (("50%", "1.00M"), ("100%", "2.00M")):
        assert re.search(rf"\rThe file: +{share}\|.*\| {size}/2.00M", text)
    assert text.endswith("\rThe file: kept\n") and text.count("\n") == 2 and can_redraw()


def test_a_log_gets_two_lines(monkeypatch):
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    with show_progress("The file", 2_000_000, "kept") as report:
        for done in range(0, 2_000_000, 1000):
            report(done)
    show_message("a message")
    assert sys.stderr.getvalue() == "The file: 2.0 MB to download\nThe file: kept\na message\n" and not can_redraw()


def test_a_failure_is_not_reported_as_done(monkeypatch):
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    with pytest.raises(KeyboardInterrupt), show_progress("The file", 2_000_000, "kept"):
        raise KeyboardInterrupt
    assert sys.stderr.getvalue().endswith("The file: stopped\n")


@pytest.mark.parametrize("count, text", [(0, "0.0 MB"), (4_851_452, "4.9 MB"), (92_871_040, "93 MB")])
def test_megabytes(count, text):
    assert megabytes(count) == text
