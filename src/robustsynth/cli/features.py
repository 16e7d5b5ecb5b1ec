"""``robustsynth features``"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from robustsynth.cli import interactive, say
from robustsynth.cli.options import Numbers, parse_classes, settings_options
from robustsynth.cli.stopping import STOPPED, stoppable
from robustsynth.cli.trajectories import Trajectories, check_trajectory, trajectory_option
from robustsynth.errors import UserError
from robustsynth.tasks.settings import FeatureSettings

if TYPE_CHECKING:
    from robustsynth.data import ImageData
    from robustsynth.models.classifier import Classifier
    from robustsynth.run_folder import RunFolder
    from robustsynth.tasks.features import UnitRow

ATLAS_FILE, FEATURES_FILE = "atlas.png", "features.json"


@click.command("features")
@click.option("--model", "model_name", default="imagenette", show_default=True, help="Name or folder.")
@click.option("--units", type=Numbers(int), default=None, help="Units such as 3,17,200; chosen by weight if not given.")
@click.option("--classes", default=None, help="Choose units for these classes: names, indices, ranges or all.")
@click.option("--num", type=click.IntRange(min=1), default=12, show_default=True, help="Units to choose.")
@click.option("--data", default=None, help="Show top images of it: a folder of class folders or parquet files, a name.")
@click.option("--split", default="test", show_default=True, help="Which part of the data.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of the noise drawn from.")
@click.option("--out", required=True, type=click.Path(), help="Folder to write to.")
@settings_options(FeatureSettings)
@trajectory_option
@click.option("--precision", type=click.Choice(["float32", "bfloat16"]), default=None, help="Measured if not given.")
@click.option("--batch-size", type=click.IntRange(min=1), default=None, help="Measured if not given.")
@click.option("--device", default=None, help="cpu or cuda.")
@click.option("--overwrite", is_flag=True, help="Replace what other settings wrote to the folder.")
def command(
    model_name: str,
    units: tuple[int, ...] | None,
    classes: str | None,
    num: int,
    data: str | None,
    split: str,
    seed: int,
    out: str,
    trajectory: str | None,
    precision: str | None,
    batch_size: int | None,
    device: str | None,
    overwrite: bool,
    **given: Any,
) -> None:
    """Show what a model's units respond to, to choose some for painting.

    A row a unit: images drawn from noise to raise it, the images of --data that raise it most, and the classes that
    it speaks for. Writes atlas.png, features.json, settings.json and each drawn image into the folder, and with
    --trajectory how each comes about. Stopped by Ctrl-C, the same command goes on with the units that are missing.
    """
    from robustsynth.cli.describe import describe_model
    from robustsynth.data import load_data
    from robustsynth.models.execution import machine_name
    from robustsynth.models.files import load_model
    from robustsynth.run_folder import RunFolder, model_identity
    from robustsynth.tasks.features import check_units, choose_units, resolve_features

    check_trajectory(trajectory)
    model = load_model(model_name, device=device)
    if units is None:
        wanted = choose_units(model, parse_classes(classes or "all", model.classes, model.class_index), num=num)
    elif classes is None:
        wanted = check_units(model, units)
    else:
        raise UserError("expected --units or --classes, got both; units are chosen for classes where none are given")
    settings = resolve_features(model, given=given)
    images = None
    if data is not None:
        images = load_data(data, split, image_size=model.image_size, channels=model.channels, announce=say)
    asked = {
        "task": "features",
        "model": model_identity(model),
        "units": wanted,
        "data": None if images is None else {"name": images.name, "split": split, "images": len(images)},
        "seed": seed,
        "settings": dataclasses.asdict(settings),
    }
    folder = RunFolder(
        out, asked, overwrite=overwrite, files=lambda _: _files_in(out), new_files=(ATLAS_FILE, FEATURES_FILE)
    )
    precision, batch_size = folder.execution(precision, batch_size)
    execution = model.synthesizer(precision=precision, batch_size=batch_size).execution
    say(describe_model(model))
    say(f"settings: {', '.join(f'{k}={v}' for k, v in asked['settings'].items())}")
    say(f"running in {execution.precision}, {execution.batch_size} images a batch, seed {seed}")
    with folder.only_writer():
        folder.begin(execution=execution.as_dict(), machine=machine_name(model.device))
        files = _RowFiles(folder, model, images)
        _draw_missing(model, settings, files, trajectory)
        rows = files.write_atlas()
    if len(rows) < len(wanted):
        said = f"what was done, {len(rows)} of {len(wanted)} units, is in {folder.out}" if rows else "nothing is done"
        say(f"stopped; {said}")
        raise SystemExit(STOPPED)
    for row in rows:
        speaks = ", ".join(f"{name} {weight:+.2f}" for name, weight in row.classes) or "no class known"
        click.echo(f"unit {row.unit:4}  reaches {max(row.activations):5.1f}  {speaks}")
    say(f"wrote {ATLAS_FILE} and {FEATURES_FILE} to {folder.out}")


def _files_in(out: str) -> list[str]:
    """What this command may have left in a folder, whatever units it drew."""
    found = [path.name for path in Path(out).expanduser().iterdir()]
    return [name for name in found if re.fullmatch(r"atlas\.png|features\.json|unit-\d+-\d+\.(png|gif|mp4)", name)]


def _draw_missing(model: Classifier, settings: FeatureSettings, files: _RowFiles, trajectory: str | None) -> None:
    """Draw the units that the folder lacks, until the user stops it."""
    from tqdm import tqdm

    from robustsynth.loop import Step
    from robustsynth.tasks.features import Looked, UnitRow, feature_steps

    missing = files.missing(trajectory)
    if len(missing) < len(files.units):
        say(f"{len(files.units) - len(missing)} of {len(files.units)} units are there already")
    if not missing:
        return
    films = Trajectories(trajectory, [name for unit in missing for name in files.names(unit)], settings.steps)
    looked = len(files.data) if files.data is not None and settings.top else 0
    steps, hidden = len(missing) * settings.drawn * settings.steps, not interactive()
    execution: dict[str, Any] = {name: files.folder.record["execution"][name] for name in ("precision", "batch_size")}
    asked: list[int] = []
    with (
        stoppable(asked),
        tqdm(total=looked, unit="image", desc="looking", disable=hidden or not looked) as looking,
        tqdm(total=steps, unit="step", desc="drawing", disable=hidden) as drawing,
    ):
        for each in feature_steps(
            model, missing, settings, data=files.data, seed=files.folder.asked["seed"], **execution
        ):
            if isinstance(each, UnitRow):
                files.write(each)
                continue  # Other units of the batch may follow: it stops at a step only.
            if isinstance(each, Looked):
                looking.update(each.images - looking.n)
            else:
                if trajectory:
                    films.add(each.indices, Step(each.step, each.previews, each.loss))
                if each.finished:
                    films.write_finished(files.folder.out, each.indices)
                if each.step:  # x₀ is where it starts, not a step that was taken
                    drawing.update(len(each.indices))
            if asked:
                return


class _RowFiles:
    """The rows in a run folder, by unit: ``features.json``, and each drawn image, such as ``unit-3-0.png``."""

    def __init__(self, folder: RunFolder, model: Classifier, data: ImageData | None) -> None:
        self.folder, self.model, self.data = folder, model, data
        self.units: list[int] = folder.asked["units"]
        self.rows = {row.unit: row for row in self._read()}

    def names(self, unit: int) -> list[str]:
        """Of the files of a unit's drawn images, without ending."""
        return [f"unit-{unit}-{number}" for number in range(self.folder.asked["settings"]["drawn"])]

    def missing(self, trajectory: str | None) -> list[int]:
        """Units that are not there, or not with animations of this ending, if any."""
        return [
            unit
            for unit in self.units
            if unit not in self.rows
            or (trajectory and not all((self.folder.out / f"{n}.{trajectory}").exists() for n in self.names(unit)))
        ]

    def write(self, row: UnitRow) -> None:
        """Write one row; the images first, so that a row whose numbers are there is whole."""
        from robustsynth.files import write_json
        from robustsynth.images import save_png, to_uint8

        drawn = list(to_uint8(row.images))
        for number, (name, image) in enumerate(zip(self.names(row.unit), drawn, strict=True)):
            text = self.folder.png_text(unit=row.unit, number=number, activation=row.activations[number])
            save_png(self.folder.out / f"{name}.png", image, text=text)
        self.rows[row.unit] = row.of_record(row.record(), drawn, self.data)
        write_json(self.folder.out / FEATURES_FILE, [self.rows[u].record() for u in self.units if u in self.rows])

    def write_atlas(self) -> list[UnitRow]:
        """Draw the rows that are there, as the files have them: the same however often the run was stopped."""
        from robustsynth.images import save_png
        from robustsynth.tasks.features import draw_atlas

        rows, asked = [self.rows[unit] for unit in self.units if unit in self.rows], self.folder.asked
        if rows:
            sheet = draw_atlas(
                rows,
                title=f"What units of {self.model.name} respond to",
                drawn_as=f"drawn from noise (eps {asked['settings']['eps']:g}, {asked['settings']['steps']} steps)",
                data_name="the data" if self.data is None else f"{self.data.name} {asked['data']['split']}",
            )
            save_png(self.folder.out / ATLAS_FILE, sheet, text=self.folder.png_text())
        self.folder.save(done=len(rows))
        return rows

    def _read(self) -> Iterator[UnitRow]:
        """What is there; a row whose files are damaged counts as missing, and is drawn again."""
        from robustsynth.images import load_picture
        from robustsynth.tasks.features import UnitRow

        try:
            records = json.loads((self.folder.out / FEATURES_FILE).read_text(encoding="utf-8"))
        except (FileNotFoundError, ValueError):
            return
        for record in records if isinstance(records, list) else []:
            with contextlib.suppress(UserError, KeyError, TypeError, ValueError, IndexError):
                paths = [self.folder.out / f"{name}.png" for name in self.names(record["unit"])]
                drawn = [load_picture(path, channels=self.model.channels) for path in paths]
                yield UnitRow.of_record(record, drawn, self.data)
