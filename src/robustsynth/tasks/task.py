"""What a task is: an entry of the table, from which its Python functions, its command and its documentation are made.

A task is one file with its settings, its inputs and one function, `Task.state`, that states the problem of a batch of
images. Everything else (reading, labels, batches, progress, files, resuming, figures) is the same for all tasks.

No module that this one needs imports torch, so that the command line can show its help at once. What a task is given is
a `robustsynth.tasks.call.Batch` of a `robustsynth.tasks.call.Call`; they know tasks, so that here they are `Any`.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from robustsynth.tasks.settings import NOTHING, StepSettings, resolve_settings

if TYPE_CHECKING:
    from robustsynth.models.classifier import Classifier
    from robustsynth.solver import Stated

REQUIRED = dataclasses.MISSING
"""The default of an input that must be given."""


@dataclass(frozen=True)
class Option:
    """An option of the command line.

    Attributes:
        flag: such as ``--label``.
        help: a sentence.
        type: of its value; bool for a flag.
        default: where it is not given.
        required: whether it must be given.
        multiple: whether it may be given several times; its value is a tuple then.
        least: of a number.
        other_flag: by which it may also be given.
    """

    flag: str
    help: str
    type: type = str
    default: Any = None
    required: bool = False
    multiple: bool = False
    least: int | None = None
    other_flag: str | None = None

    @property
    def name(self) -> str:
        """Of the value, such as ``label``."""
        return self.flag.lstrip("-").replace("-", "_")


@dataclass(frozen=True)
class Input:
    """Something that a task needs besides images and settings, such as a mask, a class or a factor.

    Attributes:
        name: of the Python function's parameter.
        annotation: its type, for signatures.
        help: what it is, for the function's documentation.
        options: of the command line that it is read from.
        default: in Python; `REQUIRED` where it must be given.
        positional: whether it may be given without its name.
        check: of what was given in Python, the call: the value of one image or of all, as `Call.value` explains.
        read: of the options' values, the call: the same, and what of it decides the results, for ``settings.json``.
    """

    name: str
    annotation: str
    help: str
    options: tuple[Option, ...]
    check: Callable[[Any, Any], Any]
    read: Callable[[Mapping[str, Any], Any], tuple[Any, dict[str, Any]]]
    default: Any = None
    positional: bool = False


@dataclass(frozen=True)
class Task:
    """An entry of the table of tasks.

    Attributes:
        name: of the function and of the command.
        settings: frozen dataclass; its defaults are the paper's.
        state: states the problem of a batch of images, in one run of the loop.
        summary: what the task does, in one sentence.
        details: further sentences, for the help and the documentation.
        inputs: besides images and settings.
        images: the Python parameter of the images that the task is given; empty where it is given none.
        reads_all: whether every pixel of the images is read; those that are not may hold anything.
        returns: what comes of it.
        result_size: (H, W) of an image's result, of its own (H, W) and the call; the image's own where None.
        runs: runs of the loop for each image, of the call; one where None.
        untuned: settings of a model that has none of its own, in place of the paper's.
        adapt: settings that follow from the model and from those given.
        example: lines of Python that use it, for its documentation.
    """

    name: str
    settings: type[StepSettings]
    state: Callable[[Any], Stated]
    summary: str
    details: str = ""
    inputs: tuple[Input, ...] = ()
    images: str = "images"
    reads_all: bool = True
    returns: str = "(N, C, H, W) float32 in [0, 1], on the CPU."
    result_size: Callable[[tuple[int, int], Any], tuple[int, int]] | None = None
    runs: Callable[[Any], int] | None = None
    untuned: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    adapt: Callable[[Classifier, StepSettings, Mapping[str, Any]], Mapping[str, Any]] | None = None
    example: str = ""

    def resolve(self, model: Classifier, *, preset: str | None = None, given: Mapping[str, Any] = NOTHING) -> Any:
        """The settings that the task will use with `model`: see `robustsynth.tasks.settings`.

        Raises:
            UnknownNameError: an unknown preset or setting.
            UserError: a value that does not fit its setting.
        """
        found = resolve_settings(self.settings, self.name, model, preset=preset, given=given, untuned=self.untuned)
        if self.adapt is not None and (more := self.adapt(model, found, given)):
            given = {**given, **more}
            found = resolve_settings(self.settings, self.name, model, preset=preset, given=given, untuned=self.untuned)
        return found


def attribute_help(kind: type) -> dict[str, str]:
    """The descriptions of a class's attributes, from the ``Attributes:`` sections of its docstring and its bases'."""
    described: dict[str, str] = {}
    for each in reversed(kind.__mro__):
        section = (each.__doc__ or "").partition("Attributes:")[2]
        found = re.findall(r"^ {8}(\w+): (.+(?:\n {12}.+)*)", section, flags=re.MULTILINE)
        described |= {name: re.sub(r"\s+", " ", text).replace("``", "") for name, text in found}
    return described
