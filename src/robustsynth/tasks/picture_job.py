"""A task on picture files, written to a folder: one PNG each, a figure, and the settings."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

import robustsynth
from robustsynth.errors import UserError
from robustsynth.files import sha256, write_json
from robustsynth.images import load_picture, load_picture_with_notes, picture_files, save_png
from robustsynth.models.classifier import Classifier
from robustsynth.models.execution import machine_name
from robustsynth.models.store import WEIGHTS_FILE
from robustsynth.tasks.figures import MOST_ROWS, figure, fitted

SETTINGS_FILE, FIGURE_FILE = "settings.json", "figure.png"

SHEETS = (FIGURE_FILE, "grid.png", "atlas.png")
"""What jobs draw beside their pictures."""


@dataclass(frozen=True, eq=False)
class Picture:
    """A picture as it was given.

    Attributes:
        name: of its output, without ending.
        path: of its file.
        size: (H, W).
        channels: 1 or 3, that it is read with.
        notes: what was done to read it, such as "turned upright".
    """

    name: str
    path: Path
    size: tuple[int, int]
    channels: int
    notes: tuple[str, ...] = ()

    @property
    def image(self) -> np.ndarray:
        """uint8 (H, W, C), read each time: a folder of photographs may be larger than memory."""
        return load_picture(self.path, channels=self.channels)


@dataclass(eq=False)
class Made:
    """What became of a picture.

    Attributes:
        picture: it was made from.
        results: uint8 (h, w, C), by the ending of the file's name: "" for just the picture's own.
        given: what the task saw, shown beside the source in the figure, by title.
        caption: under its row of the figure.
        record: for ``settings.json``.
    """

    picture: Picture
    results: dict[str, np.ndarray]
    given: dict[str, np.ndarray] = field(default_factory=dict)
    caption: str = ""
    record: dict[str, Any] = field(default_factory=dict)


def read_pictures(paths: Sequence[Path | str], *, channels: int) -> list[Picture]:
    """The pictures of files and folders, in the order given; a folder's by name.

    Two of one name get different ones, ``cat`` and ``cat-2``. Sheets that a job of this package left in a folder beside
    its pictures are no pictures.

    Raises:
        UserError: a file or folder that is not there or cannot be read; it is named.
    """
    files: list[Path] = []
    for path in map(Path, paths):
        files += _of_folder(path) if path.is_dir() else [path]
    if not files:
        raise UserError("expected one or more picture files or folders, got none")
    taken: set[str] = set()
    found: list[Picture] = []
    for file in files:
        name, number = file.stem, 2
        while name in taken or name == Path(FIGURE_FILE).stem:
            name, number = f"{file.stem}-{number}", number + 1
        taken.add(name)
        image, notes = load_picture_with_notes(file, channels=channels)
        if name != file.stem:
            notes = [*notes, f"its result is called {name}"]
        found.append(Picture(name, file, (image.shape[0], image.shape[1]), channels, tuple(notes)))
    return found


def _of_folder(folder: Path) -> list[Path]:
    sheets = SHEETS if (folder / SETTINGS_FILE).exists() else ()
    return [file for file in picture_files(folder) if file.name not in sheets]


class PictureJob:
    """A task's run over pictures that can be stopped at any moment; run again, it goes on with those left.

    Args:
        task: its name.
        model: that it uses.
        pictures: from `read_pictures`.
        settings: resolved ones and whatever else decides the results, as plain values.
        out: folder to write to.
        execution: what the results are computed in; recorded, and the same when a job goes on.
        endings: of the result files of each picture; ``("",)`` for one result with the picture's own name.
        animation: ending of the film of each result, ``.gif`` or ``.mp4``; None for none.
        overwrite: begin again where the folder holds a job of other settings.

    Attributes:
        missing: pictures whose results are not all there.
        record: what ``settings.json`` says.

    Raises:
        UserError: the folder holds a job of other settings, or one of the pictures.
    """

    def __init__(
        self,
        task: str,
        model: Classifier,
        pictures: Sequence[Picture],
        settings: dict[str, Any],
        out: Path | str,
        *,
        execution: dict[str, Any] | None = None,
        endings: Sequence[str] = ("",),
        animation: str | None = None,
        overwrite: bool = False,
    ) -> None:
        self.pictures, self.out = list(pictures), Path(out)
        self.endings = tuple(f"{ending}.png" for ending in endings)
        self.files = self.endings + (tuple(f"{ending}{animation}" for ending in endings) if animation else ())
        self._refuse_sources()
        weights = None if model.folder is None else model.folder / WEIGHTS_FILE
        asked: dict[str, Any] = {
            "task": task,
            "model": {"name": model.name, "sha256": sha256(weights) if weights and weights.exists() else None},
            "settings": settings,
            "execution": execution or {},
        }
        inputs = {p.name: {"file": p.path.name, "sha256": sha256(p.path)} for p in self.pictures}
        earlier = self._earlier()
        made_before: dict[str, Any] = {} if earlier is None else earlier.get("pictures", {})
        same = earlier is not None and all(earlier.get(k) == v for k, v in asked.items())
        clash = [n for n, i in inputs.items() if n in made_before and made_before[n].get("sha256") != i["sha256"]]
        if earlier is not None and not overwrite and (not same or clash):
            differing = [k for k, v in asked.items() if earlier.get(k) != v] or [f"the picture {clash[0]}"]
            raise UserError(
                f"expected a new folder or one of the same settings, but {self.out} holds results of other ones "
                f"({', '.join(differing)}); choose another --out, or replace them with --overwrite"
            )
        if earlier is not None and earlier.get("task") != task:
            raise UserError(
                f"expected a folder of {task}, but {self.out} holds results of {earlier.get('task')}, which are never "
                "replaced; choose another --out"
            )
        if earlier is None and not overwrite and (there := self._present()):
            raise UserError(
                f"expected a new folder, but {self.out} holds {there[0]} without {SETTINGS_FILE}; "
                "choose another --out, or replace it with --overwrite"
            )
        if overwrite:
            for name, record in made_before.items():
                for file in record.get("results", [f"{name}.png"]):
                    (self.out / file).unlink(missing_ok=True)
        kept = made_before if same and not overwrite else {}
        self.record = asked | {
            "machine": machine_name(model.device),
            "versions": {"robustsynth": robustsynth.__version__, "torch": torch.__version__},
            "pictures": dict(kept),
        }
        self.inputs = inputs
        self._given: dict[str, dict[str, np.ndarray]] = {}
        finished = {n for n, r in kept.items() if "stopped_at_step" not in r}
        self.missing = [p for p in self.pictures if p.name not in finished or not self._there(p)]

    def run(self, solve: Callable[[Sequence[Picture]], list[Made]], *, batch_size: int) -> bool:
        """Solve what is missing, pictures of one size together, writing each batch when it is done.

        Args:
            solve: of pictures of one size; fewer results than pictures mean that it was stopped.
            batch_size: pictures at a time.

        Returns:
            Whether it came to its end.
        """
        self.out.mkdir(parents=True, exist_ok=True)
        whole = True
        for chunk in self._chunks(batch_size):
            results = solve(chunk)
            for result in results:
                self._write(result)
                whole = whole and "stopped_at_step" not in result.record
            whole = whole and len(results) == len(chunk)
            if not whole:
                break
        self._draw()
        return whole

    def _chunks(self, batch_size: int) -> Iterator[list[Picture]]:
        by_size: dict[tuple[int, int], list[Picture]] = {}
        for picture in self.missing:
            by_size.setdefault(picture.size, []).append(picture)
        for same in by_size.values():
            for start in range(0, len(same), batch_size):
                yield same[start : start + batch_size]

    def _write(self, made: Made) -> None:
        name = made.picture.name
        for ending, image in made.results.items():
            save_png(self.out / f"{name}{ending}.png", image)
        height, width = made.picture.size
        notes = {"notes": list(made.picture.notes)} if made.picture.notes else {}
        files = {"results": [f"{name}{file}" for file in self.files if (self.out / f"{name}{file}").exists()]}
        self.record["pictures"][name] = (
            self.inputs[name] | {"size": [width, height]} | notes | made.record | files | {"caption": made.caption}
        )
        write_json(self.out / SETTINGS_FILE, self.record)
        if len(self._given) < MOST_ROWS:
            self._given[name] = {title: fitted(given) for title, given in made.given.items()}

    def _draw(self) -> None:
        """The first pictures that there are results of, also of earlier runs."""
        shown = [p for p in self.pictures if p.name in self.record["pictures"] and self._drawn(p)]
        rows, captions = [], []
        titles = [title for given in self._given.values() for title in given]
        titles = list(dict.fromkeys(titles))
        for picture in shown[:MOST_ROWS]:
            given = self._given.get(picture.name, {})
            source = fitted(picture.image)
            results = [fitted(load_picture(self.out / f"{picture.name}{file}", channels=3)) for file in self.endings]
            rows.append([source, *(given.get(title, source) for title in titles), *results])
            captions.append(self.record["pictures"][picture.name].get("caption") or picture.name)
        if rows:
            named = [file.removesuffix(".png").lstrip("-").replace("_", " ") or "result" for file in self.endings]
            save_png(self.out / FIGURE_FILE, figure(rows, ["source", *titles, *named], captions))

    def _drawn(self, picture: Picture) -> bool:
        return all((self.out / f"{picture.name}{file}").exists() for file in self.endings)

    def _there(self, picture: Picture) -> bool:
        return all((self.out / f"{picture.name}{file}").exists() for file in self.files)

    def _present(self) -> list[str]:
        names = [f"{p.name}{file}" for p in self.pictures for file in self.files]
        return [name for name in (*names, FIGURE_FILE) if (self.out / name).exists()]

    def _refuse_sources(self) -> None:
        """Results must not come to lie among the pictures that they are made of: a name may be theirs."""
        for picture in self.pictures:
            if picture.path.resolve().parent == self.out.resolve():
                raise UserError(
                    f"expected another folder than that of the pictures, but {picture.path.name} lies in {self.out}; "
                    "choose another --out"
                )

    def _earlier(self) -> dict[str, Any] | None:
        if self.out.exists() and not self.out.is_dir():
            raise UserError(f"expected a folder to write to, but {self.out} is a file; choose another --out")
        try:
            record = json.loads((self.out / SETTINGS_FILE).read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except ValueError:
            record = None
        if not isinstance(record, dict):
            raise UserError(f"expected settings in {self.out / SETTINGS_FILE}, but it is damaged; choose another --out")
        return record
