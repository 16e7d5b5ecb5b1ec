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
from robustsynth.images import load_picture_with_notes, picture_files, save_png
from robustsynth.models.classifier import Classifier
from robustsynth.models.execution import machine_name
from robustsynth.models.files import WEIGHTS_FILE
from robustsynth.tasks.figures import figure

SETTINGS_FILE, FIGURE_FILE = "settings.json", "figure.png"


@dataclass(frozen=True, eq=False)
class Picture:
    """A picture as it was given.

    Attributes:
        name: of its output, without ending.
        path: of its file.
        image: uint8 (H, W, C).
        notes: what was done to read it, such as "turned upright".
    """

    name: str
    path: Path
    image: np.ndarray
    notes: tuple[str, ...] = ()


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

    Two of one name get different ones, ``cat`` and ``cat-2``.

    Raises:
        UserError: a file or folder that is not there or cannot be read; it is named.
    """
    files: list[Path] = []
    for path in map(Path, paths):
        files += picture_files(path) if path.is_dir() else [path]
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
        found.append(Picture(name, file, image, tuple(notes)))
    return found


class PictureJob:
    """A task's run over pictures that can be stopped at any moment; run again, it goes on with those left.

    Args:
        task: its name.
        model: that it uses.
        pictures: from `read_pictures`.
        settings: resolved ones and whatever else decides the results, as plain values.
        out: folder to write to.
        endings: of the result files of each picture; ``("",)`` for one result with the picture's own name.
        overwrite: begin again where the folder holds a job of other settings.

    Attributes:
        missing: pictures whose results are not all there.
        record: what ``settings.json`` says.

    Raises:
        UserError: the folder holds a job of other settings.
    """

    def __init__(
        self,
        task: str,
        model: Classifier,
        pictures: Sequence[Picture],
        settings: dict[str, Any],
        out: Path | str,
        *,
        endings: Sequence[str] = ("",),
        overwrite: bool = False,
    ) -> None:
        self.pictures, self.out, self.endings = list(pictures), Path(out), tuple(endings)
        weights = None if model.folder is None else model.folder / WEIGHTS_FILE
        asked: dict[str, Any] = {
            "task": task,
            "model": {"name": model.name, "sha256": sha256(weights) if weights and weights.exists() else None},
            "settings": settings,
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
        if earlier is None and not overwrite and (there := [p for p in self.pictures if self._there(p)]):
            raise UserError(
                f"expected a new folder, but {self.out} holds {there[0].name}.png without {SETTINGS_FILE}; "
                "choose another --out, or replace it with --overwrite"
            )
        kept = made_before if same and not overwrite else {}
        self.record = asked | {
            "machine": machine_name(model.device),
            "versions": {"robustsynth": robustsynth.__version__, "torch": torch.__version__},
            "pictures": dict(kept),
        }
        self.inputs = inputs
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
        made: dict[str, Made] = {}
        whole = True
        for chunk in self._chunks(batch_size):
            results = solve(chunk)
            for result in results:
                self._write(result)
                made[result.picture.name] = result
                whole = whole and "stopped_at_step" not in result.record
            whole = whole and len(results) == len(chunk)
            if not whole:
                break
        self._draw([made[p.name] for p in self.pictures if p.name in made])
        return whole

    def _chunks(self, batch_size: int) -> Iterator[list[Picture]]:
        by_size: dict[tuple[int, ...], list[Picture]] = {}
        for picture in self.missing:
            by_size.setdefault(picture.image.shape, []).append(picture)
        for same in by_size.values():
            for start in range(0, len(same), batch_size):
                yield same[start : start + batch_size]

    def _write(self, made: Made) -> None:
        for ending, image in made.results.items():
            save_png(self.out / f"{made.picture.name}{ending}.png", image)
        height, width = made.picture.image.shape[:2]
        notes = {"notes": list(made.picture.notes)} if made.picture.notes else {}
        self.record["pictures"][made.picture.name] = (
            self.inputs[made.picture.name] | {"size": [width, height]} | notes | made.record
        )
        write_json(self.out / SETTINGS_FILE, self.record)

    def _draw(self, made: Sequence[Made]) -> None:
        if not made:
            return
        first = made[0]
        titles = ["source", *first.given, *(ending.lstrip("-") or "result" for ending in first.results)]
        rows = [[m.picture.image, *m.given.values(), *m.results.values()] for m in made]
        captions = [m.caption or m.picture.name for m in made]
        save_png(self.out / FIGURE_FILE, figure(rows, titles, captions))

    def _there(self, picture: Picture) -> bool:
        return all((self.out / f"{picture.name}{ending}.png").exists() for ending in self.endings)

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
