"""A model's layers as the kernels read them: checked, and with hooks and parametrizations in effect.

The kernels take a layer's parameters and never call it. So what PyTorch does when a layer is called is done here:
torch.nn.utils' weight_norm, spectral_norm and prune of the older kind compute parameters anew in a forward pre-hook,
which runs before they are read. (Parametrizations by torch.nn.utils.parametrize act whenever a parameter is read.) A
layer of another kind, or with other settings, is refused. Other hooks need the layer's inputs and outputs: a model
whose layers have some is computed by calling them, see `has_hooks`.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

_REPARAMETRIZATIONS = (WeightNorm, SpectralNorm, BasePruningMethod)


def reparametrize(module: nn.Module) -> None:
    """Runs the pre-hooks of weight_norm, spectral_norm and prune, which set the module's parameters."""
    for hook in module._forward_pre_hooks.values():
        if isinstance(hook, _REPARAMETRIZATIONS):
            hook(module, None)


def has_hooks(module: nn.Module) -> bool:
    """Whether the module has hooks that act only when it is called."""
    return bool(module._forward_hooks or module._backward_hooks or module._backward_pre_hooks) or any(
        not isinstance(hook, _REPARAMETRIZATIONS) for hook in module._forward_pre_hooks.values()
    )


def refuse_hooks(**modules: nn.Module) -> None:
    """Raises RuntimeError if one of the modules, under the name that it has in the model, has_hooks."""
    for name, module in modules.items():
        if has_hooks(module):
            raise RuntimeError(
                f"{name} has forward or backward hooks, which sampling cannot run, since it does not call the layer: "
                "remove them, or use torch.nn.utils.parametrize for what changes its parameters"
            )


def require_parameter(name: str, value: Tensor) -> None:
    """Raises RuntimeError for a parameter that is computed from others, so that it cannot be set."""
    if not isinstance(value, nn.Parameter):
        raise RuntimeError(f"{name} is computed by a parametrization or a hook, so it cannot be set; set it before")


def check_linear(name: str, layer: nn.Module, inputs: int, outputs: int) -> None:
    """Whether a layer is the torch.nn.Linear that the model was built with, or its like.

    Raises:
        TypeError: it is another module, or one with a forward of its own.
        ValueError: its sizes differ, or it has no bias.
    """
    _check_kind(name, layer, nn.Linear)
    _check_settings(name, layer, {"in_features": inputs, "out_features": outputs})
    if layer.bias is None:
        raise ValueError(f"{name} must have a bias")


def check_linears(name: str, layers: nn.Module, sizes: Sequence[int]) -> dict[str, nn.Module]:
    """The layers of a list by their names, if they are those from sizes[0] inputs to sizes[1] outputs, and so on.

    Raises:
        TypeError: it is not a list of that many layers, or as check_linear.
        ValueError: as check_linear.
    """
    if not isinstance(layers, nn.ModuleList) or len(layers) != len(sizes) - 1:
        raise TypeError(
            f"{name} must be the torch.nn.ModuleList of {len(sizes) - 1} torch.nn.Linear that the model was built "
            f"with, got {layers}"
        )
    named = {f"{name}[{index}]": layer for index, layer in enumerate(layers)}
    for (layer_name, layer), pair in zip(named.items(), itertools.pairwise(sizes), strict=True):
        check_linear(layer_name, layer, *pair)
    return named


def linear_parameters(layer: nn.Module) -> tuple[Tensor, Tensor]:
    """(weight, bias) of a checked layer as they are at this call."""
    reparametrize(layer)
    return layer.weight, layer.bias


def check_linear_without_bias(name: str, layer: nn.Module, inputs: int, outputs: int) -> None:
    """As check_linear, for a layer without bias."""
    _check_kind(name, layer, nn.Linear)
    _check_settings(name, layer, {"in_features": inputs, "out_features": outputs, "bias": None})


def check_convolution(
    name: str, layer: nn.Module, inputs: int, outputs: int, kernel: tuple[int, int], *, bias: bool
) -> None:
    """The same for a torch.nn.Conv2d that goes over every place once and pads nothing."""
    _check_kind(name, layer, nn.Conv2d)
    settings = {"in_channels": inputs, "out_channels": outputs, "kernel_size": kernel, "groups": 1}
    _check_settings(name, layer, settings | {"stride": (1, 1), "padding": (0, 0), "dilation": (1, 1)})
    if (layer.bias is not None) != bias:
        raise ValueError(f"{name} must have {'a' if bias else 'no'} bias")


def convolution_parameters(layer: nn.Module) -> tuple[Tensor, Tensor | None]:
    """(weight, bias) of a checked convolution as they are at this call."""
    reparametrize(layer)
    return layer.weight, layer.bias


def check_lstm(name: str, layer: nn.Module, inputs: int, hidden_size: int, num_layers: int) -> None:
    """The same for a torch.nn.LSTM."""
    _check_kind(name, layer, nn.LSTM)
    settings = {"input_size": inputs, "hidden_size": hidden_size, "num_layers": num_layers}
    fixed = {"bias": True, "batch_first": True, "dropout": 0, "bidirectional": False, "proj_size": 0}
    _check_settings(name, layer, {**settings, **fixed})


def lstm_parameters(layer: nn.LSTM) -> list[Tensor]:
    """weight_ih, weight_hh, bias_ih, bias_hh of every layer as they are at this call."""
    reparametrize(layer)
    return [parameter for parameters in layer.all_weights for parameter in parameters]


def _check_kind(name: str, layer: nn.Module, kind: type[nn.Module]) -> None:
    if isinstance(layer, kind) and type(layer).forward is kind.forward and "forward" not in vars(layer):
        return
    got = type(layer).__name__ + (" with another forward" if isinstance(layer, kind) else "")
    raise TypeError(
        f"{name} must be a torch.nn.{kind.__name__}, which is what the kernels compute, got {got}; to change its "
        "parameters use torch.nn.utils.parametrize"
    )


def _check_settings(name: str, layer: nn.Module, settings: dict[str, Any]) -> None:
    for setting, expected in settings.items():
        if getattr(layer, setting) != expected:
            raise ValueError(f"{name} must have {setting}={expected}, got {setting}={getattr(layer, setting)}")
