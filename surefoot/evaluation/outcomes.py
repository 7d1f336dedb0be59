"""What an attack did to each sample of a batch, kept on disk so that an interrupted evaluation can go on."""

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from surefoot.core.files import CheckpointError, load_tensors, remove_abandoned, save_tensors

NAME_LENGTH = 24  # hexadecimal digits of a folder's name
ABANDONED_SECONDS = 30 * 24 * 3600


@dataclass(frozen=True)
class Cost:
    """Seconds, and samples through the networks, forward and backward."""

    seconds: float = 0.0
    forwards: int = 0
    backwards: int = 0

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(self.seconds + other.seconds, self.forwards + other.forwards, self.backwards + other.backwards)


@dataclass
class Outcome:
    """One model's samples of one batch, after what was run so far.

    - `robust [batch]` bool: not fooled so far.
    - `prediction [batch]` int64: the class given to the sample as it was left.
    - `l2 [batch]` float32: length of the perturbation that fooled; NaN where none did, or where the sample was
      wrong to begin with.
    - `cost`: of the last stage alone: crafting, which several models may share, and this model's scoring.
    - `adv_inputs [batch, ...]`: the sample as it was left, in the host's memory; None where samples are not kept.
    """

    robust: Tensor
    prediction: Tensor
    l2: Tensor
    cost: Cost
    adv_inputs: Tensor | None = None

    def tensors(self) -> dict[str, Tensor]:
        """Its tensors by name."""
        named = {"robust": self.robust, "prediction": self.prediction, "l2": self.l2, "adv_inputs": self.adv_inputs}
        return {name: tensor for name, tensor in named.items() if tensor is not None}


class Store:
    """Finished batches of a running evaluation: a folder for what was run, a file a batch.

    A file's name holds a hash of the batch's own pixels and labels, so other data are never taken for these.

    Args:
        root: the folder of all evaluations; None keeps nothing. What nobody went on with for a month is removed.
        on_note: told in a sentence that batches cannot be kept there.
    """

    def __init__(self, root: Path | None, on_note: Callable[[str], None] | None = None) -> None:
        self.root = root
        self.on_note = on_note
        self.used: set[Path] = set()
        if root is not None:
            written = (".safetensors", ".tmp")  # by `save`, or by one that was killed
            remove_abandoned(root, "[0-9a-f]" * NAME_LENGTH, ABANDONED_SECONDS, only=written)

    def file(self, what: Mapping[str, Any], number: int, inputs: Tensor, labels: Tensor) -> Path | None:
        """Where this batch of this piece of work belongs."""
        if self.root is None:
            return None
        folder = self.root / hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:NAME_LENGTH]
        self.used.add(folder)
        digest = hashlib.sha256(str((inputs.dtype, inputs.shape)).encode())
        for tensor in (inputs, labels):
            digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().data)
        return folder / f"{number}-{digest.hexdigest()[:24]}.safetensors"

    def load(self, file: Path | None, device: torch.device) -> list[Outcome] | None:
        """What was kept, one outcome a model; None where nothing usable was."""
        if file is None or not file.exists():
            return None
        try:
            tensors, about = load_tensors(file)
            return [
                Outcome(
                    **{
                        name: tensors[f"{index}.{name}"].to("cpu" if name == "adv_inputs" else device)
                        for name in each["names"]
                    },
                    cost=Cost(**each["cost"]),
                )
                for index, each in enumerate(about["outcomes"])
            ]
        except (CheckpointError, KeyError, TypeError):  # cut short, or of another version: the batch is run again
            return None

    def save(self, file: Path | None, outcomes: Sequence[Outcome]) -> None:
        """Keep a finished batch, atomically; where that fails, neither it nor those after it."""
        if file is None:
            return
        named = [outcome.tensors() for outcome in outcomes]
        tensors = {f"{index}.{name}": tensor for index, each in enumerate(named) for name, tensor in each.items()}
        about = [{"names": list(outcome.tensors()), "cost": vars(outcome.cost)} for outcome in outcomes]
        try:
            save_tensors(file, tensors, {"outcomes": about})
        except OSError as error:  # a full disk, or a folder to read alone: no reason to end an evaluation
            self.root = None
            if self.on_note is not None:
                self.on_note(f"From here on finished batches are not kept ({error}); a stop costs them.")

    def clear(self) -> None:
        """Forget what this evaluation kept; it is done."""
        for folder in self.used:
            shutil.rmtree(folder, ignore_errors=True)
