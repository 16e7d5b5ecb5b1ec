"""Models as folders (``model.safetensors``, ``card.json``, ``seeds.safetensors``): load, save, find and list them."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save

from robustsynth.errors import UnknownNameError, UserError, closest_first
from robustsynth.files import sha256, written_beside
from robustsynth.models.card import CARD_FILE, Measured, ModelCard, measured
from robustsynth.models.classifier import Classifier
from robustsynth.models.hub import HUB_PREFIX, MODEL_FILES, fetch_model, hub_name
from robustsynth.models.networks import ARCHITECTURES, build_network

WEIGHTS_FILE = "model.safetensors"
NEXT_WEIGHTS = f"{WEIGHTS_FILE} (next)"
"""In a card's SHA-256 while weights are being replaced."""
BUNDLED = Path(__file__).resolve().parents[1] / "weights"
ZOO = Path(__file__).resolve().parents[3] / "zoo"
"""Further weights, at the repository's root: there in a checkout, not in an installed package."""
STATISTICS = ("running_mean", "running_var", "num_batches_tracked")
"""Last parts of the names of weights that are not trained."""

SOURCES = {
    "bundled": "bundled with the package",
    "checkout": "in zoo/ of the checkout that the package runs from",
    "here": "in zoo/ of the current folder",
    "own": "your own runs and models in the current folder",
    "hub": "fetched from the Hugging Face Hub before",
}
"""Where models are from, in words."""


def load_model(name_or_path: str | Path, *, device: str | torch.device | None = None) -> Classifier:
    """A classifier from a bundled name, a folder, the ``model.safetensors`` in it, or the Hugging Face Hub.

    Args:
        name_or_path: such as ``"cifar10"``; `model_names` lists the names. ``"hf://owner/name"`` or
            ``"hf://owner/name@revision"`` is fetched from the Hub once, and then needs no network.
        device: where to put it; a CUDA device if there is one, else the CPU, where None.

    Returns:
        The classifier, in evaluation mode.

    Raises:
        UnknownNameError: neither a name nor a path.
        UserError: files missing, damaged, or of another shape than the card says; a checkpoint that would
            have to be executed to be read; or a Hub name that does not exist or cannot be reached.

    Example:
        >>> load_model("cifar10").classes[:3]
        ('airplane', 'automobile', 'bird')
    """
    folder = find_model(name_or_path)
    card = ModelCard.load(folder)
    network = build_network(
        card.architecture,
        classes=len(card.classes),
        width=card.width,
        channels=card.channels,
        image_size=card.image_size,
    )
    _check_file(folder, WEIGHTS_FILE, card)
    with _undamaged(folder / WEIGHTS_FILE):
        weights = load_file(folder / WEIGHTS_FILE)
    expected = network.state_dict()
    wrong = [k for k in expected if k not in weights or weights[k].shape != expected[k].shape]
    extra = [k for k in weights if k not in expected]
    if wrong or extra:
        raise UserError(
            f"expected the weights of a {card.architecture} of width {card.width} with {len(card.classes)} classes "
            f"in {folder}, but {len(wrong)} are missing or of another shape ({', '.join(wrong[:3])}) and "
            f"{len(extra)} are not known ({', '.join(extra[:3])}); card and weights do not belong together"
        )
    network.load_state_dict({k: v.to(expected[k].dtype) for k, v in weights.items()})
    classifier = Classifier(
        network,
        classes=card.classes,
        mean=card.mean,
        std=card.std,
        image_size=card.image_size,
        card=card,
        folder=folder,
    )
    return classifier.to(chosen_device(device)).eval()


def save_model(folder: Path | str, classifier: Classifier, card: ModelCard, *, half: bool = True) -> ModelCard:
    """Write weights (float16; float32 where not `half`) and card into `folder`; returns the card with their SHA-256.

    The card is written last, so that a folder with a card is complete. A model that is replaced can be loaded at
    every moment: until the new card is there, the old one admits both the old weights and the new.
    """
    folder = Path(folder)
    weights = {
        name: (value.half() if half and value.is_floating_point() else value).cpu().contiguous()
        for name, value in classifier.network.state_dict().items()
    }
    beyond = [name for name, value in weights.items() if not bool(torch.isfinite(value.float()).all())]
    if beyond:
        raise UserError(f"expected finite weights within float16's range, got NaN or infinity in {beyond[0]}")
    # As bytes: on a full disk safetensors' own writer fails with an error that hides which it was.
    content = save(weights)
    if (folder / CARD_FILE).exists():
        before = ModelCard.load(folder)
        both = before.sha256 | {NEXT_WEIGHTS: hashlib.sha256(content).hexdigest()}
        dataclasses.replace(before, sha256=both).save(folder)
    with written_beside(folder / WEIGHTS_FILE) as temporary:
        temporary.write_bytes(content)
    sums = {p.name: sha256(p) for p in sorted(folder.glob("*.safetensors")) if not p.name.startswith(".")}
    card = dataclasses.replace(card, sha256=sums)
    card.save(folder)
    return card


def chosen_device(device: str | torch.device | None = None) -> torch.device:
    """`device` if it is there; a CUDA device if there is one, else the CPU, where None.

    Raises:
        UserError: no such device.
    """
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.empty(0, device=device).device
    except (RuntimeError, AssertionError) as error:  # PyTorch asserts that it was built for the device.
        reason = str(error).splitlines()[0]
        raise UserError(f"expected a device that is here, such as cpu, got {str(device)!r} ({reason})") from None


def model_names() -> dict[str, Path]:
    """Every name that `load_model` knows, with its folder: what is bundled, other names for it, and the zoo."""
    found = {card.parent.name: card.parent for root in (BUNDLED, ZOO) for card in sorted(root.glob(f"*/{CARD_FILE}"))}
    aliases = BUNDLED / "aliases.json"
    if aliases.exists():
        for alias, name in json.loads(aliases.read_text(encoding="utf-8")).items():
            if alias not in found and name in found:
                found[alias] = found[name]
    return dict(sorted(found.items()))


def find_model(name_or_path: str | Path) -> Path:
    """The folder of a model given by name or path.

    Raises:
        UnknownNameError: neither.
        UserError: a file that is not a model's weights, or a name that the Hub does not give.
    """
    if str(name_or_path).startswith(HUB_PREFIX):
        return fetch_model(str(name_or_path))
    names = model_names()
    if str(name_or_path) in names:
        return names[str(name_or_path)]
    path = Path(name_or_path).expanduser()
    if path.is_dir():
        return path
    if path.is_file():
        if path.name == WEIGHTS_FILE:
            return path.parent
        what = f"the file {path.name}"
        if path.suffix in (".pt", ".pth", ".ckpt", ".pkl", ".bin", ".tar"):
            what = f"{path.name}, a pickled checkpoint, which may hold code and is never executed here"
        raise UserError(
            f"expected a model folder with card.json and {WEIGHTS_FILE}, got {what}. "
            f"Convert it with robustsynth import {path} --out FOLDER. Where that does not know the network, in Python: "
            "build it, load_state_dict(torch.load(file, weights_only=True)), then robustsynth.Classifier.wrap(network, "
            "classes=…, mean=…, std=…) uses it as it is."
        )
    if path.suffix or len(path.parts) > 1:
        raise UserError(
            f"expected a model's name or folder, got {str(name_or_path)!r}, which does not exist; "
            f"names: {', '.join(closest_first(str(name_or_path), names))}"
        )
    raise UnknownNameError("model", str(name_or_path), names, "A folder that `robustsynth train` wrote works too.")


def _check_file(folder: Path, name: str, card: ModelCard) -> None:
    """Raise a `UserError` unless a file is there and the one that the card describes; it may be its next weights."""
    path, recorded = folder / name, card.sha256.get(name)
    if not path.exists():
        raise UserError(f"expected {name} in {folder} for model {card.name!r}, found no such file; restore it")
    allowed = {recorded, card.sha256.get(NEXT_WEIGHTS) if name == WEIGHTS_FILE else recorded}
    if recorded and (found := sha256(path)) not in allowed:
        raise UserError(
            f"expected {path} with SHA-256 {recorded[:12]}…, got {found[:12]}…: the file is damaged or is not "
            "the one that the card describes; restore it"
        )


@contextlib.contextmanager
def _undamaged(path: Path) -> Iterator[None]:
    try:
        yield
    except (SafetensorError, OSError) as error:
        raise UserError(f"expected weights in {path}, but it is damaged ({error}); restore it") from None


@dataclass(frozen=True)
class Listed:
    """A model folder, usable or not.

    Attributes:
        names: that `load_model` and ``--model`` take; the shortest is the first.
        source: a key of `SOURCES`.
        card: None where it cannot be read.
        parameters: number of those that are trained; 0 where the weights cannot be read.
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
        shown = ("architecture", "width", "image_size", "channels", "classes", "data", "threat_model", "licence")
        return {
            "names": list(self.names),
            "source": self.source,
            "folder": str(self.folder),
            "problem": self.problem,
            **{name: getattr(self.card, name) for name in (*shown, "description") if self.card},
            "accuracies": [vars(row) for row in self.accuracies],
            "parameters": self.parameters,
            "bytes": self.size,
            "class_seeds": self.seeds,
        }


def list_models() -> list[Listed]:
    """The models at hand, those of one source together, each source's by name.

    ``zoo/`` is looked for where the package runs from a checkout, and in the current folder, whose other folders are
    searched for models too, two levels deep. These go by their path, such as ``zoo/mine`` or ``runs/mine``, because a
    plain name shall mean the same wherever one is.

    Example:
        >>> [model.names for model in list_models() if model.source == "bundled"][0]
        ('cifar10', 'cifar10-small')
    """
    names = model_names()
    found: list[Listed] = []
    for source, root in (("bundled", BUNDLED), ("checkout", ZOO)):
        for folder in _folders(root):
            # A folder whose name means another one, or that has no card, goes by its path.
            own = sorted((name for name, path in names.items() if path == folder), key=len)
            found.append(_listed(folder, source, tuple(own) or (str(folder),)))
    zoo = Path("zoo")
    if zoo.resolve() != ZOO.resolve():
        found += [_listed(folder, "here", (str(folder),)) for folder in _folders(zoo)]
    known = {BUNDLED.resolve(), ZOO.resolve(), zoo.resolve()}
    cards = sorted([*Path().glob(f"[!.]*/{CARD_FILE}"), *Path().glob(f"[!.]*/[!.]*/{CARD_FILE}")])
    for folder in (card.parent for card in cards):
        if folder.resolve().parent not in known and not _of_others(folder):
            # Where a name of ours is that of a folder too, the folder goes by a path that is no name.
            found.append(_listed(folder, "own", (f"./{folder}" if str(folder) in names else str(folder),)))
    return found + [_listed(folder, "hub", (name,)) for name, folder in sorted(_hub_folders())]


def find_listed(name_or_path: str | Path) -> Listed:
    """One model as `list_models` lists it, by whatever `load_model` takes.

    Raises:
        UserError: there is none, or it cannot be used.

    Example:
        >>> find_listed("mnist").card.classes[:3]
        ('0', '1', '2')
    """
    folder = find_model(name_or_path)
    roots = {BUNDLED: "bundled", ZOO: "checkout"}
    source = "hub" if str(name_or_path).startswith(HUB_PREFIX) else roots.get(folder.parent, "own")
    found = _listed(folder, source, (str(name_or_path),))
    if found.problem is not None:
        raise UserError(found.problem)
    return found


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
        # Of several names of one revision the branch ``main`` comes last, and counts.
        files = sorted((path.name == "main", path) for path in (repository / "refs").rglob("*") if path.is_file())
        references = {path.read_text(encoding="utf-8").strip(): path for _, path in files}
        for snapshot in sorted((repository / "snapshots").glob("*")):
            revision = snapshot.name
            if revision in references:
                revision = references[revision].relative_to(repository / "refs").as_posix()
            full = f"{HUB_PREFIX}{name}" + ("" if revision == "main" else f"@{revision}")
            with contextlib.suppress(UserError):
                hub_name(full)
                if os.path.lexists(snapshot / CARD_FILE) and not _of_others(snapshot):
                    yield full, snapshot


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
    size = sum(path.stat().st_size for path in folder.glob("[!.]*.safetensors") if path.exists())
    seeds = (folder / "seeds.safetensors").exists()
    return Listed(names, source, folder, card, tuple(accuracies), parameters, size, seeds, problem)


def _check_files(folder: Path, card: ModelCard) -> int:
    """How many trained parameters the weights have; raises what `load_model` would for the network or the files."""
    if card.architecture not in ARCHITECTURES:
        raise UserError(
            f"expected an architecture of {', '.join(ARCHITECTURES)}, got {card.architecture!r}; a later version of "
            "robustsynth may know it"
        )
    for name in MODEL_FILES:
        if name == WEIGHTS_FILE or (name.endswith(".safetensors") and (folder / name).exists()):
            _check_file(folder, name, card)
    with _undamaged(folder / WEIGHTS_FILE), safe_open(folder / WEIGHTS_FILE, "np") as weights:
        trained = [key for key in weights.keys() if not key.endswith(STATISTICS)]  # noqa: SIM118
        return sum(math.prod(weights.get_slice(key).get_shape()) for key in trained)
