"""The models at hand: bundled, in a zoo, in the Hub's cache; and those among them that are broken."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner
from huggingface_hub import constants

from robustsynth.cli import main
from robustsynth.errors import UserError
from robustsynth.models import store
from robustsynth.models.card import ModelCard, measured
from robustsynth.models.store import list_models, load_model

ROWS = [{"eps": 0.0, "share": 0.9, "images": 100}, {"eps": 0.5, "share": 0.6, "images": 100}]
PGD = {"data": "cats test", "norm": "l2", "attack": "PGD-20 of 2.5*eps/20", "rows": ROWS}
AUTO = {"norm": "l2", "attack": "AutoAttack, standard version of x 1", "rows": [{"eps": 0.5, "share": 0.55}]}


def change(folder: Path, **fields) -> Path:
    """The model with another card."""
    dataclasses.replace(ModelCard.load(folder), **fields).save(folder)
    return folder


@pytest.fixture
def places(tmp_path, tiny_folder, monkeypatch) -> Path:
    """A package with one model, and empty zoos and caches."""
    shutil.copytree(tiny_folder, tmp_path / "weights" / "tiny")
    (tmp_path / "weights" / "aliases.json").write_text('{"little": "tiny"}')
    (tmp_path / "here").mkdir()
    monkeypatch.setattr(store, "BUNDLED", tmp_path / "weights")
    monkeypatch.setattr(store, "ZOO", tmp_path / "checkout" / "zoo")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path


def in_hub(places: Path, model: Path, name: str, *, commit: str = "a" * 40, ref: str | None = "main") -> Path:
    """As the Hub's client keeps a model: blobs, links to them, and names of revisions."""
    repository = places / "hub" / f"models--{name.replace('/', '--')}"
    snapshot = repository / "snapshots" / commit
    (repository / "blobs").mkdir(parents=True, exist_ok=True)
    snapshot.mkdir(parents=True)
    for file in model.iterdir():
        blob = Path(shutil.copy(file, repository / "blobs" / f"{commit[:4]}-{file.name}"))
        (snapshot / file.name).symlink_to(blob)
    if ref is not None:
        (repository / "refs" / ref).parent.mkdir(parents=True, exist_ok=True)
        (repository / "refs" / ref).write_text(commit)
    return snapshot


def listing(*arguments: str) -> str:
    result = CliRunner().invoke(main, ["models", *arguments])
    assert result.exit_code == 0, result.output
    return result.output


def test_models_of_every_place_go_by_names_that_load_them(places, tiny_folder):
    shutil.copytree(tiny_folder, places / "checkout" / "zoo" / "big")
    shutil.copytree(tiny_folder, places / "here" / "zoo" / "mine")
    found = list_models()
    assert [(each.source, each.names) for each in found] == [
        ("bundled", ("tiny", "little")),
        ("checkout", ("big",)),
        ("here", ("zoo/mine",)),
    ]
    for each in found:
        assert each.problem is None
        for name in each.names:
            assert load_model(name, device="cpu").folder.resolve() == each.folder.resolve()


def test_the_checkouts_zoo_is_listed_once_where_one_stands_in_it(places, tiny_folder, monkeypatch):
    shutil.copytree(tiny_folder, places / "checkout" / "zoo" / "big")
    monkeypatch.chdir(places / "checkout")
    assert [each.names for each in list_models()] == [("tiny", "little"), ("big",)]


def test_of_two_with_one_name_the_one_that_does_not_get_it_goes_by_its_path(places, tiny_folder):
    shutil.copytree(tiny_folder, places / "checkout" / "zoo" / "tiny")
    bundled, other = list_models()
    for each in (bundled, other):
        for name in each.names:
            assert load_model(name, device="cpu").folder == each.folder
    assert "tiny" in other.names
    assert bundled.names == (str(places / "weights" / "tiny"),)


def test_models_of_the_hubs_cache(places, tiny_folder):
    in_hub(places, tiny_folder, "someone/cats")
    in_hub(places, tiny_folder, "someone/cats", commit="b" * 40, ref="v1.0")
    in_hub(places, tiny_folder, "some-one/old", commit="c" * 40, ref=None)
    (places / "hub" / "models--gpt2").mkdir()
    (places / "hub" / "datasets--someone--cats").mkdir()
    found = [each for each in list_models() if each.source == "hub"]
    assert [each.names for each in found] == [
        (f"hf://some-one/old@{'c' * 40}",),
        ("hf://someone/cats",),
        ("hf://someone/cats@v1.0",),
    ]
    assert all(each.problem is None and each.parameters > 0 and each.size > 0 for each in found)
    assert "fetched from the Hugging Face Hub before:\n  hf://some-one/old@" in listing()


def test_models_of_other_libraries_in_the_hubs_cache_are_none_of_ours(places, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    (other / "card.json").write_text('{"title": "something else"}')
    in_hub(places, other, "someone/text")
    (other / "card.json").unlink()
    (other / "model.safetensors").write_bytes(b"")
    in_hub(places, other, "someone/more")
    assert "someone" not in listing()


def without(name: str):
    return lambda folder: (folder / name).unlink()


def truncated(folder: Path) -> None:
    """And a card that has no checksum of it."""
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[:-10])
    change(folder, sha256={})


BROKEN = {
    "no card": (without("card.json"), "without card.json"),
    "no weights": (without("model.safetensors"), "expected model.safetensors in"),
    "a pointer for weights": (
        lambda folder: (folder / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\n"),
        "the file is damaged or is not the one that the card describes",
    ),
    "seeds of another": (lambda folder: (folder / "seeds.safetensors").write_bytes(b"x"), "seeds.safetensors with SHA"),
    "half of the weights": (truncated, "but it is damaged"),
    "a card that is no JSON": (lambda folder: (folder / "card.json").write_text("{"), "expected JSON in"),
    "a list for a card": (lambda folder: (folder / "card.json").write_text("[1]"), "expected a JSON object"),
    "half a card": (lambda folder: (folder / "card.json").write_text('{"name": "x"}'), "found only name"),
    "an unknown network": (lambda folder: change(folder, architecture="resnet1"), "got 'resnet1'"),
    "odd accuracies": (lambda folder: change(folder, accuracies={"rows": [{"eps": 0}]}), "rows with an eps"),
    "accuracies of text": (lambda folder: change(folder, accuracies={"rows": "good"}), "rows with an eps"),
    "held-out text": (lambda folder: change(folder, training={"held_out": "good"}), "rows with an eps"),
}  # fmt: skip


@pytest.mark.parametrize("place", ["weights", "checkout/zoo", "here/zoo"])
@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_folder_is_listed_and_stops_nothing(places, tiny_folder, case, place):
    damage, said = BROKEN[case]
    damage(Path(shutil.copytree(tiny_folder, places / place / "broken")))
    by_health = {each.problem is None: each for each in list_models()}
    assert by_health[True].names == ("tiny", "little")
    assert by_health[False].folder.name == "broken"
    assert said in (by_health[False].problem or "")
    shown = listing()
    assert "cannot be used: expected" in shown
    assert "  tiny (= little)\n      resnet18 of width 4" in shown
    objects = {Path(each["folder"]).name: each for each in json.loads(listing("--json"))}
    assert said in objects["broken"]["problem"]
    assert objects["tiny"]["problem"] is None


def test_a_broken_download_is_listed(places, tiny_folder):
    (in_hub(places, tiny_folder, "someone/cats") / "card.json").resolve().unlink()
    (each,) = [each for each in list_models() if each.source == "hub"]
    assert each.names == ("hf://someone/cats",)
    assert "without card.json" in (each.problem or "")


def test_folders_of_other_things_are_no_models(places):
    for name in ("notes", ".hidden"):
        (places / "here" / "zoo" / name).mkdir(parents=True)
    (places / "here" / "zoo" / "notes" / "read.me").write_text("x")
    (places / "here" / "zoo" / ".hidden" / "card.json").write_text("{")
    assert [each.source for each in list_models()] == ["bundled"]


def test_what_is_said_of_a_model(places):
    folder = change(places / "weights" / "tiny", accuracies={**PGD, "auto": AUTO}, data={"name": "cats"}, licence="MIT")
    shown = listing()
    for said in (
        "bundled with the package:\n",
        "resnet18 of width 4, cats, 3 classes at 16×16, robust in l2 to eps 0.5",
        "clean 90.0 % (100 images); PGD-20 60.0 % at l2 0.5 (100 images); AutoAttack 55.0 % at l2 0.5\n",
        "with seeds, licence MIT",
    ):
        assert said in shown
    several = {**PGD, "rows": [*ROWS, {"eps": 0.25, "share": 0.7}]}
    change(folder, accuracies=several)
    assert "PGD-20 70.0 % at l2 0.25, 60.0 % at l2 0.5 (100 images); AutoAttack not" in listing()
    change(folder, accuracies={**PGD, "auto": AUTO})
    (each,) = json.loads(listing("--json"))
    model = load_model("tiny", device="cpu")
    assert each["parameters"] == sum(p.numel() for p in model.parameters())
    assert each["bytes"] == sum(p.stat().st_size for p in folder.glob("*.safetensors"))
    assert each["classes"] == list(model.classes)
    assert [(a["attack"], a["share"]) for a in each["accuracies"]] == [("clean", 0.9), ("pgd", 0.6), ("auto", 0.55)]
    (folder / "seeds.safetensors").unlink()
    change(folder, accuracies={})
    assert "clean not measured; PGD not measured; AutoAttack not measured\n" in listing()
    assert "without class seeds" in listing()


def test_a_card_cannot_command_the_terminal(places):
    change(places / "weights" / "tiny", licence="\x1b[2Jfree\nas in beer", data={"name": "c\x07ats"})
    shown = listing()
    assert "\x1b" not in shown
    assert "\x07" not in shown
    assert "licence  [2Jfree as in beer\n" in shown


@pytest.mark.parametrize(
    ("accuracies", "training", "expected"),
    [
        ({}, {}, []),
        (PGD, {}, [("clean", "clean", 0.0, 0.9), ("pgd", "PGD-20", 0.5, 0.6)]),
        (PGD | {"attack": "by hand"}, {}, [("clean", "clean", 0.0, 0.9), ("pgd", "PGD", 0.5, 0.6)]),
        (
            PGD | {"rows": [*ROWS, {"eps": 0.25, "share": 0.7}]},
            {},
            [("clean", "clean", 0.0, 0.9), ("pgd", "PGD-20", 0.25, 0.7), ("pgd", "PGD-20", 0.5, 0.6)],
        ),
        (
            {"auto": AUTO | {"attack": "AutoAttack of FAB-T alone, standard version of x 1", "rows": ROWS}},
            {},
            [("clean", "clean", 0.0, 0.9), ("auto", "AutoAttack of FAB-T alone", 0.5, 0.6)],
        ),
        (
            {**PGD, "apgd": PGD | {"attack": "APGD-100 on CE", "rows": [{"eps": 0.0, "share": 0.8, "images": 5000}]}},
            {},
            [("clean", "clean", 0.0, 0.8), ("pgd", "PGD-20", 0.5, 0.6)],
        ),
        (
            {},
            {"held_out": {"images": 10, "clean": 0.5, "pgd10": 0.25, "eps": 0.5}},
            [("clean", "clean", 0.0, 0.5), ("pgd", "PGD-10", 0.5, 0.25)],
        ),
        ({}, {"held_out": {"images": 10, "clean": 0.5, "pgd10": 0.5, "eps": 0.0}}, [("clean", "clean", 0.0, 0.5)]),
        (PGD, {"held_out": {"images": 10, "clean": 0.1}}, [("clean", "clean", 0.0, 0.9), ("pgd", "PGD-20", 0.5, 0.6)]),
    ],
)
def test_what_a_card_says_was_measured(tiny_folder, accuracies, training, expected):
    card = dataclasses.replace(ModelCard.load(tiny_folder), accuracies=accuracies, training=training)
    assert [(row.attack, row.title, row.eps, row.share) for row in measured(card)] == expected


def test_odd_accuracies_name_the_model(tiny_folder):
    card = dataclasses.replace(ModelCard.load(tiny_folder), accuracies={"auto": []})
    with pytest.raises(UserError, match=r"card of 'tiny'.*evaluate --record"):
        measured(card)


def test_ones_own_runs_are_listed_as_such_by_the_path_that_loads_them(places, tiny_folder):
    for name in ("mine", "tiny", "runs/first", "zoo/third", "runs/deep/er", ".hidden"):
        shutil.copytree(tiny_folder, places / "here" / name)
    (places / "here" / "runs" / "first" / "seeds.safetensors").write_bytes(b"x")
    (places / "here" / "other").mkdir()
    (places / "here" / "other" / "card.json").write_text('{"title": "of something else"}')
    found = {each.names: each for each in list_models() if each.source == "own"}
    assert list(found) == [("mine",), ("runs/first",), ("./tiny",)]
    for name in ("mine", "./tiny"):
        assert load_model(name, device="cpu").folder == found[(name,)].folder
    assert "seeds.safetensors with SHA" in (found[("runs/first",)].problem or "")
    assert "your own runs and models in the current folder:\n  mine\n" in listing()


def test_one_model_is_shown_with_its_classes(places, tiny_folder):
    folder = change(places / "weights" / "tiny", accuracies=PGD, aliases={"cat": ["kitten", "pu\x1bss"]})
    for name in ("tiny", "little", str(folder), str(folder / "model.safetensors")):
        shown = listing(name)
        assert "resnet18 of width 4" in shown
        assert "classes (3):\n    0  cat  (also kitten, pu ss)\n    1  ship\n    2  t-shirt\n" in shown
        assert "  PGD-20 at l2 0.5: 60.0 % of 100 images, cats test\n" in shown
        assert "  generate: eps 2.0, step_size 0.25, steps 4\n" in shown
        assert str(folder) in shown
    one = json.loads(listing("tiny", "--json"))
    assert one["card"]["aliases"] == {"cat": ["kitten", "pu\x1bss"]}
    assert one["class_seeds"]


def test_a_model_of_the_hubs_cache_is_shown(places, tiny_folder, monkeypatch):
    snapshot = in_hub(places, tiny_folder, "someone/cats")
    monkeypatch.setattr(store, "fetch_model", lambda name: snapshot)
    assert listing("hf://someone/cats").startswith("  hf://someone/cats\n")


@pytest.mark.parametrize("name", ["tny", "weights/none", "broken"])
def test_a_model_that_cannot_be_shown_is_a_mistake_in_one_line(places, tiny_folder, name):
    without("model.safetensors")(Path(shutil.copytree(tiny_folder, places / "here" / "broken")))
    result = CliRunner().invoke(main, ["models", name])
    assert result.exit_code == 2
    assert "expected" in result.output or "did you mean 'tiny'" in result.output


@pytest.mark.parametrize("aliases", [["cat"], {"cat": "kitten"}, {"cat": [1]}])
def test_aliases_of_another_form_are_refused(places, aliases):
    path = places / "weights" / "tiny" / "card.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"aliases": aliases}))
    with pytest.raises(UserError, match="aliases"):
        ModelCard.load(path.parent)
