"""``robustsynth features``: images of what a model's units respond to, written unit by unit."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click

from robustsynth.cli import progress as runs
from robustsynth.cli.options import Numbers, out_option, parse_classes, run_options, settings_options
from robustsynth.cli.progress import say
from robustsynth.errors import UserError
from robustsynth.tasks.settings import FeatureSettings

if TYPE_CHECKING:
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
@out_option
@settings_options(FeatureSettings)
@run_options
def command(**options: Any) -> None:
    """Show what a model's units respond to, to choose some for painting.

    A row a unit: images drawn from noise to raise it, the images of --data that raise it most, and the classes that
    it speaks for. Writes atlas.png, features.json, settings.json and each drawn image into the folder, and with
    --trajectory how each comes about. Stopped by Ctrl-C, the same command goes on with the units that are missing.
    """
    with runs.sole_writer(options["out"]):
        FeaturesRun(options).run()


class FeaturesRun:
    """One call of the command: `rows` by unit, as the folder's files have them, and the units that are `missing`."""

    def __init__(self, options: dict[str, Any]) -> None:
        from robustsynth.data import load_data
        from robustsynth.models.store import load_model
        from robustsynth.run_folder import RunFolder, model_identity
        from robustsynth.tasks.features import check_units, choose_units, resolve_features

        self.animations = runs.Animations(options["trajectory"])
        self.model = model = load_model(options["model_name"], device=options["device"])
        units, classes = options["units"], options["classes"]
        if units is not None and classes is not None:
            raise UserError("expected --units or --classes, got both; units are chosen for classes if none are given")
        if units is None:
            wanted = parse_classes(classes or "all", model.classes, model.class_index)
            units = choose_units(model, wanted, num=options["num"])
        self.units = check_units(model, units)
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
        new, overwrite = (ATLAS_FILE, FEATURES_FILE), options["overwrite"]
        self.folder = RunFolder(options["out"], asked, overwrite=overwrite, files=self._files, new_files=new)
        precision, batch_size = self.folder.execution(options["precision"], options["batch_size"])
        self.execution = model.frozen(precision=precision, batch_size=batch_size).execution
        self.rows = {row.unit: row for row in self._read()} if self.folder.earlier else {}
        self.missing = [unit for unit in self.units if not self._is_there(unit)]

    def run(self) -> None:
        """Draw what is missing, then say what was written; stopped by Ctrl-C, keep what there is and exit with 130."""
        from robustsynth.sheet import MOST_ROWS

        units, folder = self.units, self.folder
        runs.say_run(self.model, dataclasses.asdict(self.settings), self.execution, seed=self.seed)
        if len(self.missing) < len(units):
            say(f"{len(units) - len(self.missing)} of {len(units)} units are there already")
        names = dict(enumerate(name for unit in self.missing for name in self._names(unit)))
        total = len(names) * self.settings.steps
        with runs.stoppable() as asked:
            for progress in runs.with_bar(self._steps(asked), total=total, name="drawing", asked=asked):
                self.animations.add(progress)
                if progress.finished:
                    self.animations.write(folder.out, names, progress)
        self._draw()
        done = sum(map(self._is_there, units))
        if done < len(units):
            kept = f"what was done, {done} of {len(units)} units, is in {folder.out}" if done else "nothing is done"
            runs.stop(f"stopped; {kept}")
        for unit in units:
            speaks = ", ".join(f"{name} {weight:+.2f}" for name, weight in self.rows[unit].classes) or "no class known"
            click.echo(f"unit {unit:4}  reaches {max(self.rows[unit].activations):5.1f}  {speaks}")
        shown = f"; {ATLAS_FILE} shows the first {MOST_ROWS} units" if len(units) > MOST_ROWS else ""
        say(f"wrote {ATLAS_FILE} and {FEATURES_FILE} to {folder.out}{shown}")

    def _steps(self, asked: list[int]) -> Iterator[Progress]:
        """The steps of drawing what is missing. A row is written as soon as it is there."""
        from tqdm import tqdm

        from robustsynth.tasks.features import Looked, UnitRow, feature_steps

        if not self.missing:
            return
        how = {"precision": self.execution.precision, "batch_size": self.execution.batch_size}
        steps = feature_steps(self.model, self.missing, self.settings, data=self.data, seed=self.seed, **how)
        hidden = not runs.interactive() or self.data is None or not self.settings.top
        with tqdm(unit="image", desc="looking", disable=hidden) as looking:
            for each in steps:
                runs.begin(self.folder, self.model, self.execution)
                if isinstance(each, UnitRow):
                    self._write(each)
                elif isinstance(each, Looked):
                    looking.total = each.of
                    looking.update(each.images - looking.n)
                    if asked:
                        return
                else:
                    yield each

    def _names(self, unit: int) -> list[str]:
        """Of the files of a unit's drawn images, without ending."""
        return [f"unit-{unit}-{number}" for number in range(self.settings.drawn)]

    def _is_there(self, unit: int) -> bool:
        ending = self.animations.ending
        paths = [self.folder.out / f"{name}.{ending}" for name in self._names(unit) if ending]
        return unit in self.rows and all(path.exists() for path in paths)

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
        """Write one row; the images first, so that a row whose numbers are there is complete."""
        from robustsynth.files import write_json
        from robustsynth.images import save_png, to_uint8

        drawn = list(to_uint8(row.images))
        for number, (name, image) in enumerate(zip(self._names(row.unit), drawn, strict=True)):
            text = self.folder.png_text(unit=row.unit, number=number, activation=row.activations[number])
            save_png(self.folder.out / f"{name}.png", image, text=text)
        # As it will be read: figures of a run that was stopped are drawn from the files.
        self.rows[row.unit] = row.of_record(row.record(), drawn, self.data)
        write_json(self.folder.out / FEATURES_FILE, [each.record() for each in self._ordered()])

    def _ordered(self) -> list[UnitRow]:
        return [self.rows[unit] for unit in self.units if unit in self.rows]

    def _draw(self) -> None:
        """The atlas of the rows that are there: the same however often the run was stopped."""
        from robustsynth.images import save_png
        from robustsynth.tasks.features import draw_atlas

        rows = self._ordered()
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

    def _files(self, _: object) -> list[str]:
        """What this command may have left in the folder, whatever units it drew."""
        ours = re.compile(r"atlas\.png|features\.json|unit-\d+-\d+\.(png|gif|mp4)")
        return [path.name for path in self.folder.out.iterdir() if ours.fullmatch(path.name)]
