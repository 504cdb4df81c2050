"""Progress of a download, shown where a person looks and nowhere else.

Start with `show_progress`. It picks one of four ways to show the same thing:

- a notebook with a person before it: one output that is updated in place;
- a notebook run by a program (nbval, nbclient, the book's build): nothing, so
  that a page's outputs are the same whether or not it had to download;
- a terminal: one line on stderr that is rewritten;
- a log file or a pipe: one line on stderr at the start and one at the end.
"""

from __future__ import annotations

import html
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

SECONDS_BETWEEN_UPDATES = 0.1


def megabytes(count: int) -> str:
    """`count` bytes in decimal megabytes, as package indexes print them: '93 MB', '4.9 MB'."""
    return f"{count / 1e6:.1f} MB" if count < 10e6 else f"{count / 1e6:.0f} MB"


def notebook_kernel():
    """The ipykernel this process runs as, or None outside notebooks."""
    # Asking sys.modules first: a plain script must not pay for importing IPython.
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython else None
    return getattr(shell, "kernel", None)


def person_at_notebook(kernel) -> bool:
    """Whether the cell that runs now was sent by a front end with a person before it.

    A front end says with each cell whether the code may ask for input. Those used
    by people (JupyterLab, VS Code) say yes; nbval, nbclient and MyST's build say no.
    """
    return bool(kernel.get_parent("shell").get("content", {}).get("allow_stdin", False))


@dataclass
class Silent:
    """Shows nothing. The other ways are subclasses and replace what they need."""

    title: str
    total: int
    _last: float = field(default=0.0, init=False)

    def start(self) -> None:
        pass

    def update(self, done: int) -> None:
        """Report that `done` of `total` bytes have arrived; cheap to call often."""
        now = time.monotonic()
        if now - self._last >= SECONDS_BETWEEN_UPDATES:
            self._last = now
            self.draw(min(done, self.total))

    def draw(self, done: int) -> None:
        pass

    def finish(self, outcome: str) -> None:
        pass

    def line(self, done: int) -> str:
        return f"{self.title}: {megabytes(done)} of {megabytes(self.total)}"


class LogLines(Silent):
    """Two plain lines on stderr."""

    def start(self) -> None:
        print(f"{self.title}: {megabytes(self.total)} to download", file=sys.stderr, flush=True)

    def finish(self, outcome: str) -> None:
        print(f"{self.title}: {outcome}", file=sys.stderr, flush=True)


class TerminalBar(LogLines):
    """One line on a terminal's stderr, rewritten in place."""

    def draw(self, done: int) -> None:
        width = 30
        filled = round(width * done / max(self.total, 1))
        text = f"[{'#' * filled}{'.' * (width - filled)}] {self.line(done)}"
        self._rewrite(text)

    def finish(self, outcome: str) -> None:
        self._rewrite("")
        super().finish(outcome)

    @staticmethod
    def _rewrite(text: str) -> None:
        columns = shutil.get_terminal_size().columns - 1
        sys.stderr.write("\r" + text[:columns].ljust(columns) + "\r")
        sys.stderr.flush()


class NotebookBar(Silent):
    """One notebook output, updated in place; it ends as a single sentence."""

    def start(self) -> None:
        from IPython.display import display

        self._handle = display(self._bundle(0), raw=True, display_id=True)

    def draw(self, done: int) -> None:
        self._handle.update(self._bundle(done), raw=True)

    def finish(self, outcome: str) -> None:
        text = f"{self.title}: {outcome}"
        self._handle.update({"text/plain": text, "text/html": html.escape(text)}, raw=True)

    def _bundle(self, done: int) -> dict[str, str]:
        text = self.line(done)
        bar = f'<progress max="{self.total}" value="{done}"></progress>'
        return {"text/plain": text, "text/html": f"<label>{html.escape(text)} {bar}</label>"}


def _way_to_show() -> type[Silent]:
    kernel = notebook_kernel()
    if kernel is not None:
        return NotebookBar if person_at_notebook(kernel) else Silent
    return TerminalBar if sys.stderr.isatty() else LogLines


def can_redraw() -> bool:
    """Whether somebody looks at an output that can change after it was written, so that a bar makes sense."""
    return issubclass(_way_to_show(), TerminalBar | NotebookBar)


def show_message(text: str) -> None:
    """One line on stderr, unless a notebook is run by a program."""
    if _way_to_show() is not Silent:
        print(text, file=sys.stderr, flush=True)


@contextmanager
def show_progress(title: str, total: int, outcome: str) -> Iterator[Silent]:
    """Show the progress of a job of `total` bytes while the block runs.

    `title` names the job; `outcome` is shown after it when the block ends without
    an exception ("stopped" otherwise). The block calls `.update(done_bytes)`.

    >>> with show_progress("stories15M", 56_000_000, "kept in /tmp") as progress:
    ...     progress.update(28_000_000)
    """
    progress = _way_to_show()(title, total)
    progress.start()
    try:
        yield progress
    except BaseException:
        progress.finish("stopped")
        raise
    progress.finish(outcome)
