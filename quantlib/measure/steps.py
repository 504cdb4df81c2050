"""How far a long job is, and how long the rest will take. Start from :func:`steps`."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Hashable, Iterator, Mapping
from typing import TypeVar

from tqdm import tqdm

Step = TypeVar("Step", bound=Hashable)
BAR = "{desc}{percentage:.0f} % done|{bar}| {remaining} left"


def steps(title: str, work: Mapping[Step, float], *, clock: Callable[[], float] = time.monotonic) -> Iterator[Step]:
    """The keys of `work`, one after the other; on stderr, what share of it is done and how long the rest will take: as
    a bar on a terminal, elsewhere as a line after each step.

    work  step -> how much it is, in any unit: time is taken to grow with it
    """
    total, start, done = sum(work.values()), clock(), 0.0
    with tqdm(total=total, bar_format=BAR, smoothing=0, mininterval=0, leave=False, disable=None) as bar:
        for step, size in work.items():
            bar.set_description(f"{title}, {step}")
            yield step
            bar.update(size)
            done += size
            if bar.disable:  # no terminal
                left = tqdm.format_interval((clock() - start) * (total - done) / done)
                print(f"      {title}, {step}: {done / total:.0%} done, {left} left", file=sys.stderr, flush=True)
