"""Command-line options made from settings classes, so that a new field appears by itself."""

from __future__ import annotations

import dataclasses
import re
import types
import typing
from collections.abc import Callable
from typing import Any

import click

from robustsynth.errors import UserError


class Numbers(click.ParamType):
    """Comma-separated numbers, such as ``0.25,0.5``."""

    name = "numbers"

    def __init__(self, kind: type[int] | type[float]) -> None:
        self.kind = kind

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if isinstance(value, tuple):
            return value
        try:
            return tuple(self.kind(part) for part in value.split(",") if part.strip())
        except ValueError:
            self.fail(f"expected comma-separated numbers such as 0.25,0.5, got {value!r}", param, ctx)


class Norm(click.ParamType):
    """A norm by its name. Which there are is asked when it is checked, because that takes torch."""

    name = "norm"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        from robustsynth.constraints import NORMS

        if value not in NORMS:
            self.fail(f"expected a norm of {', '.join(NORMS)}, got {value!r}", param, ctx)
        return value


def settings_options(kind: type, *, without: tuple[str, ...] = ()) -> Callable[[Any], Any]:
    """One option for each field of the settings class `kind`, its help taken from the class's docstring.

    Options not given are None, so that a preset or a model's card can fill them.
    """
    hints = typing.get_type_hints(kind)
    described = attribute_help(kind)

    def decorate(function: Any) -> Any:
        for field in reversed(dataclasses.fields(kind)):
            if field.name in without:
                continue
            option = field.name.replace("_", "-")
            help_text = described.get(field.name, "")
            value_type = _plain_type(hints[field.name])
            if value_type is bool:
                name = f"--{option}/--no-{option}"
                function = click.option(name, field.name, default=None, help=help_text)(function)
            else:
                function = click.option(f"--{option}", field.name, type=value_type, default=None, help=help_text)(
                    function
                )
        return function

    return decorate


def attribute_help(kind: type) -> dict[str, str]:
    """The descriptions of a class's attributes, from the ``Attributes:`` sections of its docstring and its bases'."""
    described: dict[str, str] = {}
    for each in reversed(kind.__mro__):
        section = (each.__doc__ or "").partition("Attributes:")[2]
        found = re.findall(r"^ {8}(\w+): (.+(?:\n {12}.+)*)", section, flags=re.MULTILINE)
        described |= {name: re.sub(r"\s+", " ", text).replace("``", "") for name, text in found}
    return described


def parse_classes(text: str, classes: tuple[str, ...], index: Callable[[str], int]) -> list[int]:
    """``cat,ship``, ``0,3``, ``2-5`` or ``all`` as class indices, each once, in the order given.

    Args:
        text: what the user wrote; names go before numbers, so that a class may be named ``0-4``.
        classes: the model's class names.
        index: of one class by name or number.
    """
    if text.strip().lower() == "all":
        return list(range(len(classes)))
    found: list[int] = []
    for part in (p.strip() for p in text.split(",")):
        spread = re.fullmatch(r"(\d+)-(\d+)", part)
        if spread and part not in classes:
            first, last = (index(number) for number in spread.groups())
            if first > last:
                raise UserError(f"expected a rising range of classes, got {part!r}")
            found += range(first, last + 1)
        elif part:
            found.append(index(part))
    if not found:
        raise UserError(f"expected classes such as {classes[0]},{classes[-1]} or all, got {text!r}")
    return list(dict.fromkeys(found))


def _plain_type(hint: Any) -> Any:
    """The type behind ``X | None`` and ``tuple[X, ...]`` as click takes it."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        hint = next(a for a in typing.get_args(hint) if a is not type(None))
    if typing.get_origin(hint) is tuple:
        return Numbers(typing.get_args(hint)[0])
    return hint
