"""pytest reads the lessons: each code cell of a MyST page is a test, each page runs in a kernel of its own.

Start from :class:`Page`. The machinery is nbval's (kernel, execution, options, tags); added here are pages in MyST
Markdown, outputs compared with a recording (lesson_outputs.py says how), and what a lesson must not do: write to
stderr, or promise an exception and raise none.

In a page: `:tags: [nbval-check-output]` compares the cell's output, `rtol=1e-3` beside it states a tolerance,
`raises-exception` expects an error, `remove-stderr` allows warnings. `pytest --record-outputs` (`make record`) writes
the recordings instead of comparing.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from queue import Empty
from time import monotonic
from unittest.mock import patch

import pytest
from nbval.kernel import RunningKernel
from nbval.plugin import IPyNbCell, IPyNbFile, NbCellError

from quantlib.commands.student import exercises, read_checks
from quantlib.records.lesson_files import remedy
from quantlib.zoo.zoo import LESSON_MODEL
from tests.book_run import BookRun, about_the_last
from tests.lesson_outputs import comparable, differences
from tests.lesson_pages import CHECK, CodeCell, has_cells, read_page
from tests.lesson_recordings import CheckedCell, match_cells, read_recording, recording_file, write_recording

COLOURS = re.compile(r"\x1b\[[0-9;]*m")
RECORDING = "recording"


def pytest_addoption(parser: pytest.Parser) -> None:
    words = "Record what the checked cells of MyST pages print, instead of comparing."
    parser.getgroup("nbval").addoption("--record-outputs", action="store_true", help=words)


def other_model() -> str | None:
    """The reader's own model that QUANTLIB_MODEL names. Recorded outputs are of the lessons' model, and say nothing of it."""
    chosen = os.environ.get("QUANTLIB_MODEL")
    return chosen if chosen and chosen != LESSON_MODEL else None


def pytest_report_header(config: pytest.Config) -> str | None:
    return f"lessons: outputs are not compared, QUANTLIB_MODEL is {other_model()}" if other_model() else None


def pytest_collect_file(file_path: Path, parent: pytest.Collector) -> Page | None:
    if file_path.suffix == ".md" and "_build" not in file_path.parts and has_cells(file_path):
        return Page.from_parent(parent, path=file_path)
    return None


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say what --record-outputs wrote."""
    for report in terminalreporter.getreports("passed"):
        for title, text in report.sections:
            if title == f"Captured {RECORDING} call":
                terminalreporter.write_line(text)


class Page(IPyNbFile):
    """A MyST page: nbval's notebook, read by jupytext, with the recorded outputs of its checked cells."""

    def collect(self) -> Iterator[pytest.Item]:
        self.recording = self.config.option.record_outputs
        try:
            self.nb, code = read_page(self.path)
        except ValueError as error:
            raise self.CollectError(str(error)) from None
        if self.recording and other_model():
            raise self.CollectError(f"recordings are of {LESSON_MODEL}: unset QUANTLIB_MODEL, which is {other_model()}")
        self.cells = [Cell.of(self, number, cell) for number, cell in enumerate(code)]
        self._place_checks()
        self.problems = [] if self.recording or other_model() else self._recall()
        yield from self.cells
        if self.checked or recording_file(self.path).exists():
            yield Recording.from_parent(self, name=RECORDING)

    @property
    def checked(self) -> list[Cell]:
        return [cell for cell in self.cells if cell.options["check"]]

    def setup(self) -> None:
        self.run = None if self.recording else BookRun.of(self.path)
        with patch.dict(os.environ, self.run.environment if self.run else {"QUANTLIB_STATIC": "1"}):  # as the book's run
            super().setup()
        self.kernel.await_reply = partial(reply_or_death, self.kernel, self.kernel.await_reply)

    def teardown(self) -> None:
        super().teardown()
        if self.run and all(cell.passed for cell in self.cells):
            self.run.keep([cell.heard for cell in self.cells])

    def get_kernel_message(self, timeout: float | None = None, stream: str = "iopub") -> Mapping:
        message = super().get_kernel_message(timeout, stream)
        self.heard.append(message)
        return message

    def _place_checks(self) -> None:
        """Give the last cell of each exercise's solution the check that stands in for it in notebooks without solutions."""
        file = self.path.with_name("checks.py")
        checks = read_checks(file.read_text(encoding="utf-8")) if file.exists() else {}
        numbers = {id(cell.cell): number for number, cell in enumerate(self.cells)}
        for exercise in exercises(self.nb):
            if exercise.label in checks and exercise.solution:
                self.cells[numbers[id(exercise.solution[-1])]].answer_check = checks[exercise.label].source(exercise.title)

    def _recall(self) -> list[str]:
        """Give each checked cell its recorded output, or why it has none; return what is wrong with the recording."""
        for cell in self.checked:
            cell.cell.execution_count = 1  # nbval compares only cells that say they ran
        try:
            matched = match_cells([cell.cell.source for cell in self.checked], read_recording(self.path))
        except ValueError as error:
            for cell in self.checked:
                cell.unrecorded = "has no recorded output that can be read"
            return [str(error)]
        for number, cell in enumerate(self.checked):
            cell.recorded, cell.unrecorded = matched.cells.get(number), matched.reasons.get(number, "")
        mend = remedy(self.path.stem)
        return [f"a recorded cell is no longer in the page ({cell.source.splitlines()[0]}): {mend}" for cell in matched.gone]


class Cell(IPyNbCell):
    """One code cell. Cells before it that were not selected run first, so that `--lf`, `-k` and node ids work."""

    @classmethod
    def of(cls, page: Page, number: int, code: CodeCell) -> Cell:
        cell = cls.from_parent(page, name=f"line {code.line}", cell_num=number, cell=code.node, options=code.options)
        cell.line, cell.rtol = code.line, code.rtol
        cell.recorded, cell.unrecorded = None, ""  # a CheckedCell, or why there is none
        cell.started = cell.passed = False
        cell.answer_check = ""
        return cell

    def runtest(self) -> None:
        for earlier in self.parent.cells[: self.cell_num]:
            if not earlier.started:
                earlier.run_unjudged()
        self.started = True
        self.parent.heard = []
        try:
            super().runtest()
        except KernelDied:
            self.raise_cell_error("the kernel died in this cell (was there memory enough?)")
        self.judge()
        self.heard = about_the_last(self.parent.heard)
        if self.answer_check:
            self.check_answer()
        self.passed = True

    def check_answer(self) -> None:
        """What checks the readers' answers has to accept the page's own."""
        kernel = self.parent.kernel
        asked = kernel.execute_cell_input(self.answer_check, allow_stdin=False)
        failed = ""
        while True:
            message = self.parent.get_kernel_message(timeout=self.config.option.nbval_cell_timeout)
            if message["parent_header"].get("msg_id") != asked:
                continue
            if message["msg_type"] == "error":
                failed = f"{message['content']['ename']}: {message['content']['evalue']}"
            if message["msg_type"] == "status" and message["content"]["execution_state"] == "idle":
                break
        kernel.await_reply(asked, timeout=self.config.option.nbval_cell_timeout)
        if failed:
            self.raise_cell_error(f"the solution does not pass its check in checks.py ({failed})")

    def run_unjudged(self) -> None:
        self.started = True
        if self.options["skip"]:
            return
        kernel = self.parent.kernel
        message = kernel.execute_cell_input(self.cell.source, allow_stdin=False)
        try:
            kernel.await_reply(message, timeout=self.config.option.nbval_cell_timeout)
            kernel.await_idle(message, self.output_timeout)
        except Empty:
            raise RuntimeError(f"the cell at line {self.line}, which goes before, did not finish") from None

    def judge(self) -> None:
        """Refuse what nbval lets pass, and a lesson must not do."""
        tags = self.cell.metadata.get("tags", [])
        warned = "".join(o.text for o in self.test_outputs if o.output_type == "stream" and o.name == "stderr")
        if warned and "remove-stderr" not in tags:
            self.raise_cell_error(
                "writes to stderr, which readers see (mend it, or tag the cell remove-stderr)", warned
            )
        if self.options["check_exception"] and not self.raised():
            self.raise_cell_error("is tagged raises-exception, and raised nothing")
        if self.options["check"] and not comparable(self.test_outputs):
            self.raise_cell_error(f"is tagged {CHECK}, and shows nothing that is compared (no text)")

    def raised(self) -> list[str]:
        return [f"{o.ename}: {o.evalue}" for o in self.test_outputs or () if o.output_type == "error"]

    def compare_outputs(self, test: Sequence[Mapping], ref: Sequence[Mapping], skip_compare: object = None) -> bool:
        """nbval's question, answered by the recording and the cell's tolerance."""
        if self.unrecorded:
            self.raise_cell_error(f"{self.unrecorded}: {remedy(self.path.stem)}")
        found = differences(self.recorded.outputs, comparable(test), self.rtol)
        if found:
            more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
            self.raise_cell_error(found[0].partition("\n")[0] + more, "\n".join(found))
        return True

    def reportinfo(self) -> tuple[Path, int, str]:
        return self.path, self.line - 1, f"{self.path.name}::{self.name}"

    def repr_failure(self, excinfo: pytest.ExceptionInfo) -> str:
        """The reason (pytest's summary quotes the first line), the place, the cell with its lines, the traceback."""
        error = excinfo.value
        if not isinstance(error, NbCellError):
            return super().repr_failure(excinfo)
        raised, details = self.raised(), COLOURS.sub("", error.inner_traceback or "")
        reason = raised[0] if raised and str(error) == "Cell execution caused an exception" else str(error)
        entered = re.search(r"^\s*Cell In\[[^\]]*\], line (\d+)", details, re.MULTILINE)
        failing = self.line + (int(entered[1]) - 1 if entered else 0)
        numbered = enumerate(self.cell.source.split("\n"), self.line)
        listing = [f"{'>' if number == failing else ' '} {number:5d}  {text}" for number, text in numbered]
        return "\n".join([reason, "", f"{os.path.relpath(self.path)}:{failing}:", *listing, "", details])


class Recording(pytest.Item):
    """The last item of a page: its recording can be read and holds no more than the page; or, asked to, writes it."""

    def runtest(self) -> None:
        page = self.parent
        if not page.recording:
            if page.problems:
                raise RecordingError("\n".join(page.problems))
            return
        missing = [cell for cell in page.cells if not cell.passed and not cell.options["skip"]]
        if missing:
            at = missing[0].line
            raise RecordingError(f"{page.path.name} is not recorded: the cell at line {at} failed or did not run")
        cells = [CheckedCell(cell.cell.source, comparable(cell.test_outputs)) for cell in page.checked]
        written = write_recording(page.path, cells, [cell.rtol for cell in page.checked])
        what = f"{os.path.relpath(recording_file(page.path))}: {'written' if written else 'unchanged'}"
        self.add_report_section("call", RECORDING, what)

    def reportinfo(self) -> tuple[Path, int, str]:
        return self.path, 0, f"{self.path.name}::{self.name}"

    def repr_failure(self, excinfo: pytest.ExceptionInfo) -> str:
        return str(excinfo.value) if isinstance(excinfo.value, RecordingError) else super().repr_failure(excinfo)


class RecordingError(Exception):
    """A recording is damaged, holds too much, or could not be made."""


class KernelDied(Exception):
    """The kernel ended without an answer."""


def reply_or_death(kernel: RunningKernel, await_reply: Callable[..., None], message: str, timeout: float) -> None:
    """nbval's await_reply, which by itself waits half an hour for a kernel that is no more."""
    end = monotonic() + timeout
    while True:
        try:
            return await_reply(message, timeout=min(1.0, timeout))
        except Empty:
            if not kernel.is_alive():
                raise KernelDied from None
            if monotonic() > end:
                raise
