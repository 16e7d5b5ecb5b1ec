"""Generation to disk: jobs of any size in little memory, that go on where they were stopped."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import robustsynth
from robustsynth.errors import UserError
from robustsynth.files import sha256, write_json
from robustsynth.images import display_scale, grid, load_picture, save_png, to_uint8
from robustsynth.loop import Step
from robustsynth.models.classifier import Classifier
from robustsynth.models.execution import Execution, machine_name
from robustsynth.models.store import WEIGHTS_FILE
from robustsynth.processes import ALONE, Workers
from robustsynth.tasks.batches import Batch
from robustsynth.tasks.generate import generate_batches
from robustsynth.tasks.samples import NpzSamples, PngSamples
from robustsynth.tasks.settings import GenerateSettings
from robustsynth.tasks.starts import start_identity
from robustsynth.tasks.targets import check_targets, main_classes, named

SETTINGS_FILE, UNFINISHED = "settings.json", "unfinished"

GRID_IMAGES = 200
"""Images that a grid shows at most; nobody looks at 50,000."""


def spread_labels(classes: Sequence[int], num: int) -> Tensor:
    """`num` labels spread evenly over `classes`, grouped by class; the first classes get what is left over.

    Raises:
        UserError: fewer than one image.

    Example:
        >>> spread_labels([3, 8], 5).tolist()
        [3, 3, 3, 8, 8]
    """
    if num < 1:
        raise UserError(f"expected 1 or more images, got {num}")
    each, over = divmod(num, len(classes))
    counts = torch.tensor([each + (place < over) for place in range(len(classes))])
    return torch.repeat_interleave(torch.tensor(list(classes)), counts)


class GenerateJob:
    """A generation that writes to a folder.

    Args:
        model: a classifier.
        labels: (N,) class indices, or (N, K) weights of mixes, for which ``arr_1`` has the class that weighs most.
        settings: resolved ones.
        out: folder to write to.
        seed: of the job.
        file_format: ``png``, one file an image and a grid, or ``npz``, one file with ``arr_0`` uint8 NHWC and
            ``arr_1`` labels.
        precision: measured, or taken from the folder's earlier part, where None.
        batch_size: likewise.
        overwrite: begin again where the folder holds a job.
        ensemble: further classifiers, as for `generate`.
        workers: processes that draw one job together, this one among them; within ``workers.joined``.

    Attributes:
        done: images that are there already.
        record: what ``settings.json`` says.

    Raises:
        UserError: the folder holds a job of other settings.
    """

    def __init__(
        self,
        model: Classifier,
        labels: Tensor,
        settings: GenerateSettings,
        out: Path | str,
        *,
        seed: int = 0,
        file_format: str = "png",
        precision: str | None = None,
        batch_size: int | None = None,
        overwrite: bool = False,
        ensemble: Sequence[Classifier] = (),
        workers: Workers = ALONE,
    ) -> None:
        self.workers = workers
        self.model, self.settings, self.out, self.seed = model, settings, Path(out), seed
        self.targets, self.ensemble = check_targets(labels, model), tuple(ensemble)
        self.labels = main_classes(self.targets)
        self.names = [named(target, model.classes) for target in self.targets]
        earlier = _read_record(self.out)
        asked = self._asked(file_format)
        same = earlier is not None and {k: earlier.get(k) for k in asked} == asked
        kind = NpzSamples if file_format == "npz" else PngSamples
        self.samples = kind(self.out, len(labels))
        if same and earlier is not None:
            # What was measured when the job began holds to its end, so that its images are of one kind.
            for name, value in (("precision", precision), ("batch_size", batch_size)):
                same = same and value in (None, earlier["execution"][name])
        if earlier is not None and (overwrite or not same):
            if not overwrite:
                differing = [k for k in asked if earlier.get(k) != asked[k]] or ["precision or batch size"]
                raise UserError(
                    f"expected a new folder or one with the same settings, but {self.out} holds images of other "
                    f"settings ({', '.join(differing)}); choose another --out, or replace them with --overwrite"
                )
            if workers.first:
                self._clear()
        elif earlier is None and self.samples.present():
            raise UserError(
                f"expected a new folder, but {self.out} holds pictures without {SETTINGS_FILE}; choose another --out"
            )
        if same and earlier is not None and not overwrite:
            precision = precision or earlier["execution"]["precision"]
            batch_size = batch_size or earlier["execution"]["batch_size"]
        # As the first process measures it, or images would be of two kinds.
        self.execution: Execution = workers.agreed(
            lambda: model.frozen(precision=precision, batch_size=batch_size).execution
        )
        self.record = asked | {
            "execution": self.execution.as_dict(),
            "machine": machine_name(model.device),
            "versions": {"robustsynth": robustsynth.__version__, "torch": torch.__version__},
        }
        workers.wait()  # Until the folder is as they all shall find it.
        self.missing = self.samples.missing()
        workers.wait()  # Or one might find what another has drawn already, and share out another rest.

    @property
    def done(self) -> int:
        """Images that are there already."""
        return len(self.labels) - len(self.missing)

    @property
    def to_draw(self) -> int:
        """Images that this process is to draw."""
        return len(self._mine())

    def run(
        self,
        on_step: Callable[[Sequence[int], Step], object] | None = None,
        on_batch: Callable[[Batch], object] | None = None,
    ) -> bool:
        """Draw what is missing. It can be stopped at any moment and run again.

        Args:
            on_step: called with the indices of a batch and each `Step` of it; returning False stops the job there.
                Images that were under way are kept as they are in the folder ``unfinished`` until they are drawn.
            on_batch: called with each batch that is done, before its images are written.

        Returns:
            Whether it came to its end.

        Raises:
            UserError: some images met a NaN or an infinity; all others are written.
        """
        batches = generate_batches(
            self.model,
            self.targets,
            self.settings,
            seed=self.seed,
            precision=self.execution.precision,
            batch_size=self.execution.batch_size,
            wanted=self._mine(),
            on_step=on_step,
            ensemble=self.ensemble,
        )
        # Only now that all that can be refused beforehand has been: a folder should not hold settings of nothing.
        if self.workers.first:
            write_json(self.out / SETTINGS_FILE, self.record)
        failures: dict[int, int] = {}
        unfinished = PngSamples(self.out / UNFINISHED, len(self.labels))
        stopped = False
        for batch in self._to_write(_told(batches, on_batch)):
            if batch.stopped is not None:
                stopped = True
                unfinished.write(batch.indices, to_uint8(batch.images), self.labels[list(batch.indices)].numpy())
                break
            whole = [place for place, index in enumerate(batch.indices) if index not in batch.failures]
            chosen = [batch.indices[place] for place in whole]
            self.samples.write(chosen, to_uint8(batch.images[whole]), self.labels[chosen].numpy())
            failures |= batch.failures
        stopped = self.workers.any(stopped)[0]
        failures = {index: step for each in self.workers.gathered(failures) for index, step in each.items()}
        if self.workers.first:
            self._finish(unfinished, stopped)
        self.workers.wait()
        self.missing = self.samples.missing()
        if failures:
            named = ", ".join(f"image {i} at step {k}" for i, k in sorted(failures.items())[:5])
            raise UserError(
                f"expected finite numbers, got NaN or infinity for {named}; the other "
                f"{len(self.labels) - len(failures)} images are in {self.out}. "
                "Try --precision float32 or a smaller --step-size"
            )
        return not stopped

    def _clear(self) -> None:
        """Remove what is there, of either format, or pictures of other settings would stay beside the new ones."""
        for made in (PngSamples, NpzSamples):
            made(self.out, len(self.labels)).clear()
        PngSamples(self.out / UNFINISHED, len(self.labels)).clear()
        (self.out / "grid.png").unlink(missing_ok=True)

    def _mine(self) -> list[int]:
        """What this process is to draw: every so many whole batches of what is missing."""
        size = self.execution.batch_size
        starts = self.workers.share(range(0, len(self.missing), size))
        return [index for start in starts for index in self.missing[start : start + size]]

    def _to_write(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """The batches that this process writes: its own, each of which has files of its own; but all of them, in the
        first process, where all go into one file."""
        if self.workers.alone or isinstance(self.samples, PngSamples):
            yield from batches
            return
        while True:
            done = [batch for batch in self.workers.gathered(next(batches, None)) if batch is not None]
            stops = [batch for batch in done if batch.stopped is not None]
            if self.workers.first:
                # One that was stopped ends the writing, so that it comes last.
                yield from (batch for batch in done if batch.stopped is None)
                yield from stops
            if stops or not done:
                return

    def _finish(self, unfinished: PngSamples, stopped: bool) -> None:
        """What follows the last batch: the grid, and the one file of all."""
        if not stopped and unfinished.present():
            unfinished.clear()
            with contextlib.suppress(OSError):  # Whatever else somebody put there stays.
                unfinished.out.rmdir()
        if isinstance(self.samples, PngSamples) and self.samples.present():
            self._draw_grid(self.samples)
        if not stopped:
            self.samples.finish()

    def _asked(self, file_format: str) -> dict[str, Any]:
        return {
            "task": "generate",
            "model": _identity(self.model),
            "ensemble": [_identity(other) for other in self.ensemble] or None,
            "classes": list(dict.fromkeys(self.names)),
            "num": len(self.labels),
            "labels_sha256": hashlib.sha256(self.targets.numpy().tobytes()).hexdigest(),
            "seed": self.seed,
            "format": file_format,
            "settings": dataclasses.asdict(self.settings),
        } | start_identity(self.settings)

    def _draw_grid(self, samples: PngSamples) -> None:
        """A row for each class or mix, as many as fit."""
        rows = [[i for i, name in enumerate(self.names) if name == row] for row in dict.fromkeys(self.names)]
        columns = max(1, min(max(map(len, rows)), GRID_IMAGES // len(rows), 16))
        size = self.model.image_size or load_picture(next(samples.out.glob("[0-9]*.png"))).shape[0]
        # White where a class has an image fewer than another, or where one failed.
        shown = np.full((len(rows) * columns, size, size, self.model.channels), 255, dtype=np.uint8)
        for row, indices in enumerate(rows):
            for column, index in enumerate(indices[:columns]):
                if (file := samples.path(index)).exists():
                    shown[row * columns + column] = load_picture(file, channels=self.model.channels)
        save_png(self.out / "grid.png", grid(shown, columns=columns, enlarge=display_scale(size)))


def _told(batches: Iterator[Batch], on_batch: Callable[[Batch], object] | None) -> Iterator[Batch]:
    """The batches, each of which `on_batch` is told of where it came to its end."""
    for batch in batches:
        if on_batch is not None and batch.stopped is None:
            on_batch(batch)
        yield batch


def _identity(model: Classifier) -> dict[str, Any]:
    """What tells a model from another of the same name."""
    weights = None if model.folder is None else model.folder / WEIGHTS_FILE
    return {"name": model.name, "sha256": sha256(weights) if weights and weights.exists() else None}


def _read_record(out: Path) -> dict[str, Any] | None:
    if out.exists() and not out.is_dir():
        raise UserError(f"expected a folder to write to, but {out} is a file; choose another --out")
    try:
        record = json.loads((out / SETTINGS_FILE).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError:
        record = None
    if not isinstance(record, dict):
        raise UserError(f"expected settings in {out / SETTINGS_FILE}, but it is damaged; choose another --out")
    if isinstance(settings := record.get("settings"), dict):
        # Written before a setting was there, it was drawn as with what that setting's default is.
        record["settings"] = {f.name: f.default for f in dataclasses.fields(GenerateSettings)} | settings
    return record
