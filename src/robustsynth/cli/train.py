"""``robustsynth train``"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from robustsynth.cli.options import settings_options
from robustsynth.cli.progress import STOPPED, interactive, say, stoppable
from robustsynth.errors import UserError
from robustsynth.files import write_json
from robustsynth.training.settings import TrainSettings, resolve_train_settings, settings_from, training_presets

if TYPE_CHECKING:
    from robustsynth.data import ImageData
    from robustsynth.data.streaming import ImageStream
    from robustsynth.processes import Workers
    from robustsynth.training.trainer import Trainer

Tell = Callable[[str], object]

RUN_FILE = "run.json"
"""In a run's folder: its data, preset and settings, so that it can be resumed without naming them."""


@click.command("train")
@click.option(
    "--preset",
    default=None,
    help="small-images or photographs if not given, by the images' size, fitted to their number. "
    f"One of {', '.join(training_presets())}.",
)
@click.option("--data", default=None, help="Class folders, parquet files, folders A,B, or a Hub name.")
@click.option("--out", required=True, type=click.Path(), help="Folder for the run; it becomes the model.")
@click.option("--resume", is_flag=True, help="Go on with the run in the folder.")
@settings_options(TrainSettings)
@click.option("--precision", type=click.Choice(["float32", "bfloat16"]), default=None, help="Measured if not given.")
@click.option("--device", default=None, help="cpu or cuda.")
@click.option("--tensorboard", is_flag=True, help="Log for TensorBoard too, in OUT/tensorboard.")
@click.option("--stream", is_flag=True, help="Decode while training, from parquet shards; for data beyond the disk.")
@click.option("--decoders", type=click.IntRange(min=0), default=None, help="Processes that decode a stream.")
@click.option("--dry-run", is_flag=True, help="Say what time, memory and disk the run will take; write nothing.")
@click.option("--sync-batch-norm", is_flag=True, help="Under torchrun: batch norm over all processes' images.")
def command(**asked: Any) -> None:
    """Train a robust classifier, then draw with it: robustsynth generate --model OUT.

    An interrupted run goes on with --resume, exactly where its last checkpoint was. Several graphics cards, processors
    or machines train together under torchrun: torchrun --nproc-per-node 4 -m robustsynth train …
    """
    from robustsynth.memory import keep_freed_memory
    from robustsynth.processes import Workers

    keep_freed_memory()
    workers = Workers.from_environment()
    asked["device"] = workers.device(asked["device"])
    with workers.joined(asked["device"]), workers.errors_reported_once():
        _command(workers, asked)


def _command(workers: Workers, asked: dict[str, Any]) -> None:
    from robustsynth.data import located
    from robustsynth.data.load import is_subset
    from robustsynth.processes import note_begun, was_begun
    from robustsynth.training.checkpoints import has_checkpoint
    from robustsynth.training.forecast import forecast
    from robustsynth.training.trainer import Trainer

    tell: Tell = say if workers.first else lambda line: None
    folder, preset, data, dry_run = Path(asked["out"]), asked["preset"], asked["data"], asked["dry_run"]
    stream, precision, decoders = asked["stream"], asked["precision"], asked["decoders"]
    fields = [field.name for field in dataclasses.fields(TrainSettings)]
    given = {name: asked[name] for name in fields if asked[name] is not None}
    # torchrun starts all anew where one was lost: they go on from the last checkpoint by themselves.
    restarted = workers.agreed(was_begun)
    resume = asked["resume"] or restarted
    begun = workers.agreed(lambda: _begun(folder) if resume else None)
    if stream and data is not None and is_subset(data):
        raise UserError(f"expected the whole of a data set to stream, got a part, {data}; leave out --stream")
    if file := next((path for path in (folder, *folder.parents) if path.exists() and not path.is_dir()), None):
        raise UserError(f"expected a folder for the run, got {folder}, where {file} is a file; choose another --out")
    data = data or (begun or {}).get("data")
    if data is None and begun is not None:
        raise UserError(f"expected {RUN_FILE} of the run to say which data it is of, got a damaged file; pass --data")
    if data is None:
        raise UserError("expected --data, a folder of class folders or parquet files or a Hub name, got none")
    if begun is not None and preset is None:
        settings = settings_from(begun["settings"] | given)
    else:
        preset, settings = _new_settings(preset, data, given, tell, fit=begun is None)
    tell(f"reading {data}")
    stream = stream or bool((begun or {}).get("stream"))
    if decoders is None:
        decoders = max(1, (os.cpu_count() or 1) // workers.size) if stream else 0
    size = settings.stored_size or settings.image_size
    images, cached = workers.in_turn(lambda: _open(data, size, stream=stream, dry_run=dry_run, tell=tell))
    if resume and not workers.agreed(lambda: has_checkpoint(folder)) and (begun or restarted):
        tell("it was stopped before its first step: beginning")
        resume, precision = False, precision or (begun or {}).get("precision")
    options = {"device": asked["device"], "precision": precision, "resume": resume, "decoders": decoders}
    options |= {"tensorboard": asked["tensorboard"] and not dry_run, "sync_batch_norm": asked["sync_batch_norm"]}
    trainer = Trainer(settings, images, folder, announce=tell, workers=workers, writes=not dry_run, **options)
    state = trainer.state
    if workers.first and not dry_run:
        note_begun()
        # From whatever folder it is resumed, the same data.
        record = {"data": located(data), "preset": preset, "settings": dataclasses.asdict(settings)}
        write_json(folder / RUN_FILE, record | {"precision": state.execution.precision, "stream": stream})
    together = "" if workers.alone else f", by {workers.size} processes"
    tell(
        f"training {settings.architecture} on {len(trainer.kept)} images of {images.name}, "
        f"{settings.recipe}, {settings.norm} eps {settings.eps:g}, in {state.execution.precision} on {trainer.device}"
        f"{together}; {len(trainer.held)} images held out to select by"
    )
    if state.step:
        tell(f"going on from step {state.step} of {trainer.total_steps}")
    if state.step < trainer.total_steps:
        time, room = forecast(trainer).lines()
        tell(time)
        if dry_run:
            tell(room + (", which are there already" if cached else ""))
    if dry_run:
        tell("a dry run: nothing was written")
        return
    _train(trainer, tell)
    if not trainer.finished:
        again = f"robustsynth train --resume --out {folder}"
        tell(f"stopped at step {state.step} of {trainer.total_steps}; go on with: {again}")
        raise SystemExit(STOPPED)
    robust, clean = state.best["score"]
    attacked = f", {100 * robust:.1f} % under PGD-10 at {settings.norm} eps {settings.eps:g}" if settings.eps else ""
    tell(f"best of the run, epoch {state.best['epoch']}: {100 * clean:.1f} % clean{attacked} on held-out images")
    tell(f"draw with it: robustsynth generate --model {folder} --out {folder}/samples")


def _begun(folder: Path) -> dict[str, Any] | None:
    """What a run in `folder` was begun with."""
    from robustsynth.training.checkpoints import read_checkpoint

    if not (folder / RUN_FILE).exists():
        return None
    with contextlib.suppress(ValueError):
        begun = json.loads((folder / RUN_FILE).read_text(encoding="utf-8"))
        if isinstance(begun, dict) and {"data", "settings"} <= begun.keys():
            return begun
    # Damaged; a checkpoint has all of it but for where the data are.
    known = read_checkpoint(folder)
    return {"data": None, "settings": known["settings"], "stream": bool(known["data"]["stream"])}


def _new_settings(
    preset: str | None, data: str, given: dict[str, Any], tell: Tell, *, fit: bool
) -> tuple[str | None, TrainSettings]:
    """A preset with what is `given` in its place; where none is named, the one for images such as these.

    What a model that is fine-tuned says of its network goes before a preset; so does, to `fit`, what the number of
    images asks for, and the attack that the model was trained against.
    """
    fit = fit and preset is None
    if tuned := given.get("fine_tune"):
        from robustsynth.training.fine_tuning import settings_of_model

        network, attack = settings_of_model(tuned)
        # Another norm has other radii.
        if fit and given.get("norm") in (None, attack.get("norm")):
            network |= attack
        given = network | given
    if fit:
        from robustsynth.data.load import describe_data
        from robustsynth.training.settings import attack_for, default_preset, fitted, sizes_for

        images, _ = describe_data(data, "train", announce=tell)
        preset = default_preset(given.get("image_size") or images.images.shape[1])
        changes = fitted(preset, len(images), given) | sizes_for(preset, given) | attack_for(preset, given)
        listed = "".join(f", {name.replace('_', ' ')} {value}" for name, value in changes.items())
        tell(f"no --preset: taking {preset}{listed}")
        given = given | changes
    return preset, resolve_train_settings(preset, given)


def _open(
    data: str, image_size: int | None, *, stream: bool, dry_run: bool, tell: Tell
) -> tuple[ImageData | ImageStream, bool]:
    """The training images, and whether they are decoded in the cache."""
    from robustsynth.data.load import describe_data, load_data, open_stream

    if dry_run and not stream:
        return describe_data(data, "train", image_size=image_size, announce=tell)
    return (open_stream if stream else load_data)(data, "train", image_size=image_size, announce=tell), not stream


def _train(trainer: Trainer, tell: Tell) -> None:
    """Train with a progress bar. Ctrl-C and a polite kill stop the run with a checkpoint, Ctrl-C once more at once."""
    from tqdm import tqdm

    state, total = trainer.state, trainer.total_steps
    hidden = not (interactive() and trainer.workers.first)
    bar = tqdm(total=total, initial=state.step, unit="step", desc="training", mininterval=1, disable=hidden)
    # Several processes get the same Ctrl-C twice, from the terminal and from torchrun.
    with stoppable(at_once=trainer.workers.alone) as stopping, bar:
        for step in trainer.steps():
            bar.update(1)
            if not hidden:
                bar.set_postfix(loss=f"{step.loss:.3f}", refresh=False)
            elif state.step % trainer.steps_per_epoch == 0:
                tell(f"epoch {state.step // trainer.steps_per_epoch} of {trainer.settings.epochs} done")
            if stopping:
                break
