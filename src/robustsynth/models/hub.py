"""Models on the Hugging Face Hub: fetched as ``hf://owner/name``, and published with a page. Nothing is executed."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from robustsynth.errors import UserError
from robustsynth.models.card import CARD_FILE, ModelCard

HUB_PREFIX = "hf://"
MODEL_FILES = (CARD_FILE, "model.safetensors", "seeds.safetensors", "mixtures.safetensors")
"""All that is ever fetched or published of a model, besides a page and images for people."""
PAGE_FILES = ("README.md", "samples.png")

_LICENCES = (
    *("mit", "apache-2.0", "bsd-3-clause", "bsd-2-clause", "cc0-1.0"),
    *("cc-by-4.0", "cc-by-sa-4.0", "cc-by-nc-4.0"),
)
"""Licences that the Hub knows, in lower case."""

_NAME = r"[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?"


def hub_name(text: str) -> tuple[str, str | None]:
    """The repository and the revision that ``owner/name`` or ``hf://owner/name@revision`` means.

    Raises:
        UserError: it is not of that form.

    Example:
        >>> hub_name("hf://someone/cats@v1.0")
        ('someone/cats', 'v1.0')
    """
    name, _, revision = text.removeprefix(HUB_PREFIX).partition("@")
    if not re.fullmatch(f"{_NAME}/{_NAME}", name) or ("@" in text and not revision):
        raise UserError(f"expected a Hub name such as hf://owner/name or hf://owner/name@revision, got {text!r}")
    return name, revision or None


def fetch_model(text: str) -> Path:
    """The folder of a model of the Hub: fetched if it is new, from the Hub's own cache where there is no network.

    Args:
        text: ``hf://owner/name``, with ``@revision`` (a branch, a tag or a commit) for another than the newest.

    Raises:
        UserError: not such a name; no such model, or one that needs a login; or neither a network nor a copy.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    name, revision = hub_name(text)
    wanted: dict[str, Any] = {"repo_id": name, "revision": revision, "allow_patterns": list(MODEL_FILES)}
    try:
        folder = Path(snapshot_download(**wanted))
    # Between here and the Hub a dozen unrelated types are raised; what people can do depends on a few of them alone.
    except Exception as error:
        try:
            folder = Path(snapshot_download(**wanted, local_files_only=True))
        except (LocalEntryNotFoundError, OSError, ValueError):
            raise _unfetched(text, error) from None
    if not (folder / CARD_FILE).exists():
        raise UserError(
            f"expected a model with card.json and model.safetensors as {text}, found neither; this library's models "
            "are there after robustsynth publish. A checkpoint of another library: download it, then robustsynth import"
        )
    return folder


def publish_folder(folder: Path, to: str, *, private: bool = False) -> str:
    """Upload the files of `MODEL_FILES` and `PAGE_FILES` in a folder to the Hub; returns the repository's address.

    Raises:
        UserError: not logged in, not allowed, or the Hub cannot be reached.
    """
    from huggingface_hub import HfApi

    name, revision = hub_name(to)
    if revision is not None:
        raise UserError(f"expected owner/name to publish to, got {to!r}; a new version goes to the main branch")
    try:
        api = HfApi()
        address = api.create_repo(repo_id=name, exist_ok=True, private=private)
        api.upload_folder(
            repo_id=name,
            folder_path=str(folder),
            commit_message="A robustsynth model",
            allow_patterns=[*MODEL_FILES, *PAGE_FILES],
        )
    except Exception as error:
        raise UserError(
            f"expected to write {name} on the Hugging Face Hub, got {_reason(error)}; log in with `hf auth login` and "
            "a token that may write, check the owner's name and the network, or look at it with --dry-run FOLDER"
        ) from None
    return str(address)


def _unfetched(text: str, error: Exception) -> UserError:
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    remedies = {
        GatedRepoError: "it asks for its terms to be accepted: do so on its page, then `hf auth login`",
        RevisionNotFoundError: "there is no such revision; leave out the part after @, or name a branch, tag or commit",
        RepositoryNotFoundError: "there is no such model, or it is private; check the name, or `hf auth login`",
        Exception: "it cannot be reached and there is no copy of it here; check the network and the name",
    }
    what = next(words for kind, words in remedies.items() if isinstance(error, kind))
    return UserError(f"expected a model on the Hugging Face Hub as {text}, but {what} ({_reason(error)})")


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:300]


def model_page(card: ModelCard, *, repository: str, samples: str | None = None) -> str:
    """The page of a model as ``owner/name`` on the Hub: Markdown with a header that the Hub reads.

    `samples` is the file name of an image beside it, if there is one.

    Example:
        >>> card = ModelCard("cats", "resnet18", 64, 3, 32, ("cat", "dog"), (0.5,) * 3, (0.2,) * 3)
        >>> page = model_page(card, repository="someone/cats")
        >>> page.splitlines()[:3]
        ['---', 'library_name: robustsynth', 'license: mit']
    """
    threat = card.threat_model
    robust = f"trained to withstand {threat['norm']} perturbations of {threat['eps']:g}" if threat.get("eps") else (
        "standard training, not robust" if threat else "what it was trained to withstand is not stated"
    )  # fmt: skip
    image = f"![Samples, a row for each class, not selected]({samples})\n\n" if samples else ""
    training: dict[str, Any] = {}
    for key, value in card.training.items():
        training |= {f"{key}.{k}": v for k, v in value.items()} if isinstance(value, dict) else {key: value}
    return (
        f"---\n{_header(card)}\n---\n\n# {_plain(card.name)}\n\n{_plain(card.description)}\n\n{image}"
        f"An image classifier ({card.architecture} of width {card.width}, {len(card.classes)} classes at "
        f"{card.image_size}×{card.image_size} pixels; {robust}) to draw with: descending its loss on the image is the "
        "whole method of Santurkar et al., *Image Synthesis with a Single (Robust) Classifier* (NeurIPS 2019).\n\n"
        f"## Use\n\n    robustsynth generate --model hf://{repository} --out samples\n\n"
        f'    import robustsynth as rs\n    model = rs.load_model("hf://{repository}")\n\n'
        "Weights are safetensors and the card is JSON: nothing is executed to load them.\n"
        f"{_accuracies(card)}{_table('Training', training)}"
        f"\n## Classes\n\n{', '.join(map(_plain, card.classes))}\n{_table('Data', card.data)}"
        f"\n## Normalisation and licence\n\nInside the model: mean {list(card.mean)}, std {list(card.std)}, of images "
        f"in [0, 1].\n\nLicence of the weights: {_plain(card.licence)}.\n"
    )


def _header(card: ModelCard) -> str:
    from huggingface_hub import ModelCardData

    licence = card.licence.strip().lower()
    known = licence if licence in _LICENCES else "unknown" if licence == "not stated" else "other"
    norm = [str(card.threat_model["norm"])] if card.threat_model.get("eps") else []
    return ModelCardData(
        license=known,
        license_name=card.licence if known == "other" else None,
        library_name="robustsynth",
        pipeline_tag="image-classification",
        tags=["adversarial-robustness", "image-synthesis", card.architecture, *norm],
    ).to_yaml()


def _accuracies(card: ModelCard) -> str:
    rows = card.accuracies.get("rows", [])
    if not rows:
        return "\n## Accuracy\n\nNot measured.\n"
    lines = ["\n## Accuracy\n", "| attack | accuracy | images |", "|---|---|---|"]
    for row in rows:
        attack = "none" if row["eps"] == 0 else f"{card.accuracies.get('norm', '')} {row['eps']:g}"
        lines.append(f"| {attack} | {100 * row['share']:.1f} % | {row.get('images', '')} |")
    how = {k: v for k, v in card.accuracies.items() if k != "rows" and isinstance(v, str | int | float)}
    return "\n".join(lines) + "\n\n" + "; ".join(f"{k}: {_plain(str(v))}" for k, v in how.items()) + "\n"


def _table(title: str, values: dict[str, Any]) -> str:
    rows = "\n".join(f"| {_plain(str(k))} | {_plain(str(v))} |" for k, v in values.items() if v not in (None, "", []))
    return f"\n## {title}\n\n| | |\n|---|---|\n{rows}\n" if values else ""


def _plain(text: str) -> str:
    """Text without any effect in Markdown: somebody else's card must not bring markup to one's page."""
    return " ".join(re.sub(r"([\\|\[\]`*_])", r"\\\1", text).replace("<", "&lt;").split())
