"""Checkpoint files of other libraries, opened without executing anything: PyTorch's two formats and safetensors."""

from __future__ import annotations

import math
import os
import struct
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from robustsynth.errors import UserError
from robustsynth.models.pickle_values import Storage, StoredArray, StoredTensor, brief
from robustsynth.models.pickles import read_pickle

_MAGIC = 0x1950A86A20F9469CFC6C
"""The first pickle in a file of PyTorch's format of before 1.6."""
_VERSION = 1001
_PICKLES = (b"\x80", b"(", b"]", b"}", b"c")
"""What pickles begin with: a version, or of before there were any, a list, a dict or a name."""
_BROKEN_ZIP = (zipfile.BadZipFile, EOFError, NotImplementedError, ValueError, struct.error, OSError)
"""What a damaged archive's tables raise, bad names (a ValueError) and places before its beginning (an OSError) too."""
_AGAIN = "the file is cut short or damaged; fetch it again and compare its size with the one published"


@dataclass(frozen=True)
class Checkpoint:
    """An opened checkpoint.

    Attributes:
        contents: plain values, and tensors as descriptions of where they are.
        form: what kind of file it is, in words.
        read: the bytes of a storage.
    """

    contents: Any
    form: str
    read: Callable[[Storage], bytearray]

    def tensor(self, stored: Any) -> Tensor:
        """The numbers of one tensor of `contents`, in memory of its own.

        Raises:
            UserError: they are not in the file.
        """
        if isinstance(stored, StoredArray):
            if stored.array is None:
                raise UserError("expected an array with its numbers, found it empty")
            try:
                return torch.from_numpy(stored.array.astype(stored.array.dtype.newbyteorder("="), copy=True))
            except TypeError:
                raise UserError(
                    f"expected numbers of a type that PyTorch has, got {stored.array.dtype}; save them in float32"
                ) from None
        if not isinstance(stored, StoredTensor):
            return stored.clone()
        content = self.read(stored.storage)
        if not content and math.prod(stored.size) == 0:
            return torch.empty(stored.size, dtype=stored.dtype)
        # Never memory that nobody wrote to.
        if len(content) < stored.storage.numel * _item_size(stored.storage) or not content:
            expected = f"{stored.storage.numel} numbers of storage {stored.storage.key}"
            raise UserError(f"expected {expected}, found fewer: {_AGAIN}")
        flat = torch.frombuffer(content, dtype=stored.dtype)
        return torch.as_strided(flat, stored.size, stored.stride, stored.offset).clone().contiguous()


def is_tensor(value: Any) -> bool:
    """Whether `value` of a checkpoint's contents is what `Checkpoint.tensor` takes."""
    return isinstance(value, StoredTensor | StoredArray | Tensor)


def open_checkpoint(path: Path | str) -> Checkpoint:
    """What a checkpoint file holds, whatever wrote it. Numbers are read only when they are asked for.

    Args:
        path: of torch.save (both formats, with whatever pickle module), or safetensors.

    Raises:
        UserError: no such file, of no known format, or damaged.
        RefusedPickleError: there is more in it than tensors and plain containers.
    """
    path = Path(path)
    if path.is_dir():
        raise UserError(f"expected a checkpoint file, got the folder {path}; a model folder needs no import")
    if not path.is_file():
        raise UserError(f"expected a checkpoint file, found no {path}")
    with path.open("rb") as file:
        head = file.read(512)
    if not head:
        raise UserError(f"expected a checkpoint in {path}, but it is empty: {_AGAIN}")
    if head[257:262] == b"ustar":
        raise UserError(
            f"expected a checkpoint of torch.save or safetensors in {path.name}, got a tar archive; take the file out "
            "of it. One that torch.save wrote before 0.1.10 must be saved again by a later PyTorch"
        )
    if head.startswith(b"version https://git-lfs") or head.lstrip()[:1] == b"<":
        what = "a pointer of Git LFS" if head.startswith(b"version") else "a web page"
        raise UserError(f"expected a checkpoint in {path.name}, got {what}; fetch the file itself")
    if head.startswith(b"PK"):
        return _open_zip(path)
    if path.suffix == ".safetensors" or (head[8:9] == b"{" and int.from_bytes(head[:8], "little") < 2**27):
        return _open_safetensors(path)
    return _open_pickle(path)


def _open_safetensors(path: Path) -> Checkpoint:
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(f"expected a safetensors file in {path.name}, but {error}: {_AGAIN}") from None
    return Checkpoint(tensors, "safetensors", lambda storage: bytearray())


def _open_zip(path: Path) -> Checkpoint:
    try:
        with zipfile.ZipFile(path) as archive:
            entries = {info.filename: info for info in archive.infolist()}
            pickles = [name for name in entries if name.split("/")[-1] == "data.pkl"]
            if any(name.endswith("/constants.pkl") for name in entries):
                raise UserError(
                    f"expected a state dict in {path.name}, got a TorchScript program, which would have to be run; "
                    "save its state_dict() instead"
                )
            if len(pickles) != 1:
                raise UserError(
                    f"expected one data.pkl in {path.name}, as torch.save writes it, found "
                    f"{', '.join(pickles) or 'none among ' + (', '.join(list(entries)[:5]) or 'no files')}"
                )
            for info in entries.values():
                # As torch.save writes them, so that no size in the archive can be larger than the archive.
                plain = info.compress_type == zipfile.ZIP_STORED and info.file_size == info.compress_size
                if not plain or info.flag_bits & 1:
                    raise UserError(
                        f"expected the files in {path.name} to be stored plainly, as torch.save does it, got "
                        f"{info.filename} compressed or encrypted"
                    )
            root = pickles[0].removesuffix("data.pkl")
            if f"{root}byteorder" in entries and archive.read(f"{root}byteorder") == b"big":
                raise UserError(f"expected numbers with the lowest byte first in {path.name}, got the highest first")
            with archive.open(pickles[0]) as stream:
                contents = read_pickle(stream, path.name)
    except UserError:
        raise
    except _BROKEN_ZIP as error:
        raise UserError(
            f"expected a whole zip archive in {path.name}, as torch.save writes it ({error}): {_AGAIN}"
        ) from None

    def read(storage: Storage) -> bytearray:
        name = f"{root}data/{storage.key}"
        if name not in entries or entries[name].file_size != storage.numel * _item_size(storage):
            found = f"{entries[name].file_size} bytes" if name in entries else "nothing"
            raise UserError(
                f"expected {storage.numel * _item_size(storage)} bytes of numbers as {name} in {path.name}, found "
                f"{found}: {_AGAIN}"
            )
        try:
            with zipfile.ZipFile(path) as archive:
                return bytearray(archive.read(name))
        except _BROKEN_ZIP as error:
            raise UserError(f"expected whole numbers as {name} in {path.name}, but {error}: {_AGAIN}") from None

    return Checkpoint(contents, "PyTorch zip", read)


def _item_size(storage: Storage) -> int:
    return 1 if storage.dtype is None else storage.dtype.itemsize


def _open_pickle(path: Path) -> Checkpoint:
    """PyTorch's old format (a row of pickles, then the numbers), or one plain pickle."""
    length = os.path.getsize(path)
    with path.open("rb") as file:
        first = _first(file, path)
        if first != _MAGIC or isinstance(first, bool):
            return Checkpoint(first, "pickle", _nowhere)
        version, system = read_pickle(file, path.name), read_pickle(file, path.name)
        if version != _VERSION or not isinstance(system, dict) or not system.get("little_endian", True):
            raise UserError(f"expected PyTorch's format {_VERSION} in {path.name}, got {brief(version)}")
        contents = read_pickle(file, path.name)
        keys = read_pickle(file, path.name)
        if not isinstance(keys, list):
            raise UserError(f"expected a list of storages in {path.name}, got {type(keys).__name__}: {_AGAIN}")
        start = file.tell()
    sizes = {storage.key: storage for storage in _storages(contents)}
    places: dict[str, tuple[int, int]] = {}
    for key in map(str, keys):
        if key not in sizes:
            raise UserError(f"expected numbers for every storage in {path.name}, found none that use {key[:40]}")
        count = sizes[key].numel * _item_size(sizes[key])
        places[key] = (start + 8, count)
        start += 8 + count
    if start > length:
        raise UserError(f"expected {start} bytes in {path.name}, found {length}: {_AGAIN}")

    def read(storage: Storage) -> bytearray:
        at, count = places.get(storage.key, (0, -1))
        with path.open("rb") as file:
            file.seek(max(0, at - 8))
            numel = int.from_bytes(file.read(8), "little")
            if count != storage.numel * _item_size(storage) or numel != storage.numel:
                raise UserError(f"expected {storage.numel} numbers of storage {storage.key} in {path.name}: {_AGAIN}")
            return bytearray(file.read(count))

    return Checkpoint(contents, "PyTorch before 1.6", read)


def _first(file: IO[bytes], path: Path) -> Any:
    begins = file.read(1)
    file.seek(0)
    if begins not in _PICKLES:
        raise UserError(
            f"expected a checkpoint of torch.save or safetensors in {path.name}, got a file of neither format"
        )
    return read_pickle(file, path.name)


def _nowhere(storage: Storage) -> bytearray:
    raise UserError("expected a file of torch.save, got a plain pickle with references to numbers that it has not")


def _storages(value: Any) -> list[Storage]:
    """All that tensors anywhere in `value` refer to, each container once: they may hold themselves."""
    found: list[Storage] = []
    waiting, seen = [value], set[int]()
    while waiting:
        value = waiting.pop()
        if isinstance(value, StoredTensor | Storage):
            found.append(value if isinstance(value, Storage) else value.storage)
        elif isinstance(value, dict | list | tuple) and id(value) not in seen:
            seen.add(id(value))
            waiting += [*value.keys(), *value.values()] if isinstance(value, dict) else list(value)
    return found
