"""Accuracy of a model on clean and adversarial samples, one record an attack."""

import dataclasses
import hashlib
import platform
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

import surefoot
from surefoot.core.geometry import check_batch, l2_distance
from surefoot.core.gradients import crafting, plain_module
from surefoot.core.types import Attack
from surefoot.evaluation.records import Record, wilson_interval

Progress = Callable[[str, int, int], None]
"""Told `(what is running, samples done, samples in all)`."""


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Run with torch's global generators at `seed`, and put them back as they were after."""
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices=devices):
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
        self._handle = self.module.register_forward_hook(self._count)
        return self

    def __exit__(self, *exception: object) -> None:
        self._handle.remove()

    def _count(self, module: nn.Module, inputs: tuple[Tensor, ...], output: Any) -> None:
        samples = len(inputs[0])
        self.forwards += samples
        if isinstance(output, Tensor) and output.requires_grad:

            def count_backward(gradient: Tensor) -> None:
                self.backwards += samples

            output.register_hook(count_backward)  # type: ignore[no-untyped-call]


def weights_sha256(model: nn.Module) -> str:
    """The SHA-256 of a model's names, types, shapes and values, whatever file they came from."""
    digest = hashlib.sha256()
    for name, tensor in sorted(plain_module(model).state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def versions() -> dict[str, str]:
    """What the numbers of a record depend on."""
    return {"surefoot": surefoot.__version__, "torch": torch.__version__, "python": platform.python_version()}


def device_name(device: torch.device) -> str:
    """`cpu`, or the accelerator's own name."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def fields_of(attack: Any) -> dict[str, Any]:
    """An attack's settings as JSON values; a loss that is a function becomes its name."""

    def plain(value: Any) -> Any:
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            return {"name": type(value).__name__, **fields_of(value)}
        if callable(value):
            return getattr(value, "__name__", repr(value))
        return [plain(part) for part in value] if isinstance(value, tuple | list) else value

    if not dataclasses.is_dataclass(attack):
        return {}
    return {field.name: plain(getattr(attack, field.name)) for field in dataclasses.fields(attack)}


def predictions(model: nn.Module, inputs: Tensor) -> Tensor:
    """The class that `model`, in evaluation mode, gives each sample, `[batch]`."""
    with crafting(model) as frozen, torch.no_grad():
        return torch.as_tensor(frozen(inputs)).argmax(dim=1)


def accuracy(
    model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], attack: Attack | None = None, *, seed: int = 0
) -> float:
    """The share of samples that `model` classifies rightly, under `attack` where one is given.

    Args:
        model: any module; its mode, buffers and gradients are left as they are.
        batches: of inputs `[batch, channels, height, width]` in [0, 1] and labels `[batch]`, on the model's device.
        attack: None for clean accuracy.
        seed: of torch's global generators, which are put back after.

    Returns:
        A fraction in [0, 1].

    Raises:
        ValueError: there are no samples, or inputs outside [0, 1].

    Example:
        >>> net = nn.Linear(2, 2, bias=False)
        >>> _ = net.weight.data.copy_(torch.eye(2))
        >>> accuracy(net, [(torch.eye(2), torch.tensor([0, 1]))])
        1.0
    """
    right = total = 0
    with seeded(seed):
        for inputs, labels in batches:
            check_batch(inputs, labels)
            adv_inputs = attack(model, inputs, labels) if attack is not None else inputs
            right += int((predictions(model, adv_inputs) == labels).sum())
            total += len(labels)
    if total == 0:
        raise ValueError("there are no samples to measure an accuracy on.")
    return right / total


def evaluate(
    model: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    attacks: Sequence[Attack],
    *,
    last_iterate: bool = False,
    seed: int = 0,
    source: nn.Module | None = None,
    about: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
    on_record: Callable[[Record], None] | None = None,
) -> list[Record]:
    """Clean accuracy and accuracy under each attack, as records.

    By default an accuracy is the share of samples that survive: a sample that is misclassified to begin
    with is not attacked, and an iterative attack lets go of a sample once it is fooled. With
    `last_iterate` every sample is attacked to the last step and only that step counts, as in the paper.

    Args:
        model: any module; it is scored, and crafts where no `source` does.
        batches: of inputs `[batch, channels, height, width]` in [0, 1] and labels `[batch]`, on the model's
            device; read once an attack.
        attacks: run in turn, each from the same seed.
        last_iterate: count the last iterate of every sample, as the paper does.
        seed: of torch's global generators, which are put back after.
        source: crafts the samples in the black-box setting; then every attack runs to its last step.
        about: further fields of `Record`: recipe, seed, dataset, split, source, precision, commit.
        progress: told what runs and how far it is.
        on_record: given each record as soon as its attack is done.

    Returns:
        The clean record first, then one an attack, in order.

    Raises:
        ValueError: there are no samples, inputs outside [0, 1], or batches that can be read only once.

    Example:
        >>> from surefoot.attacks import FGSM
        >>> batches = [(torch.rand(8, 4), torch.randint(3, (8,)))]
        >>> clean, fgsm = evaluate(nn.Linear(4, 3), batches, [FGSM(eps=0.1)])
        >>> fgsm.attack, fgsm.robust_accuracy <= clean.clean_accuracy
        ('FGSM', True)
    """
    module = plain_module(model)
    known: dict[str, Any] = {
        "recipe": None,
        "seed": None,
        "dataset": None,
        "split": "test",
        "source": None if source is None else "model",
        "precision": "fp32",
        "commit": None,
        "weights_sha256": weights_sha256(model),
        "versions": versions(),
        **(about or {}),
    }
    with seeded(seed):  # a shuffling DataLoader draws from the global generator when it is read
        total = sum(len(labels) for _, labels in batches)
    if total == 0:
        raise ValueError("there are no samples to evaluate on.")
    records: list[Record] = []
    clean_right: list[Tensor] = []
    everybody = last_iterate or source is not None
    for attack in [None, *(attack if everybody else stopping_early(attack) for attack in attacks)]:
        name = "clean" if attack is None else type(attack).__name__
        started = time.perf_counter()
        survivors = fooled = done = 0
        length = 0.0
        with seeded(seed), PassCounter(module) as counter:
            for number, (inputs, labels) in enumerate(batches):
                if attack is None:
                    check_batch(inputs, labels)
                    clean_right.append(predictions(model, inputs) == labels)
                    survivors += int(clean_right[-1].sum())
                else:
                    rows = torch.ones_like(clean_right[number]) if everybody else clean_right[number]
                    if rows.any():
                        kept, targets = inputs[rows], labels[rows]
                        adv_inputs = attack(model if source is None else source, kept, targets)
                        right = predictions(model, adv_inputs) == targets
                        newly_fooled = ~right & clean_right[number][rows]
                        survivors += int(right.sum())
                        fooled += int(newly_fooled.sum())
                        length += float(l2_distance(adv_inputs, kept)[newly_fooled].sum())
                done += len(labels)
                if progress is not None:
                    progress(name, done, total)
        if done != total:
            raise ValueError(
                f"batches gave {total} samples at first and {done} the next time; they are read once an attack, "
                "so give a list or a DataLoader, not a generator."
            )
        records.append(
            Record(
                **known,
                num_examples=total,
                attack=None if attack is None else name,
                attack_fields=fields_of(attack),
                clean_accuracy=sum(int(right.sum()) for right in clean_right) / total,
                robust_accuracy=survivors / total,
                robust_interval=wilson_interval(survivors, total),
                mean_l2=length / fooled if fooled else None,
                seconds=time.perf_counter() - started,
                forwards=counter.forwards,
                backwards=counter.backwards,
                device=device_name(clean_right[0].device),
            )
        )
        if on_record is not None:
            on_record(records[-1])
    return records


def stopping_early(attack: Attack) -> Attack:
    """The same attack that lets go of a sample once it is fooled, where it can."""
    settings: Any = attack
    if dataclasses.is_dataclass(settings) and hasattr(settings, "stop_when_fooled"):
        settings = dataclasses.replace(settings, stop_when_fooled=True)  # type: ignore[type-var]
    return settings  # type: ignore[no-any-return]
