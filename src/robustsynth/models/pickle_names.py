"""The names that may stand in a checkpoint's pickle, and what is made where it calls them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from robustsynth.models.pickle_values import (
    STORAGES,
    TYPES,
    Attributes,
    Name,
    NotPlainError,
    StoredArray,
    StoredTensor,
    StoredType,
    array_of,
    brief,
    hashable,
    tensor_of,
)


def _tensor(storage: Any, offset: Any, size: Any, stride: Any, *rest: Any) -> StoredTensor:
    """Of `_rebuild_tensor` and `_rebuild_tensor_v2`; the rest are hooks and whether it wants a gradient."""
    if len(rest) > 1 and rest[1]:
        raise NotPlainError("backward hooks")
    return tensor_of(storage, storage.dtype, offset, size, stride)


def _tensor_of_type(storage: Any, offset: Any, size: Any, stride: Any, grad: Any, hooks: Any, dtype: Any, *_: Any):
    """Of `_rebuild_tensor_v3`, whose storage has no type."""
    if hooks:
        raise NotPlainError("backward hooks")
    return tensor_of(storage, TYPES.get(dtype) if isinstance(dtype, Name) else None, offset, size, stride)


def _parameter(data: Any, wants_gradient: Any, hooks: Any, *_: Any) -> StoredTensor:
    if hooks or not isinstance(data, StoredTensor):
        raise NotPlainError("a parameter with hooks" if hooks else "a parameter that is no tensor")
    return data


def _from_buffer(content: Any, kind: Any, shape: Any, order: Any) -> StoredArray:
    return StoredArray(array_of(content, kind, shape, order))


def _empty_array(kind: Any, shape: Any, code: Any) -> StoredArray:
    if kind != Name("numpy", "ndarray"):
        raise NotPlainError(brief(kind))
    return StoredArray()


def _dill_array(make: Any, arguments: Any, state: Any, attributes: Any = None) -> StoredArray:
    array = (
        CALLS[make](*arguments)
        if isinstance(make, Name) and make in ARRAY_MAKERS and isinstance(arguments, tuple)
        else None
    )
    if not isinstance(array, StoredArray):
        raise NotPlainError(f"an array made by {brief(make)}")
    array.finish(state)
    return array


def _scalar(kind: Any, content: Any) -> Any:
    return array_of(content, kind, (), "C").item()


def _number_type(code: Any, *_: Any) -> StoredType:
    if not isinstance(code, str):
        raise NotPlainError(f"numpy.dtype({brief(code)})")
    made = StoredType(code)
    made.numpy()
    return made


def _encoded(text: Any, encoding: Any = "latin1") -> bytes:
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1", "utf-8"):
        raise NotPlainError(brief(encoding))
    return text.encode(encoding)


def _bytes(*arguments: Any) -> bytes:
    """Of bytes that are there: a mere number would ask for so many."""
    if len(arguments) == 1 and isinstance(arguments[0], bytes | bytearray):
        return bytes(arguments[0])
    if not arguments:
        return b""
    return _encoded(*arguments)


def _dict(items: Any = ()) -> dict[Any, Any]:
    pairs = items.items() if isinstance(items, dict) else items if isinstance(items, list | tuple) else ()
    return {hashable(key): value for key, value in pairs}


def _counted_dict(factory: Any = None, items: Any = ()) -> dict[Any, Any]:
    return _dict(items)


def _set(items: Any = ()) -> set[Any]:
    if not isinstance(items, list | tuple | set):
        raise TypeError("a set of what is no list")
    return set(map(hashable, items))


def _attributes(*arguments: Any) -> Attributes:
    return Attributes(arguments[0] if len(arguments) == 1 and isinstance(arguments[0], dict) else {})


def _reconstructed(kind: Any, base: Any, state: Any) -> Attributes:
    if not isinstance(kind, Name) or kind not in NAMESPACES:
        raise NotPlainError(brief(kind))
    return Attributes()


def _plain_type(name: Any, *_: Any) -> Name:
    """dill's way to say a type: the plain ones alone, and as a name."""
    if name not in PLAIN_TYPES:
        raise NotPlainError(brief(name))
    return Name("builtins", name) if name != "OrderedDict" else Name("collections", name)


def _joined(*parts: Any) -> str:
    if not all(isinstance(part, str) for part in parts):
        raise TypeError("a path of what is no text")
    # Joined with itself through the memo a path would double each time.
    if sum(map(len, parts)) > LONGEST_PATH:
        raise NotPlainError(f"a path of more than {LONGEST_PATH} characters")
    return "/".join(parts).replace("//", "/")


def _device(kind: Any, index: Any = None) -> str:
    if not isinstance(kind, str) or len(kind) > LONGEST_DEVICE or not isinstance(index, int | None):
        raise NotPlainError("a device of what is no short name and number")
    return kind if index is None else f"{kind}:{index}"


LONGEST_PATH, LONGEST_DEVICE = 4096, 32

NAMESPACES = {Name("argparse", "Namespace"), Name("types", "SimpleNamespace"), Name("cox.utils", "Parameters")}
PLAIN_TYPES = (
    *("dict", "list", "tuple", "set", "frozenset", "int", "float", "complex", "str", "bytes", "bool", "object"),
    *("NoneType", "OrderedDict"),
)
_NUMPY = [f"numpy.{core}.{module}" for core in ("core", "_core") for module in ("multiarray", "numeric")]
_DILL = ("dill._dill", "dill.dill", "dill")
_BUILTINS = ("builtins", "__builtin__")

PLAIN: set[Name] = {
    *TYPES,
    *STORAGES,
    Name("numpy", "ndarray"),
    *(Name(module, name) for module in _BUILTINS for name in PLAIN_TYPES),
}
"""Names that stand for themselves: types of numbers, of storages and of plain values. They are never called."""

CALLS: dict[Name, Callable[..., Any]] = {
    Name("collections", "OrderedDict"): _dict,
    Name("collections", "defaultdict"): _counted_dict,
    Name("collections", "Counter"): _dict,
    Name("torch._utils", "_rebuild_tensor"): _tensor,
    Name("torch._utils", "_rebuild_tensor_v2"): _tensor,
    Name("torch._utils", "_rebuild_tensor_v3"): _tensor_of_type,
    Name("torch._utils", "_rebuild_parameter"): _parameter,
    Name("torch", "Size"): lambda sides=(): tuple(sides),
    Name("torch", "device"): _device,
    Name("numpy", "dtype"): _number_type,
    Name("_codecs", "encode"): _encoded,
    Name("copyreg", "_reconstructor"): _reconstructed,
    Name("copy_reg", "_reconstructor"): _reconstructed,
    **{Name(module, "scalar"): _scalar for module in _NUMPY},
    **{Name(module, "_reconstruct"): _empty_array for module in _NUMPY},
    **{Name(module, "_frombuffer"): _from_buffer for module in _NUMPY},
    **{Name(module, "set"): _set for module in _BUILTINS},
    **{Name(module, "frozenset"): lambda items=(): frozenset(_set(items)) for module in _BUILTINS},
    **{Name(module, name): _bytes for module in _BUILTINS for name in ("bytes", "bytearray")},
    **{Name(module, "_load_type"): _plain_type for module in _DILL},
    **{Name(module, "_create_array"): _dill_array for module in _DILL},
    **dict.fromkeys(NAMESPACES, _attributes),
    **{
        Name(m, k): _joined
        for m in ("pathlib", "pathlib._local")
        for k in ("PosixPath", "WindowsPath", "PurePosixPath")
    },
}
"""Names that may be called, and what we make where they are."""

ARRAY_MAKERS = {Name(module, name) for module in _NUMPY for name in ("_reconstruct", "_frombuffer")}
