"""Checkpoint files of other libraries, opened without executing anything: PyTorch's two formats, pickles, safetensors.

A pickle is a program. The unpickler here imports nothing and calls nothing that a pickle names: a name stays a `Name`,
and a call is looked up in a table of ours, which makes an inert value. Whatever is not in the table is refused with an
error that says what it was. `torch.load` reads PyTorch's formats with this unpickler; what it would run, or not notice,
is refused before.
"""

from __future__ import annotations

import contextlib
import functools
import math
import mmap
import pickle
import tarfile
import types
import warnings
import zipfile
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, ClassVar, NoReturn

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from robustsynth.errors import UserError

AGAIN = "it is damaged or cut short; fetch it again and compare its size with the one published"


class RefusedPickleError(UserError):
    """A pickle that holds something other than tensors and plain values; the message names it."""


class NotPlainError(Exception):
    """What a pickle asks for is no plain value; the message names it."""


@dataclass(frozen=True)
class Name:
    """Something that a pickle names. It is never imported."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


class Attributes(dict[str, Any]):
    """What a namespace of parameters held, as a plain dict."""


class StoredArray:
    """A NumPy array, whose bytes are in the pickle; None until they are given."""

    array: np.ndarray[Any, Any] | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        return () if self.array is None else self.array.shape

    def finish(self, state: Any) -> StoredArray:
        """Take (version, shape, type, whether columns come first, bytes): exactly the bytes that are there."""
        _, shape, kind, columns_first, content = state
        _require(isinstance(kind, np.dtype) and isinstance(content, bytes | bytearray), "an array of objects")
        check_counts(*shape)
        if math.prod(shape) * kind.itemsize != len(content):
            raise ValueError(f"an array of {'x'.join(map(str, shape))} has {len(content)} bytes")
        self.array = np.frombuffer(content, kind).reshape(shape, order="F" if columns_first else "C")
        return self

    def tensor(self) -> Tensor:
        """Its numbers as a tensor, in memory of its own."""
        if self.array is None:
            raise UserError("expected an array with its numbers, found it empty")
        try:
            return torch.from_numpy(self.array.copy())
        except TypeError:
            raise UserError(
                f"expected numbers of a type that PyTorch has, got {self.array.dtype}; save them in float32"
            ) from None


def _require(plain: object, what: str) -> None:
    if not plain:
        raise NotPlainError(what)


def _tensor(
    storage: Any, offset: Any, size: Any, stride: Any, _: Any = None, hooks: Any = None, kind: Any = None, *__: Any
) -> Tensor:
    """A tensor that lies within its storage and claims no more numbers than that has, of its type where it has one."""
    _require(not hooks, "backward hooks")
    check_counts(offset, *size, *stride)
    if not isinstance(storage, torch.storage.TypedStorage) or len(size) != len(stride):
        raise ValueError(f"a tensor has a {brief(storage)} for a storage, sides {size} and strides {stride}")
    kind = kind if isinstance(kind, torch.dtype) else storage.dtype
    held, count = storage._untyped_storage.nbytes() // kind.itemsize, math.prod(size)
    reach = offset + sum((n - 1) * s for n, s in zip(size, stride, strict=True)) + 1 if count else 0
    # A stride of 0 would let a few bytes claim any size.
    if count > held or reach > held:
        raise ValueError(f"a tensor of {'x'.join(map(str, size))} claims {max(count, reach)} numbers of {held}")
    return torch.empty(0, dtype=kind).set_(storage._untyped_storage, offset, tuple(size), tuple(stride))


def _parameter(data: Any, wants_gradient: Any, hooks: Any, *_: Any) -> Tensor:
    _require(isinstance(data, Tensor) and not hooks, "a parameter that is no tensor, or one with hooks")
    return data


def _empty_array(kind: Any, *_: Any) -> StoredArray:
    _require(kind == Name("numpy", "ndarray"), brief(kind))
    return StoredArray()


def _array(content: Any, kind: Any, shape: Any, order: Any) -> StoredArray:
    return StoredArray().finish((1, shape, kind, order == "F", content))


def _dill_array(make: Any, arguments: Any, state: Any, *_: Any) -> StoredArray:
    made = CALLS.get(make) if isinstance(make, Name) else None
    _require(made in (_array, _empty_array) and isinstance(arguments, tuple), f"an array made by {brief(make)}")
    return CALLS[make](*arguments).finish(state)


def _number_type(code: Any, *_: Any) -> np.dtype[Any]:
    """Of whole numbers, floats, complex numbers, truth values and texts alone."""
    plain = isinstance(code, str) and code[:1] in tuple("biufcUS") and code[1:].isdecimal()
    _require(plain, f"numpy.dtype({brief(code)})")
    return np.dtype(f"<{code}")


def _bytes(content: Any = b"", encoding: Any = "latin1") -> bytes:
    """Of bytes or a text that are there: a mere number would ask for so many."""
    if isinstance(content, bytes | bytearray):
        return bytes(content)
    plain = isinstance(content, str) and encoding in ("latin1", "latin-1", "utf-8")
    _require(plain, f"{brief(content)}, {brief(encoding)}")
    return content.encode(encoding)


def _dict(items: Any = ()) -> dict[Any, Any]:
    pairs = items.items() if isinstance(items, dict) else items if isinstance(items, list | tuple) else ()
    return {hashable(key): value for key, value in pairs}


def _list(items: Any = (), *_: Any) -> list[Any]:
    if not isinstance(items, list | tuple | set):
        raise TypeError("a list or set of what is none")
    return list(items)


def _attributes(*arguments: Any) -> Attributes:
    return Attributes(arguments[0] if len(arguments) == 1 and isinstance(arguments[0], dict) else {})


def _reconstructed(kind: Any, *_: Any) -> Attributes:
    _require(isinstance(kind, Name) and CALLS.get(kind) is _attributes, brief(kind))
    return Attributes()


def _plain_type(name: Any, *_: Any) -> Name:
    """dill's way to say a type: the plain ones alone, and as a name."""
    _require(name in PLAIN_TYPES, brief(name))
    return Name("builtins" if name != "OrderedDict" else "collections", name)


def _path(*parts: Any) -> str:
    # Joined with itself through the memo, a path would double each time.
    plain = all(isinstance(part, str) for part in parts) and sum(map(len, parts)) <= 4096
    _require(plain, "a path that is no text of at most 4096 characters")
    return "/".join(parts).replace("//", "/")


def _device(kind: Any, index: Any = None) -> str:
    plain = isinstance(kind, str) and len(kind) <= 32 and isinstance(index, int | None)
    _require(plain, "a device of what is no short name and number")
    return kind if index is None else f"{kind}:{index}"


def _numbers(*values: Any) -> tuple[Any, ...]:
    """What is described by a few numbers, such as a date or a range."""
    _require(all(isinstance(value, int | float | bytes | None) for value in values), "a date or range of no numbers")
    return values


_NUMPY = [f"numpy.{core}.{module}" for core in ("core", "_core") for module in ("multiarray", "numeric")]
_DILL = ("dill._dill", "dill.dill", "dill")
_BUILTINS = ("builtins", "__builtin__")
PLAIN_TYPES = (
    *("dict", "list", "tuple", "set", "frozenset", "int", "float", "complex", "str", "bytes", "bool", "object"),
    *("NoneType", "OrderedDict"),
)

CALLS: dict[Name, Callable[..., Any]] = {
    Name(module, name): make
    for modules, names, make in (
        (("collections",), ("OrderedDict", "Counter"), _dict),
        (("collections",), ("defaultdict",), lambda factory=None, items=(): _dict(items)),
        (("collections",), ("deque",), _list),
        (("torch._utils",), ("_rebuild_tensor", "_rebuild_tensor_v2", "_rebuild_tensor_v3"), _tensor),
        (("torch._utils",), ("_rebuild_parameter",), _parameter),
        (("torch",), ("Size",), lambda sides=(): tuple(sides)),
        (("torch",), ("device",), _device),
        (("numpy",), ("dtype",), _number_type),
        (("_codecs",), ("encode",), _bytes),
        (("copyreg", "copy_reg"), ("_reconstructor",), _reconstructed),
        (_NUMPY, ("scalar",), lambda kind, content: np.asarray(_array(content, kind, (), "C").array).item()),
        (_NUMPY, ("_reconstruct",), _empty_array),
        (_NUMPY, ("_frombuffer",), _array),
        (_BUILTINS, ("set",), lambda items=(): set(map(hashable, _list(items)))),
        (_BUILTINS, ("frozenset",), lambda items=(): frozenset(map(hashable, _list(items)))),
        (_BUILTINS, ("bytes", "bytearray"), _bytes),
        (_BUILTINS, ("complex", "range", "xrange", "slice"), _numbers),
        (("datetime",), ("date", "datetime", "time", "timedelta"), _numbers),
        (_DILL, ("_load_type",), _plain_type),
        (_DILL, ("_create_array",), _dill_array),
        (("argparse", "types", "cox.utils"), ("Namespace", "SimpleNamespace", "Parameters"), _attributes),
        (("pathlib", "pathlib._local"), ("PosixPath", "WindowsPath", "PurePosixPath"), _path),
    )
    for module in modules
    for name in names
}
"""Names that may be called, and what we make where they are."""

PLAIN = {
    Name("numpy", "ndarray"),
    Name("torch", "UntypedStorage"),
    Name("torch.storage", "UntypedStorage"),
    *(Name(module, name) for module in _BUILTINS for name in PLAIN_TYPES),
}
"""Names that stand for themselves. They are never called, but for those in `CALLS` too."""


_PythonUnpickler: Any = pickle._Unpickler  # Its types are known to nobody.


class InertUnpickler(_PythonUnpickler):
    """Python's unpickler, whose names, calls and states are ours alone.

    It is the one that is written in Python: in the other one calls and the extension registry cannot be replaced, and
    its memo takes as much memory as a pickle says.
    """

    where = "the file"
    """Its name, for messages."""
    dispatch: ClassVar[dict[int, Any]] = dict(_PythonUnpickler.dispatch)

    def refuse(self, what: str) -> NoReturn:
        raise RefusedPickleError(
            f"expected tensors and plain containers alone in {self.where}, got {what}, which may be code; nothing of "
            "it was run. Where you trust the file, load it with the program that wrote it, save the network's "
            "state_dict() alone with torch.save or as safetensors, and import that"
        ) from None

    def check_storage(self, key: Any, size: int) -> None:
        """Raise unless the file has `size` bytes for the storage `key`. A plain pickle has none."""
        self.refuse("a reference to numbers beside the pickle")

    def load(self) -> Any:
        try:
            return super().load()
        except NotPlainError as error:
            self.refuse(str(error))

    def find_class(self, module: str, name: str) -> Any:
        # Not by getattr, which imports some of PyTorch's modules.
        if module == "torch" and isinstance(kind := vars(torch).get(name), torch.dtype):
            return kind
        found = Name(module, name)
        if found not in CALLS and found not in PLAIN:
            self.refuse(str(found))
        return found

    def called(self, function: Any, arguments: Any) -> None:
        if not isinstance(function, Name) or function not in CALLS:
            self.refuse(f"a call of {brief(function)}")
        if not isinstance(arguments, tuple):
            raise TypeError("arguments are no tuple")
        try:
            self.append(CALLS[function](*arguments))
        except NotPlainError as error:  # What the call itself does not accept.
            raise NotPlainError(f"{function} of {error}") from None

    _instantiate = called

    def load_reduce(self) -> None:
        arguments, function = self.stack.pop(), self.stack.pop()
        self.called(function, arguments)

    def load_newobj_ex(self) -> None:
        words = self.stack.pop()
        if words:
            self.refuse(f"a call of {brief(self.stack[-2])} with words")
        self.load_reduce()

    def load_build(self) -> None:
        state, target = self.stack.pop(), self.stack[-1]
        if isinstance(target, Attributes):
            if isinstance(state, tuple) and len(state) == 2 and state[0] is None:
                state = state[1]
            if not isinstance(state, dict):
                raise TypeError("a state is no dict")
            target.update(state)
        elif isinstance(target, StoredArray):
            target.finish(state)
        elif isinstance(target, np.dtype):
            if not isinstance(state, tuple) or len(state) < 5 or any(state[2:5]) or state[1] not in ("<", "|", "="):
                self.refuse("a structured type, or one with the highest byte first")
        elif not isinstance(target, dict):  # An OrderedDict's attributes, such as _metadata, are left out.
            self.refuse(f"a state for {brief(target)}")

    def load_binpersid(self) -> None:
        identity = self.stack.pop()
        if not isinstance(identity, tuple) or len(identity) < 5 or identity[0] != "storage":
            kind = identity[0] if isinstance(identity, tuple) and identity else identity
            self.refuse(f"a reference to {'a whole module' if kind == 'module' else brief(kind)}")
        _, kind, key, place, numel, *rest = identity
        if kind in (Name("torch", "UntypedStorage"), Name("torch.storage", "UntypedStorage")):
            kind = torch.UntypedStorage
        elif not isinstance(kind, torch.serialization.StorageType):
            self.refuse(f"a storage of type {brief(kind)}")
        # Files of before 2018 have (key, offset, size) of a view of the storage too.
        keys, counts = [key, place], [numel]
        for view_key, offset, size in (view for view in rest if view is not None):
            keys, counts = [*keys, view_key], [*counts, offset, size]
        if not all(isinstance(each, str | int) for each in keys):
            raise TypeError("a storage's key or place is no text")
        check_counts(*counts)
        self.check_storage(key, numel * getattr(kind, "dtype", torch.uint8).itemsize)
        self.append(self.persistent_load(("storage", kind, key, place, numel, *rest)))

    def load_bytearray8(self) -> None:
        # Python's own makes room for as many bytes as a pickle says before it reads them.
        self.append(bytearray(self.read(int.from_bytes(self.read(8), "little"))))


def _guarded(load: Any, keys: slice, target: int | None, kind: type | None) -> Callable[[InertUnpickler], None]:
    """An instruction whose keys are checked before they are hashed, and whose target before it is filled."""

    def guarded(unpickler: InertUnpickler) -> None:
        for key in unpickler.stack[keys]:
            hashable(key)
        filled = unpickler.metastack[-1][-1:] if target is None else unpickler.stack[target:][:1]
        if kind is not None and not (filled and isinstance(filled[0], kind)):
            raise TypeError(f"what is no {kind.__name__} cannot be filled")
        load(unpickler)

    return guarded


for _name, _keys, _target, _kind in (
    ("SETITEM", slice(-2, -1), -3, dict),
    ("SETITEMS", slice(0, None, 2), None, dict),
    ("DICT", slice(0, None, 2), None, None),
    ("APPEND", slice(0, 0), -2, list),
    ("APPENDS", slice(0, 0), None, list),
    ("ADDITEMS", slice(None), None, set),
    ("FROZENSET", slice(None), None, None),
):
    _load = getattr(_PythonUnpickler, f"load_{_name.lower()}")
    InertUnpickler.dispatch[getattr(pickle, _name)[0]] = _guarded(_load, _keys, _target, _kind)
for _name in ("REDUCE", "NEWOBJ"):
    InertUnpickler.dispatch[getattr(pickle, _name)[0]] = InertUnpickler.load_reduce
for _name in ("NEWOBJ_EX", "BUILD", "BINPERSID", "BYTEARRAY8"):
    InertUnpickler.dispatch[getattr(pickle, _name)[0]] = getattr(InertUnpickler, f"load_{_name.lower()}")
# A registry's entries are whatever a program put there; a textual reference and a buffer are of no checkpoint.
for _name in ("EXT1", "EXT2", "EXT4", "PERSID", "NEXT_BUFFER", "READONLY_BUFFER"):
    InertUnpickler.dispatch[getattr(pickle, _name)[0]] = functools.partial(
        InertUnpickler.refuse, what=f"the instruction {_name}"
    )


def read_pickle(stream: IO[bytes], where: str) -> Any:
    """The value of the next pickle in `stream`, which is left standing after its end.

    It is made of numbers, strings, bytes, None, lists, tuples, sets and dicts, `StoredArray` and `Name`.

    Raises:
        RefusedPickleError: it names, calls or builds anything else.
        UserError: it is damaged.

    Example:
        >>> import io, pickle
        >>> read_pickle(io.BytesIO(pickle.dumps({"epoch": 3, "lr": (0.1,)})), "a.pt")
        {'epoch': 3, 'lr': (0.1,)}
        >>> read_pickle(io.BytesIO(b"cos\\nsystem\\n(S'true'\\ntR."), "b.pt")  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        robustsynth.models.checkpoints.RefusedPickleError: expected tensors and plain containers alone in b.pt, got...
    """
    unpickler = type("Unpickler", (InertUnpickler,), {"where": where})
    with _damage_in_words(where):
        return unpickler(stream, encoding="latin1").load()


@contextlib.contextmanager
def _damage_in_words(where: str) -> Iterator[None]:
    """Whatever damaged bytes let a reader fail with becomes one error for people."""
    try:
        with warnings.catch_warnings():
            # Of escape sequences in a damaged text, which is read or refused like any other.
            warnings.simplefilter("ignore", DeprecationWarning)
            yield
    except UserError:
        raise
    # Damaged bytes fail as a wrong type, an empty stack, an unknown instruction, a text that claims to be larger than
    # all memory, a bad place in an archive, or as anything that PyTorch's reader raises; all say the same.
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"expected a whole file {where}, but {AGAIN} ({reason})") from None


def check_counts(*numbers: Any) -> None:
    """Raise a ValueError unless all are counts of a size that a file can have."""
    if len(numbers) > 64 or not all(isinstance(n, int) and not isinstance(n, bool) and 0 <= n < 2**48 for n in numbers):
        raise ValueError(f"expected counts, got {', '.join(map(brief, numbers[:8]))}")


def hashable(key: Any) -> Hashable:
    """`key` if it is a plain one. Tuples of tuples are not: hashing them takes as long as their depth wants it to."""
    flat = key if isinstance(key, tuple) else (key,)
    if not all(part is None or isinstance(part, str | bytes | int | float | Name | torch.dtype) for part in flat):
        raise TypeError(f"a {type(key).__name__} cannot be a key")
    return key


def brief(value: Any) -> str:
    """A value in a few words, for messages, however large it is."""
    if isinstance(value, Name):
        return str(value)[:120]
    if isinstance(value, str | bytes):
        return repr(value[:60])
    short = isinstance(value, float) or (isinstance(value, int) and abs(value) < 2**64)
    return repr(value)[:60] if short else type(value).__name__


@dataclass(frozen=True)
class Checkpoint:
    """What a file holds (plain values, tensors and `StoredArray`), and what kind of file it is in words."""

    contents: Any
    form: str


def open_checkpoint(path: Path | str) -> Checkpoint:
    """Open a file of torch.save (both formats, with whatever pickle module), a plain pickle, or safetensors.

    Raises:
        UserError: no such file, of no known format, or damaged.
        RefusedPickleError: there is more in it than tensors and plain values.
    """
    path = Path(path)
    if not path.is_file():
        what = f"got the folder {path}; a model folder needs no import" if path.is_dir() else f"found no {path}"
        raise UserError(f"expected a checkpoint file, {what}")
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
        with _damage_in_words(path.name):
            return Checkpoint(load_file(path), "safetensors")
    # Pickles begin with a version, or, of before there were any, with a list, a dict or a name.
    if head[:1] not in (b"\x80", b"(", b"]", b"}", b"c"):
        raise UserError(f"expected a checkpoint of torch.save or safetensors as {path.name}, got neither format")
    with path.open("rb") as file:
        first = read_pickle(file, path.name)
    if type(first) is int and first == torch.serialization.MAGIC_NUMBER:
        return Checkpoint(_torch_load(path, None), "PyTorch before 1.6")
    return Checkpoint(first, "pickle")


def _torch_load(path: Path, sizes: dict[str, int] | None) -> Any:
    """The contents of a file of torch.save; `sizes` are those of an archive's storages in bytes, by key."""
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
    with _damage_in_words(path.name):
        return torch.load(path, "cpu", pickle_module=inert, weights_only=False, encoding="latin1")


def _zip_sizes(path: Path) -> dict[str, int]:
    """The sizes of the storages in an archive that PyTorch's reader may see: it runs TorchScript programs, and looks at
    no checksum."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        # Anywhere in the file, because two readers of archives may find different names.
        if content.find(b"constants.pkl") >= 0:
            raise UserError(
                f"expected a state dict in {path.name}, got a TorchScript program, which would have to be run; "
                "save its state_dict() instead"
            )
    with _damage_in_words(path.name), zipfile.ZipFile(path) as archive:
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
    root = f"{pickles[0].removesuffix('data.pkl')}data/"
    return {name.removeprefix(root): size for name, size in sizes.items() if name.startswith(root)}
