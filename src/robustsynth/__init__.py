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
    from robustsynth.constraints import Ball, Box, L2Ball, LinfBall, register_norm
    from robustsynth.data import load_data
    from robustsynth.errors import UnknownNameError, UserError
    from robustsynth.evaluation.accuracy import evaluate_accuracy
    from robustsynth.images import load_image
    from robustsynth.loop import NonFiniteError, Problem, Step, pgd, pgd_steps
    from robustsynth.models.card import ModelCard
    from robustsynth.models.classifier import Classifier
    from robustsynth.models.store import load_model, model_names, save_model
    from robustsynth.objectives import CrossEntropy, Distance, Objective
    from robustsynth.seeds import ClassSeeds, fit_class_seeds, sample_seeds
    from robustsynth.sheet import save, show
    from robustsynth.solver import Interrupted, Progress, Results
    from robustsynth.tasks.call import predict
    from robustsynth.tasks.compare import Comparison, compare
    from robustsynth.tasks.features import FeatureAtlas, feature_steps, features
    from robustsynth.tasks.functions import (
        generate,
        generate_steps,
        inpaint,
        inpaint_steps,
        paint,
        paint_steps,
        refine,
        refine_steps,
        sketch,
        sketch_steps,
        translate,
        translate_steps,
        upscale,
        upscale_steps,
    )
    from robustsynth.tasks.generate import GenerateSettings
    from robustsynth.tasks.inpaint import InpaintSettings
    from robustsynth.tasks.paint import PaintSettings
    from robustsynth.tasks.refine import RefineSettings
    from robustsynth.tasks.settings import FeatureSettings
    from robustsynth.tasks.sketch import SketchSettings
    from robustsynth.tasks.translate import TranslateSettings
    from robustsynth.tasks.upscale import UpscaleSettings
    from robustsynth.training.settings import TrainSettings
    from robustsynth.training.trainer import Trainer

_HOMES = {
    "constraints": ["Ball", "Box", "L2Ball", "LinfBall", "register_norm"],
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
    "images": ["load_image"],
    "sheet": ["save", "show"],
    "solver": ["Interrupted", "Progress", "Results"],
    "tasks.call": ["predict"],
    "tasks.features": ["FeatureAtlas", "feature_steps", "features"],
    "tasks.functions": [
        "generate", "generate_steps", "inpaint", "inpaint_steps", "paint", "paint_steps", "refine", "refine_steps",
        "sketch", "sketch_steps", "translate", "translate_steps", "upscale", "upscale_steps",
    ],
    "tasks.generate": ["GenerateSettings"],
    "tasks.inpaint": ["InpaintSettings"],
    "tasks.paint": ["PaintSettings"],
    "tasks.refine": ["RefineSettings"],
    "tasks.settings": ["FeatureSettings"],
    "tasks.sketch": ["SketchSettings"],
    "tasks.translate": ["TranslateSettings"],
    "tasks.upscale": ["UpscaleSettings"],
    "training.settings": ["TrainSettings"],
    "training.trainer": ["Trainer"],
}  # fmt: skip
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "Ball", "Box", "ClassSeeds", "Classifier", "Comparison", "CrossEntropy", "Distance", "FeatureAtlas",
    "FeatureSettings", "GenerateSettings", "InpaintSettings", "Interrupted", "L2Ball", "LinfBall", "ModelCard",
    "NonFiniteError", "Objective", "PaintSettings", "Problem", "Progress", "RefineSettings", "Results",
    "SketchSettings", "Step", "TrainSettings", "Trainer", "TranslateSettings", "UnknownNameError",
    "UpscaleSettings", "UserError", "__version__", "compare", "evaluate_accuracy", "feature_steps", "features",
    "fit_class_seeds", "generate", "generate_steps", "inpaint", "inpaint_steps", "load_data", "load_image",
    "load_model", "model_names", "paint", "paint_steps", "pgd", "pgd_steps", "predict", "refine", "refine_steps",
    "register_norm", "sample_seeds", "save", "save_model", "show", "sketch", "sketch_steps", "translate",
    "translate_steps", "upscale", "upscale_steps",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    # Names are fetched when first used: torch takes seconds to import, and `robustsynth --help` needs none of it.
    if name not in _HOME_OF:
        if name.removesuffix("_steps") in importlib.import_module("robustsynth.tasks.table").TASKS:
            # A task that was added to the table.
            return getattr(importlib.import_module("robustsynth.tasks.functions"), name)
        raise AttributeError(f"module 'robustsynth' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"robustsynth.{_HOME_OF[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
