"""Batch norm folded into the convolution before it: the same function in evaluation mode, with fewer passes."""

from __future__ import annotations

import copy
import inspect

import torch
from torch import fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from robustsynth.models.layers import DepthwiseConv2d, Float32Linear, PointwiseConv2d, RowLinear

REDUCIBLE = (
    nn.Conv2d, nn.Linear, nn.ReLU, nn.ReLU6, nn.SiLU, nn.Identity, nn.ZeroPad2d, nn.Dropout, nn.Flatten,
    nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d,
)  # fmt: skip
"""Layers whose weights and arithmetic may both be reduced to bfloat16; a normalisation's statistics may not."""

FOLDABLE = (nn.Conv2d, DepthwiseConv2d, PointwiseConv2d)
"""Convolutions that do what `nn.Conv2d` does; another subclass may do anything with its weights."""


class _Tracer(fx.Tracer):
    # Into no layer of ours, as into none of PyTorch's.
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, (DepthwiseConv2d, PointwiseConv2d)) or super().is_leaf_module(m, module_qualified_name)


def fold_batch_norm(network: nn.Module) -> nn.Module:
    """A copy of `network` in evaluation mode with each batch norm folded into the convolution before it.

    A network whose code cannot be traced is copied as it is, so the result always computes the same function.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)).eval()
        >>> x = torch.rand(1, 3, 5, 5)
        >>> bool(torch.allclose(net(x), fold_batch_norm(net)(x), atol=1e-6))
        True
    """
    return fold_and_report(network)[0]


def fold_and_report(network: nn.Module) -> tuple[nn.Module, dict[str, str]]:
    """As `fold_batch_norm`, and which batch norm was folded into which convolution, such as ``{"0": "1"}``."""
    folded: dict[str, str] = {}
    network = copy.deepcopy(network).eval()
    try:
        # Options with defaults, such as the authors' with_latent=False, are fixed at them.
        parameters = list(inspect.signature(network.forward).parameters.values())[1:]
        defaults = {p.name: p.default for p in parameters if p.default is not inspect.Parameter.empty}
        traced = fx.GraphModule(network, _Tracer().trace(network, concrete_args=defaults))
    except Exception:
        # Tracing fails in as many ways as people write networks; the plain copy is always correct.
        return network, folded
    modules = dict(traced.named_modules())
    for node in list(traced.graph.nodes):
        if node.op != "call_module" or not isinstance(modules[node.target], nn.BatchNorm2d):
            continue
        before = node.args[0] if node.args else node.kwargs["input"]
        if not isinstance(before, fx.Node) or before.op != "call_module" or len(before.users) != 1:
            continue
        own = str(before.target)
        convolution, norm = modules[own], modules[node.target]
        assert isinstance(norm, nn.BatchNorm2d)
        # Used again elsewhere, as a module or by its numbers, it must stay as it is; a hook may do anything between.
        uses = sum(str(n.target) == own or str(n.target).startswith(f"{own}.") for n in traced.graph.nodes)
        hooked = any(m._forward_hooks or m._forward_pre_hooks for m in (convolution, norm))
        if uses > 1 or hooked or norm.running_mean is None:
            continue
        if not isinstance(convolution, nn.Conv2d) or type(convolution) not in FOLDABLE:
            continue
        modules[own] = fuse_conv_bn_eval(convolution, norm)
        folded[own] = str(node.target)
        traced.set_submodule(own, modules[own])
        node.replace_all_uses_with(before)
        traced.graph.erase_node(node)
    traced.graph.lint()
    traced.recompile()
    traced.delete_all_unused_submodules()
    return traced.eval(), folded


def reducible(network: nn.Module) -> bool:
    """Whether the whole network may be held in bfloat16 (see `REDUCIBLE`)."""
    leaves = [m for m in network.modules() if not list(m.children())]
    owned = {id(p) for m in leaves for p in m.parameters(recurse=False)}
    return all(isinstance(m, REDUCIBLE) for m in leaves) and all(id(p) in owned for p in network.parameters())


def keep_rows_apart(network: nn.Module) -> None:
    """Make each plain linear layer of a frozen network a `RowLinear`; one with hooks stays as it is."""
    for name, module in list(network.named_modules()):
        if name and type(module) is nn.Linear and not (module._forward_hooks or module._forward_pre_hooks):
            network.set_submodule(name, RowLinear.of(module).requires_grad_(False).train(module.training))


def reduce_but_logits(network: nn.Module) -> None:
    """Hold `network` in bfloat16, but for the linear layer that gives the logits, where it is known which.

    Logits of about 20 come in steps of an eighth in bfloat16. The loss would take few different values, and which
    iterate is best would be decided by ties.
    """
    exact: tuple[str, Float32Linear] | None = None
    if isinstance(network, fx.GraphModule):
        last = next(node for node in network.graph.nodes if node.op == "output").args[0]
        if isinstance(last, fx.Node) and last.op == "call_module":
            layer = network.get_submodule(str(last.target))
            if type(layer) is nn.Linear:
                exact = str(last.target), Float32Linear.of(layer)
    network.to(torch.bfloat16)
    if exact is not None:
        network.set_submodule(exact[0], exact[1].requires_grad_(False))
