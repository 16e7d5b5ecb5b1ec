"""Image synthesis with a single adversarially robust classifier.

    >>> import robustsynth as rs
    >>> model = rs.load_model("mnist")
    >>> rs.generate(model, [3, 8], seed=0, steps=2).shape
    torch.Size([2, 1, 28, 28])

The method is that of Santurkar et al., "Image Synthesis with a Single (Robust) Classifier" (NeurIPS 2019).
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from robustsynth.constraints import Box, L2Ball, LinfBall
    from robustsynth.data import load_data
    from robustsynth.errors import UnknownNameError, UserError
    from robustsynth.evaluation.accuracy import evaluate_accuracy
    from robustsynth.loop import NonFiniteError, Problem, Step, pgd, pgd_steps
    from robustsynth.models.card import ModelCard
    from robustsynth.models.classifier import Classifier
    from robustsynth.models.store import load_model, model_names, save_model
    from robustsynth.objectives import CrossEntropy, Distance, Objective
    from robustsynth.seeds import ClassSeeds, fit_class_seeds, sample_seeds
    from robustsynth.tasks.compare import Comparison, compare
    from robustsynth.tasks.generate import generate, resolve_generate
    from robustsynth.tasks.inpaint import inpaint
    from robustsynth.tasks.paint import paint
    from robustsynth.tasks.refine import refine
    from robustsynth.tasks.running import predict
    from robustsynth.tasks.settings import GenerateSettings
    from robustsynth.tasks.sketch import sketch
    from robustsynth.tasks.step_settings import (
        InpaintSettings,
        PaintSettings,
        RefineSettings,
        SketchSettings,
        TranslateSettings,
        UpscaleSettings,
    )
    from robustsynth.tasks.translate import translate
    from robustsynth.tasks.upscale import upscale
    from robustsynth.training.run import Trainer
    from robustsynth.training.settings import TrainSettings

_HOMES = {
    "constraints": ["Box", "L2Ball", "LinfBall"],
    "data": ["load_data"],
    "errors": ["UnknownNameError", "UserError"],
    "evaluation.accuracy": ["evaluate_accuracy"],
    "models.card": ["ModelCard"],
    "models.classifier": ["Classifier"],
    "models.store": ["load_model", "model_names", "save_model"],
    "objectives": ["CrossEntropy", "Distance", "Objective"],
    "loop": ["NonFiniteError", "Problem", "Step", "pgd", "pgd_steps"],
    "seeds": ["ClassSeeds", "fit_class_seeds", "sample_seeds"],
    "tasks.compare": ["Comparison", "compare"],
    "tasks.generate": ["generate", "resolve_generate"],
    "tasks.inpaint": ["inpaint"],
    "tasks.paint": ["paint"],
    "tasks.refine": ["refine"],
    "tasks.running": ["predict"],
    "tasks.settings": ["GenerateSettings"],
    "tasks.sketch": ["sketch"],
    "tasks.step_settings": [
        "InpaintSettings", "PaintSettings", "RefineSettings", "SketchSettings", "TranslateSettings", "UpscaleSettings",
    ],
    "tasks.translate": ["translate"],
    "tasks.upscale": ["upscale"],
    "training.run": ["Trainer"],
    "training.settings": ["TrainSettings"],
}  # fmt: skip
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "Box", "ClassSeeds", "Classifier", "Comparison", "CrossEntropy", "Distance", "GenerateSettings",
    "InpaintSettings", "L2Ball", "LinfBall", "ModelCard", "NonFiniteError", "Objective", "PaintSettings", "Problem",
    "RefineSettings", "SketchSettings", "Step", "TrainSettings", "Trainer", "TranslateSettings", "UnknownNameError",
    "UpscaleSettings", "UserError", "__version__", "compare", "evaluate_accuracy", "fit_class_seeds", "generate",
    "inpaint", "load_data", "load_model", "model_names", "paint", "pgd", "pgd_steps", "predict", "refine",
    "resolve_generate", "sample_seeds", "save_model", "sketch", "translate", "upscale",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    # Names are fetched when first used: torch takes seconds to import, and `robustsynth --help` needs none of it.
    if name not in _HOME_OF:
        raise AttributeError(f"module 'robustsynth' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"robustsynth.{_HOME_OF[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
