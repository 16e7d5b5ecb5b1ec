"""The table of tasks, in the order of the help. A new task is one file and one entry."""

from __future__ import annotations

from robustsynth.tasks.generate import GENERATE
from robustsynth.tasks.inpaint import INPAINT
from robustsynth.tasks.paint import PAINT
from robustsynth.tasks.refine import REFINE
from robustsynth.tasks.sketch import SKETCH
from robustsynth.tasks.task import Task
from robustsynth.tasks.translate import TRANSLATE
from robustsynth.tasks.upscale import UPSCALE

TASKS: dict[str, Task] = {task.name: task for task in (GENERATE, INPAINT, TRANSLATE, UPSCALE, SKETCH, PAINT, REFINE)}
