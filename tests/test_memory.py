"""Keeping freed memory, in a process of its own: it cannot be taken back."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

from robustsynth import memory

LARGE = """
import ctypes, sys
from robustsynth.memory import keep_freed_memory

class Info(ctypes.Structure):
    names = "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost"
    _fields_ = [(name, ctypes.c_size_t) for name in names.split()]

library = ctypes.CDLL(None)
library.mallinfo2.restype = Info
library.malloc.restype = ctypes.c_void_p
library.malloc.argtypes = [ctypes.c_size_t]
if sys.argv[1] == "keep":
    assert keep_freed_memory()
before = library.mallinfo2().hblkhd
assert library.malloc(200_000_000)
print(library.mallinfo2().hblkhd - before >= 200_000_000)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="mallopt is glibc's")
@pytest.mark.parametrize(("asked", "mapped"), [("keep", "False"), ("leave", "True")])
def test_large_blocks_come_from_the_heap_once_asked_to(asked: str, mapped: str) -> None:
    done = subprocess.run([sys.executable, "-c", LARGE, asked], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == mapped


def test_another_c_library_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))
    assert not memory.keep_freed_memory()
