"""What a measurement rests on: counted passes, a seeded generator, a model's fingerprint."""

import hashlib
import pickle
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook

from surefoot.models.wrappers import inner_model, shapes_of


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Run with torch's global generators at `seed`, and put them back as they were after."""
    kind, devices = "cuda", range(torch.cuda.device_count() if torch.cuda.is_available() else 0)
    if torch.backends.mps.is_available():
        kind, devices = "mps", range(1)
    with torch.random.fork_rng(devices=devices, device_type=kind):
        torch.manual_seed(seed)
        yield


class PassCounter:
    """Counts the samples that go forward and backward through a module while it is entered.

    Example:
        >>> net = nn.Linear(2, 2)
        >>> with PassCounter(net) as counter:
        ...     net(torch.rand(3, 2)).sum().backward()
        >>> counter.forwards, counter.backwards
        (3, 3)
    """

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.forwards = 0
        self.backwards = 0

    def __enter__(self) -> "PassCounter":
        if isinstance(self.module, torch.jit.ScriptModule):  # refuses hooks of its own
            self._handle = register_module_forward_hook(self._count)
        else:
            self._handle = self.module.register_forward_hook(self._count)
        return self

    def __exit__(self, *exception: object) -> None:
        self._handle.remove()

    def _count(self, module: nn.Module, inputs: tuple[Tensor, ...], output: Any) -> None:
        if module is not self.module:
            return
        samples = len(inputs[0])
        self.forwards += samples
        if isinstance(output, Tensor) and output.requires_grad:

            def count_backward(gradient: Tensor) -> None:
                self.backwards += samples

            output.register_hook(count_backward)  # type: ignore[no-untyped-call]


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
