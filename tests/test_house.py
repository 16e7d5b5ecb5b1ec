"""The shape of the house: imports go one way, and everything public is described."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
from pathlib import Path

import pytest

import robustsynth

ROOT = Path(robustsynth.__file__).parent
FILES = {
    ".".join(("robustsynth", *path.relative_to(ROOT).with_suffix("").parts)).removesuffix(".__init__"): path
    for path in sorted(ROOT.rglob("*.py"))
}

LAYERS = [
    {"errors", "files", "names"},
    {"processes", "memory", "randomness", "resampling"},
    {"constraints", "loop"},
    {"images", "animations"},
    {"sheet", "masks", "fills"},
    {"models", "data"},
    {"objectives", "seeds", "views"},
    {"run_folder", "solver"},
    {"tasks", "training", "evaluation"},
    {"cli"},
    {"__main__"},
]
"""From the bottom up. A part may use those of lower layers; and of its own layer where that is not a use or a sibling
of models and data."""

APART = [{"models", "data"}, {"tasks", "training", "evaluation"}]
"""Parts that know nothing of each other although they share a layer."""


def layer(part: str) -> int:
    return next(i for i, parts in enumerate(LAYERS) if part in parts)


def part_of(module: str) -> str:
    return module.split(".")[1]


def imports_of(path: Path) -> set[str]:
    """The modules of robustsynth that a file imports anywhere: at the top, in functions, for type checking."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name.split(".")[0] == "robustsynth"}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import, which this test does not follow"
            if node.module and node.module.split(".")[0] == "robustsynth":
                inside = {f"{node.module}.{alias.name}" for alias in node.names}
                found |= {name if name in FILES else node.module for name in inside}
        elif isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "import_module":
            # The commands, by their names; elsewhere, public names by their homes.
            commands = {name for name in FILES if name.startswith("robustsynth.cli.")}
            found |= commands if path == ROOT / "cli" / "__init__.py" else {"unknown"}
    return found


def faults(module: str, imported: set[str]) -> list[str]:
    found = []
    for name in sorted(imported - {"robustsynth"}):
        here, there = part_of(module), part_of(name)
        apart = here != there and any({here, there} <= group for group in APART)
        if layer(there) > layer(here) or apart:
            found.append(f"{module} ({here}) imports {name}")
    return found


@pytest.mark.parametrize("module", [name for name in FILES if name != "robustsynth"])
def test_imports_go_one_way(module):
    assert not faults(module, imports_of(FILES[module]))


def test_the_test_sees_a_wrong_import(tmp_path):
    wrong = tmp_path / "wrong.py"
    wrong.write_text("def f():\n    from robustsynth.tasks import generate\n", encoding="utf-8")
    assert faults("robustsynth.loop", imports_of(wrong))
    assert faults("robustsynth.training.trainer", imports_of(wrong))
    assert not faults("robustsynth.cli.demo", imports_of(wrong))
    wrong.write_text("from robustsynth import models\n", encoding="utf-8")
    assert faults("robustsynth.data.cache", imports_of(wrong))


def test_every_module_has_a_layer():
    known = set().union(*LAYERS)
    assert {part_of(name) for name in FILES if name != "robustsynth"} == known


@pytest.mark.parametrize("module", FILES)
def test_the_package_itself_is_only_asked_for_its_version(module):
    """`import robustsynth` reaches everything, so that it must not be a way around the layers."""
    tree = ast.parse(FILES[module].read_text(encoding="utf-8"))
    asked = {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "robustsynth"
    }
    assert asked <= {"__version__"}


def public(tree: ast.Module) -> list[tuple[str, ast.AST]]:
    """Public functions, classes and the classes' methods, except where a protocol or override says it elsewhere."""
    found: list[tuple[str, ast.AST]] = []
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            found.append((node.name, node))
    return found


@pytest.mark.parametrize("module", FILES)
def test_everything_public_is_described(module):
    tree = ast.parse(FILES[module].read_text(encoding="utf-8"))
    assert ast.get_docstring(tree), f"{module} has no docstring"
    assert not [name for name, node in public(tree) if not ast.get_docstring(node)]  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("name", robustsynth.__all__)
def test_public_names_are_there(name):
    value = getattr(robustsynth, name)
    assert name in dir(robustsynth)
    assert name == "__version__" or inspect.getdoc(value)


def test_public_names_have_homes():
    assert {*robustsynth._HOME_OF, "__version__"} == set(robustsynth.__all__)
    for name, home in robustsynth._HOME_OF.items():
        assert f"robustsynth.{home}" in FILES
        assert getattr(importlib.import_module(f"robustsynth.{home}"), name) is getattr(robustsynth, name)


def test_types_and_names_come_from_the_same_homes():
    """What a type checker sees must be what is fetched when the program runs."""
    tree = ast.parse((ROOT / "__init__.py").read_text(encoding="utf-8"))
    seen = {
        alias.name: node.module
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("robustsynth.")
        for alias in node.names
    }
    assert seen == {name: f"robustsynth.{home}" for name, home in robustsynth._HOME_OF.items()}


def test_other_names_are_refused():
    with pytest.raises(AttributeError, match="no attribute 'draw'"):
        _ = robustsynth.draw


def test_public_names_do_not_hide_modules():
    """After `import robustsynth.loop`, `robustsynth.loop` is that module; no public name may be called so too."""
    top = {name.split(".")[1] for name in FILES if name.count(".") == 1}
    assert not top & set(robustsynth.__all__)


def circles(graph: dict[str, set[str]]) -> list[str]:
    """Modules that reach themselves, sorted."""

    def reached(module: str) -> set[str]:
        found, left = set(), [module]
        while left:
            for name in graph.get(left.pop(), set()) - found:
                found.add(name)
                left.append(name)
        return found

    return sorted(module for module in graph if module in reached(module))


def test_no_modules_import_each_other_in_a_circle():
    """Imports in functions and for type checking count: a circle of ideas is one wherever it is written."""
    assert circles({name: imports_of(path) - {"robustsynth", "unknown"} for name, path in FILES.items()}) == []


def test_the_test_sees_a_circle():
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}}) == ["a", "b", "c"]


WORDS = (
    *("picture", "pictures", "twin", "twins", "climb", "climbs", "climbing", "synthesizer", "film", "films"),
    *("told", "voices", "voice", "lanes", "softness"),
)
"""Words that this project has others for: image, frozen classifier or standard counterpart, optimise, animation."""

OLD_KEYS = {"robustsynth.cli.tasks": {"pictures"}}
"""Words of files that an earlier version wrote."""


@pytest.mark.parametrize("module", FILES)
def test_one_word_for_one_thing(module):
    text = re.sub(r"([A-Z])", r" \1", FILES[module].read_text(encoding="utf-8")).lower().replace("_", " ")
    found = set(re.findall(r"[a-z]+", text)) & set(WORDS) - OLD_KEYS.get(module, set())
    assert not found, f"{module} says {', '.join(sorted(found))}"


NO_NAMES = (
    *("job", "running", "batches", "voices", "beginning", "keeping", "selecting", "softness", "starts", "targets"),
    *("known_data", "board", "marks", "lanes", "met", "told", "whole", "pictures", "utils"),
)
"""Names of modules that do not say what they are."""


def test_modules_say_what_they_are():
    assert not {module.rpartition(".")[2] for module in FILES} & set(NO_NAMES)
