"""Models on the Hugging Face Hub: fetched, kept, refused, and published, all without a network."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import huggingface_hub
import pytest
import torch
from click.testing import CliRunner
from huggingface_hub.errors import (
    GatedRepoError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from hypothesis import given
from hypothesis import strategies as st

from robustsynth.cli import main
from robustsynth.errors import UserError
from robustsynth.models.card import ModelCard
from robustsynth.models.hub import MODEL_FILES, hub_name, model_page
from robustsynth.models.store import load_model


class Hub:
    """In the place of the Hub's own client: a folder for each repository, and a network that may be gone."""

    def __init__(self):
        self.repositories, self.cached, self.asked, self.failure = {}, {}, [], None
        self.made, self.sent = [], {}

    def snapshot_download(self, repo_id, revision=None, allow_patterns=None, local_files_only=False):
        self.asked.append((repo_id, revision, tuple(allow_patterns), local_files_only))
        if local_files_only:
            if repo_id not in self.cached:
                raise LocalEntryNotFoundError("not in the cache")
            return str(self.cached[repo_id])
        if self.failure is not None:
            raise self.failure
        self.cached[repo_id] = self.repositories[repo_id]
        return str(self.repositories[repo_id])

    def create_repo(self, repo_id, exist_ok, private):
        if self.failure is not None:
            raise self.failure
        self.made.append((repo_id, exist_ok, private))
        return f"https://huggingface.co/{repo_id}"

    def upload_folder(self, repo_id, folder_path, commit_message, allow_patterns):
        self.sent[repo_id] = {p.name: p.read_bytes() for p in Path(folder_path).iterdir()}
        assert set(self.sent[repo_id]) <= set(allow_patterns)


@pytest.fixture
def hub(monkeypatch, tiny_folder) -> Hub:
    hub = Hub()
    hub.repositories["someone/tiny"] = tiny_folder
    monkeypatch.setattr(huggingface_hub, "snapshot_download", hub.snapshot_download)
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: hub)
    return hub


def failing(kind: type[Exception]) -> Exception:
    """The Hub's errors want a response, which is nobody's concern here."""
    error = kind.__new__(kind)
    error.args = ("404 Client Error",)
    return error


def test_a_model_of_the_hub_is_one_like_any_other(hub, tiny):
    model = load_model("hf://someone/tiny", device="cpu")
    images = torch.rand(2, 3, 16, 16)
    assert torch.equal(model(images), tiny(images))
    assert hub.asked == [("someone/tiny", None, MODEL_FILES, False)]


def test_nothing_but_weights_and_cards_is_fetched(hub):
    load_model("hf://someone/tiny@v2", device="cpu")
    (_, revision, patterns, _) = hub.asked[0]
    assert revision == "v2"
    assert {name.rsplit(".", 1)[1] for name in patterns} == {"json", "safetensors"}
    assert not any("*" in name for name in patterns)


def test_without_a_network_the_copy_serves(hub):
    load_model("hf://someone/tiny", device="cpu")
    hub.failure = ConnectionError("no route to host")
    assert load_model("hf://someone/tiny", device="cpu").name == "tiny"


@pytest.mark.parametrize(
    ("failure", "said"),
    [
        (ConnectionError("no route to host"), "cannot be reached and there is no copy of it here.*no route to host"),
        (failing(RepositoryNotFoundError), "there is no such model, or it is private; check the name"),
        (failing(RevisionNotFoundError), "there is no such revision"),
        (failing(GatedRepoError), "terms to be accepted"),
        (OSError("disk quota exceeded"), "disk quota exceeded"),
    ],
)
def test_a_model_that_the_hub_does_not_give(hub, failure, said):
    hub.failure = failure
    with pytest.raises(UserError, match=f"expected a model on the Hugging Face Hub as hf://someone/else.*{said}"):
        load_model("hf://someone/else")


def test_a_repository_of_something_else(hub, tmp_path):
    hub.repositories["someone/text"] = tmp_path
    with pytest.raises(
        UserError,
        match=r"as hf://someone/text, found neither.*robustsynth import",
    ):
        load_model("hf://someone/text")


def test_damaged_weights_of_the_hub_are_refused(hub, tiny_copy):
    weights = tiny_copy / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-8])
    hub.repositories["someone/tiny"] = tiny_copy
    with pytest.raises(UserError, match="SHA-256"):
        load_model("hf://someone/tiny")


@pytest.mark.parametrize(
    "name", ["hf://", "hf://tiny", "hf://a/b/c", "hf://a/b@", "hf://../b", "hf://a/.b", "hf://a/b c"]
)
def test_names_that_the_hub_cannot_have(hub, name):
    with pytest.raises(UserError, match="expected a Hub name such as hf://owner/name"):
        load_model(name)
    assert not hub.asked


word = st.from_regex(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,8}[A-Za-z0-9])?", fullmatch=True)


@given(owner=word, name=word, revision=st.none() | word, prefix=st.sampled_from(["", "hf://"]))
def test_names_are_taken_apart_as_they_were_put_together(owner, name, revision, prefix):
    text = f"{prefix}{owner}/{name}" + (f"@{revision}" if revision else "")
    assert hub_name(text) == (f"{owner}/{name}", revision)


def run(*arguments: object):
    return CliRunner().invoke(main, [str(a) for a in arguments])


def test_publishing_sends_weights_seeds_card_page_and_samples(hub, tiny_copy):
    (tiny_copy / "notes.txt").write_text("private", encoding="utf-8")
    done = run("publish", tiny_copy, "--to", "someone/drawn", "--device", "cpu")
    assert done.exit_code == 0, done.output
    assert "https://huggingface.co/someone/drawn" in done.output
    assert hub.made == [("someone/drawn", True, False)]
    sent = hub.sent["someone/drawn"]
    assert set(sent) == {"README.md", "card.json", "model.safetensors", "samples.png", "seeds.safetensors"}
    assert sent["model.safetensors"] == (tiny_copy / "model.safetensors").read_bytes()
    assert sent["samples.png"].startswith(b"\x89PNG")


def test_what_was_published_loads_as_it_was(hub, tiny, tiny_folder, tmp_path):
    folder = tmp_path / "page"
    done = run("publish", tiny_folder, "--to", "someone/drawn", "--dry-run", folder, "--no-samples", "--device", "cpu")
    assert done.exit_code == 0, done.output
    assert not hub.made
    assert not (folder / "samples.png").exists()
    hub.repositories["someone/drawn"] = folder
    images = torch.rand(2, 3, 16, 16)
    assert torch.equal(load_model("hf://someone/drawn", device="cpu")(images), tiny(images))


def test_a_dry_run_does_not_write_over_anything(hub, tiny_folder, tmp_path):
    (tmp_path / "kept.txt").write_text("kept", encoding="utf-8")
    done = run("publish", tiny_folder, "--to", "someone/drawn", "--dry-run", tmp_path)
    assert done.exit_code == 2
    assert "expected an empty folder" in done.output


@pytest.mark.parametrize(
    ("failure", "said"), [(ConnectionError("no route"), "no route"), (failing(RepositoryNotFoundError), "404")]
)
def test_publishing_that_fails_says_what_to_do(hub, tiny_folder, failure, said):
    hub.failure = failure
    done = run("publish", tiny_folder, "--to", "someone/drawn", "--no-samples", "--device", "cpu")
    assert done.exit_code == 2
    assert said in done.output
    assert "hf auth login" in done.output


@pytest.mark.parametrize("to", ["drawn", "someone/drawn@v1", "hf://"])
def test_places_that_cannot_be_published_to(hub, tiny_folder, to):
    done = run("publish", tiny_folder, "--to", to, "--no-samples", "--device", "cpu")
    assert done.exit_code == 2
    assert "expected" in done.output
    assert not hub.made


def test_a_damaged_model_is_not_published(hub, tiny_copy, tmp_path):
    shutil.copyfile(tiny_copy / "seeds.safetensors", tiny_copy / "model.safetensors")
    done = run("publish", tiny_copy, "--to", "someone/drawn", "--no-samples", "--device", "cpu")
    assert done.exit_code == 2
    assert not hub.sent


def page_of(folder, **changes) -> str:
    return model_page(dataclasses.replace(ModelCard.load(folder), **changes), repository="someone/tiny")


@pytest.mark.parametrize(
    ("licence", "header"),
    [
        ("MIT", "license: mit\n"),
        ("Apache-2.0", "license: apache-2.0\n"),
        ("not stated", "license: unknown\n"),
        ("ask us: first", "license: other\nlicense_name: 'ask us: first'\n"),
    ],
)
def test_the_page_has_a_header_that_the_hub_reads(tiny_folder, licence, header):
    page = page_of(tiny_folder, licence=licence)
    metadata = huggingface_hub.ModelCard(page).data
    assert header in page
    assert metadata.library_name == "robustsynth"
    assert "l2" in metadata.tags


def test_the_page_says_what_the_card_says(tiny_folder):
    accuracies = {
        "norm": "l2",
        "attack": "PGD-20",
        "rows": [{"eps": 0.0, "share": 0.871, "images": 1000}, {"eps": 0.5, "share": 0.5, "images": 1000}],
    }
    page = page_of(tiny_folder, accuracies=accuracies, training={"imported": {"file": "a_b.pt"}})
    for part in (
        "| none | 87.1 % | 1000 |",
        "| l2 0.5 | 50.0 % | 1000 |",
        "attack: PGD-20",
        "cat, ship, t-shirt",
        "trained to withstand l2 perturbations of 0.5",
        "--model hf://someone/tiny",
        "| imported.file | a\\_b.pt |",
    ):
        assert part in page


def test_a_foreign_card_brings_no_markup(tiny_folder):
    page = page_of(tiny_folder, description="<script>x</script>\n---\n[a](javascript:b)", classes=("a|b", "`c`", "d"))
    assert "<script>" not in page
    assert "[a](" not in page
    assert page.count("\n---\n") == 1
    assert "a\\|b, \\`c\\`, d" in page


def test_not_measured_and_not_stated_are_said(tiny_folder):
    page = page_of(tiny_folder, threat_model={}, accuracies={})
    assert "Not measured." in page
    assert "is not stated" in page
