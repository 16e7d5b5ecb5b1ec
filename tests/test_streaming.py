"""Training images read from shards while a run goes on: each once, in an order that can be entered anywhere."""

from __future__ import annotations

import multiprocessing
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import datasets
import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import torch
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from conftest import train_until
from robustsynth.cli import main
from robustsynth.data.load import open_stream
from robustsynth.data.streaming import Piece, substream
from robustsynth.data.tables import parquet_rows
from robustsynth.errors import UserError
from robustsynth.models.store import load_model
from robustsynth.processes import ALONE, Team, Workers
from robustsynth.training.checkpoints import read_checkpoint
from robustsynth.training.data import Streamed, substreams_of
from robustsynth.training.settings import TrainSettings
from robustsynth.training.trainer import Trainer

SIDE, SHARDS = 8, (20, 31, 17, 28)
COUNT, HELD = sum(SHARDS), 24


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ROBUSTSYNTH_CACHE", str(tmp_path / "cache"))


def image(number: int) -> np.ndarray:
    """An image that tells its number in its first pixel."""
    made = np.random.default_rng(number).integers(60, 190, (SIDE, SIDE, 3), dtype=np.uint8)
    made[..., number % 2] //= 2
    made[0, 0] = number
    return made


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """96 numbered images of two classes in four shards of different lengths."""
    from PIL import Image

    home, first = tmp_path_factory.mktemp("shards") / "toys", 0
    home.mkdir()
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["red", "green"])})
    for index, count in enumerate(SHARDS):
        numbers = range(first, first + count)
        rows = {"image": [Image.fromarray(image(n)) for n in numbers], "label": [n % 2 for n in numbers]}
        path = home / f"train-{index:05}-of-{len(SHARDS):05}.parquet"
        datasets.Dataset.from_dict(rows, features=features).to_parquet(str(path))
        first += count
    return home


def settings(**changed: Any) -> TrainSettings:
    given: dict[str, Any] = {
        "architecture": "small-cnn",
        "width": 2,
        "eps": 0.2,
        "attack_steps": 2,
        "attack_step_size": 0.1,
        "epochs": 2,
        "batch_size": 12,
        "held_out": HELD,
        "learning_rate": 0.05,
        "evaluate_every": 1,
    }
    return TrainSettings(**(given | changed))


def source(shards: Path, workers: Workers = ALONE, *, decoders: int = 0, **changed: Any) -> Streamed:
    return Streamed(open_stream(shards, announce=list), settings(**changed), workers=workers, decoders=decoders)


def numbers_of(batch: tuple[torch.Tensor, torch.Tensor]) -> list[int]:
    images, labels = batch
    numbers = (images[:, 0, 0, 0] * 255).round().int().tolist()
    assert labels.tolist() == [number % 2 for number in numbers]
    for number, shown in zip(numbers, images, strict=True):
        assert torch.equal((shown * 255).round().byte().permute(1, 2, 0), torch.from_numpy(image(number)))
    return numbers


def epoch(shards: Path, number: int = 0, first: int = 0, **options: Any) -> list[list[int]]:
    return [numbers_of(batch) for batch in source(shards, **options).epoch(number, first, None)]


# Which images


def test_a_stream_is_what_its_shards_hold(shards: Path) -> None:
    stream = open_stream(shards, announce=list)
    assert (len(stream), stream.classes, stream.image_size, stream.channels) == (COUNT, ("red", "green"), SIDE, 3)
    assert stream.labels.tolist() == [n % 2 for n in range(COUNT)]
    assert [len(piece) for piece in stream.pieces] == list(SHARDS)
    places = np.array([0, 19, 20, 50, 95])
    some = stream.data(places)
    assert np.array_equal(some.images, np.stack([image(n) for n in places]))
    assert some.labels.tolist() == [0, 1, 0, 0, 1]
    assert stream.images.shape == (COUNT, SIDE, SIDE, 3)


def test_rows_are_read_from_anywhere(shards: Path, tmp_path: Path) -> None:
    table = pyarrow.concat_tables([pyarrow.parquet.read_table(file) for file in sorted(shards.glob("*.parquet"))])
    pyarrow.parquet.write_table(table, tmp_path / "all.parquet", row_group_size=10)
    file, columns = str(tmp_path / "all.parquet"), open_stream(shards, announce=list).columns
    every = list(parquet_rows(file, columns, 0, COUNT))
    assert [row.label for row in every] == [n % 2 for n in range(COUNT)]
    for start, stop in ((0, 1), (9, 11), (10, 20), (33, 95), (95, COUNT), (5, 5)):
        assert list(parquet_rows(file, columns, start, stop)) == every[start:stop]


def test_a_data_set_on_the_hub_is_streamed_from_its_shards(shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = {"train": sorted(map(str, shards.glob("*.parquet"))), "test": ["test.csv"]}
    config = SimpleNamespace(config=SimpleNamespace(data_files=files))
    monkeypatch.setattr("datasets.load_dataset_builder", lambda name: config)
    asked: list[str] = []
    stream = open_stream("owner/toys", announce=asked.append)
    assert asked == ["asking the Hugging Face Hub for owner/toys"]
    assert (stream.name, stream.source, stream.labels.tolist()) == ("toys", "owner/toys", [n % 2 for n in range(COUNT)])
    with pytest.raises(UserError, match=r"owner/toys on the Hugging Face Hub to be kept as parquet files.*--stream"):
        open_stream("owner/toys", "test", announce=list)


def test_an_epoch_shows_each_image_once_but_those_held_out(shards: Path) -> None:
    batches = epoch(shards)
    assert [len(batch) for batch in batches] == [12] * 6
    assert sorted(number for batch in batches for number in batch) == list(range(HELD, COUNT))
    held = source(shards).held_out(0, HELD)
    assert numbers_of(held) == list(range(HELD))


def test_every_epoch_and_seed_has_an_order_of_its_own(shards: Path) -> None:
    first, second, other = epoch(shards), epoch(shards, 1), epoch(shards, seed=1)
    assert first == epoch(shards)
    assert len({str(order) for order in (first, second, other)}) == 3
    mixed = np.array(first[0]) // 12
    assert len(set(mixed.tolist())) >= 4  # A batch comes from many places.


@pytest.mark.parametrize(("size", "accumulate"), [(2, 1), (3, 1), (2, 3)])
def test_processes_see_disjoint_images_that_are_the_batches_of_one(shards: Path, size: int, accumulate: int) -> None:
    alone = epoch(shards, accumulate=accumulate)
    rows = [Team(Workers(rank, size), batch_size=12, accumulate=accumulate).rows for rank in range(size)]
    parts = [epoch(shards, workers=Workers(rank, size), accumulate=accumulate) for rank in range(size)]
    for step, batch in enumerate(alone):
        for mine, part in zip(rows, parts, strict=True):
            assert mine is not None
            assert part[step] == np.array(batch)[mine.numpy()].tolist()
    seen = [number for part in parts for batch in part for number in batch]
    assert sorted(seen) == list(range(HELD, COUNT))


@pytest.mark.parametrize("first", [1, 3, 5, 6])
def test_an_epoch_is_entered_anywhere(shards: Path, first: int) -> None:
    assert epoch(shards, 1, first) == epoch(shards, 1)[first:]


def test_decoding_in_other_processes_changes_nothing(shards: Path) -> None:
    assert epoch(shards, decoders=2, accumulate=2) == epoch(shards, accumulate=2)


@given(
    lengths=st.lists(st.integers(0, 9), min_size=1, max_size=6).filter(sum),
    lanes=st.integers(1, 7),
    epoch_number=st.integers(0, 3),
)
def test_lanes_are_equal_and_share_out_all_but_a_rest(lengths: list[int], lanes: int, epoch_number: int) -> None:
    pieces = [Piece(str(i), 2, 2 + length) for i, length in enumerate(lengths)]
    rows = []
    for lane in range(lanes):
        found = substream(pieces, seed=0, epoch=epoch_number, count=lanes, number=lane)
        mine = [(piece.file, row) for piece in found for row in range(piece.start, piece.stop)]
        assert len(mine) == sum(lengths) // lanes
        rows += mine
    assert len(set(rows)) == len(rows) > sum(lengths) - lanes
    assert set(rows) <= {(piece.file, row) for piece in pieces for row in range(piece.start, piece.stop)}


# Runs


def train(shards: Path, out: Path, *, stop: int | None = None, **options: Any) -> Trainer:
    stream = open_stream(shards, announce=list)
    trainer = Trainer(settings(), stream, out, device="cpu", precision=None if options else "float32", **options)
    train_until(trainer, stop)
    return trainer


def test_a_streamed_run_resumes_in_mid_epoch_to_the_last_bit(shards: Path, tmp_path: Path) -> None:
    train(shards, tmp_path / "whole")
    train(shards, tmp_path / "parts", stop=4)
    trainer = train(shards, tmp_path / "parts", resume=True)
    assert (trainer.state.step, trainer.steps_per_epoch) == (12, 6)
    for part in ("network", "average"):
        whole, parts = (read_checkpoint(tmp_path / name)[part] for name in ("whole", "parts"))
        for name, value in whole.items():
            assert torch.equal(value, parts[name]), name
    for name in ("model.safetensors", "seeds.safetensors"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "parts" / name).read_bytes()
    model = load_model(tmp_path / "parts", device="cpu")
    assert model.card is not None
    assert model.card.data["images"] == COUNT - HELD
    assert model.card.training["held_out"]["images"] == HELD


def test_seeds_are_of_a_bounded_sample_without_the_held_out(shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("robustsynth.training.data.SEED_IMAGES", 14)
    data, left_out = source(shards, image_size=SIDE).for_seeds()
    assert len(left_out) == 0
    assert data.images[:, 0, 0, 0].tolist() == list(range(HELD, HELD + 14))
    assert data.labels.tolist() == [0, 1] * 7
    large = source(shards, image_size=128, crop="resized").for_seeds()[0]
    assert large.images.shape == (14, 32, 32, 3)  # As seeds of images of more than 64 pixels are.


def test_other_shards_are_another_run(shards: Path, tmp_path: Path) -> None:
    train(shards, tmp_path / "run", stop=2)
    stream = open_stream(shards, announce=list)
    files = [str(piece.file) for piece in stream.pieces]
    joined, home = datasets.load_dataset("parquet", data_files=files, split="train"), tmp_path / "other"
    home.mkdir()
    joined.to_parquet(str(home / "train.parquet"))  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(UserError, match="stream"):
        train(home, tmp_path / "run", resume=True)


def test_the_command_line_streams_and_resumes(shards: Path, tmp_path: Path) -> None:
    options = ["--architecture", "small-cnn", "--width", 2, "--epochs", 1, "--batch-size", 12, "--held-out", HELD]
    options += ["--attack-steps", 2, "--precision", "float32", "--device", "cpu", "--decoders", 0, "--stream"]
    arguments = ["train", "--data", shards, "--out", tmp_path / "out", *options]
    result = CliRunner().invoke(main, [str(a) for a in arguments])
    assert result.exit_code == 0, result.output
    assert "training small-cnn on 72 images of toys" in result.output
    assert "to go: 6 steps, 1 epochs" in result.output
    assert not list((tmp_path / "cache").glob("data/*"))  # Nothing is decoded beforehand.
    result = CliRunner().invoke(main, ["train", "--resume", "--out", str(tmp_path / "out")])
    assert result.exit_code == 0, result.output
    assert "going on from step 6 of 6" in result.output


# Refusals


@pytest.mark.parametrize(("part", "lanes"), [(128, 16), (12, 12), (96, 16), (17, 1), (30, 15)])
def test_lanes_divide_a_part(part: int, lanes: int) -> None:
    assert substreams_of(part) == lanes


def test_processes_that_do_not_divide_the_lanes_are_refused(shards: Path) -> None:
    with pytest.raises(UserError, match=r"divides the 12 substreams.*got 5; start 1, 2, 3, 4, 6, 12"):
        source(shards, workers=Workers(0, 5))


def test_what_is_no_shards_is_refused(tmp_path: Path) -> None:
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "1.png").touch()
    with pytest.raises(UserError, match=r"parquet files or a Hub name.*leave out --stream"):
        open_stream(tmp_path, announce=list)
    (tmp_path / "train.parquet").write_bytes(b"nothing of the kind")
    with pytest.raises(UserError, match=r"train\.parquet: expected a parquet file"):
        open_stream(tmp_path, announce=list)


@pytest.mark.parametrize("decoders", [0, 2])
@pytest.mark.parametrize("fault", ["image", "shard"])
def test_what_cannot_be_read_in_mid_run_is_told_in_a_line(
    shards: Path, tmp_path: Path, decoders: int, fault: str
) -> None:
    home = tmp_path / "toys"
    shutil.copytree(shards, home)
    opened = source(home, decoders=decoders)
    last = sorted(home.glob("*.parquet"))[-1]
    if fault == "shard":
        last.unlink()
    else:
        table = pyarrow.parquet.read_table(last)
        images = [{"bytes": row["bytes"][:40], "path": None} for row in table.column("image").to_pylist()]
        column = pyarrow.array(images, type=table.schema.field("image").type)
        pyarrow.parquet.write_table(table.set_column(table.schema.get_field_index("image"), "image", column), last)
    with pytest.raises(UserError) as told:
        list(opened.epoch(0, 0, None))
    message = str(told.value)
    assert "Traceback" not in message
    assert "\n" not in message
    assert last.name in message
    assert "--resume goes on from the last checkpoint" in message


def test_a_decoder_that_is_killed_is_told_in_a_line(shards: Path) -> None:
    batches = source(shards, decoders=2).epoch(0, 0, None)
    next(batches)
    for child in multiprocessing.active_children():
        child.kill()
        child.join()
    with pytest.raises(UserError, match=r"got one that was killed.*--resume.*fewer --decoders"):
        list(batches)


@pytest.mark.slow
def test_two_processes_stream_as_one(shards: Path, tmp_path: Path) -> None:
    options = [
        "--architecture",
        "small-cnn",
        "--width",
        "2",
        "--epochs",
        "2",
        "--batch-size",
        "12",
        "--held-out",
        str(HELD),
    ]
    options += ["--attack-steps", "2", "--precision", "float32", "--device", "cpu", "--decoders", "1", "--stream"]
    given = ["robustsynth", "train", "--data", str(shards), *options, "--out"]
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    for name, launcher in {"one": [], "two": torchrun}.items():
        command = [sys.executable, *launcher, "-m", *given, str(tmp_path / name)]
        subprocess.run(command, check=True, capture_output=True, timeout=300)
    one, two = (read_checkpoint(tmp_path / name)["network"] for name in ("one", "two"))
    for key, value in one.items():
        assert torch.allclose(value.float(), two[key].float(), atol=1e-4), key
