"""The networks by name, and any other one by `package.module:factory`."""

import difflib
import importlib
import inspect
import os
import sys
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from surefoot.core.failures import in_one_line
from surefoot.core.limits import check_count
from surefoot.models.densenet import densenet_bc_100
from surefoot.models.layers import Normalize
from surefoot.models.lenet import (
    conv_norm,
    conv_small,
    digits_net,
    lenet_plus,
    lenet_small,
    mnist_a,
    mnist_b,
    mnist_c,
    mnist_d,
)
from surefoot.models.resnet import preact_resnet_18, resnet_18, resnet_34, resnet_50
from surefoot.models.vgg import vgg_11, vgg_13, vgg_19
from surefoot.models.wide_resnet import wrn_28_10

_SAT = "Vivek and Babu, Regularizers for Single-step Adversarial Training, 2020, Table 1"
_CONVEX = "Wong and Kolter, Provable Defenses via the Convex Outer Adversarial Polytope, ICML 2018"
_RESNET = "He et al., Deep Residual Learning for Image Recognition, CVPR 2016"
_PREACT = "He et al., Identity Mappings in Deep Residual Networks, ECCV 2016"
_VGG = "Simonyan and Zisserman, Very Deep Convolutional Networks for Large-Scale Image Recognition, ICLR 2015"
_WRN = "Zagoruyko and Komodakis, Wide Residual Networks, BMVC 2016"
_DENSENET = "Huang et al., Densely Connected Convolutional Networks, CVPR 2017"


@dataclass(frozen=True)
class ModelSpec:
    """A network in the registry: how it is named, made and cited.

    `factory` takes `num_classes`, `in_channels` and `image_size` by keyword and returns the network without
    normalisation; `paper_name` is the name in print.

    >>> MODELS["lenet-plus"].paper_name
    'LeNet+'
    """

    name: str
    factory: Callable[..., nn.Module]
    paper_name: str
    description: str
    source: str


MODELS: dict[str, ModelSpec] = {
    "lenet-plus": ModelSpec(
        "lenet-plus", lenet_plus, "LeNet+", "2 convolutions, 1 hidden layer of 1024; the MNIST network", _SAT
    ),
    "mnist-a": ModelSpec("mnist-a", mnist_a, "A", "2 convolutions with dropout, 1 hidden layer of 128", _SAT),
    "mnist-b": ModelSpec("mnist-b", mnist_b, "B", "3 convolutions with dropout, no hidden layer", _SAT),
    "mnist-c": ModelSpec("mnist-c", mnist_c, "C", "2 tanh convolutions, 1 hidden layer of 128", _SAT),
    "mnist-d": ModelSpec("mnist-d", mnist_d, "D", "4 hidden layers of 300 with dropout", _SAT),
    "lenet-small": ModelSpec(
        "lenet-small", lenet_small, "lenet-small", "LeNet+ at half its width, in a third of its time", "surefoot"
    ),
    "conv-small": ModelSpec(
        "conv-small", conv_small, "conv-small", "2 strided convolutions, 1 hidden layer of 100; small and fast", _CONVEX
    ),
    "conv-norm": ModelSpec(
        "conv-norm", conv_norm, "conv-norm", "3 strided convolutions with batch-norm, 1 linear layer", "surefoot"
    ),
    "digits-net": ModelSpec(
        "digits-net",
        digits_net,
        "digits-net",
        "2 convolutions, 1 hidden layer of 128; for 8 x 8 digits",
        "surefoot",
    ),
    "wrn-28-10": ModelSpec(
        "wrn-28-10", wrn_28_10, "WRN-28-10", "28 layers, 10 times as wide; the CIFAR-10 network", _WRN
    ),
    "resnet-18": ModelSpec("resnet-18", resnet_18, "ResNet-18", "18 layers; the ImageNet-subset network", _RESNET),
    "resnet-34": ModelSpec("resnet-34", resnet_34, "ResNet-34", "34 layers", _RESNET),
    "resnet-50": ModelSpec("resnet-50", resnet_50, "ResNet-50", "50 layers, bottleneck blocks", _RESNET),
    "preact-resnet-18": ModelSpec(
        "preact-resnet-18",
        preact_resnet_18,
        "PreAct ResNet-18",
        "18 layers, activation before convolution",
        _PREACT,
    ),
    "vgg-11": ModelSpec("vgg-11", vgg_11, "VGG-11", "8 convolutions with batch-norm, 1 linear layer", _VGG),
    "vgg-13": ModelSpec("vgg-13", vgg_13, "VGG-13", "10 convolutions with batch-norm, 1 linear layer", _VGG),
    "vgg-19": ModelSpec("vgg-19", vgg_19, "VGG-19", "16 convolutions with batch-norm, 1 linear layer", _VGG),
    "densenet-bc-100": ModelSpec(
        "densenet-bc-100",
        densenet_bc_100,
        "DenseNet-BC-100",
        "100 layers, growth rate 12, compression 0.5",
        _DENSENET,
    ),
}
"""Every network by its name on the command line."""


def build_model(
    name: str,
    *,
    num_classes: int,
    in_channels: int,
    image_size: int,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> nn.Module:
    """Build the network `name`, with freshly drawn weights and the normalisation inside.

    Args:
        name: a key of `MODELS`, or `package.module:factory` for a callable of one's own (see `load_factory`),
            called with `num_classes=num_classes` where its signature accepts that, otherwise without.
        num_classes: the number of logits, at least 2.
        in_channels: channels of the images, at least 1.
        image_size: pixels a side. Up to 64 the first layers keep the resolution; above, they are ImageNet's.
        mean, std: per channel or one number for all, in units of [0, 1]; where given, the result
            is `Sequential(normalize=Normalize(mean, std), network=...)`; the one left out is 0 or 1.

    Shapes: the model maps float [batch, in_channels, image_size, image_size] in [0, 1] to logits
    [batch, num_classes].

    Raises:
        ValueError: an unknown name, a factory that cannot be imported or called or returns no `nn.Module`,
            images too small for the network, or a mean or std of the wrong length or range.

    >>> import torch
    >>> model = build_model("digits-net", num_classes=10, in_channels=1, image_size=8, mean=[0.3], std=[0.4])
    >>> model(torch.rand(2, 1, 8, 8)).shape
    torch.Size([2, 10])
    """
    for field, value, least in (
        ("num_classes", num_classes, 2),
        ("in_channels", in_channels, 1),
        ("image_size", image_size, 1),
    ):
        check_count(field, value, least=least)
    for field, values in (("mean", mean), ("std", std)):
        if values is not None and len(values) not in (1, in_channels):
            expected = "1 number" if in_channels == 1 else f"1 or {in_channels} numbers"
            raise ValueError(f"{field} must hold {expected} for {in_channels}-channel images, got {len(values)}")
    if name in MODELS:
        network = MODELS[name].factory(num_classes=num_classes, in_channels=in_channels, image_size=image_size)
    elif ":" in name:
        network = _call(name, load_factory(name), num_classes)
    else:
        near = difflib.get_close_matches(name.lower().replace("_", "-"), MODELS, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]}?" if near else f"the networks are {', '.join(MODELS)}"
        raise ValueError(f"no network is named {name!r}; {hint} (one of your own is written package.module:factory)")
    if mean is None and std is None:
        return network
    normalize = Normalize([0.0] if mean is None else mean, [1.0] if std is None else std)
    return nn.Sequential(OrderedDict(normalize=normalize, network=network))


def load_factory(path: str) -> Callable[..., Any]:
    """Import the callable that `package.module:factory` names.

    The current directory becomes importable, after everything installed, and stays so: a user's module may
    import its neighbours late. Importing runs that module's code.

    Args:
        path: `package.module:factory`.

    Raises:
        ValueError: not written as `package.module:factory`, no such module or attribute, a module that fails
            while it is imported, or something that is not callable or is itself a model.

    >>> load_factory("torch.nn:Linear")
    <class 'torch.nn.modules.linear.Linear'>
    """
    module_name, _, attribute = path.partition(":")
    if "/" in module_name or module_name.endswith(".py"):
        suggestion = module_name.removesuffix(".py").strip("./").replace("/", ".")
        raise ValueError(
            f"{path!r} names a file where a module is expected; write {suggestion}:{attribute or 'factory'} "
            f"and run from the folder that holds it"
        )
    if not all(part.isidentifier() for part in (*module_name.split("."), *attribute.split("."))):
        raise ValueError(f"{path!r} is not of the form package.module:factory; write for example my_model:make")
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    importlib.invalidate_caches()
    try:
        target: Any = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is not None and f"{module_name}.".startswith(f"{error.name}."):
            raise ValueError(
                f"no module named {error.name} is installed or lies in {os.getcwd()}; check the spelling of "
                f"{path!r}, or run from the folder that holds it"
            ) from error
        raise ValueError(f"module {module_name} imports {error.name}, which is not installed; install it") from error
    except (Exception, SystemExit) as error:
        raise ValueError(
            f"module {module_name} fails while it is imported, with {in_one_line(error)}; make "
            f"`python -c 'import {module_name}'` work first"
        ) from error
    origin = getattr(target, "__file__", None) or "built in"
    for part in attribute.split("."):
        if not hasattr(target, part):
            near = difflib.get_close_matches(part, [key for key in vars(target) if not key.startswith("_")], n=1)
            hint = f"did you mean {near[0]}?" if near else "check its spelling"
            raise ValueError(f"module {module_name} ({origin}) has no attribute {part!r}; {hint}")
        target = getattr(target, part)
    if isinstance(target, nn.Module) or not callable(target):
        raise ValueError(
            f"{path} is of type {type(target).__name__}, not a function or class that makes a model; "
            f"write a function that returns it"
        )
    factory: Callable[..., Any] = target
    return factory


def _call(path: str, factory: Callable[..., Any], num_classes: int) -> nn.Module:
    try:
        signature = inspect.signature(factory)
    except ValueError:  # some callables written in C show none
        arguments = {}
    else:
        parameters = signature.parameters.values()
        named = any(p.name == "num_classes" and p.kind is not p.POSITIONAL_ONLY for p in parameters)
        arguments = {"num_classes": num_classes} if named or any(p.kind is p.VAR_KEYWORD for p in parameters) else {}
        try:
            signature.bind(**arguments)
        except TypeError as error:
            bare = [p.replace(annotation=p.empty) for p in parameters]
            shown = signature.replace(parameters=bare, return_annotation=signature.empty)
            raise ValueError(
                f"{path}{shown} is called with {'num_classes only' if arguments else 'no argument'}, "
                f"but {error}; give its other parameters defaults"
            ) from error
    try:
        network = factory(**arguments)
    except (Exception, SystemExit) as error:
        given = f"with num_classes={num_classes}" if arguments else "without arguments"
        raise ValueError(f"{path} fails when it is called {given} ({in_one_line(error)}); fix it first") from error
    if not isinstance(network, nn.Module):
        raise ValueError(f"{path} returned {type(network).__name__}, not a torch.nn.Module; make it return the model")
    return network
