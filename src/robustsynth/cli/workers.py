"""Who of several processes tells of a mistake: each that met one, but the same is not told twice."""

from __future__ import annotations

import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager

from robustsynth.cli.progress import say
from robustsynth.errors import UserError
from robustsynth.processes import Workers

PATIENCE = 5
"""Seconds in which the first process shall have told of a mistake that all met, and ``torchrun`` ended the rest."""

LOST = ("Connection closed by peer", "Connection reset by peer", "Broken pipe")
"""What gloo says where another process is gone."""


@contextmanager
def one_voice(workers: Workers) -> Iterator[None]:
    """A mistake that all processes meet is told by the first alone; one that another met is told by that one.

    Where a process is gone that others wait for, they say so in a line. To be entered within ``workers.joined``: did
    the group end before a process has told, the others would, and ``torchrun`` would end all of them.
    """
    try:
        yield
    except UserError as error:
        if workers.first:
            raise
        # torchrun ends all processes of a machine where one has failed.
        time.sleep(PATIENCE)
        raise UserError(f"process {workers.rank + 1} of {workers.size}, on {platform.node()}: {error}") from None
    except RuntimeError as error:
        if workers.alone or not any(sign in str(error) for sign in LOST):
            raise
        say(f"process {workers.rank + 1} of {workers.size}: another process of this run is gone, so this one ends")
        raise SystemExit(1) from None
