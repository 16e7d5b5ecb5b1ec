"""``robustsynth features``"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click

from robustsynth.cli.options import Numbers, parse_classes, run_options, settings_options
from robustsynth.cli.progress import (
    STOPPED,
    Animations,
    check_trajectory,
    interactive,
    say,
    settings_line,
    stoppable,
    with_bar,
)
from robustsynth.errors import UserError
from robustsynth.tasks.settings import FeatureSettings

if TYPE_CHECKING:
    from robustsynth.models.classifier import Classifier
    from robustsynth.solver import Progress
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
@run_options
def command(**options: Any) -> None:
    """Show what a model's units respond to, to choose some for painting.

    A row a unit: images drawn from noise to raise it, the images of --data that raise it most, and the classes that
    it speaks for. Writes atlas.png, features.json, settings.json and each drawn image into the folder, and with
    --trajectory how each comes about. Stopped by Ctrl-C, the same command goes on with the units that are missing.
    """
    from robustsynth.files import only_writer
    from robustsynth.run_folder import RunFolder

    with only_writer(RunFolder.path_of(options["out"])):
        FeaturesRun(options).run()


class FeaturesRun:
    """One call of the command.

    Attributes:
        rows: by unit, as the folder's files have them.
        missing: units that are to be drawn.
    """

    def __init__(self, options: dict[str, Any]) -> None:
        from robustsynth.data import load_data
        from robustsynth.models.store import load_model
        from robustsynth.run_folder import RunFolder, model_identity
        from robustsynth.tasks.features import resolve_features

        check_trajectory(options["trajectory"])
        self.trajectory: str | None = options["trajectory"]
        self.model = model = load_model(options["model_name"], device=options["device"])
        self.units = _wanted_units(model, options)
        given = {field.name: options[field.name] for field in dataclasses.fields(FeatureSettings)}
        self.settings = resolve_features(model, given=given)
        self.data, self.seed, split = None, options["seed"], options["split"]
        if options["data"] is not None:
            size = {"image_size": model.image_size, "channels": model.channels}
            self.data = load_data(options["data"], split, **size, announce=say)
        asked = {
            "task": "features",
            "model": model_identity(model),
            "units": self.units,
            "data": None if self.data is None else {"name": self.data.name, "split": split, "images": len(self.data)},
            "seed": self.seed,
            "settings": dataclasses.asdict(self.settings),
        }
        self.folder: RunFolder = RunFolder(
            options["out"],
            asked,
            overwrite=options["overwrite"],
            files=lambda record: self._files(),
            new_files=(ATLAS_FILE, FEATURES_FILE),
        )
        precision, batch_size = self.folder.execution(options["precision"], options["batch_size"])
        self.execution = model.frozen(precision=precision, batch_size=batch_size).execution
        self.rows = {row.unit: row for row in self._read()} if self.folder.earlier else {}
        self.missing = [unit for unit in self.units if not self._is_there(unit)]

    def run(self) -> None:
        """Draw what is missing, then say what was written; stopped by Ctrl-C, keep what there is and exit with 130."""
        from robustsynth.cli.describe import describe_model
        from robustsynth.sheet import MOST_ROWS

        settings, units, folder = self.settings, self.units, self.folder
        say(describe_model(self.model))
        say(settings_line(dataclasses.asdict(settings)))
        say(f"running in {self.execution.precision}, {self.execution.batch_size} images a batch, seed {self.seed}")
        if len(self.missing) < len(units):
            say(f"{len(units) - len(self.missing)} of {len(units)} units are there already")
        animations = Animations(self.trajectory)
        names = dict(enumerate(name for unit in self.missing for name in self._names(unit)))
        total = len(names) * settings.steps
        with stoppable() as asked:
            for progress in with_bar(self._steps(asked), total=total, name="drawing", asked=asked):
                animations.add(progress)
                if progress.finished:
                    animations.write(folder.out, names, progress)
        self._draw()
        done = [unit for unit in units if self._is_there(unit)]
        if len(done) < len(units):
            said = (
                f"what was done, {len(done)} of {len(units)} units, is in {folder.out}" if done else "nothing is done"
            )
            say(f"stopped; {said}")
            raise SystemExit(STOPPED)
        for unit in units:
            speaks = ", ".join(f"{name} {weight:+.2f}" for name, weight in self.rows[unit].classes) or "no class known"
            click.echo(f"unit {unit:4}  reaches {max(self.rows[unit].activations):5.1f}  {speaks}")
        shown = f"; {ATLAS_FILE} shows the first {MOST_ROWS} units" if len(units) > MOST_ROWS else ""
        say(f"wrote {ATLAS_FILE} and {FEATURES_FILE} to {folder.out}{shown}")

    def _steps(self, asked: list[int]) -> Iterator[Progress]:
        """The steps of drawing what is missing. A row is written as soon as it is there."""
        from tqdm import tqdm

        from robustsynth.models.execution import machine_name
        from robustsynth.tasks.features import Looked, UnitRow, feature_steps

        if not self.missing:
            return
        execution = self.execution
        steps = feature_steps(
            self.model,
            self.missing,
            self.settings,
            data=self.data,
            seed=self.seed,
            precision=execution.precision,
            batch_size=execution.batch_size,
        )
        hidden = not interactive() or self.data is None or not self.settings.top
        with tqdm(
            total=0 if self.data is None else len(self.data), unit="image", desc="looking", disable=hidden
        ) as looking:
            for each in steps:
                # Only now that all that can be refused has been: a folder should not hold settings of nothing.
                self.folder.begin(execution=execution.as_dict(), machine=machine_name(self.model.device))
                if isinstance(each, UnitRow):
                    self._write(each)
                elif isinstance(each, Looked):
                    looking.update(each.images - looking.n)
                    if asked:
                        return
                else:
                    yield each

    def _names(self, unit: int) -> list[str]:
        """Of the files of a unit's drawn images, without ending."""
        return [f"unit-{unit}-{number}" for number in range(self.settings.drawn)]

    def _is_there(self, unit: int) -> bool:
        films = [self.folder.out / f"{name}.{self.trajectory}" for name in self._names(unit) if self.trajectory]
        return unit in self.rows and all(film.exists() for film in films)

    def _read(self) -> Iterator[UnitRow]:
        """The rows that are there; one whose files are damaged counts as missing, and is drawn again."""
        from robustsynth.images import read_image
        from robustsynth.tasks.features import UnitRow

        try:
            records = json.loads((self.folder.out / FEATURES_FILE).read_text(encoding="utf-8"))
        except (FileNotFoundError, ValueError):
            return
        for record in records if isinstance(records, list) else []:
            with contextlib.suppress(UserError, KeyError, TypeError, ValueError, IndexError):
                paths = [self.folder.out / f"{name}.png" for name in self._names(record["unit"])]
                drawn = [read_image(path, channels=self.model.channels).pixels for path in paths]
                yield UnitRow.of_record(record, drawn, self.data)

    def _write(self, row: UnitRow) -> None:
        """Write one row; the images first, so that a row whose numbers are there is whole."""
        from robustsynth.files import write_json
        from robustsynth.images import save_png, to_uint8

        drawn = list(to_uint8(row.images))
        for number, (name, image) in enumerate(zip(self._names(row.unit), drawn, strict=True)):
            text = self.folder.png_text(unit=row.unit, number=number, activation=row.activations[number])
            save_png(self.folder.out / f"{name}.png", image, text=text)
        self.rows[row.unit] = row.of_record(row.record(), drawn, self.data)
        records = [self.rows[unit].record() for unit in self.units if unit in self.rows]
        write_json(self.folder.out / FEATURES_FILE, records)

    def _draw(self) -> None:
        """The rows that are there, as the files have them: the same however often the run was stopped."""
        from robustsynth.images import save_png
        from robustsynth.tasks.features import draw_atlas

        rows = [self.rows[unit] for unit in self.units if unit in self.rows]
        if rows:
            atlas = draw_atlas(
                rows,
                title=f"What units of {self.model.name} respond to",
                drawn_as=f"drawn from noise (eps {self.settings.eps:g}, {self.settings.steps} steps)",
                data_name="the data" if self.data is None else f"{self.data.name} {self.folder.asked['data']['split']}",
                classes=self.model.classes,
            )
            save_png(self.folder.out / ATLAS_FILE, atlas, text=self.folder.png_text())
        self.folder.save(done=len(rows))

    def _files(self) -> list[str]:
        """What this command may have left in the folder, whatever units it drew."""
        ours = re.compile(r"atlas\.png|features\.json|unit-\d+-\d+\.(png|gif|mp4)")
        return [path.name for path in self.folder.out.iterdir() if ours.fullmatch(path.name)]


def _wanted_units(model: Classifier, options: dict[str, Any]) -> list[int]:
    from robustsynth.tasks.features import check_units, choose_units

    units, classes = options["units"], options["classes"]
    if units is not None and classes is not None:
        raise UserError("expected --units or --classes, got both; units are chosen for classes where none are given")
    if units is not None:
        return check_units(model, units)
    wanted = parse_classes(classes or "all", model.classes, model.class_index)
    return choose_units(model, wanted, num=options["num"])
