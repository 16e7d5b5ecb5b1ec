"""Parquet files and the Hub: columns, splits, damage, names, and the real CIFAR-10."""

from __future__ import annotations

import glob
import os
from pathlib import Path

import numpy as np
import pytest

from conftest import pixels, png, quiet
from robustsynth.data import DATASETS, load_data
from robustsynth.errors import UnknownNameError, UserError

ROOT = Path(__file__).resolve().parents[1]
REAL = Path(os.environ.get("ROBUSTSYNTH_DATA") or ROOT.parent / "shared" / "data")


@pytest.fixture(autouse=True)
def private_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("ROBUSTSYNTH_CACHE", str(tmp_path / "cache"))


def write_parquet(file: Path, cells, labels, *, names=("cat", "dog"), image="image", label="label") -> None:
    import datasets

    kind = datasets.ClassLabel(names=list(names)) if names else datasets.Value("int64")
    features = datasets.Features({"id": datasets.Value("string"), image: datasets.Image(), label: kind})
    file.parent.mkdir(parents=True, exist_ok=True)
    columns = {
        "id": [str(index) for index in range(len(labels))],
        image: [cell if cell is None else {"bytes": cell, "path": None} for cell in cells],
        label: list(labels),
    }
    datasets.Dataset.from_dict(columns, features=features).to_parquet(str(file))


@pytest.fixture(autouse=True, scope="module")
def no_progress_bars():
    import datasets

    datasets.disable_progress_bars()
    yield
    datasets.enable_progress_bars()


def test_parquet_columns_are_found_by_type(tmp_path):
    folder = tmp_path / "odd [1] *"  # what a file pattern would stumble over
    write_parquet(folder / "train-00000-of-00002.parquet", [png(pixels(0))], [1], image="img", label="kind")
    write_parquet(folder / "train-00001-of-00002.parquet", [png(pixels(1))], [0], image="img", label="kind")
    write_parquet(folder / "validation-00000-of-00001.parquet", [png(pixels(2))], [0], image="img", label="kind")
    data = quiet(folder)
    assert data.classes == ("cat", "dog")
    assert data.labels.tolist() == [1, 0]
    assert np.array_equal(data.images, np.stack([pixels(0), pixels(1)]))
    assert np.array_equal(quiet(folder, "test").images[0], pixels(2))
    assert len(quiet(folder, "all")) == 3


def test_local_files_are_read_without_the_network(tmp_path, monkeypatch):
    write_parquet(tmp_path / "train.parquet", [png(pixels(0)), png(pixels(1))], [0, 1])
    asked = []

    def connect(*where, **settings):
        asked.append(where)
        raise OSError("no network in this test")

    for name in ("getaddrinfo", "create_connection"):
        monkeypatch.setattr(f"socket.{name}", connect)
    assert len(quiet(tmp_path / "train.parquet")) == 2
    assert asked == []


def test_bare_integer_labels_are_named_by_their_number_over_all_splits(tmp_path):
    write_parquet(tmp_path / "d" / "train-00000-of-00001.parquet", [png(pixels(0))] * 3, [0, 2, 1], names=None)
    write_parquet(tmp_path / "d" / "test-00000-of-00001.parquet", [png(pixels(0))] * 2, [1, 0], names=None)
    for split in ("train", "test"):
        assert quiet(tmp_path / "d", split).classes == ("0", "1", "2")


def test_a_single_parquet_file(tmp_path):
    write_parquet(tmp_path / "pets.parquet", [png(pixels(0)), png(pixels(1))], [0, 1])
    data = quiet(str(tmp_path / "pets.parquet"))
    assert data.source == "pets.parquet"
    assert len(data) == 2
    with pytest.raises(UserError, match="no split 'test'; it has: 'train'"):
        quiet(tmp_path / "pets.parquet", "test")
    # One that says that it is a part for testing is not trained on by mistake.
    (tmp_path / "pets.parquet").rename(tmp_path / "test-00000-of-00003.parquet")
    assert len(quiet(tmp_path / "test-00000-of-00003.parquet", "test")) == 2
    with pytest.raises(UserError, match="no split 'train'"):
        quiet(tmp_path / "test-00000-of-00003.parquet")


def test_a_parquet_file_without_feature_types_still_shows_its_images(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    cells = [{"bytes": png(pixels(n)), "path": None} for n in range(2)]
    kind = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    pq.write_table(pa.table({"p": pa.array(cells, kind), "y": [0, 1]}), tmp_path / "plain.parquet")
    assert np.array_equal(quiet(tmp_path / "plain.parquet").images[1], pixels(1))


@pytest.mark.parametrize(
    ("cells", "labels", "says"),
    [
        ([png(pixels(0)), None], [0, 1], "row 1: .*the cell is empty"),
        ([png(pixels(0)), b"rubbish"], [0, 1], "row 1: .*no format"),
        ([png(pixels(0)), png(pixels(1))[:-40]], [0, 1], "row 1: expected an image"),
        ([png(pixels(0))] * 2, [0, None], "row 1: expected a label from 0 to 1, got None"),
        ([png(pixels(0))] * 2, [0, -1], "row 1: expected a label from 0 to 1, got -1"),
        ([], [], "empty split"),
    ],
)
def test_a_bad_row_is_named_by_file_and_index(tmp_path, cells, labels, says):
    write_parquet(tmp_path / "p" / "train-00000-of-00001.parquet", cells, labels)
    with pytest.raises(UserError, match=says) as caught:
        quiet(tmp_path / "p")
    if cells:
        assert "train-00000-of-00001.parquet, row 1" in str(caught.value)


def test_a_file_that_is_no_parquet_is_named(tmp_path):
    (tmp_path / "train.parquet").write_bytes(b"PAR1 rubbish")
    with pytest.raises(UserError, match=r"train\.parquet: expected a parquet file.*Fetch it again"):
        quiet(tmp_path / "train.parquet")


def test_damage_inside_a_parquet_file_is_reported(tmp_path):
    file = tmp_path / "train.parquet"
    write_parquet(file, [png(pixels(n, 20)) for n in range(50)], [n % 2 for n in range(50)])
    content = bytearray(file.read_bytes())
    content[100:40000] = bytes(39900)
    file.write_bytes(content)
    with pytest.raises(UserError, match=r"train\.parquet.*Fetch it again"):
        quiet(file)


def test_a_missing_shard_is_noticed(tmp_path):
    write_parquet(tmp_path / "p" / "train-00001-of-00002.parquet", [png(pixels(0))] * 2, [0, 1])
    with pytest.raises(UserError, match=r"expected 2 files for split 'train'.*got 1"):
        quiet(tmp_path / "p")


def test_shards_with_different_classes_are_refused(tmp_path):
    write_parquet(tmp_path / "p" / "train-00000-of-00002.parquet", [png(pixels(0))], [0])
    write_parquet(tmp_path / "p" / "train-00001-of-00002.parquet", [png(pixels(0))], [0], names=("dog", "cat"))
    with pytest.raises(UserError, match=r"00001-of-00002.*expected the columns and classes"):
        quiet(tmp_path / "p")


def test_missing_columns_are_listed(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"text": ["a"], "label": [0]}), tmp_path / "train.parquet")
    with pytest.raises(UserError, match=r"image \(type Image\), got these columns: text"):
        quiet(tmp_path / "train.parquet")


def test_another_kind_of_file_is_refused(tmp_path):
    (tmp_path / "pets.zip").write_bytes(b"")
    with pytest.raises(UserError, match=r"pets\.zip: expected a parquet file or a folder"):
        quiet(tmp_path / "pets.zip")


@pytest.mark.parametrize("name", ["cifar11", "/no/such/folder", "./owner/name", Path("owner/name")])
def test_an_unknown_name_lists_the_known_ones(name, monkeypatch):
    monkeypatch.setattr("datasets.load_dataset", lambda *a, **k: pytest.fail("went to the Hub"))
    with pytest.raises(UnknownNameError, match="cifar10") as caught:
        quiet(name)
    assert all(known in str(caught.value) for known in DATASETS)


def hub_tables(**splits):
    import datasets

    features = datasets.Features({"img": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog"])})
    cells = [{"bytes": png(pixels(n)), "path": None} for n in range(2)]
    return datasets.DatasetDict(
        {
            name: datasets.Dataset.from_dict({"img": cells, "label": labels}, features=features)
            for name, labels in splits.items()
        }
    )


def test_the_hub_is_announced_before_it_is_asked_and_asked_once(monkeypatch):
    events = []

    def load_dataset(hub_id, **options):
        events.append(hub_id)
        return hub_tables(train=[0, 1], validation=[1, 0])

    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    for _ in range(2):
        data = load_data("someone/pets", announce=events.append)
    assert events == ["downloading someone/pets from the Hugging Face Hub", "someone/pets"]
    assert (data.name, data.source, data.classes) == ("pets", "someone/pets", ("cat", "dog"))
    assert np.array_equal(data.images[1], pixels(1))
    assert quiet("someone/pets", "test").labels.tolist() == [1, 0]
    with pytest.raises(UserError, match=r"someone/pets on the Hugging Face Hub has no split 'extra'.*'validation'"):
        quiet("someone/pets", "extra")


@pytest.mark.parametrize("name", ["imagenette", "frgfm/imagenette"])
def test_a_known_name_is_asked_for_with_its_options(monkeypatch, name):
    asked = []

    def load_dataset(hub_id, **options):
        asked.append((hub_id, options["revision"]))
        return hub_tables(train=[0, 1], validation=[1, 0])

    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    data = quiet(name, "test")
    assert asked == [("frgfm/imagenette", "refs/convert/parquet")]
    assert (data.name, data.images.shape[1:]) == ("imagenette", (224, 224, 3))
    assert data.labels.tolist() == [1, 0]


@pytest.mark.parametrize("error", [ConnectionError("no\nroute"), FileNotFoundError("404"), RuntimeError("script")])
def test_a_failure_of_the_hub_says_what_was_tried_and_the_remedy(monkeypatch, error):
    def load_dataset(hub_id, **options):
        raise error

    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    with pytest.raises(UserError, match="'uoft-cs/cifar10' from the Hugging Face Hub") as caught:
        quiet("cifar10")
    assert type(error).__name__ in str(caught.value)
    assert "folder of parquet files" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_real_cifar10_test_split():
    if not glob.glob(str(REAL / "cifar10" / "test-*.parquet")):
        pytest.skip("needs CIFAR-10's parquet files in the folder that ROBUSTSYNTH_DATA names")
    data = quiet(REAL / "cifar10", "test")
    assert data.images.shape == (10000, 32, 32, 3)
    assert np.bincount(data.labels).tolist() == [1000] * 10
    assert (data.name, data.classes) == ("cifar10", DATASETS["cifar10"].classes)
    # The statistics of the table are those of the training split; the test split's are close.
    assert np.allclose(data.images.mean((0, 1, 2)) / 255, data.mean, atol=0.005)
    assert np.allclose(data.images.std((0, 1, 2)) / 255, data.std, atol=0.005)
