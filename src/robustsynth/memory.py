"""Memory of the process: glibc keeps what is freed for tensors of the same sizes."""

from __future__ import annotations

import ctypes
import platform

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4
"""Options of glibc's mallopt(3), by their numbers in malloc.h."""


def keep_freed_memory() -> bool:
    """Make glibc keep and reuse freed memory, for the whole process from now on.

    By default each tensor of some megabytes is a mapping of its own, which is returned when it is freed; the pages of
    the next one are fetched one by one and filled with zeros. A step of training at 128² does so hundreds of times.

    Returns whether it was done; False where the C library is not glibc (macOS, Windows, Alpine).
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    # The heap grows by at least 64 MiB.
    wanted = {M_MMAP_MAX: 0, M_TRIM_THRESHOLD: -1, M_TOP_PAD: 64 * 2**20}
    accepted = [mallopt(ctypes.c_int(option), ctypes.c_int(value)) for option, value in wanted.items()]
    return accepted == [1, 1, 1]
