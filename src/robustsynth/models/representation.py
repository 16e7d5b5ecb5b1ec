"""The representation R(x) as a fast network of its own, with a gradient that can raise units which are off.

R(x) is what the last linear layer is given (Santurkar et al. 2019, Equation 5). Where it comes from a ReLU by pooling,
a unit that is zero everywhere has no gradient, so that no step could ever raise it. The authors therefore pass the
gradient straight through that last ReLU; values stay what they are.

    folded network ─ traced ─ cut at the last linear layer's input ─ its ReLU exchanged ─ FeatureNetwork
"""

from __future__ import annotations

import copy
from typing import Any
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from robustsynth.errors import UserError
from robustsynth.models.classifier import Classifier, FrozenClassifier, linear_runs, need_linear
from robustsynth.models.folding import fold_batch_norm

RELUS = ((nn.ReLU,), (F.relu, torch.relu), ("relu", "relu_"))
"""As modules, functions and methods; likewise the following."""
PASSED = (
    (nn.Identity, nn.Flatten, nn.Dropout, nn.Dropout2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.MaxPool2d,
     nn.AdaptiveMaxPool2d),
    (torch.flatten, torch.mean, torch.squeeze, F.dropout, F.avg_pool2d, F.adaptive_avg_pool2d, F.max_pool2d,
     F.adaptive_max_pool2d),
    ("flatten", "view", "reshape", "squeeze", "mean", "contiguous"),
)  # fmt: skip
"""What may stand between the last ReLU and the representation: it has no weights and keeps signs."""


def straight_through_relu(x: Tensor) -> Tensor:
    """max(x, 0), with the gradient of the identity.

    Example:
        >>> x = torch.tensor([-1.0, 2.0], requires_grad=True)
        >>> straight_through_relu(x).sum().backward()
        >>> x.grad.tolist()
        [1.0, 1.0]
    """
    return torch.relu(x).detach() + (x - x.detach())


class FeatureNetwork(nn.Module):
    """Images (N, C, H, W) in [0, 1] to R(x) (N, D) float32, frozen; gradients flow to the images.

    Make one with `feature_network`.

    Attributes:
        straight_through: whether gradients pass straight through a last ReLU; False also where there is none, or where
            the network cannot be traced.
        execution: precision and batch size, and whether they were measured.
    """

    def __init__(self, body: FrozenClassifier, *, hooked: bool, straight_through: bool) -> None:
        super().__init__()
        self.body, self.hooked, self.straight_through = body, hooked, straight_through
        self.execution = body.execution

    def forward(self, images: Tensor) -> Tensor:
        """R(x) (N, D), float32."""
        found: Tensor = self.body.features(images) if self.hooked else self.body(images)
        return found.flatten(1).float()


_built: WeakKeyDictionary[FrozenClassifier, dict[bool, FeatureNetwork]] = WeakKeyDictionary()
"""Feature networks by the frozen classifier whose weights they have, which is renewed when the weights change."""


def feature_network(
    model: Classifier,
    *,
    straight_through: bool = True,
    precision: str | None = None,
    batch_size: int | None = None,
) -> FeatureNetwork:
    """The representation of a classifier as a fast frozen network: images in, R(x) out.

    It is built once for each frozen classifier. A network whose code cannot be traced is run whole, with a
    hook on its last linear layer; gradients are then the plain ones.

    Args:
        model: a classifier whose last layer is linear.
        straight_through: pass gradients straight through the last ReLU before the representation, where there is one.
            Values are the same.
        precision: ``"float32"`` or ``"bfloat16"``; measured once per model and machine where None.
        batch_size: images a batch, for `FeatureNetwork.execution`; measured likewise.

    Raises:
        UserError: the network has no linear layer, or an unknown precision.

    Example:
        >>> net = nn.Sequential(nn.Flatten(), nn.Linear(12, 5), nn.ReLU(), nn.Linear(5, 2))
        >>> model = Classifier.wrap(net, classes=2, mean=[0] * 3, std=[1] * 3, image_size=2)
        >>> feature_network(model, precision="float32", batch_size=4)(torch.rand(4, 3, 2, 2)).shape
        torch.Size([4, 5])
    """
    need_linear([m for m in model.network.modules() if isinstance(m, nn.Linear)], model.network)
    frozen = model.frozen(precision=precision, batch_size=batch_size)
    known = _built.setdefault(frozen, {})
    if straight_through not in known:
        built = _cut(model, frozen, straight_through=straight_through)
        if built is None:
            # It holds the frozen classifier itself, so that keeping it would keep both for ever.
            return FeatureNetwork(frozen, hooked=True, straight_through=False).eval()
        known[straight_through] = built
    return known[straight_through]


def last_linear(model: Classifier) -> nn.Linear:
    """The linear layer that runs last, whose input is the representation; it is the model's own, not a copy.

    Raises:
        UserError: the model has no image size to try it with, or no linear layer.

    Example:
        >>> net = nn.Sequential(nn.Flatten(), nn.Linear(12, 5), nn.ReLU(), nn.Linear(5, 2))
        >>> model = Classifier.wrap(net, classes=2, mean=[0] * 3, std=[1] * 3, image_size=2)
        >>> last_linear(model) is net[3]
        True
    """
    if model.image_size is None:
        raise UserError(f"expected a model with an image size, got {model.name!r} without; give it to Classifier.wrap")
    with torch.no_grad():
        images = torch.zeros(1, model.channels, model.image_size, model.image_size, device=model.device)
        return linear_runs(model.network, model, images)[-1][0]


def _cut(model: Classifier, frozen: FrozenClassifier, *, straight_through: bool) -> FeatureNetwork | None:
    """The network up to the representation; None where it cannot be traced, or not surely be cut at that layer."""
    traced = fold_batch_norm(model.network)
    if not isinstance(traced, fx.GraphModule):
        return None
    graph = copy.deepcopy(traced.graph)
    nodes = list(graph.nodes)
    linear = [n for n in nodes if n.op == "call_module" and isinstance(traced.get_submodule(n.target), nn.Linear)]
    inside = sum(isinstance(module, nn.Linear) for module in traced.modules())
    # One hidden within another layer, such as attention, might run later than those that the graph shows.
    if not linear or inside > len({n.target for n in linear}):
        return None
    last = linear[-1]
    given = last.args[0] if last.args else last.kwargs["input"]
    for node in reversed(nodes[nodes.index(last) :]):
        graph.erase_node(node)
    path = _path_from_relu(traced, graph.output(given))
    if path:
        _exchange(graph, *path[:2], straight_through=straight_through)
    cut = fx.GraphModule(traced, graph)
    body = FrozenClassifier(model, cut, frozen.execution.precision)
    body.execution = frozen.execution
    return FeatureNetwork(body, hooked=False, straight_through=straight_through and bool(path)).eval()


def _path_from_relu(network: fx.GraphModule, output: fx.Node) -> list[fx.Node]:
    """From the ReLU that the output comes from by pooling, flattening and the like alone; empty where there is none."""
    path = [output]
    while isinstance(node := _input(path[0]), fx.Node):
        path.insert(0, node)
        if _is(node, network, *RELUS):
            return path
        if not _is(node, network, *PASSED):
            break
    return []


def _is(node: fx.Node, network: fx.GraphModule, modules: tuple[type, ...], functions: tuple, methods: tuple) -> bool:
    if node.op == "call_module":
        layer = network.get_submodule(str(node.target))
        return isinstance(layer, modules) and not layer._forward_hooks and not layer._forward_pre_hooks
    return node.target in (functions if node.op == "call_function" else methods if node.op == "call_method" else ())


def _input(node: fx.Node) -> Any:
    return node.args[0] if node.args else node.kwargs.get("input")


def _exchange(graph: fx.Graph, relu: fx.Node, following: fx.Node, *, straight_through: bool) -> None:
    """Give the ReLU the gradient that is wanted, and let what follows it, pooling, run in float32.

    Pooled in bfloat16 a unit of about 2 would come in steps of a 64th, and which iterate is best be decided by ties.
    """
    with graph.inserting_after(relu):
        exact = graph.call_method("float", (relu,))
    following.replace_input_with(relu, exact)
    if straight_through:
        with graph.inserting_before(relu):
            passing = graph.call_function(straight_through_relu, (_input(relu),))
        relu.replace_all_uses_with(passing)
        graph.erase_node(relu)
