"""The feature atlas to disk: one labelled image, its numbers, and the settings."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

import robustsynth
from robustsynth.errors import UserError
from robustsynth.files import sha256, write_json
from robustsynth.images import save_png
from robustsynth.loop import Step
from robustsynth.models.classifier import Classifier
from robustsynth.models.execution import Execution, machine_name
from robustsynth.models.files import WEIGHTS_FILE
from robustsynth.tasks.feature_settings import FeatureSettings
from robustsynth.tasks.features import UnitRow, draw_atlas, feature_rows

if TYPE_CHECKING:
    from robustsynth.data import ImageData

SETTINGS_FILE, ATLAS_FILE, FEATURES_FILE = "settings.json", "atlas.png", "features.json"


class FeaturesJob:
    """A feature atlas that is written to a folder.

    Args:
        model: a classifier.
        units: positions in its representation.
        settings: resolved ones.
        out: folder to write to.
        data: to find top images in; None for none.
        split: of the data, for the record.
        seed: of the noise.
        precision: measured where None.
        batch_size: measured where None.
        overwrite: replace what the folder holds.

    Attributes:
        record: what ``settings.json`` says.

    Raises:
        UserError: the folder holds something of other settings.
    """

    def __init__(
        self,
        model: Classifier,
        units: Sequence[int],
        settings: FeatureSettings,
        out: Path | str,
        *,
        data: ImageData | None = None,
        split: str = "test",
        seed: int = 0,
        precision: str | None = None,
        batch_size: int | None = None,
        overwrite: bool = False,
    ) -> None:
        self.model, self.units, self.settings, self.out = model, list(units), settings, Path(out)
        self.data, self.seed = data, seed
        weights = None if model.folder is None else model.folder / WEIGHTS_FILE
        asked: dict[str, Any] = {
            "task": "features",
            "model": {"name": model.name, "sha256": sha256(weights) if weights and weights.exists() else None},
            "units": self.units,
            "data": None if data is None else {"name": data.name, "split": split, "images": len(data)},
            "seed": seed,
            "settings": dataclasses.asdict(settings),
        }
        self._check_folder(asked, overwrite)
        self.execution: Execution = model.synthesizer(precision=precision, batch_size=batch_size).execution
        self.record = asked | {
            "execution": self.execution.as_dict(),
            "machine": machine_name(model.device),
            "versions": {"robustsynth": robustsynth.__version__, "torch": torch.__version__},
        }

    def run(
        self,
        on_step: Callable[[Sequence[int], Step], object] | None = None,
        on_images: Callable[[int], object] | None = None,
    ) -> list[UnitRow]:
        """Draw the atlas and write it; interrupted by Ctrl-C, with those units that are done.

        Returns:
            The rows written: fewer than units if it was interrupted.
        """
        rows: list[UnitRow] = []
        try:
            for row in feature_rows(
                self.model,
                self.units,
                self.settings,
                data=None if self.data is None else self.data.images,
                seed=self.seed,
                precision=self.execution.precision,
                batch_size=self.execution.batch_size,
                on_step=on_step,
                on_images=on_images,
            ):
                rows.append(row)
        except KeyboardInterrupt:
            pass  # The caller sees that rows are missing.
        if rows:
            self._write(rows)
        return rows

    def _write(self, rows: Sequence[UnitRow]) -> None:
        named = "the data" if self.data is None else f"{self.data.name} {self.record['data']['split']}"
        sheet = draw_atlas(
            rows,
            title=f"What units of {self.model.name} respond to",
            drawn_as=f"drawn from noise (eps {self.settings.eps:g}, {self.settings.steps} steps)",
            data_name=named,
            classes=self.model.classes,
        )
        write_json(self.out / SETTINGS_FILE, self.record | {"done": len(rows)})
        save_png(self.out / ATLAS_FILE, sheet)
        write_json(self.out / FEATURES_FILE, [row.record() for row in rows])

    def _check_folder(self, asked: dict[str, Any], overwrite: bool) -> None:
        if self.out.exists() and not self.out.is_dir():
            raise UserError(f"expected a folder to write to, but {self.out} is a file; choose another --out")
        path = self.out / SETTINGS_FILE
        if not path.exists():
            return
        try:
            earlier = json.loads(path.read_text(encoding="utf-8"))
        except ValueError:
            earlier = None
        if not isinstance(earlier, dict):
            raise UserError(f"expected settings in {path}, but it is damaged; choose another --out")
        if earlier.get("task") != asked["task"]:
            # Never replaced: other tasks' results would stay without the settings that they need to go on.
            raise UserError(
                f"expected a new folder, but {self.out} holds results of {earlier.get('task')}; choose another --out"
            )
        differing = [name for name in asked if earlier.get(name) != asked[name]]
        if differing and not overwrite:
            raise UserError(
                f"expected a new folder or one of the same settings, but {self.out} holds an atlas of other ones "
                f"({', '.join(differing)}); choose another --out, or replace it with --overwrite"
            )
