"""Options made from settings classes, and commands made from the table of tasks: what is new appears by itself."""

from __future__ import annotations

import dataclasses
import functools
import re
import types
import typing
from collections.abc import Callable
from typing import Any

import click

from robustsynth.cli.progress import sole_writer
from robustsynth.errors import UserError
from robustsynth.tasks.settings import BEST, knows_task, preset_names
from robustsynth.tasks.task import Option, Task, attribute_help


def in_order(*decorators: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Several decorators as one; the help lists their options in this order."""
    return lambda function: functools.reduce(lambda done, decorate: decorate(done), reversed(decorators), function)


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


def option_of(option: Option) -> Callable[[Any], Any]:
    """An option of a task's input as click has it."""
    kind: Any = click.IntRange(min=option.least) if option.least is not None else option.type
    shown = option.default is not None and option.type is not bool
    return click.option(
        *filter(None, (option.flag, option.other_flag)),
        option.name,
        type=None if option.type is bool else kind,
        is_flag=option.type is bool,
        default=() if option.multiple else option.default,
        required=option.required,
        multiple=option.multiple,
        show_default=shown,
        help=option.help,
    )


def settings_options(kind: type, task: str | None = None) -> Callable[[Any], Any]:
    """One option for each field of the dataclass `kind`, its help taken from the class's docstring; for a `task`, one
    for the presets that know it too. Those not given are None, so that a preset or a model's card can fill them."""
    hints, described = typing.get_type_hints(kind), attribute_help(kind)
    options: list[Callable[[Any], Any]] = []
    if task is not None:
        presets = [name for name in preset_names() if name == BEST or knows_task(name, task)]
        text = f"{', '.join(presets)}; best is the model's own, which count if none is given."
        options.append(click.option("--preset", default=None, help=text))
    for field in dataclasses.fields(kind):
        flag = f"--{field.name.replace('_', '-')}"
        text = described.get(field.name, "") + ("" if task is None else f"  [paper: {_shown(field.default)}]")
        kind_of_value = _plain_type(hints[field.name])
        more: dict[str, Any] = {"type": kind_of_value}
        if kind_of_value is bool:
            flag, more = f"{flag}/--no-{flag[2:]}", {}
        elif choices := [str(choice) for choice in field.metadata.get("choices", ()) if choice is not None]:
            more["metavar"] = f"[{'|'.join(choices)}]"
        options.append(click.option(flag, field.name, default=None, help=text, **more))
    return in_order(*options)


def _shown(value: Any) -> str:
    """A default as people write it."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "by its shape" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def machine_options(batch_size: str = "Measured if not given.") -> Callable[[Any], Any]:
    """How a command runs its model; `batch_size` is the help of that option."""
    precisions = click.Choice(["float32", "bfloat16"])
    return in_order(
        click.option("--precision", type=precisions, default=None, help="Measured if not given."),
        click.option("--batch-size", type=click.IntRange(min=1), default=None, help=batch_size),
        click.option("--device", default=None, help="Any that torch names, such as cpu or cuda; tested on cpu."),
    )


out_option = click.option("--out", required=True, type=click.Path(), help="Folder to write to.")

run_options = in_order(
    click.option(
        "--trajectory",
        type=click.Choice(["gif", "mp4"]),
        default=None,
        help="Also write how each image comes about, step by step.",
    ),
    machine_options(),
    click.option("--overwrite", is_flag=True, help="Replace what other settings wrote to the folder."),
)
"""The options that every command on images has."""


def task_command(task: Task) -> click.Command:
    """The command of a task: images in, one PNG for each result, a figure and the settings out."""

    def command(images: tuple[str, ...], **options: Any) -> None:
        from robustsynth.cli.tasks import ImageRun

        with sole_writer(options["out"]):
            ImageRun(task, images, options).run()

    inputs = {option.flag: option for each in task.inputs for option in each.options}
    decorate = in_order(
        click.argument("images", nargs=-1, required=True, type=click.Path()),
        *(option_of(option) for option in inputs.values()),
        click.option("--model", "model_name", default="imagenette", show_default=True, help="Name or folder."),
        out_option,
        settings_options(task.settings, task.name),
        run_options,
    )
    help_text = f"{task.summary.replace('`', '')}\n\n{task.details.replace('`', '')}"
    return click.command(task.name, help=help_text, short_help=task.summary.replace("`", ""))(decorate(command))


def parse_classes(text: str, classes: tuple[str, ...], index: Callable[[str], int]) -> list[int]:
    """``cat,ship``, ``0,3``, ``2-5`` or ``all`` as class indices, each once, in the order given.

    Names among `classes` go before numbers, so that a class may be named ``0-4``. `index` is of one name or number.
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
