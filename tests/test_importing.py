"""Checkpoints in other libraries' layouts, made here of our own networks, give the same logits as before."""

from __future__ import annotations

import collections
import functools
import json
import math
import pickle
import re
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor, nn

from conftest import random_statistics
from robustsynth.cli import main
from robustsynth.data.specs import find_spec
from robustsynth.errors import UserError
from robustsynth.models.card import ModelCard
from robustsynth.models.classifier import Classifier
from robustsynth.models.importing import import_model, read_foreign
from robustsynth.models.networks import ARCHITECTURES, build_network
from robustsynth.models.recognition import arranged, recognised_network
from robustsynth.models.store import load_model

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)
NAMES = ("cat", "ship", "car", "owl")


@functools.cache
def network_of(architecture: str, size: int = 32, classes: int = 4, channels: int = 3) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        width = {"mobilenet-v2": 8, "wide-resnet70-16-silu": 1}.get(architecture, 4)
        network = build_network(architecture, classes=classes, width=width, channels=channels, image_size=size)
    return random_statistics(network).eval()


def renamed(state: dict[str, Tensor], *pairs: tuple[str, str]) -> dict[str, Tensor]:
    found = collections.OrderedDict(state)
    for pattern, replacement in pairs:
        found = collections.OrderedDict((re.sub(pattern, replacement, k), v) for k, v in found.items())
    return found


def normaliser(mean: str, std: str, shape: tuple[int, ...] = (3, 1, 1)) -> dict[str, Tensor]:
    return {mean: torch.tensor(MEAN).view(shape), std: torch.tensor(STD).view(shape)}


CIFAR_NAMES = ((r"^fc\.", "linear."), (r"\.downsample\.", ".shortcut."))


def of_robustness(network: nn.Module, *pairs: tuple[str, str], outside: str = "module.") -> dict[str, Tensor]:
    """A DataParallel of an AttackerModel, which holds the network twice and the normaliser twice."""
    plain = renamed(dict(network.state_dict()), *pairs)
    return {
        **normaliser(f"{outside}normalizer.new_mean", f"{outside}normalizer.new_std"),
        **{f"{outside}model.{k}": v for k, v in plain.items()},
        **normaliser(f"{outside}attacker.normalize.new_mean", f"{outside}attacker.normalize.new_std"),
        **{f"{outside}attacker.model.{k}": v for k, v in plain.items()},
    }


def checkpoint_of(state: dict[str, Tensor]) -> dict:
    """As robustness saves one, optimiser and all."""
    group = {"lr": 0.1, "momentum": 0.9, "nesterov": False, "params": [0]}
    return {
        "model": state,
        "optimizer": {"state": {0: {"momentum_buffer": torch.ones(2, 2)}}, "param_groups": [group]},
        "schedule": {"base_lrs": [0.1], "last_epoch": 150, "lr_lambdas": [None]},
        "epoch": 150,
        "amp": None,
        "adv_prec1": torch.tensor(61.5),
    }


class Layout:
    """One layout: its network, the file's contents, and what has to be said when it is imported."""

    def __init__(self, network, contents, *, size=32, inside=True, layout, **given):
        self.network, self.contents, self.size = network, contents, size
        self.inside, self.layout, self.given = inside, layout, given


LAYOUTS = {
    "robustness, CIFAR-10": Layout(
        "resnet18", lambda n: checkpoint_of(of_robustness(n, *CIFAR_NAMES)), layout="robustness"
    ),
    "robustness, ResNet-50": Layout(
        "resnet50", lambda n: checkpoint_of(of_robustness(n, *CIFAR_NAMES)), layout="robustness"
    ),
    "robustness, not parallel": Layout(
        "resnet18", lambda n: checkpoint_of(of_robustness(n, *CIFAR_NAMES, outside="")), layout="robustness"
    ),
    "robustness, state_dict": Layout(
        "vgg11-bn", lambda n: {"state_dict": of_robustness(n), "epoch": 1}, layout="robustness"
    ),
    "robust-models-transfer": Layout(
        "resnet18", lambda n: checkpoint_of(of_robustness(n)), size=96, layout="robustness"
    ),
    "robust-models-transfer, wrapped": Layout(
        "resnet18", lambda n: {"model": of_robustness(n, (r"^", "model."))}, size=96, layout="robustness"
    ),
    "RobustBench, ResNet": Layout(
        "resnet18", lambda n: renamed(n.state_dict(), *CIFAR_NAMES), inside=False, layout="RobustBench"
    ),
    "RobustBench, mu and sigma": Layout(
        "resnet18",
        lambda n: {**normaliser("mu", "sigma"), **renamed(n.state_dict(), *CIFAR_NAMES)},
        layout="RobustBench",
    ),
    "RobustBench, PreActResNet": Layout(
        "preact-resnet18",
        lambda n: {"state_dict": {**normaliser("mu", "sigma", (1, 3, 1, 1)), **n.state_dict()}},
        layout="RobustBench",
    ),
    "RobustBench, WideResNet": Layout(
        "wide-resnet28-10",
        lambda n: {
            **{f"module.{k}": v for k, v in n.state_dict().items()},
            **{f"module.{k.replace('block1', 'sub_block1')}": v for k, v in n.state_dict().items() if "block1" in k},
        },
        inside=False,
        layout="RobustBench",
    ),
    "RobustBench, PreActResNet without the last batch norm": Layout(
        "preact-resnet18-early",
        lambda n: {
            **normaliser("mu", "sigma"),
            **n.state_dict(),
            "model_preact_hl1.0.weight": n.state_dict()["conv1.weight"],
        },
        layout="RobustBench",
        architecture="preact-resnet18-early",
    ),
    "RobustBench, with SiLU": Layout(
        "wide-resnet28-10-silu",
        lambda n: {"model_state_dict": renamed({**normaliser("mean", "std"), **n.state_dict()}, (r"^", "module."))},
        layout="RobustBench",
    ),
    "RobustBench, deep with SiLU": Layout(
        "wide-resnet70-16-silu", lambda n: {**normaliser("mean", "std"), **n.state_dict()}, layout="RobustBench"
    ),
    "RobustBench, narrow with SiLU": Layout(
        "preact-resnet18-silu", lambda n: {**normaliser("mean", "std"), **n.state_dict()}, layout="RobustBench"
    ),
    "RobustBench, a sequence": Layout(
        "wide-resnet28-10",
        lambda n: {**normaliser("0.mean", "0.std", (3,)), **{f"1.{k}": v for k, v in n.state_dict().items()}},
        layout="RobustBench",
    ),
    "RobustBench, ImageNet": Layout(
        "resnet18",
        lambda n: {**normaliser("normalize.mean", "normalize.std"), **renamed(n.state_dict(), (r"^", "model."))},
        size=96,
        layout="torchvision",
    ),
    "torchvision": Layout("resnet18", lambda n: n.state_dict(), size=96, inside=False, layout="torchvision"),
    "torchvision, ResNet-50": Layout("resnet50", lambda n: n.state_dict(), size=96, inside=False, layout="torchvision"),
    "torchvision, ResNet-101": Layout(
        "resnet101", lambda n: n.state_dict(), size=96, inside=False, layout="torchvision"
    ),
    "torchvision, ResNet-152": Layout(
        "resnet152", lambda n: n.state_dict(), size=96, inside=False, layout="torchvision"
    ),
    "torchvision, ResNeXt": Layout(
        "resnext50-32x4d", lambda n: n.state_dict(), size=96, inside=False, layout="torchvision"
    ),
    "robust-models-transfer, wide": Layout(
        "wide-resnet50-2", lambda n: checkpoint_of(of_robustness(n)), size=96, layout="robustness"
    ),
    "robust-models-transfer, wider": Layout(
        "wide-resnet50-4", lambda n: checkpoint_of(of_robustness(n)), size=96, layout="robustness"
    ),
    "torchvision, VGG": Layout("vgg13-bn", lambda n: n.state_dict(), size=96, inside=False, layout="torchvision"),
    "torchvision, VGG in parts": Layout(
        "vgg11-bn",
        lambda n: renamed(n.state_dict(), (r"^features\.", "features.module.")),
        size=96,
        inside=False,
        layout="torchvision",
    ),
    "torchvision, MobileNetV2": Layout(
        "mobilenet-v2", lambda n: n.state_dict(), size=96, inside=False, layout="torchvision"
    ),
    "compiled": Layout(
        "resnet34", lambda n: renamed(n.state_dict(), (r"^", "_orig_mod.")), inside=False, layout="torchvision"
    ),
    "before counters": Layout(
        "resnet18",
        lambda n: {k: v for k, v in n.state_dict().items() if "num_batches" not in k},
        inside=False,
        layout="torchvision",
    ),
    "ours": Layout("resnet18-even", lambda n: n.state_dict(), size=96, inside=False, layout="torchvision"),
    "ours, named": Layout(
        "resnet18-even", lambda n: n.state_dict(), inside=False, layout="torchvision", architecture="resnet18-even"
    ),
    "digits": Layout("small-cnn", lambda n: n.state_dict(), size=28, inside=False, layout="torchvision"),
}


def write(path: Path, contents, form: str) -> None:
    if form == "safetensors":
        save_file({k: v.clone().contiguous() for k, v in contents.items()}, path)
    elif form == "legacy":
        torch.save(contents, path, _use_new_zipfile_serialization=False)
    else:
        torch.save(contents, path, pytest.importorskip("dill") if form == "dill" else pickle)


@pytest.mark.parametrize("name", LAYOUTS)
def test_each_layout_gives_the_logits_that_it_gave(tmp_path, name):
    case = LAYOUTS[name]
    network = network_of(case.network, case.size)
    write(tmp_path / "a.pt", case.contents(network), "zip")
    given = dict(case.given) if case.inside else {"mean": MEAN, "std": STD, **case.given}
    card, foreign = import_model(tmp_path / "a.pt", tmp_path / "out", classes=NAMES, image_size=case.size, **given)
    assert (card.architecture, foreign.layout) == (case.network, case.layout)
    expected = Classifier.wrap(network, classes=NAMES, mean=MEAN, std=STD)
    images = torch.rand(2, 3, case.size, case.size, generator=torch.Generator().manual_seed(0))
    model = load_model(tmp_path / "out", device="cpu")
    assert model.classes == NAMES
    with torch.no_grad():
        wanted = expected(images)
        assert wanted.std() > 1e-3
        torch.testing.assert_close(model(images), wanted, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("form", ["zip", "legacy", "dill", "safetensors"])
def test_each_form_of_file(tmp_path, form):
    network = network_of("resnet18")
    state = of_robustness(network, *CIFAR_NAMES)
    write(tmp_path / "a.pt", state if form == "safetensors" else checkpoint_of(state), form)
    foreign = read_foreign(tmp_path / "a.pt", classes=NAMES, image_size=32)
    images = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        wanted = Classifier.wrap(network, classes=NAMES, mean=MEAN, std=STD)(images)
        torch.testing.assert_close(foreign.classifier(images), wanted, atol=1e-5, rtol=1e-5)


def test_weights_as_arrays_in_a_plain_pickle(tmp_path):
    state = {k: v.numpy() for k, v in network_of("resnet18").state_dict().items()}
    (tmp_path / "a.pkl").write_bytes(pickle.dumps(state))
    found = read_foreign(tmp_path / "a.pkl", classes=4, image_size=32, mean=MEAN, std=STD).classifier
    assert torch.equal(found.network.state_dict()["fc.weight"], torch.from_numpy(state["fc.weight"]))
    assert found.classes == ("0", "1", "2", "3")


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("size", [32, 224])
def test_every_architecture_is_told_from_all_others(architecture, size):
    """By names and shapes, at widths that are not the standard ones too; what cannot be told is asked for."""
    with torch.device("meta"):
        network = build_network(architecture, classes=7, width=8, channels=1, image_size=size)
    asked = architecture if architecture in ("preact-resnet18-plain", "preact-resnet18-early") else None
    fits = recognised_network(network.state_dict(), architecture=asked, where="a.pt")
    assert {fit.classes for fit in fits} == {7}
    assert {fit.width for fit in fits} == {8}
    # Small ones of ours differ from torchvision's in nothing but how they shrink, which leaves no trace in a file.
    told = architecture.removesuffix("-even") if size == 32 else architecture
    assert {fit.architecture for fit in fits} == {told}
    assert [fit.small for fit in fits] == ([True, False] if architecture == "mobilenet-v2" else [size == 32])


def saved(tmp_path, contents) -> Path:
    torch.save(contents, tmp_path / "a.pt")
    return tmp_path / "a.pt"


GIVEN = {"classes": NAMES, "image_size": 32}
OUTSIDE = {**GIVEN, "mean": MEAN, "std": STD}


def test_another_architecture(tmp_path):
    path = saved(tmp_path, network_of("resnet34").state_dict())
    with pytest.raises(
        UserError, match=r"expected the weights of a resnet18 in a\.pt, got those of a resnet34 of width 4"
    ):
        read_foreign(path, **OUTSIDE, architecture="resnet18")
    with pytest.raises(UserError, match=r"unknown architecture 'resnet19': did you mean"):
        read_foreign(path, **OUTSIDE, architecture="resnet19")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda s: {**s, "layer1.0.conv3.weight": torch.zeros(1)}, r"nearest is resnet18 .*1 unknown \(layer1.0.conv3"),
        (lambda s: {k: v for k, v in s.items() if k != "fc.bias"}, r"nearest is resnet18 .*1 missing \(fc.bias"),
        (lambda s: {**s, "layer4.1.conv2.weight": torch.zeros(4, 4, 3, 3)}, r"1 of another shape \(layer4.1.conv2"),
        (lambda s: {"a.weight": torch.zeros(2, 2), "b.bias": torch.zeros(1)}, r"begins with a.weight \(2, 2\)"),
    ],
)
def test_a_network_that_is_not_here(tmp_path, change, said):
    path = saved(tmp_path, change(network_of("resnet18").state_dict()))
    with pytest.raises(
        UserError, match=rf"(?s)one of these architectures in a\.pt: resnet18, .*{said}.*Classifier\.wrap"
    ):
        read_foreign(path, **OUTSIDE)


def test_preactivation_without_its_last_norm_is_asked_for_by_name(tmp_path):
    """Shortcuts begin before the first activation or after it, and leave no trace of that in a file."""
    network = network_of("preact-resnet18-early")
    path = saved(tmp_path, network.state_dict())
    with pytest.raises(UserError, match="--arch preact-resnet18-plain or --arch preact-resnet18-early"):
        read_foreign(path, **OUTSIDE)
    images = torch.rand(2, 3, 32, 32)
    early, late = (
        read_foreign(path, **OUTSIDE, architecture=f"preact-resnet18-{name}").classifier.network
        for name in ("early", "plain")
    )
    with torch.no_grad():
        torch.testing.assert_close(early(images), network(images), atol=1e-5, rtol=1e-5)
        assert not torch.allclose(late(images), network(images), rtol=1e-2)


def test_strides_that_leave_no_trace_are_asked_for(tmp_path):
    """torchvision's MobileNetV2 on small images, and the usual one for them, are the same file."""
    network = network_of("mobilenet-v2")
    path = saved(tmp_path, network.state_dict())
    with pytest.raises(UserError, match=r"expected to know the strides.*--arch mobilenet-v2 where its first"):
        read_foreign(path, **OUTSIDE)
    images = torch.rand(2, 3, 32, 32)
    found = read_foreign(path, **OUTSIDE, architecture="mobilenet-v2").classifier.network
    with torch.no_grad():
        torch.testing.assert_close(found(images), network(images), atol=1e-5, rtol=1e-5)


def test_a_width_that_another_architecture_cannot_have_is_no_obstacle(tmp_path):
    network = build_network("resnet18", classes=4, width=7)
    found = read_foreign(saved(tmp_path, network.state_dict()), **OUTSIDE)
    assert (found.fit.architecture, found.fit.width) == ("resnet18", 7)


@pytest.mark.parametrize(("channels", "hidden"), [(0, 5), (3, 0)])
def test_a_first_convolution_of_nothing_is_an_error(tmp_path, channels, hidden):
    state = {
        "conv1.weight": torch.zeros(channels, 3, 5, 5),
        "fc1.weight": torch.zeros(hidden, 8),
        "fc.bias": torch.ones(2),
    }
    with pytest.raises(UserError, match=r"no last linear layer \(looked for fc, linear"):
        read_foreign(saved(tmp_path, state), **OUTSIDE)


def test_two_networks_in_one_state_dict_are_an_error(tmp_path):
    state = dict(network_of("resnet18").state_dict())
    state |= {f"module.{name}": value + 1 for name, value in state.items()}
    with pytest.raises(UserError, match=r"expected one network in a\.pt, found .* twice.*they differ"):
        read_foreign(saved(tmp_path, state), **OUTSIDE)


def test_an_averaged_model_is_its_module(tmp_path):
    network = network_of("resnet18")
    averaged = torch.optim.swa_utils.AveragedModel(network)
    found = read_foreign(saved(tmp_path, {"model": averaged.state_dict()}), **OUTSIDE).classifier.network
    assert torch.equal(found.state_dict()["fc.weight"], network.state_dict()["fc.weight"])


def test_tensors_of_few_numbers_are_not_made_many(tmp_path):
    """A thousand names of one storage would take a thousand times the file's size."""
    one = torch.zeros(500, 500)
    path = saved(tmp_path, {f"layer{number}.weight": one for number in range(1000)})
    assert path.stat().st_size < 2_000_000
    with pytest.raises(UserError, match=r"got 1000 MB of tensors that share 1\.0 MB"):
        read_foreign(path, **OUTSIDE)


@pytest.mark.parametrize("claimed", [0, 4_000_000_000])
def test_a_size_that_an_archive_only_claims_is_not_believed(tmp_path, claimed):
    path = saved(tmp_path, {"fc.weight": torch.zeros(2, 3)})
    content = path.read_bytes()
    at = content.rindex(b"archive/data/0" if b"archive/data/0" in content else b"a/data/0") - 46
    assert content[at : at + 4] == b"PK\x01\x02", "an entry of the central directory"
    size = claimed.to_bytes(4, "little")
    path.write_bytes(content[: at + 24] + size + content[at + 28 :])
    with pytest.raises(UserError, match="expected"):
        read_foreign(path, **OUTSIDE)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_damaged_central_directory_is_an_error(tmp_path, data):
    path = saved(tmp_path, {"fc.weight": torch.zeros(2, 3), "fc.bias": torch.zeros(2)})
    content = bytearray(path.read_bytes())
    at = data.draw(st.integers(content.index(b"PK\x01\x02"), len(content) - 1))
    content[at] = data.draw(st.integers(0, 255))
    path.write_bytes(content)
    with pytest.raises(UserError):
        read_foreign(path, **OUTSIDE)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"mean": (math.nan,) * 3}, "a mean and a positive std"),
        ({"std": (math.inf,) * 3}, "a mean and a positive std"),
        ({"mean": (125.3, 123.0, 113.9), "std": (63.0, 62.1, 66.7)}, r"a mean in units of \[0, 1\].*by 255"),
        ({"mean": (-0.5,) * 3}, r"a mean in units of \[0, 1\]"),
    ],
)
def test_a_normalisation_that_makes_no_sense_is_an_error(tmp_path, given, said):
    path = saved(tmp_path, network_of("resnet18").state_dict())
    with pytest.raises(UserError, match=said):
        read_foreign(path, **(OUTSIDE | given))


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (
            {"classes": None},
            "expected names for the 4 classes.*--classes a,b,… .*--classes 4 to number them, or --data",
        ),
        ({"classes": ("a", "b")}, "as many classes as the last layer of a.pt has rows, 4, got 2 from --classes"),
        ({"classes": None, "data": find_spec("cifar10")}, "rows, 4, got 10 from --data cifar10"),
        ({"classes": 5}, "rows, 4, got 5"),
        ({"classes": ("a", "a", "b", "c")}, "different class names"),
        ({"image_size": None}, r"expected the side of the images.*resnet18 .* up to 64 pixels.*--image-size"),
        ({"image_size": 224}, "got --image-size 224.*not among the architectures here"),
        ({"image_size": None, "classes": None, "data": find_spec("imagenet")}, "got --data imagenet: 224"),
        ({"mean": None}, "expected --mean and --std together"),
        ({"mean": None, "std": None}, "expected a normalisation, which a.pt does not hold: give --mean and --std"),
        ({"mean": (0.5, 0.5), "std": (1.0, 1.0)}, "for each of the 3 channels"),
        ({"std": (0.2, 0.0, 0.2)}, "a positive std"),
    ],
)
def test_what_the_file_does_not_tell_is_asked_for(tmp_path, given, said):
    path = saved(tmp_path, network_of("resnet18").state_dict())
    with pytest.raises(UserError, match=said):
        read_foreign(path, **(OUTSIDE | given))


def test_a_data_set_with_several_normalisations_is_a_doubt(tmp_path):
    path = saved(tmp_path, network_of("resnet18", classes=10).state_dict())
    with pytest.raises(UserError) as error:
        read_foreign(path, data=find_spec("cifar10"))
    for choice in ("0.2023,0.1994,0.201 (robustness)", "0.247,0.2435,0.2616", "--mean 0.0,0.0,0.0 --std 1.0,1.0,1.0"):
        assert choice in str(error.value)


def test_a_data_set_with_one_normalisation_tells_it(tmp_path):
    path = saved(tmp_path, network_of("resnet18", 224, classes=1000).state_dict())
    found = read_foreign(path, data=find_spec("imagenet"))
    assert (found.normalisation, found.classifier.image_size) == ("ImageNet's", 224)
    torch.testing.assert_close(found.classifier.mean.flatten(), torch.tensor([0.485, 0.456, 0.406]))


def test_the_librarys_own_normalisation_goes_with_its_names(tmp_path):
    """A file with the attacker's copy is the library's, whose CIFAR-10 has one normalisation alone."""
    state = of_robustness(network_of("resnet18", classes=10), *CIFAR_NAMES)
    path = saved(tmp_path, {k: v for k, v in state.items() if "new_" not in k})
    assert read_foreign(path, data=find_spec("cifar10")).normalisation == "robustness"


@pytest.mark.parametrize("place", ["", "model.", "module.model."])
def test_a_normalisation_that_is_there_twice(tmp_path, place):
    state = of_robustness(network_of("resnet18"), *CIFAR_NAMES) | normaliser(f"{place}mu", f"{place}sigma")
    with pytest.raises(UserError, match=r"found 2: .*new_mean.*mu.*normalised twice"):
        read_foreign(saved(tmp_path, state), **GIVEN)


def test_a_normalisation_inside_and_given(tmp_path):
    state = of_robustness(network_of("resnet18"), *CIFAR_NAMES)
    with pytest.raises(
        UserError, match=r"a\.pt has its own \(normalizer\.new_mean.*0\.4914.*would be a second; leave them out"
    ):
        read_foreign(saved(tmp_path, state), **OUTSIDE)


@pytest.mark.parametrize(
    ("mean", "std", "said"),
    [
        ((125.3, 123.0, 113.9), (63.0, 62.1, 66.7), "of 255"),
        ((0.5, 0.5, 0.5), (0.0, 0.2, 0.2), "positive std"),
        ((0.5, 0.5), (0.2, 0.2), "each of the 3 channels"),
    ],
)
def test_a_normalisation_that_makes_no_sense(tmp_path, mean, std, said):
    state = dict(network_of("resnet18").state_dict()) | {"mu": torch.tensor(mean), "sigma": torch.tensor(std)}
    with pytest.raises(UserError, match=said):
        read_foreign(saved(tmp_path, state), **GIVEN)


def test_two_networks_in_one(tmp_path):
    state = of_robustness(network_of("resnet18"), *CIFAR_NAMES)
    state["module.attacker.model.linear.bias"] = state["module.attacker.model.linear.bias"] + 1
    with pytest.raises(UserError, match=r"attacker\.model\.linear\.bias and model\.linear\.bias .* differ"):
        read_foreign(saved(tmp_path, state), **GIVEN)


def test_several_state_dicts_are_a_doubt(tmp_path):
    state = network_of("resnet18").state_dict()
    path = saved(tmp_path, {"model": state, "ema": {"net": {k: v * 2 for k, v in state.items()}}, "epoch": 3})
    with pytest.raises(
        UserError, match=r"expected one state dict in a\.pt, found 2: 'model', 'ema\.net'; choose with --key"
    ):
        read_foreign(path, **OUTSIDE)
    found = read_foreign(path, **OUTSIDE, key="ema.net").classifier.network
    assert torch.equal(found.state_dict()["fc.bias"], state["fc.bias"] * 2)
    with pytest.raises(UserError, match="unknown state dict 'emma'"):
        read_foreign(path, **OUTSIDE, key="emma")


@pytest.mark.parametrize(
    ("contents", "said"),
    [
        ({"epoch": 3, "accuracy": torch.tensor(0.5)}, "found a dict of 'epoch', 'accuracy'"),
        ([1, 2], "found a list"),
        (torch.zeros(3), "found a Tensor"),
    ],
)
def test_a_file_without_a_network(tmp_path, contents, said):
    with pytest.raises(UserError, match=f"expected a network's state dict.*{said}"):
        read_foreign(saved(tmp_path, contents), **OUTSIDE)


@pytest.mark.parametrize("form", ["zip", "legacy", "safetensors"])
@pytest.mark.parametrize("share", [0.0, 0.001, 0.3, 0.999])
def test_a_truncated_file(tmp_path, form, share):
    path = tmp_path / "a.pt"
    state = network_of("resnet18").state_dict()
    write(path, state if form == "safetensors" else {"model": state}, form)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(UserError, match=r"a\.pt.*(cut short|damaged|empty|neither format)"):
        read_foreign(path, **OUTSIDE)


def test_numbers_that_are_damaged(tmp_path):
    path = saved(tmp_path, network_of("resnet18").state_dict())
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0x55
    path.write_bytes(content)
    with pytest.raises(UserError, match="Bad CRC-32"):
        read_foreign(path, **OUTSIDE)


def test_weights_that_are_not_finite(tmp_path):
    state = dict(network_of("resnet18").state_dict()) | {"fc.bias": torch.tensor([1.0, float("nan"), 1.0, 1.0])}
    with pytest.raises(UserError, match=r"NaN or infinity in fc\.bias"):
        read_foreign(saved(tmp_path, state), **OUTSIDE)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"<!DOCTYPE html><html>", "a web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "a pointer of Git LFS"),
        (b"\x89PNG\r\n\x1a\n" + b"\x00" * 50, "neither format"),
        (b"\x00" * 257 + b"ustar\x00" + b"\x00" * 300, "a tar archive"),
    ],
)
def test_files_of_another_kind(tmp_path, content, said):
    (tmp_path / "a.pt").write_bytes(content)
    with pytest.raises(UserError, match=said):
        read_foreign(tmp_path / "a.pt", **OUTSIDE)


def test_a_program_and_a_folder_and_nothing(tmp_path):
    with pytest.raises(UserError, match="found no"):
        read_foreign(tmp_path / "none.pt", **OUTSIDE)
    with pytest.raises(UserError, match="got the folder"):
        read_foreign(tmp_path, **OUTSIDE)


def run(*arguments: object):
    return CliRunner().invoke(main, [str(a) for a in arguments])


def test_the_command(tmp_path):
    path = tmp_path / "cifar_l2_0_5.pt"
    torch.save(checkpoint_of(of_robustness(network_of("resnet18", classes=10), *CIFAR_NAMES)), path)
    done = run("import", path, "--out", tmp_path / "r18", "--data", "cifar10", "--norm", "l2", "--eps", 0.5)
    assert done.exit_code == 0, done.output
    assert "robustness names, resnet18 of width 4" in done.output
    card = ModelCard.load(tmp_path / "r18")
    assert (card.name, card.mean, card.std, card.licence) == ("r18", MEAN, STD, "not stated")
    assert card.classes[3] == "cat"
    assert card.threat_model == {"norm": "l2", "eps": 0.5}
    imported = card.training["imported"]
    assert (imported["file"], imported["layout"], imported["format"]) == (path.name, "robustness", "PyTorch zip")
    assert len(imported["sha256"]) == 64
    again = run("import", path, "--out", tmp_path / "r18", "--data", "cifar10")
    assert again.exit_code == 2
    assert "without a model as --out" in again.output


def test_half_is_half_as_large(tmp_path):
    path = saved(tmp_path, network_of("resnet18").state_dict())
    common = ("import", path, "--classes", "4", "--image-size", 32, "--mean", "0,0,0", "--std", "1,1,1")
    assert run(*common, "--out", tmp_path / "whole").exit_code == 0
    assert run(*common, "--out", tmp_path / "half", "--half").exit_code == 0
    whole, half = ((tmp_path / n / "model.safetensors").stat().st_size for n in ("whole", "half"))
    assert 0.4 * whole < half < 0.65 * whole
    images = torch.rand(2, 3, 32, 32)
    exact, rounded = (load_model(tmp_path / n, device="cpu")(images) for n in ("whole", "half"))
    torch.testing.assert_close(exact, rounded, atol=0.05, rtol=0.05)


def test_class_names_from_a_file(tmp_path):
    path = saved(tmp_path, network_of("resnet18").state_dict())
    (tmp_path / "names.txt").write_text("goldfish, Carassius auratus\nhen\n\ncock\njay\n", encoding="utf-8")
    common = ("--image-size", 32, "--mean", "0,0,0", "--std", "1,1,1", "--out", tmp_path / "out")
    assert run("import", path, "--classes", tmp_path / "names.txt", *common).exit_code == 0
    assert ModelCard.load(tmp_path / "out").classes[:2] == ("goldfish, Carassius auratus", "hen")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--data", "cifar11"), "did you mean 'cifar10'"),
        (("--eps", "0.5"), "--norm l2 or linf with a positive --eps"),
        (("--norm", "l2", "--eps", "-1"), "with a positive --eps"),
        (("--mean", "a,b"), "comma-separated numbers"),
    ],
)
def test_mistakes_in_the_command(tmp_path, options, said):
    path = saved(tmp_path, network_of("resnet18").state_dict())
    done = run("import", path, "--out", tmp_path / "out", "--classes", 4, *options)
    assert done.exit_code == 2
    assert said in done.output
    assert not (tmp_path / "out").exists()


def test_an_imported_model_draws(tmp_path):
    path = saved(tmp_path, of_robustness(network_of("resnet18"), *CIFAR_NAMES))
    assert run("import", path, "--out", tmp_path / "m", "--classes", "a,b,c,d", "--image-size", 32).exit_code == 0
    drawn = ("--num", 2, "--steps", 1, "--precision", "float32", "--batch-size", 2, "--out", tmp_path / "s")
    done = run("generate", "--model", tmp_path / "m", *drawn)
    assert done.exit_code == 0, done.output
    assert json.loads((tmp_path / "s" / "settings.json").read_text(encoding="utf-8"))


def test_any_network_joins_by_being_wrapped():
    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.head = nn.Linear(3, 4)

        def forward(self, x):
            return self.head(x.mean((2, 3)))

    model = Classifier.wrap(Own(), classes=NAMES, mean=(0.0,) * 3, std=(1.0,) * 3)
    assert model(torch.rand(2, 3, 9, 7)).shape == (2, 4)


def test_names_that_are_ours_stay_as_they_are():
    for architecture in ARCHITECTURES:
        state = network_of(architecture).state_dict()
        assert list(arranged(state, "a.pt").weights) == list(state)
