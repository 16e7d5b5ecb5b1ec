"""``robustsynth generate``"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from robustsynth.cli import progress as runs
from robustsynth.cli.options import in_order, option_of, out_option, parse_classes, run_options, settings_options
from robustsynth.cli.progress import say
from robustsynth.errors import UserError
from robustsynth.tasks.generate import GENERATE, GenerateSettings

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from robustsynth.models.classifier import Classifier
    from robustsynth.processes import Workers
    from robustsynth.solver import Progress

HELP = f"""{GENERATE.summary}

Writes 000000-CLASS.png …, grid.png and settings.json (or samples.npz) into the folder. Stopped by Ctrl-C, it keeps what
is done, and in the folder unfinished what was under way; run again, it goes on. Several processes draw the same images
together: torchrun --nproc-per-node 4 -m robustsynth generate …
"""


def _command(**options: Any) -> None:
    from robustsynth.processes import Workers

    workers = Workers.from_environment()
    device = workers.device(options["device"])
    alone = runs.sole_writer(options["out"]) if workers.first else contextlib.nullcontext()
    with workers.joined(device), workers.errors_reported_once(), alone:
        GenerateRun(options | {"device": device}, workers).run()


_with_options = in_order(
    click.option("--model", "model_name", default="cifar10", show_default=True, help="A bundled name or a folder."),
    *(option_of(option) for each in GENERATE.inputs for option in each.options),
    out_option,
    click.option("--format", "file_format", type=click.Choice(["png", "npz"]), default="png", show_default=True),
    click.option(
        "--fit-mixtures",
        metavar="DATA",
        default=None,
        help="First fit Gaussian mixtures to these training images, keep them beside the model, and start from them.",
    ),
    settings_options(GenerateSettings, "generate"),
    run_options,
)
command = click.command("generate", help=HELP, short_help=GENERATE.summary)(_with_options(_command))


@dataclass(frozen=True)
class Drawn:
    """A batch as it is handed from one process to another: uint8 (n, H, W, C), and the step at which each failed."""

    indices: tuple[int, ...]
    images: np.ndarray
    failures: dict[int, int]
    stopped: int | None


class GenerateRun:
    """One call of the command, in one of several processes."""

    def __init__(self, options: dict[str, Any], workers: Workers) -> None:
        from robustsynth.models.store import load_model
        from robustsynth.run_folder import NpzSamples, PngSamples, RunFolder, model_identity
        from robustsynth.tasks.call import Call
        from robustsynth.tasks.generation import check_targets, main_classes, named, start_identity

        self.animations = runs.Animations(options["trajectory"])
        self.options, self.workers = options, workers
        self.model = model = load_model(options["model_name"], device=options["device"])
        given = {field.name: options[field.name] for field in dataclasses.fields(GenerateSettings)}
        if options["fit_mixtures"] is not None:
            if workers.first:
                _fit_mixtures(model, options["fit_mixtures"])
            workers.wait()
            self.model = model = load_model(options["model_name"], device=options["device"])
            given["seeds_from"] = given["seeds_from"] or "mixture"
        self.settings = settings = GENERATE.resolve(model, preset=options["preset"], given=given)
        others = [name.strip() for name in (options["ensemble"] or "").split(",") if name.strip()]
        ensemble = [load_model(name, device=options["device"]) for name in others]
        targets = check_targets(_targets(model, options), model)
        self.labels, self.classes = main_classes(targets), [named(target, model.classes) for target in targets]
        self.call = Call(GENERATE, model, settings, [(model.image_size or 0, model.image_size or 0)] * len(targets))
        self.call.give(labels=targets, seed=options["seed"], ensemble=ensemble)
        asked = {
            "task": "generate",
            "model": model_identity(model),
            "ensemble": [model_identity(other) for other in ensemble] or None,
            "classes": list(dict.fromkeys(self.classes)),
            "num": len(targets),
            "labels_sha256": hashlib.sha256(targets.numpy().tobytes()).hexdigest(),
            "seed": options["seed"],
            "format": options["file_format"],
            "settings": dataclasses.asdict(settings),
        } | start_identity(settings)
        parts = [re.sub(r"[^\w.+-]+", "_", name).strip("_.")[:60] for name in self.classes]
        self.names = [f"{index:06d}-{part}" for index, part in enumerate(parts)]
        kind = NpzSamples if options["file_format"] == "npz" else PngSamples
        self.folder = folder = RunFolder(
            options["out"],
            asked,
            overwrite=options["overwrite"],
            files=lambda record: _files_of(folder),
            new_files=kind(RunFolder.path_of(options["out"]), self.names).present(),
            # Written before a setting was there, an image was drawn as with what that setting's default is.
            defaults={"settings": {f.name: f.default for f in dataclasses.fields(GenerateSettings)}, "ensemble": None},
        )
        if folder.earlier and any("-" not in name for name in PngSamples(folder.out, []).present()):
            self.names = [name[:6] for name in self.names]  # Version 0.1.0 had numbers alone.
        precision, batch_size = folder.execution(options["precision"], options["batch_size"])
        self.call.execute(precision, batch_size)
        # As the first process measures it, or images would be of two kinds.
        self.execution = workers.agreed(lambda: self.call.execution)
        self.call.execute(self.execution.precision, self.execution.batch_size)
        self.samples = kind(folder.out, self.names)
        workers.wait()  # Until all have seen the folder as it was.
        if not workers.alone and workers.first:
            self._begin()
        workers.wait()
        self.missing = list(range(len(targets))) if folder.replaces else self.samples.missing()
        workers.wait()  # Or one might find what another has drawn already, and share out another rest.

    def run(self) -> None:
        """Draw what is missing, then say what was written; stopped by Ctrl-C, keep what there is and exit with 130."""
        count, size, first = len(self.labels), self.execution.batch_size, self.workers.first
        if first:
            runs.say_run(self.model, self.folder.record["settings"], self.execution, seed=self.options["seed"])
        if len(self.missing) < count:
            self._tell(f"{count - len(self.missing)} of {count} images are there already")
        # Of what is missing, this process draws every so many whole batches.
        starts = self.workers.share(range(0, len(self.missing), size))
        mine = [index for start in starts for index in self.missing[start : start + size]]
        total = len(mine) * max(self.settings.steps, 1)
        failures: dict[int, int] = {}
        stopped = False
        with runs.stoppable() as asked:
            progresses = runs.with_bar(self.call.steps(mine), total=total, name="drawing", asked=asked, shown=first)
            for drawn in self._to_write(self._batches(progresses)):
                stopped = stopped or drawn.stopped is not None
                self._write(drawn)
                failures |= drawn.failures
            stopped = self.workers.any(stopped)[0]
            failures = {index: step for each in self.workers.gathered(failures) for index, step in each.items()}
            if self.workers.first:
                self._finish(stopped)
            self.workers.wait()
        left = len(self.samples.missing())
        if failures:
            named = [f"image {i} at step {k}" for i, k in sorted(failures.items())]
            raise runs.not_finite(named, f"the other {count - len(failures)} images are in {self.folder.out}")
        if stopped or left:
            done = f"{count - left} of {count} images are in {self.folder.out}"
            self._tell(f"stopped; {done}, and the same command goes on")
            raise SystemExit(runs.STOPPED)
        self._tell(f"wrote {len(self.missing)} images to {self.folder.out}")

    def _tell(self, text: str) -> None:
        if self.workers.first:
            say(text)

    def _begin(self) -> None:
        runs.begin(self.folder, self.model, self.execution, labels=self.classes)

    def _batches(self, progresses: Iterator[Progress]) -> Iterator[Drawn]:
        """Finished batches, and last the one that was stopped."""
        from robustsynth.images import to_uint8

        last = None
        for progress in progresses:
            if self.workers.first:
                self._begin()
            last = progress
            self.animations.add(progress)
            if progress.finished:
                whole = {i: self.names[i] for i in progress.indices if i not in progress.failures}
                self.animations.write(self.folder.out, whole, progress)
                yield Drawn(progress.indices, to_uint8(progress.previews), dict(progress.failures), None)
        if last is not None and not last.finished:
            yield Drawn(last.indices, to_uint8(last.previews), dict(last.failures), last.taken)

    def _to_write(self, batches: Iterator[Drawn]) -> Iterator[Drawn]:
        """The batches that this process writes: its own, each of which has files of its own; but all of them, in the
        first process, where all go into one file."""
        from robustsynth.run_folder import PngSamples

        if self.workers.alone or isinstance(self.samples, PngSamples):
            yield from batches
            return
        while True:
            done = [batch for batch in self.workers.gathered(next(batches, None)) if batch is not None]
            if self.workers.first:
                yield from done
            if not done or any(batch.stopped is not None for batch in done):
                return

    def _write(self, drawn: Drawn) -> None:
        stopped = {} if drawn.stopped is None else {"stopped_at_step": drawn.stopped}
        texts = {i: self.folder.png_text(**{"class": self.classes[i], "number": i}, **stopped) for i in drawn.indices}
        if stopped:
            for (index, text), image in zip(texts.items(), drawn.images, strict=True):
                self.folder.write_unfinished(self.names[index], image, text)
            return
        whole = [place for place, index in enumerate(drawn.indices) if index not in drawn.failures]
        chosen = [drawn.indices[place] for place in whole]
        self.samples.write(chosen, drawn.images[whole], self.labels[chosen].numpy(), [texts[i] for i in chosen])

    def _finish(self, stopped: bool) -> None:
        """What follows the last batch: the grid, and the one file of all."""
        from robustsynth.images import read_image, save_png
        from robustsynth.run_folder import PngSamples
        from robustsynth.sheet import class_sheet

        if not stopped:
            self.folder.clear_unfinished()
            self.samples.finish()
        if not isinstance(self.samples, PngSamples) or not self.samples.present():
            return
        samples, channels = self.samples, self.model.channels

        def image(index: int) -> np.ndarray | None:
            file = samples.path(index)
            return read_image(file, channels=channels).pixels if file.exists() else None

        save_png(self.folder.out / "grid.png", class_sheet(self.classes, image, classes=self.model.classes))


def _files_of(folder: Any) -> list[str]:
    """What an earlier run left, of either format: images of other settings must not stay beside the new ones."""
    from robustsynth.run_folder import NpzSamples, PngSamples

    found = [name for kind in (PngSamples, NpzSamples) for name in kind(folder.out, []).present()]
    animations = [path.name for ending in ("gif", "mp4") for path in folder.out.glob(f"*.{ending}")]
    unfinished = [f"unfinished/{path.name}" for path in (folder.out / "unfinished").glob("*.png")]
    return [*found, *(name for name in animations if re.match(r"\d{6}", name)), *unfinished, "grid.png"]


def spread_labels(classes: Sequence[int], num: int) -> Tensor:
    """`num` labels spread evenly over `classes`, grouped by class; the first classes get what is left over."""
    import torch

    if num < 1:
        raise UserError(f"expected 1 or more images, got {num}")
    each, over = divmod(num, len(classes))
    counts = torch.tensor([each + (place < over) for place in range(len(classes))])
    return torch.repeat_interleave(torch.tensor(list(classes)), counts)


def _targets(model: Classifier, options: dict[str, Any]) -> Tensor:
    """A class or a mix for each image."""
    import torch

    from robustsynth.tasks.generation import parse_mix

    classes, mixes, num = options["classes"], options["mix"], options["num"]
    if not mixes:
        wanted = parse_classes(classes, model.classes, model.class_index)
        return spread_labels(wanted, 8 * len(wanted) if num is None else num)
    if classes != "all":
        raise UserError(f"expected --classes or --mix, got both, {classes!r} and {mixes[0]!r}; leave one out")
    weights = torch.stack([parse_mix(mix, model) for mix in mixes])
    return weights[spread_labels(range(len(mixes)), 8 * len(mixes) if num is None else num)]


def _fit_mixtures(model: Classifier, data: str) -> None:
    """Fit mixtures of the model's classes to training images, and keep them beside the model."""
    from robustsynth.data import load_data
    from robustsynth.seeds import add_mixtures

    if model.folder is None or model.image_size is None:
        raise UserError(f"expected a model folder to fit mixtures for, got {model.name!r}")
    images = load_data(data, "train", image_size=model.image_size, channels=model.channels, announce=say)
    if images.classes != model.classes:
        raise UserError(
            f"expected images of the model's classes, {', '.join(model.classes)}, to fit mixtures to, "
            f"got {', '.join(images.classes)} in {data}"
        )
    say(f"fitting mixtures to {len(images)} images of {images.name}")
    say(f"wrote {add_mixtures(model.folder, images.images, images.labels)}")
