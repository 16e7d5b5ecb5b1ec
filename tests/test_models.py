"""Networks by name, anybody's networks, and model folders in every state of damage."""

from __future__ import annotations

import dataclasses
import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from robustsynth.errors import UnknownNameError, UserError
from robustsynth.files import sha256
from robustsynth.models import store
from robustsynth.models.card import SMALL_IMAGE, ModelCard
from robustsynth.models.classifier import Classifier
from robustsynth.models.networks import ARCHITECTURES, build_network, standard_width
from robustsynth.models.store import BUNDLED, load_model, model_names, save_model

# ---- torchvision's networks, as published -------------------------------------------------------------------------

PUBLISHED = {
    # name: (parameters with 1000 classes, entries of the state dict, blocks a stage, convolutions a block)
    "resnet18": (11_689_512, 122, (2, 2, 2, 2), 2),
    "resnet34": (21_797_672, 218, (3, 4, 6, 3), 2),
    "resnet50": (25_557_032, 320, (3, 4, 6, 3), 3),
}


def meta_network(architecture: str, **given) -> nn.Module:
    """Shapes without numbers: nothing is allocated or drawn."""
    with torch.device("meta"):
        return build_network(architecture, **given)


def torchvision_shapes(blocks: tuple[int, ...], convolutions: int) -> dict[str, tuple[int, ...]]:
    """Names and shapes of torchvision's ResNets' weights, written out from its published files."""

    def norm(name: str, width: int) -> dict[str, tuple[int, ...]]:
        shapes: dict[str, tuple[int, ...]] = {
            f"{name}.{part}": (width,) for part in ("weight", "bias", "running_mean", "running_var")
        }
        return shapes | {f"{name}.num_batches_tracked": ()}

    expansion = 4 if convolutions == 3 else 1
    shapes: dict[str, tuple[int, ...]] = {"conv1.weight": (64, 3, 7, 7)} | norm("bn1", 64)
    inputs = 64
    for stage, count in enumerate(blocks, start=1):
        width = 32 * 2**stage
        for block in range(count):
            name = f"layer{stage}.{block}"
            if convolutions == 2:
                kernels = [(width, inputs, 3, 3), (width, width, 3, 3)]
            else:
                kernels = [(width, inputs, 1, 1), (width, width, 3, 3), (4 * width, width, 1, 1)]
            for k, kernel in enumerate(kernels, start=1):
                shapes |= {f"{name}.conv{k}.weight": kernel} | norm(f"{name}.bn{k}", kernel[0])
            if block == 0 and (stage > 1 or convolutions == 3):
                shapes |= {f"{name}.downsample.0.weight": (width * expansion, inputs, 1, 1)}
                shapes |= norm(f"{name}.downsample.1", width * expansion)
            inputs = width * expansion
    return shapes | {"fc.weight": (1000, inputs), "fc.bias": (1000,)}


@pytest.mark.parametrize("name", PUBLISHED)
def test_residual_networks_are_torchvisions(name):
    parameters, entries, blocks, convolutions = PUBLISHED[name]
    network = meta_network(name, classes=1000, image_size=224)
    state = network.state_dict()
    assert sum(p.numel() for p in network.parameters()) == parameters
    assert len(state) == entries
    assert {k: tuple(v.shape) for k, v in state.items()} == torchvision_shapes(blocks, convolutions)
    assert list(state) == list(torchvision_shapes(blocks, convolutions)), "in torchvision's order"
    assert ("layer1.0.downsample.0.weight" in state) is (name == "resnet50")


@pytest.mark.parametrize("name", PUBLISHED)
def test_strides_are_torchvisions(name):
    modules = dict(meta_network(name, classes=10, image_size=224).named_modules())
    stem, pool = modules["conv1"], modules["maxpool"]
    assert (stem.stride, stem.padding, pool.kernel_size, pool.stride, pool.padding) == ((2, 2), (3, 3), 3, 2, 1)
    for stage in (1, 2, 3, 4):
        wanted = 2 if stage > 1 else 1
        strided = "conv2" if name == "resnet50" else "conv1"
        assert modules[f"layer{stage}.0.{strided}"].stride == (wanted, wanted)
        assert modules[f"layer{stage}.1.{strided}"].stride == (1, 1)
        if f"layer{stage}.0.downsample.0" in modules:
            assert modules[f"layer{stage}.0.downsample.0"].stride == (wanted, wanted)


@pytest.mark.parametrize("name", PUBLISHED)
@pytest.mark.parametrize(
    ("size", "kernel", "side"), [(32, 3, 4), (SMALL_IMAGE, 3, 8), (SMALL_IMAGE + 1, 7, 3), (224, 7, 7)]
)
def test_stems_fit_the_image(name, size, kernel, side):
    network = meta_network(name, classes=10, width=8, image_size=size)
    assert network.conv1.weight.shape == (8, 3, kernel, kernel)
    images = torch.zeros(2, 3, size, size, device="meta")
    assert network(images).shape == (2, 10)
    x = network.maxpool(network.bn1(network.conv1(images)))
    for stage in (network.layer1, network.layer2, network.layer3, network.layer4):
        x = stage(x)
    assert x.shape[-1] == side


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("width", [None, 4, 12])
@pytest.mark.parametrize("channels", [1, 3])
def test_every_architecture_gives_logits(name, width, channels):
    network = meta_network(name, classes=7, width=width, channels=channels, image_size=28)
    assert network(torch.zeros(3, channels, 28, 28, device="meta")).shape == (3, 7)
    first = next(p for p in network.parameters())
    assert first.shape[:2] == (standard_width(name) if width is None else width, channels)


def test_unknown_architectures_list_the_closest_first():
    with pytest.raises(UnknownNameError, match="unknown architecture 'resnet19': did you mean 'resnet1"):
        build_network("resnet19", classes=10)


@pytest.mark.parametrize("wrong", [{"classes": 1}, {"width": 0}, {"channels": 0}, {"image_size": -1}])
def test_impossible_networks(wrong):
    with pytest.raises(UserError, match="got"):
        build_network("resnet18", **({"classes": 10} | wrong))


# ---- anybody's network --------------------------------------------------------------------------------------------


class Odd(nn.Module):
    """Its representation is not where one would look: two heads, of which the first declared runs last."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(6, 4)
        self.body = nn.Linear(3, 6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.relu(self.body(x.mean((2, 3)))))


def test_wrap_normalises_and_gives_logits():
    torch.manual_seed(0)
    net, x = Odd(), torch.rand(5, 3, 9, 7)
    mean, std = [0.1, 0.2, 0.3], [0.5, 0.6, 0.7]
    model = Classifier.wrap(net, classes=4, mean=mean, std=std)
    normalised = (x - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    torch.testing.assert_close(model(x), net(normalised))
    torch.testing.assert_close(model.logits(x), net(normalised))
    torch.testing.assert_close(model.features(x), torch.relu(net.body(normalised.mean((2, 3)))))
    assert model.classes == ("0", "1", "2", "3")
    assert (model.image_size, model.card, model.folder, model.channels, model.name) == (None, None, None, 3, "Odd")
    assert not model.training


def test_features_flow_back_to_the_images():
    model, x = Classifier.wrap(Odd(), classes=4, mean=[0] * 3, std=[1] * 3), torch.rand(2, 3, 5, 5, requires_grad=True)
    model.features(x).sum().backward()
    assert x.grad is not None
    assert not any(m._forward_pre_hooks for m in model.modules()), "hooks are taken away again"


def test_features_of_the_registered_networks_are_pooled(tiny):
    assert tiny.features(torch.rand(2, 3, 16, 16)).shape == (2, tiny.network.fc.in_features)


def test_a_network_without_a_linear_layer_has_no_representation():
    model = Classifier.wrap(nn.Flatten(), classes=12, mean=[0] * 3, std=[1] * 3)
    with pytest.raises(UserError, match="Flatten has no linear layer"):
        model.features(torch.rand(1, 3, 2, 2))


@pytest.mark.parametrize("shape", [(2, 3, 8, 9), (2, 3, 16, 16), (2, 1, 8, 8), (3, 8, 8)])
def test_images_of_another_size_are_refused(shape):
    model = Classifier.wrap(Odd(), classes=4, mean=[0] * 3, std=[1] * 3, image_size=8)
    with pytest.raises(UserError, match=r"expected images \(N, 3, 8, 8\) for model 'Odd', got"):
        model(torch.zeros(shape))


def test_any_size_without_an_image_size():
    model = Classifier.wrap(Odd(), classes=4, mean=[0] * 3, std=[1] * 3)
    assert model(torch.rand(1, 3, 5, 8)).shape == (1, 4)
    with pytest.raises(UserError, match=r"\(N, 3, H, W\)"):
        model(torch.rand(1, 4, 5, 8))


@pytest.mark.parametrize(
    "wrong",
    [{"mean": [0.5]}, {"mean": [], "std": []}, {"std": [0, 1, 1]}, {"classes": ["a", "a"]}, {"classes": 1}],
)
def test_bad_wraps(wrong):
    with pytest.raises(UserError, match="expected"):
        Classifier.wrap(Odd(), **({"classes": 4, "mean": [0] * 3, "std": [1] * 3} | wrong))


def test_classes_by_name_and_index(tiny):
    assert [tiny.class_index(c) for c in ("cat", "SHIP", "2", 1, "t-shirt")] == [0, 1, 2, 1, 2]
    with pytest.raises(UnknownNameError, match=r"unknown class 'shp': did you mean 'ship'.*model 'tiny'"):
        tiny.class_index("shp")
    for wrong in ("3", 3, -1, "²"):
        with pytest.raises(UserError, match="class"):
            tiny.class_index(wrong)


def test_class_names_go_before_indices():
    model = Classifier.wrap(Odd(), classes=["3", "2", "1", "0"], mean=[0] * 3, std=[1] * 3)
    assert [model.class_index(c) for c in ("3", "0", 0)] == [0, 3, 3]


def test_exact_class_names_go_before_those_in_another_case():
    model = Classifier.wrap(Odd(), classes=["Cat", "cat", "CAT", "dog"], mean=[0] * 3, std=[1] * 3)
    assert [model.class_index(c) for c in ("Cat", "cat", "CAT", "DOG")] == [0, 1, 2, 3]


# ---- folders ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fixture", ["tiny_folder", "digits_folder"])
def test_models_come_back_as_they_were_saved(fixture, request, tmp_path):
    folder = request.getfixturevalue(fixture)
    model = load_model(folder, device="cpu")
    card = save_model(tmp_path / "again", model, model.card)
    again = load_model(tmp_path / "again", device="cpu")
    images = torch.rand(2, model.channels, model.image_size, model.image_size)
    assert torch.equal(model(images), again(images))
    assert again.card == card == dataclasses.replace(model.card, sha256=card.sha256)
    assert card.sha256 == {"model.safetensors": sha256(tmp_path / "again" / "model.safetensors")}
    assert not again.training
    assert again.folder == tmp_path / "again"


def test_saved_weights_are_float16(tiny_folder):
    dtypes = {v.dtype for v in load_file(tiny_folder / "model.safetensors").values()}
    assert dtypes == {torch.float16, torch.int64}
    assert load_model(tiny_folder, device="cpu").network.fc.weight.dtype == torch.float32


def test_a_card_names_every_file(tiny_folder):
    card = ModelCard.load(tiny_folder)
    assert card.sha256 == {name: sha256(tiny_folder / name) for name in ("model.safetensors", "seeds.safetensors")}


def test_weights_beyond_float16_are_not_saved(tiny, tmp_path):
    with torch.no_grad():
        tiny.network.layer1[0].conv1.weight[0] = 1e6
    with pytest.raises(UserError, match=r"NaN or infinity in layer1\.0\.conv1\.weight"):
        save_model(tmp_path / "out", tiny, tiny.card)
    assert not (tmp_path / "out" / "card.json").exists()


def test_a_weights_file_stands_for_its_folder(tiny_folder):
    assert load_model(tiny_folder / "model.safetensors", device="cpu").folder == tiny_folder


def test_another_tensor_file_does_not(tiny_folder):
    with pytest.raises(UserError, match=r"got the file seeds\.safetensors"):
        load_model(tiny_folder / "seeds.safetensors", device="cpu")


def rewrite_card(folder, **changes):
    path = folder / "card.json"
    values = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({k: v for k, v in values.items() if v is not ...}))


def cut(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def flip(folder):
    path = folder / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-7] ^= 1
    path.write_bytes(content)


def rename_weight(folder):
    path = folder / "model.safetensors"
    weights = load_file(path)
    weights["layer9.weight"] = weights.pop("layer1.0.conv1.weight")
    save_file(weights, path)
    rewrite_card(folder, sha256={})


def pickle_inside(folder):
    torch.save(Evil(str(folder / "executed")), folder / "model.safetensors")
    rewrite_card(folder, sha256={})


class Evil:
    """Unpickling it leaves a file behind."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self):
        return (open, (self.path, "w"))


DAMAGE = {
    "no card": (lambda f: (f / "card.json").unlink(), "without card.json"),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), "found no such file"),
    "card is not JSON": (lambda f: (f / "card.json").write_text("{"), "expected JSON in"),
    "card is bytes": (lambda f: (f / "card.json").write_bytes(b"\xff\xfe\x00"), "expected JSON in"),
    "card is a list": (lambda f: (f / "card.json").write_text("[]"), "expected a JSON object"),
    "card is empty": (lambda f: (f / "card.json").write_text("{}"), "found only nothing"),
    "card lacks fields": (lambda f: rewrite_card(f, mean=..., width=...), "expected width, mean in"),
    "cut off": (cut, "SHA-256"),
    "cut off, unrecorded": (lambda f: (cut(f), rewrite_card(f, sha256={})), "is damaged"),
    "empty, unrecorded": (
        lambda f: ((f / "model.safetensors").write_bytes(b""), rewrite_card(f, sha256={})),
        "is damaged",
    ),
    "one bit": (flip, "SHA-256"),
    "a pickle in disguise": (pickle_inside, "is damaged"),
    "unknown architecture": (lambda f: rewrite_card(f, architecture="resnet81"), "did you mean 'resnet18'"),
    "another architecture": (lambda f: rewrite_card(f, architecture="resnet34"), "do not belong together"),
    "another width": (lambda f: rewrite_card(f, width=8), "do not belong together"),
    "more classes": (lambda f: rewrite_card(f, classes=["a", "b", "c", "d"]), "do not belong together"),
    "one class": (lambda f: rewrite_card(f, classes=["a"]), "at least 2 classes"),
    "classes twice": (lambda f: rewrite_card(f, classes=["a", "b", "a"]), "different class names"),
    "no classes": (lambda f: rewrite_card(f, classes=None), "classes"),
    "mean of one channel": (lambda f: rewrite_card(f, mean=[0.5], std=[0.2]), "mean"),
    "mean of words": (lambda f: rewrite_card(f, mean=["a", "b", "c"]), "mean"),
    "std of 0": (lambda f: rewrite_card(f, std=[0, 1, 1]), "positive std"),
    "width of words": (lambda f: rewrite_card(f, width="four"), "width"),
    "sums of words": (lambda f: rewrite_card(f, sha256="none"), "sha256"),
    "renamed weight": (rename_weight, "layer1.0.conv1.weight.*layer9.weight"),
}


@pytest.mark.parametrize(("damage", "message"), DAMAGE.values(), ids=DAMAGE)
def test_damaged_models_say_what_is_wrong(tiny_copy, damage, message):
    damage(tiny_copy)
    with pytest.raises(UserError, match=message) as caught:
        load_model(tiny_copy, device="cpu")
    assert str(tiny_copy) in str(caught.value) or "class" in message or "resnet" in message or "std" in message
    assert not (tiny_copy / "executed").exists()


def test_cards_of_later_versions_load(tiny_copy):
    rewrite_card(tiny_copy, invented_later={"a": 1})
    assert load_model(tiny_copy, device="cpu").classes == ("cat", "ship", "t-shirt")


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".ckpt", ".pkl", ".bin", ".tar"])
def test_checkpoints_that_hold_code_are_refused_and_not_run(tmp_path, suffix):
    path = tmp_path / f"resnet{suffix}"
    torch.save({"model": Evil(str(tmp_path / "executed"))}, path)
    with pytest.raises(UserError, match=r"pickled checkpoint.*never executed.*Convert it.*weights_only=True.*wrap"):
        load_model(path)
    assert not (tmp_path / "executed").exists()


def test_the_evil_checkpoint_would_have_done_harm(tmp_path):
    torch.save(Evil(str(tmp_path / "executed")), tmp_path / "evil.pt")
    torch.load(tmp_path / "evil.pt", weights_only=False).close()
    assert (tmp_path / "executed").exists()


@pytest.fixture
def bundle(tmp_path, tiny_folder, digits_folder, monkeypatch):
    """A package whose weights are those of the tests."""
    root = tmp_path / "weights"
    shutil.copytree(tiny_folder, root / "cifar10-small")
    shutil.copytree(digits_folder, root / "mnist")
    (root / "aliases.json").write_text(json.dumps({"cifar10": "cifar10-small", "mnist": "cifar10-small", "x": "gone"}))
    monkeypatch.setattr(store, "BUNDLED", root)
    monkeypatch.setattr(store, "ZOO", tmp_path / "zoo")
    return root


def test_names_and_other_names(bundle):
    assert model_names() == {
        "cifar10": bundle / "cifar10-small",
        "cifar10-small": bundle / "cifar10-small",
        "mnist": bundle / "mnist",
    }
    assert load_model("cifar10", device="cpu").folder == bundle / "cifar10-small"
    shutil.copytree(bundle / "mnist", bundle.parent / "zoo" / "mnist-big")
    assert load_model("mnist-big", device="cpu").channels == 1


def test_unknown_models_list_the_closest_first(bundle):
    with pytest.raises(UnknownNameError, match="unknown model 'mnits': did you mean 'mnist'"):
        load_model("mnits")
    with pytest.raises(UnknownNameError, match="Available: cifar10"):
        load_model("cifar")


@pytest.mark.parametrize("name", ["nowhere/model", "nowhere.safetensors", "./mnist", "cifar10.1"])
def test_missing_paths_are_named(bundle, name):
    with pytest.raises(UserError, match=r"does not exist|unknown model") as caught:
        load_model(name)
    assert repr(name) in str(caught.value)
    assert "mnist" in str(caught.value)
    assert "cifar10" in str(caught.value)


@pytest.mark.parametrize("device", ["abacus", "cuda:99"])
def test_unknown_devices_are_named(tiny_folder, device):
    with pytest.raises(UserError, match=f"device.*{device}"):
        load_model(tiny_folder, device=device)


# ---- what the package carries -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", model_names())
def test_bundled_models(name):
    model = load_model(name, device="cpu")
    assert model.card is not None
    assert model.folder is not None
    tensors = {p.name: sha256(p) for p in model.folder.glob("*.safetensors")}
    assert model.card.sha256 == tensors
    assert {"model.safetensors", "seeds.safetensors"} <= set(tensors)
    size = model.card.image_size
    with torch.no_grad():
        logits = model(torch.rand(2, model.channels, size, size))
    assert logits.shape == (2, len(model.card.classes))
    assert bool(torch.isfinite(logits).all())
    assert {"norm", "eps"} <= set(model.card.threat_model)
    assert model.card.training
    assert model.card.accuracies
    assert model.card.data


@pytest.mark.skipif(not model_names(), reason="no weights are there yet")
def test_cifar10_is_another_name():
    names = model_names()
    assert {"cifar10", "cifar10-standard", "mnist", "mnist-standard"} <= set(names)
    if not (BUNDLED / "cifar10").exists():
        assert names["cifar10"] == names["cifar10-small"]


def test_weights_stay_small():
    assert sum(p.stat().st_size for p in BUNDLED.rglob("*") if p.is_file()) < 85e6
