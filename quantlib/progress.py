"""Progress, shown where a person looks and nowhere else. Start from :func:`progress` and :func:`show_progress`.

The bars are tqdm's. Ours is the question whether somebody looks: in a notebook that is run by a program (nbval,
nbclient, the book's build) nothing is shown, so that a page's outputs are the same whether or not it had to download; a
log file or a pipe gets a line at the start and one at the end.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager


def megabytes(count: int) -> str:
    """`count` bytes in decimal megabytes, as package indexes print them: '93 MB', '4.9 MB'."""
    return f"{count / 1e6:.1f} MB" if count < 10e6 else f"{count / 1e6:.0f} MB"


def _kernel():
    """The ipykernel this process runs as, or None outside notebooks."""
    # Asking sys.modules first: a plain script must not pay for importing IPython.
    ipython = sys.modules.get("IPython")
    return getattr(ipython and ipython.get_ipython(), "kernel", None)


def can_redraw() -> bool:
    """Whether somebody looks at an output that can change after it was written, so that a bar makes sense.

    A front end says with each cell whether the code may ask for input. Those used by people (JupyterLab, VS Code) say
    yes; nbval, nbclient and MyST's build say no.
    """
    kernel = _kernel()
    if kernel is None:
        return sys.stderr.isatty()
    return bool(kernel.get_parent("shell").get("content", {}).get("allow_stdin", False))


def show_message(text: str) -> None:
    """One line on stderr, unless a notebook is run by a program."""
    if _kernel() is None or can_redraw():
        print(text, file=sys.stderr, flush=True)


def progress(over: Sequence, what: str, unit: str) -> Iterable:
    """The same things one after the other, under a bar with the time left."""
    from tqdm.auto import tqdm  # a notebook's or a terminal's

    return tqdm(over, desc=what, unit=unit, leave=False, disable=not can_redraw())


@contextmanager
def show_progress(title: str, total: int, outcome: str) -> Iterator[Callable[[int], None]]:
    """Show the progress of a job of `total` bytes while the block runs, which gets report(bytes done so far).

    `title` names the job; `outcome` is shown after it when the block ends without an exception ("stopped" otherwise).

    >>> with show_progress("stories15M", 56_000_000, "kept in /tmp") as report:
    ...     report(28_000_000)
    """
    from tqdm.auto import tqdm

    show_message(f"{title}: {megabytes(total)} to download")
    ended = "stopped"
    try:
        with tqdm(desc=title, total=total, unit="B", unit_scale=True, leave=False, disable=not can_redraw()) as bar:
            yield lambda done: bar.update(min(done, total) - bar.n)
        ended = outcome
    finally:
        show_message(f"{title}: {ended}")
