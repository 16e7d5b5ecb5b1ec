"""What the commands on images do: images in, one PNG for each result, a figure and the settings out."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from robustsynth.cli import progress as runs
from robustsynth.cli.progress import say
from robustsynth.errors import UserError
from robustsynth.files import sha256
from robustsynth.images import LoadedImage, image_files, read_image, save_png, to_uint8
from robustsynth.models.store import load_model
from robustsynth.run_folder import FIGURE_FILE, SETTINGS_FILE, SHEETS, RunFolder, damaged, model_identity
from robustsynth.sheet import MOST_ROWS, fitted, sheet
from robustsynth.solver import Progress
from robustsynth.tasks.call import Call
from robustsynth.tasks.settings import BEST, knows_task
from robustsynth.tasks.task import Task


class ImageFile:
    """An image file as it was given, with the `name` of its results, and `notes` of what was done to read it."""

    def __init__(self, name: str, path: Path, channels: int, notes: Sequence[str] = ()) -> None:
        self.name, self.path, self.channels = name, path, channels
        self.kept: LoadedImage | None = None
        self.kept = self.load()
        self.size = (self.kept.pixels.shape[0], self.kept.pixels.shape[1])
        self.notes = [*self.kept.notes, *notes]

    def load(self) -> LoadedImage:
        """The image, decoded unless it is kept."""
        return self.kept or read_image(self.path, channels=self.channels)


def read_files(paths: Sequence[Path | str], *, channels: int) -> list[ImageFile]:
    """The images of files and folders, in the order given; a folder's by name.

    Two of one name get different ones, ``cat`` and ``cat-2``. Sheets that a command of this package left in a folder
    beside its images are no images. A single image stays decoded; of several, each is decoded again when it is used,
    because a folder may be larger than memory.
    """
    files: list[Path] = []
    for path in map(Path, paths):
        sheets = SHEETS if (path / SETTINGS_FILE).exists() else ()
        files += [f for f in image_files(path) if f.name not in sheets] if path.is_dir() else [path]
    if not files:
        raise UserError("expected one or more image files or folders, got none")
    taken = {Path(FIGURE_FILE).stem}
    found: list[ImageFile] = []
    for file in files:
        name, number = file.stem, 2
        while name in taken:
            name, number = f"{file.stem}-{number}", number + 1
        taken.add(name)
        found.append(ImageFile(name, file, channels, [] if name == file.stem else [f"its result is called {name}"]))
        if len(files) > 1:
            found[-1].kept = None
    return found


class ImageRun:
    """One call of a command on images."""

    def __init__(self, task: Task, images: Sequence[str], options: dict[str, Any]) -> None:
        self.animations = runs.Animations(options["trajectory"])
        self.task, self.options = task, options
        self.model = load_model(options["model_name"], device=options["device"])
        given = {field.name: options[field.name] for field in dataclasses.fields(task.settings)}
        self.settings = task.resolve(self.model, preset=options["preset"], given=given)
        self.images = read_files(images, channels=self.model.channels)
        self.sources: dict[str, np.ndarray] = {}
        self.loaded: tuple[int, Tensor] | None = None
        sizes = [image.size for image in self.images]
        self.call: Call = Call(
            task,
            self.model,
            self.settings,
            sizes,
            self._load,
            files=[image.path for image in self.images],
            decoded={place: image.kept for place, image in enumerate(self.images) if image.kept is not None},
        )
        inputs = self.call.read(options)
        endings, animation = self.call.endings, options["trajectory"]
        self.names = [f"{image.name}{ending}" for image in self.images for ending in endings]
        self.files = [f"{ending}.png" for ending in endings]
        self.all_files = self.files + ([f"{ending}.{animation}" for ending in endings] if animation else [])
        out = RunFolder.path_of(options["out"])
        for image in self.images:
            # Results must not come to lie among the images that they are made of: a name may be theirs.
            if image.path.resolve().parent == out.resolve():
                raise UserError(
                    f"expected another folder than that of the images, but {image.path.name} lies in "
                    f"{options['out']}; choose another --out"
                )
        settings = dataclasses.asdict(self.settings) | inputs
        asked = {"task": task.name, "model": model_identity(self.model), "settings": settings}
        self.folder: RunFolder = RunFolder(
            out,
            asked,
            overwrite=options["overwrite"],
            files=lambda record: _files_of(record, out),
            new_files=[f"{image.name}{file}" for image in self.images for file in self.all_files],
        )
        self.folder.record.pop("pictures", None)
        made = _results_of(self.folder.earlier, out)
        # What version 0.1.0 was stopped at is among the results, and is made anew.
        self.made = {name: record for name, record in made.items() if "stopped_at_step" not in record}
        self.identity = {i.name: {"file": i.path.name, "sha256": sha256(i.path)} for i in self.images}
        for name, identity in self.identity.items():
            if name in self.made and self.made[name].get("sha256") != identity["sha256"]:
                raise UserError(
                    f"expected a new folder or one of the same images, but {self.folder.out} holds a result of another "
                    f"image {name}; choose another --out, or replace it with --overwrite"
                )
        self.call.execute(*self.folder.execution(options["precision"], options["batch_size"]))
        self.missing = [place for place, image in enumerate(self.images) if not self._is_there(image)]
        self.given: dict[str, dict[str, np.ndarray]] = {}
        self.written: set[int] = set()

    def run(self) -> None:
        """Do what is missing, then say what was written; stopped by Ctrl-C, keep what there is and exit with 130."""
        call, folder, animations = self.call, self.folder, self.animations
        self._say()
        missing = set(self.missing)
        wanted = [index for index, place in enumerate(call.sources) if place in missing]
        failures, last = {}, None
        total = len(wanted) * max(self.settings.steps, 1) * call.runs
        with runs.stoppable() as asked:
            for progress in runs.with_bar(call.steps(wanted), total=total, name=self.task.name, asked=asked):
                runs.begin(folder, self.model, call.execution, images=self.made)
                last = progress
                animations.add(progress)
                self._note_given(progress)
                if progress.finished:
                    failures |= progress.failures
                    names = {index: self.names[index] for index in progress.indices if index not in progress.failures}
                    animations.write(folder.out, names, progress)
                    self._write(progress)
            if last is not None and not last.finished:
                self._write_unfinished(last)
            elif last is not None:
                folder.clear_unfinished()
            self._draw()
        self._end(failures)

    def _load(self, index: int) -> Tensor:
        """An image to work on. Neither the figure nor the next batch, which may have more results of it, need decode
        it again."""
        if self.loaded is None or self.loaded[0] != index:
            image = self.images[index]
            decoded = image.load()
            if len(self.sources) < MOST_ROWS:
                self.sources[image.name] = fitted(decoded.pixels)
            self.loaded = index, decoded.tensor
        return self.loaded[1]

    def _say(self) -> None:
        runs.say_run(self.model, dataclasses.asdict(self.settings), self.call.execution)
        preset = self.options["preset"]
        if preset not in (None, BEST) and not knows_task(preset, self.task.name):
            say(f"preset {preset!r} says nothing of {self.task.name}: these are the model's own settings")
        for note in self.call.notes:
            say(note)
        for image in self.images:
            if image.notes:
                say(f"{image.path.name}: {', '.join(image.notes)}")
        if len(self.missing) < len(self.images):
            say(f"{len(self.images) - len(self.missing)} of {len(self.images)} images are there already")

    def _end(self, failures: dict[int, int]) -> None:
        done = [place for place in self.missing if self.images[place].name in self.made]
        if failures:
            named = [f"{self.names[index]} at step {step}" for index, step in sorted(failures.items())]
            raise runs.not_finite(named, f"the other results are in {self.folder.out}")
        if len(done) < len(self.missing):
            say(f"stopped; {len(done)} of {len(self.missing)} images are in {self.folder.out}")
            runs.stop("what was under way is in its folder unfinished; the same command goes on")
        shown = "them" if len(self.images) <= MOST_ROWS else f"the first {MOST_ROWS}"
        say(f"wrote {len(done)} images to {self.folder.out}; figure.png shows {shown}")

    def _note_given(self, progress: Progress) -> None:
        """What the task worked from, to be shown in the figure beside the source."""
        if progress.step or progress.run or len(self.given) >= MOST_ROWS:
            return
        given = {title: to_uint8(images) for title, images in progress.stated.given.items()}
        for row, index in enumerate(progress.indices):
            name = self.images[self.call.sources[index]].name
            self.given[name] = {title: fitted(images[row]) for title, images in given.items()}

    def _write(self, progress: Progress) -> None:
        """Write the results of a batch, and the record of each image all of whose results are there now."""
        endings, stated = len(self.call.endings), progress.stated
        for row, (index, image) in enumerate(zip(progress.indices, to_uint8(progress.previews), strict=True)):
            if index in progress.failures:
                continue
            self.written.add(index)
            save_png(self.folder.out / f"{self.names[index]}.png", image, text=self._text(progress, row))
            place = self.call.sources[index]
            if self.written.issuperset(range(place * endings, (place + 1) * endings)):
                label = {}
                if stated.labels is not None and "targets" not in self.call.inputs:
                    label = {"label": self.model.classes[int(stated.labels[row])], "predicted": stated.predicted}
                self._record(self.images[place], index, label)

    def _record(self, image: ImageFile, index: int, label: dict[str, Any]) -> None:
        caption = image.name + (f": {label['label']}" if label else "")
        self.made[image.name] = (
            self.identity[image.name]
            | {"size": list(image.size[::-1])}
            | ({"notes": image.notes} if image.notes else {})
            | {"seen": self.call.seen(index)}
            | label
            | {"results": [f"{image.name}{file}" for file in self.all_files]}
            | {"caption": caption + (" (predicted)" if label.get("predicted") else "")}
        )
        self.folder.save(images=self.made)

    def _text(self, progress: Progress, row: int, **more: Any) -> dict[str, str]:
        """What a PNG carries."""
        labels = progress.stated.labels
        named = {} if labels is None else {"class": self.model.classes[int(labels[row])]}
        return self.folder.png_text(**named, **more)

    def _write_unfinished(self, progress: Progress) -> None:
        names = {index: f"unfinished/{self.names[index]}" for index in progress.indices}
        for row, (index, image) in enumerate(zip(progress.indices, to_uint8(progress.previews), strict=True)):
            text = self._text(progress, row, stopped_at_step=progress.taken)
            self.folder.write_unfinished(self.names[index], image, text)
        self.animations.write(self.folder.out, names, progress)
        self.folder.save(unfinished={self.names[index]: progress.taken for index in progress.indices})

    def _draw(self) -> None:
        """The first images that there are results of, also of earlier runs."""
        shown = [image for image in self.images if image.name in self.made and self._is_there(image, self.files)]
        titles = list(dict.fromkeys(title for given in self.given.values() for title in given))
        rows: list[list[np.ndarray]] = []
        for image in shown[:MOST_ROWS]:
            source, given = self.sources.get(image.name), self.given.get(image.name, {})
            source = fitted(image.load().pixels) if source is None else source
            results = [fitted(read_image(self.folder.out / f"{image.name}{file}").pixels) for file in self.files]
            rows.append([source, *(given.get(title, source) for title in titles), *results])
        if rows:
            named = [ending.lstrip("-").replace("_", " ") or "result" for ending in self.call.endings]
            captions = [self.made[image.name].get("caption") or image.name for image in shown[:MOST_ROWS]]
            figure = sheet(
                rows, titles=["source", *titles, *named], captions=captions, classes=self.model.classes, cell=224
            )
            save_png(self.folder.out / "figure.png", figure)

    def _is_there(self, image: ImageFile, files: Sequence[str] | None = None) -> bool:
        files = self.all_files if files is None else files
        return image.name in self.made and all((self.folder.out / f"{image.name}{file}").exists() for file in files)


def _results_of(record: Any, out: Path) -> dict[str, Any]:
    """What a run of this record made, by image. A damaged record is refused."""
    found: dict[str, Any] = {}
    for key in ("pictures", "images"):  # The first is version 0.1.0's.
        made = record.get(key, {})
        if not isinstance(made, dict) or not all(isinstance(each, dict) for each in made.values()):
            raise damaged(out)
        for each in made.values():
            named = each.get("results", [])
            if not isinstance(named, list) or any(not isinstance(x, str) for x in [*named, each.get("caption", "")]):
                raise damaged(out)
        found |= made
    return found


def _files_of(record: Any, out: Path) -> list[str]:
    """What a run of this record wrote."""
    made = _results_of(record, out)
    return [file for name, each in made.items() for file in each.get("results", [f"{name}.png"])]
