"""Model folders on the Hugging Face Hub: fetched as ``hf://owner/name``, and published. Nothing there is executed."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from robustsynth.errors import UserError

HUB_PREFIX = "hf://"
MODEL_FILES = ("card.json", "model.safetensors", "seeds.safetensors", "mixtures.safetensors")
"""All that is ever fetched or published of a model, besides a page and pictures for people."""
PAGE_FILES = ("README.md", "samples.png")

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
    if not (folder / "card.json").exists():
        raise UserError(
            f"expected a model with card.json and model.safetensors as {text}, found neither; this library's models "
            "are there after robustsynth publish. A checkpoint of another library: download it, then robustsynth import"
        )
    return folder


def publish_folder(folder: Path, to: str, *, private: bool = False, message: str = "A robustsynth model") -> str:
    """Upload a prepared folder to the Hub; the repository is made if it is missing.

    Args:
        folder: with the files of `MODEL_FILES` and `PAGE_FILES`; others in it stay at home.
        to: ``owner/name``.
        private: whether a repository that is made is private.
        message: of the commit.

    Returns:
        The repository's address.

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
            commit_message=message,
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

    if isinstance(error, GatedRepoError):
        what = "it asks for its terms to be accepted: do so on its page, then `hf auth login`"
    elif isinstance(error, RevisionNotFoundError):
        what = "there is no such revision; leave out what stands behind @, or name a branch, a tag or a commit"
    elif isinstance(error, RepositoryNotFoundError):
        what = "there is no such model, or it is private; check the name, or `hf auth login`"
    else:
        what = "it cannot be reached and there is no copy of it here; check the network and the name, and try again"
    return UserError(f"expected a model on the Hugging Face Hub as {text}, but {what} ({_reason(error)})")


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:300]
