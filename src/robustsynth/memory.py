"""Freed memory stays with the process, which asks for tensors of the same sizes again and again."""

from __future__ import annotations

import ctypes
import platform

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4
"""Options of glibc's mallopt(3), by their numbers in malloc.h."""
TOP_PAD = 64 * 2**20
"""Bytes that the heap grows by at least."""


def keep_freed_memory() -> bool:
    """Have glibc reuse freed memory in place of giving it back to the system; for the whole process, from now on.

    By default each tensor of some megabytes is a mapping of its own, given back when it is freed: the next one's pages
    are fetched one by one and filled with zeros. A step of training at 128² frees and asks for hundreds of them. What
    the process holds is then the most that it ever held, which is what it needs again in the next step anyway.

    Returns:
        whether it was done: not where the C library is another one than glibc (macOS, Windows, Alpine).

    Example:
        >>> keep_freed_memory() in (True, False)
        True
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    wanted = {M_MMAP_MAX: 0, M_TRIM_THRESHOLD: -1, M_TOP_PAD: TOP_PAD}
    accepted = [mallopt(ctypes.c_int(option), ctypes.c_int(value)) == 1 for option, value in wanted.items()]
    return all(accepted)
