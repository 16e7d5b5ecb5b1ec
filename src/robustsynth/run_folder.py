"""A folder that a command writes results to: what it holds, whether this run goes on with it, and what is missing.

``settings.json`` says what decides the results. A folder of the same settings is continued, one of others is refused
or, when asked, replaced; results of another command, and files of unknown origin, are never replaced. Every file is
written beside its name and renamed, so that a folder is whole at every moment.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import zipfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

import robustsynth
from robustsynth.errors import UserError
from robustsynth.files import sha256, write_json, written_beside
from robustsynth.images import save_png
from robustsynth.models.classifier import Classifier
from robustsynth.models.store import WEIGHTS_FILE

SETTINGS_FILE, FIGURE_FILE, UNFINISHED = "settings.json", "figure.png", "unfinished"

SHEETS = (FIGURE_FILE, "grid.png", "atlas.png")
"""Figures that commands draw beside their images, by this and earlier versions."""

NOTHING: Mapping[str, Any] = {}


class RunFolder:
    """The folder of one command's run.

    Args:
        out: the folder; it is made when something is first written.
        asked: what decides the results, as plain values, ``task`` among them.
        overwrite: replace what the same command wrote there with other settings.
        files: of a ``settings.json``, the names of the files that the run which wrote it may have left.
        new_files: names that this run will write; they may not be there without a ``settings.json``.
        defaults: values of keys, or of keys of the mappings in `asked`, that an earlier version did not write.
        ignored: keys of `asked` in which an earlier run may differ.

    Attributes:
        record: what ``settings.json`` says, to be completed and saved.
        earlier: the ``settings.json`` that is continued; empty where the folder is new or replaced.
        begun: whether this run has written to the folder.
        replaces: whether it replaces the results of another run.

    Raises:
        UserError: the folder cannot be written to, or holds something else.
    """

    def __init__(
        self,
        out: Path | str,
        asked: Mapping[str, Any],
        *,
        overwrite: bool = False,
        files: Callable[[Mapping[str, Any]], Iterable[str]] = lambda record: (),
        new_files: Iterable[str] = (),
        defaults: Mapping[str, Any] = NOTHING,
        ignored: Sequence[str] = (),
    ) -> None:
        self.out, self.asked = self.path_of(out), dict(asked)
        there = read_settings(self.out)
        self._files, self._there = files, there
        self.begun = self.replaces = False
        self.earlier: dict[str, Any] = {}
        if there is None:
            found = [name for name in (*new_files, FIGURE_FILE) if (self.out / name).exists()]
            if found and not overwrite:
                raise UserError(
                    f"expected a new folder, but {self.out} holds {found[0]} without {SETTINGS_FILE}; "
                    "choose another --out, or replace it with --overwrite"
                )
            self.replaces = bool(found)
        else:
            task = asked["task"]
            if there.get("task") != task:
                raise UserError(
                    f"expected a folder of {task}, but {self.out} holds results of {there.get('task')}, which are "
                    "never replaced; choose another --out"
                )
            there = dict(there)
            # What an earlier version did not write, with the values that its results were made with.
            for name, value in defaults.items():
                nested = isinstance(value, dict) and isinstance(there.get(name), dict)
                there[name] = value | there[name] if nested else there.get(name, value)
            differing = [name for name in asked if name not in ignored and there.get(name) != asked[name]]
            if differing and not overwrite:
                raise UserError(
                    f"expected a new folder or one of the same settings, but {self.out} holds results of other ones "
                    f"({', '.join(differing)}); choose another --out, or replace them with --overwrite"
                )
            if overwrite:
                self.replaces = True
            else:
                self.earlier = there
        self.record: dict[str, Any] = {**self.earlier, **self.asked}
        self.record.pop("unfinished", None)

    @staticmethod
    def path_of(out: Path | str) -> Path:
        """The folder that ``--out`` names."""
        return Path(out).expanduser()

    def execution(self, precision: str | None, batch_size: int | None) -> tuple[str | None, int | None]:
        """Precision and batch size: those given, else those of the run that is continued.

        Raises:
            UserError: the images that are there were made with others.
        """
        before = self.earlier.get("execution", {})
        if not isinstance(before, dict) or not isinstance(before.get("batch_size", 1), int):
            raise damaged(self.out)
        for name, value in (("precision", precision), ("batch_size", batch_size)):
            if name in before and value not in (None, before[name]):
                raise UserError(
                    f"expected a new folder or one of the same settings, but {self.out} holds results of other ones "
                    f"(precision or batch size: {before[name]}, not {value}); choose another --out, or replace them "
                    "with --overwrite"
                )
        return precision or before.get("precision"), batch_size or before.get("batch_size")

    def begin(self, **record: Any) -> None:
        """Remove what is to be replaced, and write ``settings.json``, before the first result; once."""
        if self.begun:
            return
        self.begun = True
        for name in self._files(self._there or {}) if self.replaces else ():
            path = self.out / name
            # A record may come from anywhere: it must not name files of other folders.
            if path.parent.resolve() in (self.out.resolve(), (self.out / UNFINISHED).resolve()):
                with contextlib.suppress(FileNotFoundError):
                    path.unlink()
        self.save(**record)

    def save(self, **record: Any) -> None:
        """Write ``settings.json`` with these values besides."""
        self.record |= record
        self.record["versions"] = {"robustsynth": robustsynth.__version__, "torch": torch.__version__}
        write_json(self.out / SETTINGS_FILE, self.record)

    def write_text(self, name: str, text: str) -> None:
        """Write a text file."""
        with written_beside(self.out / name) as temporary:
            temporary.write_text(text, encoding="utf-8")

    def png_text(self, **more: Any) -> dict[str, str]:
        """What each PNG carries: model, settings, and what is given, as JSON in a text chunk."""
        chosen = {key: self.record[key] for key in ("task", "model", "settings", "seed") if key in self.record}
        return {
            "Software": f"robustsynth {robustsynth.__version__}",
            "robustsynth": json.dumps(chosen | more, ensure_ascii=False),
        }

    def write_unfinished(self, name: str, image: np.ndarray, text: Mapping[str, str]) -> None:
        """Keep an image (H, W, C) that was under way when the run was stopped; it is made anew when the run goes on."""
        save_png(self.out / UNFINISHED / f"{name}.png", image, text=text)

    def clear_unfinished(self) -> None:
        """Remove the images that were under way; whatever else somebody put beside them stays."""
        for ending in ("png", "gif", "mp4"):
            for path in (self.out / UNFINISHED).glob(f"*.{ending}"):
                path.unlink()
        with contextlib.suppress(OSError):
            (self.out / UNFINISHED).rmdir()


def read_settings(out: Path) -> dict[str, Any] | None:
    """A folder's ``settings.json``; None where it has none.

    Raises:
        UserError: `out` is a file, or the settings are damaged.
    """
    if out.exists() and not out.is_dir():
        raise UserError(f"expected a folder to write to, but {out} is a file; choose another --out")
    try:
        record = json.loads((out / SETTINGS_FILE).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError:
        record = None
    if not isinstance(record, dict):
        raise damaged(out)
    return record


def damaged(out: Path) -> UserError:
    """The error for a ``settings.json`` that this package cannot have written."""
    return UserError(f"expected settings in {out / SETTINGS_FILE}, but it is damaged; choose another --out")


def model_identity(model: Classifier, name: str | None = None) -> dict[str, Any]:
    """What tells a model from another of the same name."""
    weights = None if model.folder is None else model.folder / WEIGHTS_FILE
    return {"name": name or model.name, "sha256": sha256(weights) if weights and weights.exists() else None}


class PngSamples:
    """Numbered images in the folder `out`, a file each: ``000003-cat.png``. `names` have no ending."""

    def __init__(self, out: Path, names: Sequence[str]) -> None:
        self.out, self.names = out, list(names)

    def path(self, index: int) -> Path:
        """The file of image `index`."""
        return self.out / f"{self.names[index]}.png"

    def missing(self) -> list[int]:
        """Images that are not there yet."""
        return [i for i in range(len(self.names)) if not self.path(i).exists()]

    def present(self) -> list[str]:
        """The files that are there, of any run."""
        return sorted(path.name for path in self.out.glob("*.png") if re.fullmatch(r"\d{6}(-.*)?\.png", path.name))

    def write(
        self, indices: Sequence[int], images: np.ndarray, labels: np.ndarray, texts: Sequence[Mapping[str, str]]
    ) -> None:
        """Write uint8 (n, H, W, C)."""
        for index, image, text in zip(indices, images, texts, strict=True):
            save_png(self.path(index), image, text=text)

    def finish(self) -> None:
        """Nothing is left to do."""


class NpzSamples:
    """``samples.npz`` with ``arr_0``, uint8 (N, H, W, C), and ``arr_1``, labels (N,).

    Images go to a memory-mapped file until all are there, so that 50,000 need no more memory than 500. Of `names`, only
    the number matters here.
    """

    FILES = ("samples.npz", "samples-images.partial.npy", "samples-labels.partial.npy", "samples-progress.json")

    def __init__(self, out: Path, names: Sequence[str]) -> None:
        self.out, self.count = out, len(names)
        self.final, self.images, self.labels, self.progress = (out / name for name in self.FILES)
        self._done: set[int] | None = None

    def missing(self) -> list[int]:
        """Images that are not there yet."""
        if self.final.exists():
            return []
        done: set[int] = set()
        if self.images.exists() and self.labels.exists() and self.progress.exists():
            done = {i for a, b in json.loads(self.progress.read_text()) for i in range(a, b)}
        return [i for i in range(self.count) if i not in done]

    def present(self) -> list[str]:
        """The files that are there, of any run."""
        return [name for name in (*self.FILES, "samples-incomplete.npz") if (self.out / name).exists()]

    def write(
        self, indices: Sequence[int], images: np.ndarray, labels: np.ndarray, texts: Sequence[Mapping[str, str]] = ()
    ) -> None:
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
