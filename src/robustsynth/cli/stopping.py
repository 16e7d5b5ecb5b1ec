"""Stopping at the next step, when the user asks to, rather than in the midst of something."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager

STOPPED = 130
"""Exit status of a command that was stopped by Ctrl-C, as shells have it."""


@contextmanager
def stoppable(asked: list[int], *, at_once: bool = True) -> Iterator[None]:
    """Fill the list when the user asks to stop, by Ctrl-C or a polite kill; asking twice stops at once where it may."""

    def note(number: int, _: object) -> None:
        if asked and at_once:
            raise KeyboardInterrupt
        asked.append(number)

    before = {s: signal.signal(s, note) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
