"""What a training goes on from: every tensor and line of it, in `state.ckpt`, and only under the same settings."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from surefoot.core.files import CheckpointError, load_tensors, locked, save_tensors
from surefoot.core.limits import plain_number
from surefoot.core.types import Attack, Objective
from surefoot.training.checkpoint import LOCK, SELECTED, STATE, check_fits
from surefoot.training.monitor import Guard
from surefoot.training.optimizers import KEPT, kept_for
from surefoot.training.settings import FitConfig, Phase

SAME_WEIGHTS = ("device", "devices", "capture", "on_masking", "monitor_every")  # but for rounding, and once it acted
HEALTHY = "healthy."  # before the names of the tensors to go back to


@dataclass(frozen=True)
class Best:
    """The selected epoch so far and its score; 0 before the first that may be."""

    epoch: int = 0
    score: float = -1.0


@dataclass(eq=False, repr=False)
class TrainingState:
    """A training at the end of an epoch: the live model and its optimizer, the lines so far, the best epoch."""

    module: nn.Module
    optimizer: Optimizer
    average: nn.Module | None = None
    guard: Guard | None = None
    metrics: list[dict[str, Any]] = field(default_factory=list)
    best: Best = field(default_factory=Best)

    def tensors(self) -> dict[str, Tensor]:
        """Every live tensor that training goes on from, one a name; the optimizer's are made where missing."""
        tensors = {f"model.{name}": tensor for name, tensor in self.module.state_dict().items()}
        for name, parameter in self.module.named_parameters():
            kept = kept_for(self.optimizer, parameter)
            tensors.update({f"{kind}.{name}": tensor for kind, tensor in kept.items()})
        if self.average is not None:
            tensors.update({f"average.{name}": tensor for name, tensor in self.average.state_dict().items()})
        return tensors

    def save(self, path: Path, settings: dict[str, Any]) -> None:
        """Write it all, and what it may go back to, atomically."""
        best_epoch, best_score = self.best.epoch, self.best.score
        about = {"settings": settings, "metrics": self.metrics, "best_epoch": best_epoch, "best_score": best_score}
        tensors = self.tensors()
        if self.guard is not None:
            about["healthy_step"] = self.guard.healthy_step
            tensors.update({f"{HEALTHY}{name}": tensor for name, tensor in self.guard.healthy.items()})
        save_tensors(path, tensors, about)

    def load(self, path: Path, steps: int, check: Callable[[Mapping[str, Any]], None]) -> None:
        """Put a saved one in its place; the model stays as it was where it is refused.

        Args:
            path: of the file.
            steps: of an epoch.
            check: given what the file says about itself.

        Raises:
            CheckpointError: a damaged or pickled file, weights alone, or another model; what `check` raises.
        """
        tensors, about = load_tensors(path)
        if not {"metrics", "best_epoch", "best_score"} <= about.keys():
            raise CheckpointError(f"{path} is not a training state; give the state.ckpt of a run.")
        wanted = self.tensors()
        healthy = {name: tensors.pop(name) for name in list(tensors) if name.startswith(HEALTHY)}
        check_fits(path, under("model.", tensors), under("model.", wanted))
        check(about)  # another optimizer, say, before what it keeps is missed
        check_fits(path, tensors, wanted)
        self.module.load_state_dict(under("model.", tensors))
        if self.average is not None:
            self.average.load_state_dict(under("average.", tensors))
        with torch.no_grad():
            for name, tensor in wanted.items():
                if name.partition(".")[0] in KEPT.values():
                    tensor.copy_(tensors[name])
        self.metrics = about["metrics"]
        self.best = Best(about["best_epoch"], about["best_score"])
        if self.guard is not None:
            done = len(self.metrics) * steps
            self.guard.resume(self.metrics, under(HEALTHY, healthy), about.get("healthy_step", 0), done)


def under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Those whose names begin so, without it."""
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def settings_of_training(
    fingerprint: str,
    config: FitConfig,
    selection: Attack | None,
    epochs: Sequence[Phase],
    repair: Objective | None = None,
    metrics: Sequence[Mapping[str, Any]] = (),
) -> dict[str, Any]:
    """What the weights after these epochs depend on, as far as it is numbers and words, one a name.

    Args:
        fingerprint: of the data.
        config, selection, repair: as `fit` is given them.
        epochs: the phase of each.
        metrics: the line of each, which says what was done about masking.

    Example:
        >>> from surefoot.objectives import FgsmAT
        >>> phases = [Phase(FgsmAT(eps=0.1), epochs=1)]
        >>> found = settings_of_training("3f2a", FitConfig(batch_size=64), None, phases)
        >>> found["batch_size"], found["objective of epoch 1"], found["objective of epoch 1, eps"]
        (64, 'FgsmAT', 0.1)
    """
    found = {name: value for name, value in dataclasses.asdict(config).items() if name not in SAME_WEIGHTS}
    found |= {"fingerprint of the data": fingerprint} | named("selection", selection)
    acted = {(line.get("masking") or {}).get("action") for line in metrics} & {"stop", "repair"}
    if acted:  # what it went on with, or that it did not
        found["on_masking"] = config.on_masking
        found |= named("repair", repair if acted == {"repair"} else None)
    for number, phase in enumerate(epochs, start=1):
        found |= named(f"objective of epoch {number}", phase.objective)
        found[f"learning rate of epoch {number}"] = phase.learning_rate
    return found


def named(name: str, chosen: Any) -> dict[str, Any]:
    """The class of an attack or an objective and its numbers and words, each under a name of its own."""
    if dataclasses.is_dataclass(chosen):
        fields = {field.name: getattr(chosen, field.name) for field in dataclasses.fields(chosen)}
    else:
        fields = dict(getattr(chosen, "__dict__", {}))
    values = {f"{name}, {field}": plain_number(value) for field, value in fields.items()}
    return {name: None if chosen is None else type(chosen).__name__} | {
        key: value for key, value in values.items() if isinstance(value, float | int | str | None)
    }


def check_same_training(
    run: Path,
    settings: Callable[[Sequence[Phase], Sequence[Mapping[str, Any]]], dict[str, Any]],
    schedule: Sequence[Phase],
    about: Mapping[str, Any],
) -> None:
    """Refuse to go on with a training of more epochs, by other settings than it was begun with, or without weights.

    Args:
        run: its folder.
        settings: of a training of these epochs and lines, as `settings_of_training` gives them.
        schedule: the phase of each epoch.
        about: what its state says about itself.

    Raises:
        CheckpointError: naming what differs, or what is damaged.
    """
    path, epochs = run / STATE, len(about["metrics"])
    if epochs > len(schedule):
        raise CheckpointError(
            f"{path} is of another run: it has {epochs} epochs, and the phases {len(schedule)}; give the phases that "
            "it was trained by, or another run_dir."
        )
    before, now = about.get("settings", {}), settings(schedule[:epochs], about["metrics"])
    both = [name for name in before if name in now]  # an older or newer version may know others, or none
    changed = [f"{name} was {before[name]} and is {now[name]}" for name in both if before[name] != now[name]]
    if changed:
        raise CheckpointError(
            f"{path} was trained with other settings: {'; '.join(changed)}. Go on with the same ones, or give another "
            "run_dir."
        )
    load_tensors(run / SELECTED)  # what was selected so far is needed at the end: it fails now, not then


def check_place(run: Path | None, resume: bool) -> None:
    """Refuse to write over a training that nobody asked to go on with, and to go on from nowhere.

    Raises:
        ValueError: with what to do.
    """
    if run is None:
        if resume:
            raise ValueError("resume is True, but there is no run_dir to go on from; give the one of the training.")
        return
    there = [name for name in (STATE, SELECTED) if (run / name).exists()]
    if there and not resume:
        raise ValueError(
            f"{run} holds a training already ({', '.join(there)}), which is never overwritten; go on with it by "
            "resume=True, or give another folder."
        )


@contextmanager
def only_training(path: Path) -> Iterator[None]:
    """Keep a second training out of the folder; the one that is at work may enter again.

    Raises:
        ValueError: there is another at work.
    """
    with locked(path / LOCK) as alone:
        if not alone:
            raise ValueError(f"another training is at work in {path}; wait for it, or give another folder.")
        try:
            yield
        finally:
            with suppress(OSError):  # held until it is gone; where that cannot be, an idle lock is left
                (path / LOCK).unlink()
