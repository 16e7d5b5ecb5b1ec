"""Every model at hand: what is bundled, in a zoo, and fetched from the Hub before. A broken one is listed as such."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from robustsynth.errors import UserError
from robustsynth.files import sha256
from robustsynth.models import files
from robustsynth.models.architectures import ARCHITECTURES
from robustsynth.models.card import ModelCard
from robustsynth.models.files import NEXT_WEIGHTS, WEIGHTS_FILE, model_names
from robustsynth.models.hub import HUB_PREFIX, MODEL_FILES, hub_name
from robustsynth.models.measured import Measured, measured

CARD_FILE = "card.json"
_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")

SOURCES = {
    "bundled": "bundled with the package",
    "checkout": "in zoo/ of the checkout that the package runs from",
    "here": "in zoo/ of the current folder",
    "hub": "fetched from the Hugging Face Hub before",
}
"""Where models are from, in words."""


@dataclass(frozen=True)
class Listed:
    """A model folder, usable or not.

    Attributes:
        names: that `load_model` and ``--model`` take; the shortest use is the first.
        source: a key of `SOURCES`.
        folder: where it lies.
        card: None where it cannot be read.
        accuracies: the card's.
        parameters: that are trained; 0 where the weights cannot be read.
        size: bytes of weights, seeds and mixtures together.
        seeds: whether class seeds are there to start from.
        problem: why it cannot be used; None where it can.
    """

    names: tuple[str, ...]
    source: str
    folder: Path
    card: ModelCard | None
    accuracies: tuple[Measured, ...]
    parameters: int
    size: int
    seeds: bool
    problem: str | None

    def as_dict(self) -> dict[str, Any]:
        """As plain values, for JSON."""
        card = self.card
        about = {} if card is None else {
            "architecture": card.architecture,
            "width": card.width,
            "image_size": card.image_size,
            "channels": card.channels,
            "classes": list(card.classes),
            "data": card.data,
            "threat_model": card.threat_model,
            "accuracies": [vars(row) for row in self.accuracies],
            "licence": card.licence,
            "description": card.description,
        }  # fmt: skip
        return {
            "names": list(self.names),
            "source": self.source,
            "folder": str(self.folder),
            "problem": self.problem,
            **about,
            "parameters": self.parameters,
            "bytes": self.size,
            "class_seeds": self.seeds,
        }


def list_models() -> list[Listed]:
    """The models at hand, those of one source together, each source's by name.

    ``zoo/`` is looked for where the package runs from a checkout, and in the current folder: the models there go by
    their path, such as ``zoo/mine``, because a plain name shall mean the same wherever one is.

    Example:
        >>> [model.names for model in list_models() if model.source == "bundled"][0]
        ('cifar10', 'cifar10-small')
    """
    names = model_names()
    found = [_listed(folder, "bundled", _names_of(folder, names)) for folder in _folders(files.BUNDLED)]
    found += [_listed(folder, "checkout", _names_of(folder, names)) for folder in _folders(files.ZOO)]
    here = Path("zoo")
    if here.resolve() != files.ZOO.resolve():
        found += [_listed(folder, "here", (str(folder),)) for folder in _folders(here)]
    return found + [_listed(folder, "hub", (name,)) for name, folder in sorted(_hub_folders())]


def _names_of(folder: Path, names: dict[str, Path]) -> tuple[str, ...]:
    """The names that mean this folder; its path where another folder has its name, or where it has no card."""
    own = [name for name, path in names.items() if path == folder]
    return tuple(sorted(own, key=len)) or (str(folder),)


def _folders(root: Path) -> list[Path]:
    """Those with any file of a model in them: one without a card is a broken model, not nothing."""
    if not root.is_dir():
        return []
    inside = sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
    return [path for path in inside if any(os.path.lexists(path / name) for name in MODEL_FILES)]


def _hub_folders() -> Iterator[tuple[str, Path]]:
    """Names and folders in the Hub's own cache, which other libraries share: only those with a card of ours."""
    from huggingface_hub import constants

    for repository in Path(constants.HF_HUB_CACHE).glob("models--*--*"):
        name = repository.name.removeprefix("models--").replace("--", "/", 1)
        references = {path.read_text(encoding="utf-8").strip(): path for path in _files_below(repository / "refs")}
        for snapshot in sorted((repository / "snapshots").glob("*")):
            revision = snapshot.name
            if revision in references:
                revision = references[revision].relative_to(repository / "refs").as_posix()
            full = f"{HUB_PREFIX}{name}" + ("" if revision == "main" else f"@{revision}")
            try:
                hub_name(full)
            except UserError:
                continue
            if os.path.lexists(snapshot / CARD_FILE) and not _of_others(snapshot):
                yield full, snapshot


def _files_below(folder: Path) -> list[Path]:
    """Reversed, so that of several names of one revision the branch ``main`` is not hidden by a later one."""
    paths = [path for path in folder.rglob("*") if path.is_file()]
    return sorted(paths, key=lambda path: (path.name == "main", path.as_posix()))


def _of_others(folder: Path) -> bool:
    """Whether ``card.json`` is another library's file of that name."""
    try:
        values = json.loads((folder / CARD_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return not isinstance(values, dict) or not {"architecture", "classes"} & set(values)


def _listed(folder: Path, source: str, names: tuple[str, ...]) -> Listed:
    card: ModelCard | None = None
    accuracies: list[Measured] = []
    parameters, problem = 0, None
    try:
        card = ModelCard.load(folder)
        parameters = _check_files(folder, card)
        accuracies = measured(card)
    except (UserError, OSError) as error:
        problem = str(error)
    sizes = [path.stat().st_size for path in folder.glob("[!.]*.safetensors") if path.exists()]
    return Listed(
        names,
        source,
        folder,
        card,
        tuple(accuracies),
        parameters,
        sum(sizes),
        (folder / "seeds.safetensors").exists(),
        problem,
    )


def _check_files(folder: Path, card: ModelCard) -> int:
    """How many trained parameters the weights have.

    Raises:
        UserError: what `load_model` would refuse for a network that is not known, or for files that are missing,
            damaged, or not those of the card.
    """
    if card.architecture not in ARCHITECTURES:
        raise UserError(
            f"expected an architecture of {', '.join(ARCHITECTURES)}, got {card.architecture!r}; a later version of "
            "robustsynth may know it"
        )
    if not (folder / WEIGHTS_FILE).exists():
        raise UserError(f"expected {WEIGHTS_FILE} in {folder}, found none; restore it")
    for name in (name for name in MODEL_FILES if name.endswith(".safetensors")):
        recorded = card.sha256.get(name)
        if recorded is None or not (folder / name).exists():
            continue
        allowed = {recorded, card.sha256.get(NEXT_WEIGHTS) if name == WEIGHTS_FILE else recorded}
        if (found := sha256(folder / name)) not in allowed:
            raise UserError(
                f"expected {folder / name} with SHA-256 {recorded[:12]}…, got {found[:12]}…: the file is damaged or is "
                "not the one that the card describes; restore it"
            )
    try:
        with safe_open(folder / WEIGHTS_FILE, "np") as weights:
            trained = [key for key in weights.keys() if not key.endswith(_STATISTICS)]  # noqa: SIM118
            return sum(math.prod(weights.get_slice(key).get_shape()) for key in trained)
    except (SafetensorError, OSError) as error:
        raise UserError(
            f"expected weights in {folder / WEIGHTS_FILE}, but it is damaged ({error}); restore it"
        ) from None
