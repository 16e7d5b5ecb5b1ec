"""The cache of decoded images: images.npy, labels.npy and meta.json in a folder named by what they were made from.

The folder is made under another name and renamed when it is complete: several processes may make it at once, and one
that is killed leaves nothing that could be taken for data.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image

from robustsynth.data.rows import ImageData, Row, Source, decode, plan
from robustsynth.data.specs import DATASETS, described
from robustsynth.errors import UserError
from robustsynth.files import cache_folder, write_json

FORMAT = 1  # raise it when decoding changes, and everything is decoded anew
_BATCH = 512
_ENOUGH = 100  # unreadable images after which the rest is not looked at
_DAY = 24 * 60 * 60
_BUILDING = ".building-"


def decoded(
    source: Source, *, image_size: int | None, channels: int | None, announce: Callable[[str], object]
) -> ImageData:
    """The source's images, decoded now or at an earlier time."""
    folder = decoded_folder(source, image_size=image_size, channels=channels)
    home = folder.parent
    if folder.exists():
        # Somebody may have deleted part of it to free space.
        with contextlib.suppress(OSError, ValueError, EOFError, KeyError, TypeError):
            return _read(folder)
        shutil.rmtree(folder, ignore_errors=True)
    _remove_abandoned(home)
    with tempfile.TemporaryDirectory(prefix=_BUILDING, dir=home, ignore_cleanup_errors=True) as temporary:
        _build(source, Path(temporary), image_size=image_size, channels=channels, announce=announce)
        try:
            os.rename(temporary, folder)
        except OSError:
            if not folder.exists():
                raise
            # Another process was faster; what it made is the same.
    return _read(folder)


def decoded_folder(source: Source, *, image_size: int | None, channels: int | None) -> Path:
    """Where the source's images are kept, or would be."""
    identity = json.dumps([FORMAT, source.identity, image_size, channels], sort_keys=True)
    readable = re.sub(r"[^\w.-]+", "-", source.label)[:40]
    return cache_folder("data") / f"{readable}-{hashlib.sha256(identity.encode()).hexdigest()[:16]}"


def _read(folder: Path) -> ImageData:
    images = np.load(folder / "images.npy", mmap_mode="r")
    labels = np.load(folder / "labels.npy")
    labels.setflags(write=False)
    meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
    if len(images) != len(labels):
        raise ValueError(f"{folder}: expected as many labels as images, got {len(labels)} and {len(images)}.")
    spec, part = DATASETS.get(meta["spec"]), bool(meta.get("part"))
    facts = described(spec, source=meta["source"], channels=images.shape[-1], part=part)
    return ImageData(images, labels, tuple(meta["classes"]), **facts)


def _build(
    source: Source, folder: Path, *, image_size: int | None, channels: int | None, announce: Callable[[str], object]
) -> None:
    Image.init()  # loads the plugins, which is not safe to do in several threads at once
    contents = source.open()
    if len(contents.classes) < 2:
        raise UserError(
            f"{source.label}: expected at least two classes, got {len(contents.classes)} "
            f"({', '.join(contents.classes) or 'none'}). A classifier needs two to tell apart."
        )
    if not contents.count:
        raise UserError(f"{source.label}: expected images, got an empty split. Choose another.")
    spec, side, depth = plan(contents, source.spec, image_size, channels)
    shape = (contents.count, side, side, depth)
    needed, free = int(np.prod(shape)), shutil.disk_usage(folder).free
    # A memory map on a full disk does not raise: it kills the process.
    if needed > 0.95 * free:
        raise UserError(
            f"expected {needed / 1e9:.1f} GB of free space for the decoded images, got {free / 1e9:.1f} GB in "
            f"{folder.parent}. Free some, set ROBUSTSYNTH_CACHE to another disk, or ask for a smaller image_size."
        )
    if contents.count >= 1000:
        announce(f"decoding {contents.count} images of {source.label} once, to {side}×{side}")
    images = np.lib.format.open_memmap(folder / "images.npy", mode="w+", dtype=np.uint8, shape=shape)
    labels = np.empty(contents.count, dtype=np.int64)
    unreadable: dict[int, tuple[str, UserError]] = {}

    def fill(indexed: tuple[int, Row]) -> None:
        index, row = indexed
        if row.label is None or not 0 <= row.label < len(contents.classes):
            raise UserError(
                f"{row.where}: expected a label from 0 to {len(contents.classes) - 1}, got {row.label}. "
                "Take unlabelled images out of the data, or choose a labelled split."
            )
        labels[index] = row.label
        try:
            images[index] = decode(row, image_size=side, channels=depth)
        except UserError as error:
            # All are reported at once: decoding a large set again for each one would take days.
            unreadable[index] = (row.where, error)

    # Pillow decodes outside the interpreter's lock, so threads help; a batch bounds the bytes in flight.
    rows = enumerate(contents.rows())
    with ThreadPoolExecutor(max_workers=min(4, os.cpu_count() or 1)) as pool:
        while len(unreadable) < _ENOUGH and (batch := list(itertools.islice(rows, _BATCH))):
            for _ in pool.map(fill, batch):
                pass
    if unreadable:
        raise _one_error([unreadable[index] for index in sorted(unreadable)])
    images.flush()
    np.save(folder / "labels.npy", labels)
    meta = {"classes": contents.classes, "source": source.label, "spec": spec.name if spec else None}
    write_json(folder / "meta.json", meta | {"part": bool(contents.part_of)})


def _one_error(unreadable: list[tuple[str, UserError]]) -> UserError:
    """One error of all images that cannot be decoded: the first one's, the number of others, and some of them."""
    (_, first), *others = unreadable
    if not others:
        return first
    many = f"At least {len(others)}" if len(unreadable) >= _ENOUGH else str(len(others))
    such = ", ".join(where for where, _ in others[:5]) + (", …" if len(others) > 5 else "")
    return UserError(f"{first} {many} more cannot be decoded either: {such}")


def _remove_abandoned(home: Path) -> None:
    """Remove what a killed process left behind. A day is far more than any build takes."""
    for folder in home.glob(f"{_BUILDING}*"):
        with contextlib.suppress(OSError):  # another process may be removing it too
            newest = max(path.stat().st_mtime for path in [folder, *folder.iterdir()])
            if time.time() - newest > _DAY:
                shutil.rmtree(folder, ignore_errors=True)
