"""Models as folders: ``model.safetensors``, ``card.json``, ``seeds.safetensors``. Nothing is ever loaded by
executing it."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save

from robustsynth.errors import UnknownNameError, UserError, closest_first
from robustsynth.files import sha256, written_beside
from robustsynth.models.architectures import build_network
from robustsynth.models.card import ModelCard
from robustsynth.models.classifier import Classifier
from robustsynth.models.hub import HUB_PREFIX, fetch_model

WEIGHTS_FILE = "model.safetensors"
NEXT_WEIGHTS = f"{WEIGHTS_FILE} (next)"
"""In a card's SHA-256 while weights are being replaced."""
BUNDLED = Path(__file__).resolve().parents[1] / "weights"
ZOO = Path(__file__).resolve().parents[3] / "zoo"
"""Further weights, at the repository's root: there in a checkout, not in an installed package."""


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
    weights = _read_weights(folder / WEIGHTS_FILE, card)
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
    """Write weights (float16; float32 where not `half`) and card into `folder`; returns the card with the files'
    SHA-256.

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
    if (folder / "card.json").exists():
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
    found = {folder.name: folder for root in (BUNDLED, ZOO) for folder in _model_folders(root)}
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
        raise _refusal(path)
    if path.suffix or len(path.parts) > 1:
        raise UserError(
            f"expected a model's name or folder, got {str(name_or_path)!r}, which does not exist; "
            f"names: {', '.join(closest_first(str(name_or_path), names))}"
        )
    raise UnknownNameError("model", str(name_or_path), names, "A folder that `robustsynth train` wrote works too.")


def _model_folders(root: Path) -> Iterator[Path]:
    if root.is_dir():
        yield from sorted(p.parent for p in root.glob("*/card.json"))


def _read_weights(path: Path, card: ModelCard) -> dict[str, torch.Tensor]:
    if not path.exists():
        raise UserError(f"expected the weights of model {card.name!r} in {path}, found no such file")
    recorded = card.sha256.get(path.name)
    if recorded and sha256(path) not in (recorded, card.sha256.get(NEXT_WEIGHTS)):
        raise UserError(
            f"expected {path} with SHA-256 {recorded[:12]}…, got {sha256(path)[:12]}…: the file is damaged or is not "
            "the one that the card describes; restore it"
        )
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise UserError(f"expected weights in {path}, but it is damaged ({error}); restore it") from None


def _refusal(path: Path) -> UserError:
    """Why a file that is not a model folder cannot be loaded, and what to do."""
    convert = (
        f"Convert it with robustsynth import {path} --out FOLDER. Where that does not know the network, in Python: "
        "build it, load_state_dict(torch.load(file, weights_only=True)), then robustsynth.Classifier.wrap(network, "
        "classes=…, mean=…, std=…) uses it as it is"
    )
    if path.suffix in (".pt", ".pth", ".ckpt", ".pkl", ".bin", ".tar"):
        return UserError(
            f"expected a model folder with card.json and {WEIGHTS_FILE}, got {path.name}, a pickled checkpoint, which "
            f"may hold code and is never executed here. {convert}."
        )
    return UserError(f"expected a model folder with card.json and {WEIGHTS_FILE}, got the file {path.name}. {convert}.")
