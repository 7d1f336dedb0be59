"""Identifies a model and an evaluation across processes, so that it goes on from its own finished batches alone."""

import dataclasses
import hashlib
import pickle
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from surefoot.core.gradients import crafting, input_gradient, plain_module
from surefoot.core.losses import full_precision
from surefoot.core.seeding import seeded
from surefoot.evaluation.precision import exact_float32
from surefoot.models.wrappers import inner_model, shapes_of

LOOKED_AT = 8
"""Images by whose answers a model is told from others."""


class Nameless(Exception):
    """Something by which another process could not find the same thing again."""


def settings_known_by(value: Any) -> Any:
    """An attack, or one of its settings, as JSON that no other has.

    >>> from surefoot.attacks import FGSM
    >>> settings_known_by(FGSM(0.1))
    ['surefoot.attacks.gradient_sign.FGSM', {'eps': 0.1, 'loss': 'surefoot.core.losses.cross_entropy'}]

    An attack of one's own is known by its file too, which may be edited.

    Raises:
        Nameless: it is or holds what cannot be imported, as a lambda, or what is neither a number nor a text.
    """
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, tuple | list):
        return [settings_known_by(part) for part in value]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {field.name: settings_known_by(getattr(value, field.name)) for field in dataclasses.fields(value)}
        return [name_and_code(type(value)), fields]
    return name_and_code(value)


def name_and_code(value: Any) -> Any:
    """The importable name of a class or a function, with a hash of the file that it is in where that is not ours."""
    name = importable_name(value)
    module = sys.modules[value.__module__]
    file = getattr(module, "__file__", None)
    if file is None or module.__name__.partition(".")[0] in ("surefoot", "torch"):
        return name
    return [name, hashlib.sha256(Path(file).read_bytes()).hexdigest()[:16]]


def importable_name(value: Any) -> str:
    """`package.module.name` of a class or a function; another script's `__main__` has others of the same name."""
    module, name = getattr(value, "__module__", None), getattr(value, "__qualname__", None)
    found = sys.modules.get(module) if isinstance(module, str) and module != "__main__" else None
    for part in str(name).split("."):
        found = getattr(found, part, None)
    if found is None or found is not value:
        raise Nameless
    return f"{module}.{name}"


def model_known_by(model: nn.Module, inputs: Tensor, seed: int) -> dict[str, Any]:
    """A model but for its weights, as JSON: its modules with their settings, wrappers included, and how it answers.

    Args:
        inputs: some of the images that it is evaluated on.
        seed: of what it draws.
    """
    parts = [[name, *module_known_by(part)] for name, part in plain_module(model).named_modules()]
    first, again = (answers(model, inputs[:LOOKED_AT], seed) for _ in range(2))
    # one that draws from a generator of its own is known by the rest alone
    return {"modules": parts, "answers": first if first == again else None}


def module_known_by(part: nn.Module) -> list[Any]:
    """A module's class, what it prints of itself, and its settings that are numbers or texts."""
    printed = re.sub(" at 0x[0-9a-f]+", "", part.extra_repr())
    settings = {name: value for name, value in vars(part).items() if isinstance(value, bool | int | float | str)}
    settings.pop("training", None)  # an evaluation is in evaluation mode
    return [type(part).__module__, type(part).__qualname__, printed, settings]


def answers(model: nn.Module, inputs: Tensor, seed: int) -> list[list[str]] | None:
    """A number for each image's logits and one for its gradient, on the images and between them and noise.

    Three digits: rounding seldom changes them. None where the model fails; the evaluation itself says how.
    """
    with seeded(seed), exact_float32(inputs.device):
        try:
            return [numbers(model, images) for images in (inputs.clone(), inputs.lerp(torch.rand_like(inputs), 0.1))]
        except Exception:
            return None


def numbers(model: nn.Module, inputs: Tensor) -> list[str]:
    """The products of each image's logits, in a logarithm, and of their gradient with random directions."""
    away = torch.randn_like(inputs)

    def product(logits: Tensor) -> Tensor:
        logits = full_precision(logits).flatten(1).asinh()  # a masked class's -1e9 would drown the others
        direction = torch.randn(logits.shape[1], generator=torch.Generator().manual_seed(0), device="cpu")
        return logits @ direction.to(logits)

    with crafting(model) as frozen:
        try:
            gradient, logits = input_gradient(frozen, inputs, product)
            along = (full_precision(gradient) * away).flatten(1).sum(dim=1)
        except (RuntimeError, ValueError):  # without a gradient: only some attacks need one
            with torch.no_grad():
                logits = frozen(inputs)
            along = logits.new_zeros(0)
        with torch.no_grad():
            return [f"{value:.2e}" for value in torch.cat([product(logits), along]).tolist()]


def weights_sha256(model: nn.Module) -> str:
    """The SHA-256 of a model's names, types, shapes and values, whatever file they came from and it is wrapped in.

    What a state_dict holds beside tensors counts too: packed quantised weights, a module's extra state; of frozen
    TorchScript, which has no state_dict any more, the constants that its weights became.

    Raises:
        ValueError: the state_dict holds something that cannot be pickled.
    """
    digest = hashlib.sha256()
    model = inner_model(model)
    for name, value in sorted(model.state_dict().items()):
        add_to(digest, name, value)
    for name, part in model.named_modules():
        if isinstance(part, torch.jit.ScriptModule) and not hasattr(part, "training"):  # frozen
            graph: Any = part.graph
            for number, node in enumerate(graph.findAllNodes("prim::Constant")):
                if isinstance(value := node.output().toIValue(), Tensor):
                    add_to(digest, f"{name} constant {number}", value)
    return digest.hexdigest()


def add_to(digest: "hashlib._Hash", name: str, value: Any) -> None:
    """Hash an entry of a state_dict."""
    if isinstance(value, Tensor) and value.is_quantized:
        add_to(digest, name, (value.int_repr(), value.dequantize()))  # the second has its scale
    elif isinstance(value, Tensor):
        digest.update(f"{name} {value.dtype} {list(value.shape)}".encode())
        if not value.is_meta:  # the plan of an ensemble by torch.func: its weights lie elsewhere
            digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    elif isinstance(value, Mapping | tuple | list):
        items = value.items() if isinstance(value, Mapping) else enumerate(value)
        for key, part in items:
            add_to(digest, f"{name} {key!r}", part)
    else:
        try:
            digest.update(f"{name} {type(value).__qualname__}".encode() + pickle.dumps(value, protocol=4))
        except Exception as error:
            raise ValueError(
                f"the model's state_dict holds {name}, {shapes_of(value)}, by which its weights cannot be told from "
                "others; let its get_extra_state return tensors, numbers and strings."
            ) from error
