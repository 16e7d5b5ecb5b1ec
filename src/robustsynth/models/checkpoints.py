"""Checkpoint files of other libraries, opened without executing anything: PyTorch's two formats, pickles, safetensors.

`torch.load` reads PyTorch's, with the unpickler of `robustsynth.models.pickles`. What it would run, or not
notice, is refused before.
"""

from __future__ import annotations

import mmap
import tarfile
import types
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from robustsynth.errors import UserError
from robustsynth.models.pickles import InertUnpickler, read_pickle, told_of_damage

AGAIN = "the file is cut short or damaged; fetch it again and compare its size with the one published"
MAGIC = 0x1950A86A20F9469CFC6C
"""The first pickle in a file of PyTorch's format of before 1.6."""
PICKLES = (b"\x80", b"(", b"]", b"}", b"c")
"""What pickles begin with: a version, or of before there were any, a list, a dict or a name."""


@dataclass(frozen=True)
class Checkpoint:
    """An opened checkpoint: its `contents` (plain values, tensors and `StoredArray`) and its `form` in words."""

    contents: Any
    form: str


def open_checkpoint(path: Path | str) -> Checkpoint:
    """What a checkpoint file holds, whatever wrote it.

    Args:
        path: of torch.save (both formats, with whatever pickle module), a plain pickle, or safetensors.

    Raises:
        UserError: no such file, of no known format, or damaged.
        RefusedPickleError: there is more in it than tensors and plain values.
    """
    path = Path(path)
    if not path.is_file():
        what = f"the folder {path}; a model folder needs no import" if path.is_dir() else f"no {path}"
        raise UserError(f"expected a checkpoint file, {'got' if path.is_dir() else 'found'} {what}")
    with path.open("rb") as file:
        head = file.read(512)
    if not head:
        raise UserError(f"expected a checkpoint in {path}, but it is empty: {AGAIN}")
    if head.startswith(b"version https://git-lfs") or head.lstrip()[:1] == b"<":
        what = "a pointer of Git LFS" if head.startswith(b"version") else "a web page"
        raise UserError(f"expected a checkpoint in {path.name}, got {what}; fetch the file itself")
    if head.startswith(b"PK"):
        return Checkpoint(_torch_load(path, _zip_sizes(path)), "PyTorch zip")
    if head[257:262] == b"ustar" or tarfile.is_tarfile(path):
        raise UserError(
            f"expected a checkpoint of torch.save or safetensors in {path.name}, got a tar archive; take the file out "
            "of it. One that torch.save wrote before 0.1.10 must be saved again by a later PyTorch"
        )
    if path.suffix == ".safetensors" or (head[8:9] == b"{" and int.from_bytes(head[:8], "little") < 2**27):
        try:
            return Checkpoint(load_file(path), "safetensors")
        except (SafetensorError, OSError, ValueError) as error:
            raise UserError(f"expected a safetensors file in {path.name}, but {error}: {AGAIN}") from None
    if head[:1] not in PICKLES:
        raise UserError(
            f"expected a checkpoint of torch.save or safetensors in {path.name}, got a file of neither format"
        )
    with path.open("rb") as file:
        first = read_pickle(file, path.name)
    if type(first) is int and first == MAGIC:
        return Checkpoint(_torch_load(path, None), "PyTorch before 1.6")
    return Checkpoint(first, "pickle")


def _torch_load(path: Path, sizes: dict[str, int] | None) -> Any:
    """The contents of a file of torch.save.

    Args:
        path: of the file.
        sizes: of an archive's storages in bytes, by key; None where the file is no archive.
    """
    claimed: dict[str, int] = {}
    length = path.stat().st_size

    class Unpickler(InertUnpickler):
        where = path.name

        def check_storage(self, key: Any, size: int) -> None:
            # PyTorch makes room for what a pickle claims, and some versions read as much from an archive.
            claimed[str(key)] = size
            if sizes is not None and sizes.get(str(key)) != size:
                found = f"{sizes[str(key)]} bytes" if str(key) in sizes else "nothing"
                expected = f"{size} bytes of numbers as data/{key} in {path.name}"
                raise UserError(f"expected {expected}, found {found}: {AGAIN}")
            if sizes is None and sum(claimed.values()) > length:
                raise UserError(f"expected {size} bytes of numbers in {path.name}, which is smaller: {AGAIN}")

    def load(stream: IO[bytes], **options: Any) -> Any:
        """The pickles of the old format beside the contents: numbers, facts of the machine, keys of the storages."""
        value = Unpickler(stream, **options).load()
        if isinstance(value, dict) and not value.get("little_endian", True):
            raise UserError(f"expected numbers with the lowest byte first in {path.name}, got the highest first")
        # PyTorch reads the numbers of these storages alone; others would be memory that nobody wrote to.
        if isinstance(value, list):
            listed = {str(key) for key in value if isinstance(key, str | int)}
            if len(listed) != len(value) or listed != set(claimed):
                raise UserError(f"expected the numbers of every storage in {path.name}, and no others: {AGAIN}")
        return value

    inert: Any = types.SimpleNamespace(__name__="inert", Unpickler=Unpickler, load=load)
    return told_of_damage(
        path.name,
        lambda: torch.load(path, "cpu", pickle_module=inert, weights_only=False, encoding="latin1"),
    )


def _zip_sizes(path: Path) -> dict[str, int]:
    """The sizes of the storages in an archive that PyTorch's reader may see.

    That reader runs TorchScript programs, and looks at no checksum.

    Raises:
        UserError: it is not as torch.save writes it, or damaged.
    """
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        # Anywhere in the file, because two readers of archives may find different names.
        if content.find(b"constants.pkl") >= 0:
            raise UserError(
                f"expected a state dict in {path.name}, got a TorchScript program, which would have to be run; "
                "save its state_dict() instead"
            )
    try:
        with zipfile.ZipFile(path) as archive:
            sizes = {info.filename: info.file_size for info in archive.infolist()}
            pickles = [name for name in sizes if name.split("/")[-1] == "data.pkl"]
            if len(pickles) != 1 or len(sizes) != len(archive.infolist()):
                raise UserError(
                    f"expected one data.pkl and no file twice in {path.name}, as torch.save writes it, found "
                    f"{', '.join(pickles) or 'none among ' + (', '.join(list(sizes)[:5]) or 'no files')}"
                )
            for info in archive.infolist():
                # As torch.save writes them, so that no size in the archive can be larger than the archive.
                plain = info.compress_type == zipfile.ZIP_STORED and info.file_size == info.compress_size
                if not plain or info.flag_bits & 1 or sum(sizes.values()) > path.stat().st_size:
                    raise UserError(
                        f"expected the files in {path.name} to be stored plainly, as torch.save does it, got "
                        f"{info.filename} compressed, encrypted or overlapping"
                    )
            if damaged := archive.testzip():
                raise zipfile.BadZipFile(f"Bad CRC-32 for {damaged}")
    except UserError:
        raise
    # Its tables raise many kinds of errors where they are damaged: of bad names, bad places, and unknown versions.
    except Exception as error:
        raise UserError(
            f"expected a whole zip archive in {path.name}, as torch.save writes it ({error}): {AGAIN}"
        ) from None
    root = f"{pickles[0].removesuffix('data.pkl')}data/"
    return {name.removeprefix(root): size for name, size in sizes.items() if name.startswith(root)}
