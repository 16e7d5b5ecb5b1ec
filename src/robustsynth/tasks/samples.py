"""Where drawn images go: one PNG file each, or one npz file for all, both complete at every moment."""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from robustsynth.files import write_json, written_beside
from robustsynth.images import save_png


class PngSamples:
    """``000000.png`` … in a folder.

    Args:
        out: the folder.
        count: images in all.
    """

    def __init__(self, out: Path, count: int) -> None:
        self.out, self.count = out, count

    def path(self, index: int) -> Path:
        """The file of image `index`."""
        return self.out / f"{index:06d}.png"

    def missing(self) -> list[int]:
        """Images that are not there yet."""
        return [i for i in range(self.count) if not self.path(i).exists()]

    def present(self) -> bool:
        """Whether anything is there."""
        return self.out.is_dir() and any(self.out.glob("[0-9]" * 6 + ".png"))

    def write(self, indices: Sequence[int], images: np.ndarray, labels: np.ndarray) -> None:
        """Write uint8 (n, H, W, C)."""
        for index, image in zip(indices, images, strict=True):
            save_png(self.path(index), image)

    def finish(self) -> None:
        """Nothing is left to do."""

    def clear(self) -> None:
        """Remove what an earlier job wrote."""
        for path in self.out.glob("[0-9]" * 6 + ".png"):
            path.unlink()


class NpzSamples:
    """``samples.npz`` with ``arr_0``, uint8 (N, H, W, C), and ``arr_1``, labels (N,).

    Images go to a memory-mapped file until all are there, so that 50,000 need no more memory than 500.

    Args:
        out: the folder.
        count: images in all.
    """

    def __init__(self, out: Path, count: int) -> None:
        self.out, self.count = out, count
        self.final = out / "samples.npz"
        self.images = out / "samples-images.partial.npy"
        self.labels = out / "samples-labels.partial.npy"
        self.progress = out / "samples-progress.json"
        self._done: set[int] | None = None

    def missing(self) -> list[int]:
        """Images that are not there yet."""
        if self.final.exists():
            return []
        done: set[int] = set()
        if self.images.exists() and self.labels.exists() and self.progress.exists():
            done = {i for a, b in json.loads(self.progress.read_text()) for i in range(a, b)}
        return [i for i in range(self.count) if i not in done]

    def present(self) -> bool:
        """Whether anything is there."""
        return self.final.exists() or self.images.exists()

    def write(self, indices: Sequence[int], images: np.ndarray, labels: np.ndarray) -> None:
        """Write uint8 (n, H, W, C), then note that these are there."""
        if not indices:
            return
        if self._done is None:
            self._done = set(range(self.count)) - set(self.missing())
        self._done |= set(indices)
        self.out.mkdir(parents=True, exist_ok=True)
        for path, values, dtype in ((self.images, images, np.uint8), (self.labels, labels, np.int64)):
            if not path.exists():
                _make_room(path, (self.count, *values.shape[1:]), dtype)
            mapped = np.lib.format.open_memmap(path, mode="r+")
            mapped[list(indices)] = values
            mapped.flush()
            del mapped
        write_json(self.progress, _runs(sorted(self._done)))

    def finish(self) -> None:
        """Put the arrays into ``samples.npz``; the partial files go once no image is missing.

        Images that are missing, because they failed, are left out of both arrays.
        """
        missing = self.missing()
        if self.final.exists() or len(missing) == self.count:
            return
        if missing:
            there = np.setdiff1d(np.arange(self.count), missing)
            arrays = [np.load(path, mmap_mode="r")[there] for path in (self.images, self.labels)]
            with written_beside(self.out / "samples-incomplete.npz") as temporary, temporary.open("wb") as opened:
                np.savez(opened, *arrays)
            return
        with (
            written_beside(self.final) as temporary,
            zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive,
        ):
            archive.write(self.images, "arr_0.npy")
            archive.write(self.labels, "arr_1.npy")
        self._remove_partial()

    def clear(self) -> None:
        """Remove what an earlier job wrote."""
        self.final.unlink(missing_ok=True)
        self._remove_partial()

    def _remove_partial(self) -> None:
        self._done = None
        for path in (self.progress, self.images, self.labels, self.out / "samples-incomplete.npz"):
            path.unlink(missing_ok=True)


def _make_room(path: Path, shape: tuple[int, ...], dtype: type) -> None:
    """A file of zeros for an array, whole or not at all.

    Its blocks are taken at once: writing to a mapped file with holes on a full disk kills the process.
    """
    with written_beside(path) as temporary:
        np.lib.format.open_memmap(temporary, mode="w+", dtype=dtype, shape=shape).flush()
        if hasattr(os, "posix_fallocate"):
            with temporary.open("rb+") as opened:
                os.posix_fallocate(opened.fileno(), 0, temporary.stat().st_size)


def _runs(indices: Sequence[int]) -> list[list[int]]:
    """Sorted whole numbers as runs [first, one past the last], which stay few however many there are."""
    runs: list[list[int]] = []
    for index in indices:
        if runs and runs[-1][1] == index:
            runs[-1][1] = index + 1
        else:
            runs.append([index, index + 1])
    return runs
