"""Checkpoint files that tell when they are damaged, and the one before the newest, for when it is.

A checkpoint is what `torch.save` writes, a zip archive, with the SHA-256 of all its bytes in the archive's comment:
`torch.load` opens it as it is, but would itself not notice a flipped bit in a tensor. That there must be a checksum is
noted inside too, so that a file whose comment is cut off is not taken for one of before there were checksums.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from robustsynth.errors import UserError
from robustsynth.files import written_beside

CHECKPOINT = "checkpoint.pt"
BEFORE = "checkpoint-before.pt"
"""The one before it."""
DAMAGED = "checkpoint-damaged.pt"
"""Where a damaged one is moved to when a run goes on from the one before it."""

NEEDED = ("settings", "execution", "network", "average", "optimizer", "step", "seconds", "best", "rows")
_SEAL = "robustsynth checkpoint of step {}, sha256 "
_SEALED = re.compile(rb"robustsynth checkpoint of step (\d+), sha256 ([0-9a-f]{64})\Z")
_DIGITS = 64


class _DamagedError(Exception):
    """A file is not what was written. The message says how it shows, `step` where it still tells its step."""

    def __init__(self, reason: str, step: int | None = None) -> None:
        super().__init__(reason)
        self.step = step


def has_checkpoint(folder: Path) -> bool:
    """Whether a run was begun in `folder`."""
    return (folder / CHECKPOINT).exists() or (folder / BEFORE).exists()


def write_checkpoint(contents: dict[str, Any], folder: Path) -> None:
    """Write `contents`, with its ``step``, as the newest checkpoint, and keep the newest so far as the one before.

    At every moment, also of a power cut, one of the two is whole. A run has one writer: what an earlier one that was
    killed left half written is removed.

    Args:
        contents: tensors and plain values.
        folder: the run's.

    Raises:
        OSError: the disk is full or refuses; what was there is untouched.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as home:
        ...     for step in (1, 2):
        ...         write_checkpoint(dict.fromkeys(NEEDED, 0) | {"step": step}, Path(home))
        ...     sorted(path.name for path in Path(home).iterdir()), read_checkpoint(Path(home))["step"]
        (['checkpoint-before.pt', 'checkpoint.pt'], 2)
    """
    path = folder / CHECKPOINT
    for left in folder.glob(".checkpoint-*.pt"):
        left.unlink(missing_ok=True)
    # By way of memory: on a full disk torch.save hides the operating system's error behind one of its own.
    packed = io.BytesIO()
    torch.save(contents | {"checksum": "sha256"}, packed)
    _seal(packed, contents["step"])
    with written_beside(path) as temporary:
        temporary.write_bytes(packed.getbuffer())
        if path.exists():
            _keep_before(path)
    _settle(folder)


def read_checkpoint(
    folder: Path,
    device: torch.device | str = "cpu",
    *,
    announce: Callable[[str], object] = lambda line: None,
    set_aside: bool = False,
) -> dict[str, Any]:
    """The contents of a run's newest checkpoint, or of the one before it where that is damaged.

    Nothing in it is executed. Checkpoints from before there were checksums are read too.

    Args:
        folder: the run's.
        device: to put tensors on.
        announce: told what a damaged checkpoint costs.
        set_aside: move a damaged one away, so that it does not become the one before the next.

    Raises:
        UserError: there is none, both are damaged, or it holds code.
    """
    if not has_checkpoint(folder):
        raise UserError(f"expected a checkpoint to resume from in {folder}, found no {CHECKPOINT}; leave out --resume")
    try:
        return _read(folder / CHECKPOINT, device)
    except _DamagedError as error:
        newest = error
    try:
        contents = _read(folder / BEFORE, device)
    except _DamagedError as error:
        remedy = "begin again in another --out"
        if (folder / "card.json").exists():
            remedy += f", also from the best model so far, which is kept apart from them: --fine-tune {folder}"
        raise UserError(
            f"expected a whole checkpoint in {folder}, but {CHECKPOINT} is damaged ({newest}) and there is none before "
            f"it to go back to ({BEFORE}: {error}); {remedy}"
        ) from None
    again = f"{newest.step - contents['step']} steps" if newest.step else "the steps since"
    announce(
        f"{folder / CHECKPOINT} is damaged ({newest}): going on from the one before it, of step {contents['step']}; "
        f"{again} are trained again, to the same weights"
    )
    if set_aside:
        # Of several processes that read at once, one is the first.
        with contextlib.suppress(FileNotFoundError):
            os.replace(folder / CHECKPOINT, folder / DAMAGED)
    return contents


def _seal(packed: io.BytesIO, step: int) -> None:
    """Append the checksum as the comment of the zip archive in `packed`."""
    seal = _SEAL.format(step).encode()
    # An archive without a comment ends with the comment's length, two bytes.
    packed.seek(-2, os.SEEK_END)
    packed.write((len(seal) + _DIGITS).to_bytes(2, "little") + seal)
    packed.write(hashlib.sha256(packed.getbuffer()).hexdigest().encode())


def _keep_before(path: Path) -> None:
    """Give the newest checkpoint so far its second name too: under the first there is one at every moment."""
    before, link = path.with_name(BEFORE), path.with_name(".checkpoint-link.pt")
    try:
        os.link(path, link)
        os.replace(link, before)
        # Two names of one file are not renamed into each other: what is left then is the link.
        link.unlink(missing_ok=True)
    except OSError:  # A file system without links; or a full one, which has room for a name in the old one's place.
        os.replace(path, before)


def _settle(folder: Path) -> None:
    """Have the new names on the disk too, where the system lets a folder be written through."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _read(path: Path, device: torch.device | str) -> dict[str, Any]:
    """The contents of one file.

    Raises:
        _DamagedError: it is missing or not what was written.
        UserError: it holds code, or is something else.
    """
    sealed = _check_seal(path)
    try:
        contents = torch.load(path, map_location=device, weights_only=True)
    except MemoryError:
        raise
    except Exception as error:  # A damaged file fails in the zip reader, the unpickler or the tensors.
        if isinstance(error, pickle.UnpicklingError) and "GLOBAL" in str(error):
            raise UserError(
                f"expected a checkpoint of tensors and plain values in {path}, but it holds code, which is never "
                "executed here. Convert it where you trust it: torch.load it there with weights_only=False and "
                "torch.save its state_dict() instead; or begin again in another --out"
            ) from None
        reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
        # What the operating system says of a place in the file that is not there.
        raise _DamagedError("it is cut off" if isinstance(error, OSError) else reason) from None
    if not sealed and isinstance(contents, dict) and "checksum" in contents:
        raise _DamagedError("its checksum is missing")
    missing = [name for name in NEEDED if not isinstance(contents, dict) or name not in contents]
    if missing:
        raise UserError(f"expected a checkpoint of robustsynth train in {path}, but it lacks {', '.join(missing)}")
    return contents


def _check_seal(path: Path) -> bool:
    """Whether the file has a checksum, which then is right.

    Raises:
        _DamagedError: it is wrong, or the file cannot be read.
    """
    digest = hashlib.sha256()
    try:
        with path.open("rb") as opened:
            size = opened.seek(0, os.SEEK_END)
            opened.seek(max(0, size - 200))
            found = _SEALED.search(opened.read())
            if found is None:
                return False
            opened.seek(0)
            left = size - _DIGITS
            while left > 0 and (part := opened.read(min(left, 1 << 20))):
                digest.update(part)
                left -= len(part)
    except FileNotFoundError:
        raise _DamagedError("there is no such file") from None
    except PermissionError:
        raise
    except OSError as error:
        raise _DamagedError(error.strerror or str(error)) from None
    if digest.hexdigest().encode() != found[2]:
        raise _DamagedError("its bytes do not have the SHA-256 that they were written with", int(found[1]))
    return True
