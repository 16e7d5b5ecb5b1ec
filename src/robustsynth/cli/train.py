"""``robustsynth train``"""

from __future__ import annotations

import dataclasses
import json
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from robustsynth.cli import interactive, say
from robustsynth.cli.options import settings_options
from robustsynth.errors import UserError
from robustsynth.files import write_json
from robustsynth.training.settings import (
    TrainSettings,
    resolve_train_settings,
    settings_from,
    training_presets,
)

if TYPE_CHECKING:
    from robustsynth.training.run import Trainer

RUN_FILE = "run.json"


@click.command("train")
@click.option("--preset", default=None, help=f"One of {', '.join(training_presets())}.")
@click.option("--data", default=None, help="Class folders, parquet files, folders A,B, or a Hub name.")
@click.option("--out", required=True, type=click.Path(), help="Folder for the run; it becomes the model.")
@click.option("--resume", is_flag=True, help="Go on with the run in the folder.")
@settings_options(TrainSettings)
@click.option("--precision", type=click.Choice(["float32", "bfloat16"]), default=None, help="Measured if not given.")
@click.option("--device", default=None, help="cpu or cuda.")
@click.option("--tensorboard", is_flag=True, help="Log for TensorBoard too, in OUT/tensorboard.")
def command(
    preset: str | None,
    data: str | None,
    out: str,
    resume: bool,
    precision: str | None,
    device: str | None,
    tensorboard: bool,
    **given: Any,
) -> None:
    """Train a robust classifier, then draw with it: robustsynth generate --model OUT.

    An interrupted run goes on with --resume, exactly where its last checkpoint was.
    """
    folder = Path(out)
    settings, data = _settings_and_data(folder, preset, data, resume, given)
    say(f"reading {data}")
    from robustsynth.data import load_data, located
    from robustsynth.training.run import Trainer

    images = load_data(data, "train", image_size=settings.stored_size or settings.image_size, announce=say)
    trainer = Trainer(
        settings,
        images,
        folder,
        device=device,
        precision=precision,
        resume=resume,
        tensorboard=tensorboard,
        announce=say,
    )
    # From whatever folder it is resumed, the same data.
    write_json(folder / RUN_FILE, {"data": located(data), "preset": preset, "settings": dataclasses.asdict(settings)})
    state = trainer.state
    say(
        f"training {settings.architecture} on {len(trainer.kept)} images of {images.name}, "
        f"{settings.recipe}, {settings.norm} eps {settings.eps:g}, in {state.execution.precision} on {trainer.device}; "
        f"{len(trainer.held)} images held out to select by"
    )
    if state.step:
        say(f"going on from step {state.step} of {trainer.total_steps}")
    if _train(trainer):
        held = f"{100 * state.best['score'][1]:.1f} % clean"
        if settings.eps:
            held += f", {100 * state.best['score'][0]:.1f} % under PGD-10"
        say(f"best of the run, epoch {state.best['epoch']}: {held} on held-out images")
        say(f"draw with it: robustsynth generate --model {out} --out {out}/samples")
    else:
        say(
            f"stopped at step {state.step} of {trainer.total_steps}; go on with: robustsynth train --resume --out {out}"
        )
        raise SystemExit(130)


def _settings_and_data(
    folder: Path, preset: str | None, data: str | None, resume: bool, given: dict[str, Any]
) -> tuple[TrainSettings, str]:
    """What to train and on what; a resumed run remembers both."""
    if resume and (folder / RUN_FILE).exists():
        begun = json.loads((folder / RUN_FILE).read_text(encoding="utf-8"))
        data = data or begun["data"]
        if preset is None:
            said = {k: v for k, v in given.items() if v is not None}
            return settings_from(begun["settings"] | said), str(data)
    if data is None:
        raise UserError("expected --data, a folder of class folders or parquet files or a Hub name, got none")
    return resolve_train_settings(preset, _of_the_model(given)), data


def _of_the_model(given: dict[str, Any]) -> dict[str, Any]:
    """`given`, with the network of the model that is to be fine-tuned where it says nothing of its own."""
    if given.get("fine_tune") is None:
        return given
    from robustsynth.training.fine_tuning import network_of_model

    return given | {k: v for k, v in network_of_model(given["fine_tune"]).items() if given.get(k) is None}


def _train(trainer: Trainer) -> bool:
    """Run with a progress bar; whether it came to its end. Ctrl-C and a polite kill stop it with a checkpoint."""
    from tqdm import tqdm

    stopping: list[int] = []
    before = {s: signal.signal(s, lambda number, _: stopping.append(number)) for s in (signal.SIGINT, signal.SIGTERM)}
    state = trainer.state
    try:
        with tqdm(
            total=trainer.total_steps,
            initial=state.step,
            unit="step",
            desc="training",
            mininterval=1,
            disable=not interactive(),
        ) as bar:
            began, first = time.monotonic(), state.step

            def on_step(current: Trainer, loss: float) -> bool:
                bar.update(1)
                if not bar.disable:
                    bar.set_postfix(loss=f"{loss:.3f}", refresh=False)
                elif current.state.step - first == 20:
                    left = (current.total_steps - current.state.step) * (time.monotonic() - began) / 20
                    say(f"about {left / 60:.0f} minutes to go")
                if bar.disable and current.state.step % current.steps_per_epoch == 0:
                    say(f"epoch {current.state.step // current.steps_per_epoch} of {current.settings.epochs} done")
                return not stopping

            trainer.run(on_step)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return state.step == trainer.total_steps and not stopping
