"""What is made of a checkpoint's pickle: inert values that say where numbers are, each checked as it is made."""

from __future__ import annotations

import math
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch


class NotPlainError(Exception):
    """What is asked for is no plain value; the message names it."""


@dataclass(frozen=True)
class Name:
    """Something that a pickle names. It is never imported."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


class Attributes(dict[str, Any]):
    """What a namespace of parameters held, as a plain dict."""


@dataclass(frozen=True)
class Storage:
    """Where the numbers of tensors are: a part of the file, by its key.

    Attributes:
        dtype: None where only the tensors say.
        key: of the part.
        numel: how many numbers the pickle says there are; bytes where dtype is None.
        offset: number at which a view of it begins, in old files.
    """

    dtype: torch.dtype | None
    key: str
    numel: int
    offset: int = 0


@dataclass(frozen=True)
class StoredTensor:
    """A tensor that has not been read."""

    storage: Storage
    dtype: torch.dtype
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]


class Unfinished:
    """A value that is complete only after its state has been given."""

    def finish(self, state: Any) -> None:
        """Take the state."""
        raise NotImplementedError


@dataclass(eq=False)
class StoredType(Unfinished):
    """A NumPy number type."""

    code: str
    order: str = "="

    def finish(self, state: Any) -> None:
        """Take the byte order; anything with fields is refused."""
        if not isinstance(state, tuple) or len(state) < 5 or any(state[2:5]):
            raise NotPlainError("a structured type")
        self.order = state[1]

    def numpy(self) -> np.dtype[Any]:
        """The type itself: whole numbers, floats, complex numbers and truth values alone."""
        if self.code[:1] not in "biufc" or not self.code[1:].isdecimal() or self.order not in ("<", ">", "|", "="):
            raise NotPlainError(f"numpy.dtype({brief(self.code)})")
        return np.dtype(self.code).newbyteorder("=" if self.order == "|" else self.order)


@dataclass(eq=False)
class StoredArray(Unfinished):
    """A NumPy array, whose bytes are in the pickle."""

    array: np.ndarray[Any, Any] | None = None

    def finish(self, state: Any) -> None:
        """Take (version, shape, type, whether columns come first, bytes)."""
        _, shape, kind, columns_first, content = state
        self.array = array_of(content, kind, shape, "F" if columns_first else "C")


TYPES = {
    Name("torch", name): getattr(torch, name)
    for name in (
        "float32", "float64", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool", "float",
        "double", "half", "long", "int", "short",
    )
}  # fmt: skip

_BY_LETTER = {
    "Float": torch.float32, "Double": torch.float64, "Half": torch.float16, "BFloat16": torch.bfloat16,
    "Long": torch.int64, "Int": torch.int32, "Short": torch.int16, "Char": torch.int8, "Byte": torch.uint8,
    "Bool": torch.bool,
}  # fmt: skip
STORAGES: dict[Name, torch.dtype | None] = {
    Name(module, f"{letter}Storage"): dtype
    for module in ("torch", "torch.cuda")
    for letter, dtype in _BY_LETTER.items()
}
STORAGES |= {Name("torch.storage", "UntypedStorage"): None, Name("torch", "UntypedStorage"): None}


def storage_of(identity: Any) -> Storage:
    """What torch.save's reference to a part of the file means.

    Raises:
        NotPlainError: it refers to something else, such as a pickled module.
        ValueError: the numbers make no sense.
    """
    if not isinstance(identity, tuple) or not identity or identity[0] != "storage":
        kind = identity[0] if isinstance(identity, tuple) and identity else identity
        raise NotPlainError(f"a reference to {'a whole module' if kind == 'module' else brief(kind)}")
    _, kind, key, _, numel, *view = identity
    if not isinstance(kind, Name) or kind not in STORAGES:
        raise NotPlainError(f"a storage of type {brief(kind)}")
    if not isinstance(key, str | int):
        raise TypeError("a storage's key is no text")
    check_counts(numel)
    offset = 0
    if view and view[0] is not None:  # Files of before 2018: (key, offset, size) of a view of the storage.
        _, offset, size = view[0]
        check_counts(offset, size)
        if offset + size > numel:
            raise ValueError("a view reaches beyond its storage")
    return Storage(STORAGES[kind], str(key), numel, offset)


def tensor_of(storage: Any, dtype: Any, offset: Any, size: Any, stride: Any) -> StoredTensor:
    """A tensor that lies within its storage and claims no more numbers than that has.

    Raises:
        TypeError, ValueError: it does not.
    """
    if not isinstance(storage, Storage) or dtype is None:
        raise TypeError("a tensor has no storage")
    check_counts(offset, *size, *stride)
    if len(size) != len(stride):
        raise ValueError(f"a tensor has sides {size} and strides {stride}")
    held = storage.numel if storage.dtype is not None else storage.numel // dtype.itemsize
    count = math.prod(size)
    reach = offset + storage.offset + sum((n - 1) * s for n, s in zip(size, stride, strict=True)) + 1 if count else 0
    # A stride of 0 would let a few bytes claim any size.
    if count > held or reach > held:
        raise ValueError(f"a tensor of {'x'.join(map(str, size))} claims {max(count, reach)} numbers of {held}")
    return StoredTensor(storage, dtype, offset + storage.offset, tuple(size), tuple(stride))


def array_of(content: Any, kind: Any, shape: Any, order: Any) -> np.ndarray[Any, Any]:
    """An array of exactly the bytes that are there.

    Raises:
        NotPlainError: it holds objects.
        ValueError: there are more or fewer.
    """
    if not isinstance(kind, StoredType) or not isinstance(content, bytes | bytearray):
        raise NotPlainError("an array of objects")
    check_counts(*shape)
    dtype = kind.numpy()
    if math.prod(shape) * dtype.itemsize != len(content):
        raise ValueError(f"an array of {'x'.join(map(str, shape))} has {len(content)} bytes")
    return np.frombuffer(content, dtype).reshape(shape, order="F" if order == "F" else "C")


def check_counts(*numbers: Any) -> None:
    """Raise a ValueError unless all are counts of a size that a file can have."""
    if len(numbers) > 64 or not all(isinstance(n, int) and not isinstance(n, bool) and 0 <= n < 2**48 for n in numbers):
        raise ValueError(f"expected counts, got {', '.join(map(brief, numbers[:8]))}")


def hashable(key: Any) -> Hashable:
    """`key` if it is a plain one. Tuples of tuples are not: hashing them takes as long as their depth wants it to."""
    flat = key if isinstance(key, tuple) else (key,)
    if not all(part is None or isinstance(part, str | bytes | int | float | Name) for part in flat):
        raise TypeError(f"a {type(key).__name__} cannot be a key")
    return key


def brief(value: Any) -> str:
    """A value in a few words, for messages, however large it is."""
    if isinstance(value, Name):
        return str(value)[:120]
    if isinstance(value, str | bytes):
        return repr(value[:60])
    return (
        repr(value)[:60]
        if isinstance(value, float) or (isinstance(value, int) and abs(value) < 2**64)
        else (type(value).__name__)
    )
