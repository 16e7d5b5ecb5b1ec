"""``robustsynth train``"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from robustsynth.cli import interactive, say
from robustsynth.cli.options import settings_options
from robustsynth.cli.progress import STOPPED
from robustsynth.errors import UserError
from robustsynth.files import write_json
from robustsynth.training.settings import (
    TrainSettings,
    resolve_train_settings,
    settings_from,
    training_presets,
)

if TYPE_CHECKING:
    from robustsynth.data import ImageData
    from robustsynth.data.streaming import ImageStream
    from robustsynth.processes import Workers
    from robustsynth.training.run import Trainer

RUN_FILE = "run.json"


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
def command(
    preset: str | None,
    data: str | None,
    out: str,
    resume: bool,
    precision: str | None,
    device: str | None,
    tensorboard: bool,
    stream: bool,
    decoders: int | None,
    dry_run: bool,
    sync_batch_norm: bool,
    **given: Any,
) -> None:
    """Train a robust classifier, then draw with it: robustsynth generate --model OUT.

    An interrupted run goes on with --resume, exactly where its last checkpoint was. Several graphics cards, processors
    or machines train together under torchrun: torchrun --nproc-per-node 4 -m robustsynth train …
    """
    from robustsynth.cli.workers import one_voice
    from robustsynth.memory import keep_freed_memory
    from robustsynth.processes import Workers

    keep_freed_memory()
    workers = Workers.from_environment()
    device = workers.device(device)
    options = {"device": device, "precision": precision, "tensorboard": tensorboard and not dry_run}
    options |= {"sync_batch_norm": sync_batch_norm, "decoders": decoders}
    with workers.joined(device), one_voice(workers):
        _command(workers, Path(out), preset, data, resume, stream, dry_run, options, given)


def _command(
    workers: Workers,
    folder: Path,
    preset: str | None,
    data: str | None,
    resume: bool,
    stream: bool,
    dry_run: bool,
    options: dict[str, Any],
    given: dict[str, Any],
) -> None:
    tell: Callable[[str], object] = say if workers.first else lambda line: None
    from robustsynth.data.selection import is_part
    from robustsynth.rendezvous import note_begun, was_begun

    # torchrun starts all anew where one was lost: they go on from the last checkpoint by themselves.
    restarted = workers.agreed(was_begun)
    resume = resume or restarted
    begun = workers.agreed(lambda: _begun(folder) if resume else None)
    if stream and data is not None and is_part(data):
        raise UserError(f"expected the whole of a data set to stream, got a part, {data}; leave out --stream")
    if file := next((path for path in (folder, *folder.parents) if path.exists() and not path.is_dir()), None):
        raise UserError(f"expected a folder for the run, got {folder}, where {file} is a file; choose another --out")
    if begun is None and preset is None and data is not None:
        preset, given = _defaults(data, given, tell)
    settings, data = _settings_and_data(begun, preset, data, given)
    tell(f"reading {data}")
    from robustsynth.data import located
    from robustsynth.training.checkpoints import has_checkpoint
    from robustsynth.training.forecast import forecast
    from robustsynth.training.run import Trainer

    stream = stream or bool((begun or {}).get("stream"))
    if options["decoders"] is None:
        options["decoders"] = max(1, (os.cpu_count() or 1) // workers.size) if stream else 0
    images, cached = workers.in_turn(
        lambda: _open(data, settings.stored_size or settings.image_size, stream=stream, dry_run=dry_run, tell=tell)
    )
    if resume and not workers.agreed(lambda: has_checkpoint(folder)) and (begun or restarted):
        tell("it was stopped before its first step: beginning")
        resume, options["precision"] = False, options["precision"] or (begun or {}).get("precision")
    options["writes"] = not dry_run
    trainer = Trainer(settings, images, folder, resume=resume, announce=tell, workers=workers, **options)
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
        expected = forecast(trainer)
        tell(expected.lines()[0])
        if dry_run:
            tell(expected.lines()[1] + (", which are there already" if cached else ""))
    if dry_run:
        tell("a dry run: nothing was written")
        return
    if _train(trainer, tell):
        held = f"{100 * state.best['score'][1]:.1f} % clean"
        if settings.eps:
            held += f", {100 * state.best['score'][0]:.1f} % under PGD-10 at {settings.norm} eps {settings.eps:g}"
        tell(f"best of the run, epoch {state.best['epoch']}: {held} on held-out images")
        tell(f"draw with it: robustsynth generate --model {folder} --out {folder}/samples")
    else:
        tell(
            f"stopped at step {state.step} of {trainer.total_steps}; "
            f"go on with: robustsynth train --resume --out {folder}"
        )
        raise SystemExit(STOPPED)


def _open(
    data: str, image_size: int | None, *, stream: bool, dry_run: bool, tell: Callable[[str], object]
) -> tuple[ImageData | ImageStream, bool]:
    """The training images, and whether they are decoded in the cache."""
    if stream:
        from robustsynth.data.streaming import open_stream

        return open_stream(data, "train", image_size=image_size, announce=tell), False
    if dry_run:
        from robustsynth.data.describing import describe_data

        return describe_data(data, "train", image_size=image_size, announce=tell)
    from robustsynth.data import load_data

    return load_data(data, "train", image_size=image_size, announce=tell), True


def _begun(folder: Path) -> dict[str, Any] | None:
    """What a run in `folder` was begun with."""
    from robustsynth.training.state import read_checkpoint

    path = folder / RUN_FILE
    if not path.exists():
        return None
    with contextlib.suppress(ValueError):
        begun = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(begun, dict) and {"data", "settings"} <= begun.keys():
            return begun
    # Damaged; a checkpoint has all of it but for where the data are.
    known = read_checkpoint(folder)
    return {"data": None, "settings": known["settings"], "stream": bool(known.get("data", {}).get("stream"))}


def _settings_and_data(
    begun: dict[str, Any] | None, preset: str | None, data: str | None, given: dict[str, Any]
) -> tuple[TrainSettings, str]:
    """What to train and on what; a resumed run remembers both."""
    if begun is not None:
        data = data or begun["data"]
        if data is None:
            raise UserError(
                f"expected {RUN_FILE} of the run to say which data it is of, got a damaged file; pass --data"
            )
        if preset is None:
            said = {k: v for k, v in given.items() if v is not None}
            return settings_from(begun["settings"] | said), str(data)
    if data is None:
        raise UserError("expected --data, a folder of class folders or parquet files or a Hub name, got none")
    return resolve_train_settings(preset, _of_the_model(given)), data


def _defaults(data: str, given: dict[str, Any], tell: Callable[[str], object]) -> tuple[str, dict[str, Any]]:
    """The preset for images such as these, where none is named, and what is changed of it for so many of them."""
    from robustsynth.data.describing import describe_data
    from robustsynth.training.defaults import attack_for, default_preset, fitted, sizes_for
    from robustsynth.training.fine_tuning import attack_of_model

    given = _of_the_model(given)
    if given.get("fine_tune") is not None:
        known = attack_of_model(given["fine_tune"])
        # Another norm has other radii.
        if given.get("norm") in (None, known.get("norm")):
            given = given | {name: value for name, value in known.items() if given.get(name) is None}
    images, _ = describe_data(data, "train", announce=tell)
    preset = default_preset(given.get("image_size") or images.images.shape[1])
    changes = fitted(preset, len(images), given) | sizes_for(preset, given) | attack_for(preset, given)
    told = "".join(f", {name.replace('_', ' ')} {value}" for name, value in changes.items())
    tell(f"no --preset: taking {preset}{told}")
    return preset, given | changes


def _of_the_model(given: dict[str, Any]) -> dict[str, Any]:
    """`given`, with the network of the model that is to be fine-tuned where it says nothing of its own."""
    if given.get("fine_tune") is None:
        return given
    from robustsynth.training.fine_tuning import network_of_model

    return given | {k: v for k, v in network_of_model(given["fine_tune"]).items() if given.get(k) is None}


def _train(trainer: Trainer, tell: Callable[[str], object]) -> bool:
    """Run with a progress bar; whether it came to its end. Ctrl-C and a polite kill stop it with a checkpoint, Ctrl-C
    once more at once, with the last one."""
    from tqdm import tqdm

    stopping: list[int] = []

    def note(number: int, _: object) -> None:
        # Several processes get the same Ctrl-C twice, from the terminal and from torchrun.
        if stopping and number == signal.SIGINT and trainer.workers.alone:
            raise KeyboardInterrupt
        stopping.append(number)

    before = {s: signal.signal(s, note) for s in (signal.SIGINT, signal.SIGTERM)}
    state = trainer.state
    try:
        with tqdm(
            total=trainer.total_steps,
            initial=state.step,
            unit="step",
            desc="training",
            mininterval=1,
            disable=not (interactive() and trainer.workers.first),
        ) as bar:

            def on_step(current: Trainer, loss: float) -> bool:
                bar.update(1)
                if not bar.disable:
                    bar.set_postfix(loss=f"{loss:.3f}", refresh=False)
                if bar.disable and current.state.step % current.steps_per_epoch == 0:
                    tell(f"epoch {current.state.step // current.steps_per_epoch} of {current.settings.epochs} done")
                return not stopping

            trainer.run(on_step)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return trainer.finished
