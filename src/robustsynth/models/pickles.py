"""Pickles read without being executed: a small machine that makes plain values, and only ever says names.

A pickle is a program. What it names is here never imported and what it calls is never called: a name stays a `Name`, a
call is looked up in `robustsynth.models.pickle_names`, which makes an inert value of our own, and whatever is not found
there is refused with an error that says what it was. Tensors stay descriptions of where their numbers are.
"""

from __future__ import annotations

import pickletools
import warnings
from collections.abc import Callable
from typing import IO, Any, NoReturn

from robustsynth.errors import UserError
from robustsynth.models.pickle_names import CALLS, PLAIN
from robustsynth.models.pickle_values import Attributes, Name, NotPlainError, Unfinished, brief, hashable, storage_of

_MARK = object()


class RefusedPickleError(UserError):
    """A pickle that holds something other than tensors and plain containers; the message names it."""


def read_pickle(stream: IO[bytes], where: str) -> Any:
    """The value of the next pickle in `stream`, which is left standing after its end.

    Args:
        stream: bytes, opened for reading.
        where: the file's name, for messages.

    Returns:
        Numbers, strings, bytes, None, lists, tuples, sets and dicts; `StoredTensor`, `StoredArray`, `Storage` and
        `Name` of `robustsynth.models.pickle_values`.

    Raises:
        RefusedPickleError: it names, calls or builds anything else.
        UserError: it is damaged.

    Example:
        >>> import io, pickle
        >>> read_pickle(io.BytesIO(pickle.dumps({"epoch": 3, "lr": (0.1,)})), "a.pt")
        {'epoch': 3, 'lr': (0.1,)}
        >>> read_pickle(io.BytesIO(b"cos\\nsystem\\n(S'true'\\ntR."), "b.pt")  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        robustsynth.models.pickles.RefusedPickleError: expected tensors and plain containers alone in b.pt, got os...
    """
    machine = _Machine(where)
    try:
        with warnings.catch_warnings():
            # Of escape sequences in a damaged text, which is told or refused below like any other.
            warnings.simplefilter("ignore", DeprecationWarning)
            for opcode, argument, _ in pickletools.genops(stream):
                machine.step(opcode.name, argument)
        return machine.finished()
    except RefusedPickleError:
        raise
    except NotPlainError as error:
        raise machine.refusal(str(error)) from None
    # Broken bytes fail as a wrong type, an empty stack, an unknown instruction or an impossible text; all say the same.
    # A text that claims to be larger than all memory is one of them.
    except (
        *(ValueError, TypeError, LookupError, AttributeError, OverflowError, EOFError),
        *(MemoryError, RecursionError),
    ) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"expected a whole pickle in {where}, but it is damaged or cut short ({reason})") from None


class _Machine:
    """The pickle machine's stack and memo."""

    def __init__(self, where: str) -> None:
        self.where = where
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}

    def step(self, name: str, argument: Any) -> None:
        if name in _PUSH:
            self.stack.append(argument)
        elif name in _DO:
            _DO[name](self, argument)
        else:
            self.refuse(f"the instruction {name} {'' if argument is None else brief(argument)}".strip())

    def finished(self) -> Any:
        value = self.stack.pop()
        if self.stack:
            raise ValueError("values are left over")
        return value

    def refuse(self, what: str) -> NoReturn:
        raise self.refusal(what) from None

    def refusal(self, what: str) -> RefusedPickleError:
        return RefusedPickleError(
            f"expected tensors and plain containers alone in {self.where}, got {what}, which may be code; nothing of "
            "it was run. Where you trust the file, load it with the program that wrote it, save the network's "
            "state_dict() alone with torch.save or as safetensors, and import that"
        )

    def since_mark(self) -> list[Any]:
        at = len(self.stack) - 1
        while self.stack[at] is not _MARK:  # Beyond the bottom of the stack this is an IndexError: there is no mark.
            at -= 1
        at %= len(self.stack)
        found = self.stack[at + 1 :]
        del self.stack[at:]
        return found

    def top(self, kind: type | tuple[type, ...]) -> Any:
        value = self.stack[-1]
        if not isinstance(value, kind):
            raise TypeError(f"a {type(value).__name__} cannot be filled")
        return value

    def name(self, module: Any, name: Any) -> None:
        if not (isinstance(module, str) and isinstance(name, str)):
            raise TypeError("a name is no text")
        found = Name(module, name)
        if found not in CALLS and found not in PLAIN:
            self.refuse(str(found))
        self.stack.append(found)

    def call(self, function: Any, arguments: Any) -> None:
        # Types of numbers and plain values are names too, but never called.
        if not isinstance(function, Name) or function not in CALLS:
            self.refuse(f"a call of {brief(function)}")
        if not isinstance(arguments, tuple):
            raise TypeError("arguments are no tuple")
        try:
            self.stack.append(CALLS[function](*arguments))
        except NotPlainError as error:  # What the call itself does not accept.
            self.refuse(f"{function} of {error}")

    def build(self) -> None:
        state = self.stack.pop()
        target = self.stack[-1]
        if isinstance(target, Attributes):
            if isinstance(state, tuple) and len(state) == 2 and state[0] is None:
                state = state[1]
            if not isinstance(state, dict):
                raise TypeError("a state is no dict")
            target.update(state)
        elif isinstance(target, Unfinished):
            target.finish(state)
        elif not isinstance(target, dict):  # An OrderedDict's attributes, such as _metadata, are left out.
            self.refuse(f"a state for {brief(target)}")

    def remember(self, key: int) -> None:
        self.memo[key] = self.stack[-1]

    def fill(self, pairs: list[Any]) -> None:
        target = self.top(dict)
        if len(pairs) % 2:
            raise ValueError("a key has no value")
        for key, value in zip(pairs[::2], pairs[1::2], strict=True):
            target[hashable(key)] = value


def _pairs(values: list[Any]) -> dict[Any, Any]:
    return {hashable(key): value for key, value in zip(values[::2], values[1::2], strict=True)}


def _split(m: _Machine, argument: Any) -> None:
    m.name(*argument.split(" ", 1))


def _stack_global(m: _Machine, _: Any) -> None:
    name, module = m.stack.pop(), m.stack.pop()
    m.name(module, name)


def _reduce(m: _Machine, _: Any) -> None:
    arguments, function = m.stack.pop(), m.stack.pop()
    m.call(function, arguments)


def _new_with_words(m: _Machine, _: Any) -> None:
    words, arguments, function = m.stack.pop(), m.stack.pop(), m.stack.pop()
    if words:
        m.refuse(f"a call of {brief(function)} with words")
    m.call(function, arguments)


def _inst(m: _Machine, argument: Any) -> None:
    arguments = tuple(m.since_mark())
    _split(m, argument)
    m.call(m.stack.pop(), arguments)


def _obj(m: _Machine, _: Any) -> None:
    function, *arguments = m.since_mark()
    m.call(function, tuple(arguments))


def _tuple_of(count: int) -> Callable[[_Machine, Any], None]:
    def make(m: _Machine, _: Any) -> None:
        if len(m.stack) < count:
            raise ValueError("the stack is empty")
        m.stack[len(m.stack) - count :] = [tuple(m.stack[len(m.stack) - count :])]

    return make


def _append(m: _Machine, _: Any) -> None:
    value = m.stack.pop()
    m.top(list).append(value)


def _appends(m: _Machine, _: Any) -> None:
    values = m.since_mark()
    m.top(list).extend(values)


def _add_items(m: _Machine, _: Any) -> None:
    values = m.since_mark()
    m.top(set).update(map(hashable, values))


def _set_item(m: _Machine, _: Any) -> None:
    value, key = m.stack.pop(), m.stack.pop()
    m.fill([key, value])


def _persistent(m: _Machine, _: Any) -> None:
    m.stack.append(storage_of(m.stack.pop()))


_PUSH = {
    "INT", "LONG", "BININT", "BININT1", "BININT2", "LONG1", "LONG4", "FLOAT", "BINFLOAT", "STRING", "BINSTRING",
    "SHORT_BINSTRING", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "BINBYTES", "SHORT_BINBYTES",
    "BINBYTES8", "BYTEARRAY8",
}  # fmt: skip

_DO: dict[str, Callable[[_Machine, Any], Any]] = {
    "PROTO": lambda m, _: None,
    "FRAME": lambda m, _: None,
    "STOP": lambda m, _: None,
    "NONE": lambda m, _: m.stack.append(None),
    "NEWTRUE": lambda m, _: m.stack.append(True),
    "NEWFALSE": lambda m, _: m.stack.append(False),
    "MARK": lambda m, _: m.stack.append(_MARK),
    "POP": lambda m, _: m.stack.pop(),
    "POP_MARK": lambda m, _: m.since_mark(),
    "DUP": lambda m, _: m.stack.append(m.stack[-1]),
    "PUT": _Machine.remember,
    "BINPUT": _Machine.remember,
    "LONG_BINPUT": _Machine.remember,
    "MEMOIZE": lambda m, _: m.remember(len(m.memo)),
    "GET": lambda m, key: m.stack.append(m.memo[key]),
    "BINGET": lambda m, key: m.stack.append(m.memo[key]),
    "LONG_BINGET": lambda m, key: m.stack.append(m.memo[key]),
    "EMPTY_LIST": lambda m, _: m.stack.append([]),
    "EMPTY_DICT": lambda m, _: m.stack.append({}),
    "EMPTY_SET": lambda m, _: m.stack.append(set()),
    "EMPTY_TUPLE": lambda m, _: m.stack.append(()),
    "LIST": lambda m, _: m.stack.append(m.since_mark()),
    "TUPLE": lambda m, _: m.stack.append(tuple(m.since_mark())),
    "DICT": lambda m, _: m.stack.append(_pairs(m.since_mark())),
    "FROZENSET": lambda m, _: m.stack.append(frozenset(map(hashable, m.since_mark()))),
    "TUPLE1": _tuple_of(1),
    "TUPLE2": _tuple_of(2),
    "TUPLE3": _tuple_of(3),
    "APPEND": _append,
    "APPENDS": _appends,
    "ADDITEMS": _add_items,
    "SETITEM": _set_item,
    "SETITEMS": lambda m, _: m.fill(m.since_mark()),
    "GLOBAL": _split,
    "STACK_GLOBAL": _stack_global,
    "INST": _inst,
    "OBJ": _obj,
    "REDUCE": _reduce,
    "NEWOBJ": _reduce,
    "NEWOBJ_EX": _new_with_words,
    "BUILD": lambda m, _: m.build(),
    "BINPERSID": _persistent,
}
"""All that is done. Names from the extension registry (EXT1, EXT2, EXT4), textual persistent names and buffers outside
of the pickle are not: a registry's entries are whatever a program put there."""
