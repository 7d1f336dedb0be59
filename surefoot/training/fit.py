"""The training loop: phases of objectives, the best and the last epoch kept, resumable to the bit."""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from surefoot.core.devices import convolves_images, image_format
from surefoot.core.files import as_json, write_text
from surefoot.core.gradients import plain_module
from surefoot.core.seeding import seeded
from surefoot.core.types import Attack, Objective, check_attacks, check_objective
from surefoot.data import Batches, Dataset, images_at_once
from surefoot.evaluation import accuracy
from surefoot.evaluation.stages import predictions
from surefoot.evaluation.statistics import binomial_tail, right_by_chance
from surefoot.training.averaging import MovingAverage
from surefoot.training.captured import CapturedStep, can_capture
from surefoot.training.checkpoint import LAST, METRICS, SELECTED, STATE, load_weights, save_weights
from surefoot.training.machines import make_fabric
from surefoot.training.monitor import Guard, Monitor
from surefoot.training.optimizers import make_optimizer
from surefoot.training.schedules import SCHEDULES
from surefoot.training.settings import FitConfig, Phase
from surefoot.training.state import (
    Best,
    TrainingState,
    check_place,
    check_same_training,
    only_training,
    settings_of_training,
)
from surefoot.training.step import EagerStep, LossHistory, Step
from surefoot.training.trial import check_made

REFRESHING = 2048  # training images that measure the batch-norm statistics of averaged weights
CHECK_EVERY = 50  # steps between looks at the loss
CHANCE = 0.05  # of so many right answers among guesses, below which something was learned
LITTLE = 0.05  # of a training's steps, weighed by their rates, below which a repair mends little
FAR = 10  # times the loss of a guess, which a training that learns is below on the mean of an epoch


class TrainingDiverged(RuntimeError):
    """A loss or a weight that is not finite: where it happened and what can be gone back to."""


@dataclass(frozen=True)
class FitResult:
    """What came out: the epoch that was selected (from 1), its score, and a line an epoch.

    The score is its accuracy under the selecting attack, else its clean accuracy, on the validation images; without
    those the last epoch is selected, and its number is the score.
    """

    best_epoch: int
    best_score: float
    metrics: list[dict[str, Any]]
    seconds: float


@dataclass(frozen=True)
class StepReport:
    """How far a run is, given every few steps to `on_step`."""

    epoch: int
    epochs: int
    step: int
    steps: int
    loss: float
    classification: float
    regularizer: float
    images_per_second: float
    seconds_left: float


def fit(
    model: nn.Module,
    dataset: Dataset,
    phases: Sequence[Phase],
    config: FitConfig,
    *,
    selection: Attack | None = None,
    run_dir: str | Path | None = None,
    resume: bool = False,
    fabric: Fabric | None = None,
    monitor: Monitor | None = None,
    repair: Objective | None = None,
    on_step: Callable[[StepReport], None] | None = None,
    on_epoch: Callable[[dict[str, Any]], None] | None = None,
    on_note: Callable[[str], None] | None = None,
) -> FitResult:
    """Minimise each phase's objective in turn; leave the selected epoch's weights in `model`, in training mode.

    It draws by `config.seed` alone and puts torch's generators back after, so that models made in a loop around it
    stay different.

    After each epoch the accuracy on the validation split under `selection` is measured; the epoch of the last phase
    that scores highest is selected, of equal ones that with the highest clean accuracy, and of these the first (the
    paper's authors' code: under I-FGSM with 3 steps). With a `run_dir`,
    `model.safetensors` holds the selected weights, `last.safetensors` the last ones, `metrics.jsonl` a line an epoch
    and `state.ckpt` all that is needed to go on; each is written atomically after every epoch.

    Args:
        model: any module; trained in place, all of it in training mode: the statistics of a batch-norm whose weights
            are frozen move too, unless the module's own `train` keeps it in evaluation mode.
        dataset: `train` is fitted, `validation` selects the epoch; where it is empty, the last is selected.
        phases: at least one.
        config: how to train.
        selection: the attack that selects the epoch; None selects by clean accuracy.
        run_dir: where the run's files go; None keeps everything in memory.
        resume: go on from `run_dir`'s `state.ckpt` where there is one, to the same weights as without a break
            (bit-identical on a CPU with as many threads; where phases were added, their schedule holds from there on).
            Without it a training that is there is refused, never
            overwritten.
        fabric: a launched one to use instead of a new one of `config`'s device, devices and precision.
        monitor: looks at the model as `config.on_masking` says, every `config.monitor_every` steps where that is given;
            None does not look, nor does any while the objective's own eps is below the monitor's, at which the model is
            weak and not yet masked. Its looks are in the lines.
        repair: what is minimised after going back, where `config.on_masking` is `repair`.
        on_step: told the progress every few steps.
        on_epoch: told the line of `metrics.jsonl` after each epoch.
        on_note: told in a sentence what a user should know: what the monitor saw and what was done about it, that a
            step cannot be captured, that the training diverged or that the selected epoch guesses.

    Raises:
        ValueError: a bad setting, no training images, a label beyond the classes of the data set or the model, no
            phases, no weight to train, no monitor or repair where `on_masking` needs one, a training in `run_dir`
            already where `resume` was not asked for, or at work there, or no `run_dir` where it was.
        TypeError: an argument of another kind, or an objective that returns no `LossTerms`.
        CheckpointError: a state that is damaged, pickled, of another run or of other settings; selected weights that
            are gone or damaged.
        TrainingDiverged: a loss or a weight that is not finite, with where and what can be gone back to; without a
            `run_dir` the model has the best weights so far.

    Example:
        >>> from surefoot.data import load
        >>> from surefoot.models import build_model
        >>> from surefoot.objectives import SatR3
        >>> digits = load("digits")
        >>> net = build_model("digits-net", num_classes=10, in_channels=1, image_size=8)
        >>> phase = Phase(SatR3(eps=0.3, eps_low=0.1, lam=1.0, tau=0.4), epochs=1)
        >>> fit(net, digits, [phase], FitConfig(device="cpu")).best_epoch
        1
    """
    check_arguments(model, dataset, phases, config, selection, monitor, repair)
    run = None if run_dir is None else Path(run_dir)
    check_place(run, resume)
    fabric = fabric or make_fabric(config)
    writes = fabric.global_rank == 0
    told = Told(on_step, on_epoch, on_note) if writes else Told()
    with (
        nullcontext() if run is None or not writes else only_training(run),
        torch.enable_grad(),
        seeded(config.seed),
        left_in_order(plain_module(model)),
        looking_as(config, monitor),
    ):
        training = _Training(model, dataset, phases, config, selection, run, fabric, monitor, repair, told)
        if resume:
            training.resume()
        return training()


@dataclass(frozen=True)
class Told:
    """Who is told what while a training runs."""

    on_step: Callable[[StepReport], None] | None = None
    on_epoch: Callable[[dict[str, Any]], None] | None = None
    on_note: Callable[[str], None] | None = None


@contextmanager
def left_in_order(module: nn.Module) -> Iterator[None]:
    """Give the weights the memory layout back that they had, and leave no gradient behind."""
    tensors = [*module.parameters(), *module.buffers()]
    contiguous = [tensor for tensor in tensors if tensor.dim() == 4 and tensor.is_contiguous()]
    try:
        yield
    finally:
        for parameter in module.parameters():
            parameter.grad = None
        for tensor in contiguous:
            tensor.data = tensor.data.contiguous()


@contextmanager
def looking_as(config: FitConfig, monitor: Monitor | None) -> Iterator[None]:
    """The monitor looks as often as the settings say, and by no graphs where the training's steps are to be none."""
    if monitor is None:
        yield
        return
    before = monitor.every, monitor.capture
    monitor.every = config.monitor_every or monitor.every
    monitor.capture = "off" if config.capture == "off" else monitor.capture
    try:
        yield
    finally:
        monitor.every, monitor.capture = before


class _Training:
    """What `fit` does once its arguments are good: it is called, and goes through the epochs that are left."""

    def __init__(
        self,
        model: nn.Module,
        dataset: Dataset,
        phases: Sequence[Phase],
        config: FitConfig,
        selection: Attack | None,
        run: Path | None,
        fabric: Fabric,
        monitor: Monitor | None,
        repair: Objective | None,
        told: Told,
    ) -> None:
        self.dataset, self.config, self.selection, self.run, self.repair = dataset, config, selection, run, repair
        self.fabric, self.told = fabric, told
        self.schedule = [phase for phase in phases for _ in range(phase.epochs)]
        self.module = module = plain_module(model)
        device, world = fabric.device, fabric.world_size

        channels_last = convolves_images(model)
        if channels_last:
            model.to(memory_format=image_format(device))  # type: ignore[call-overload]
        optimizer = make_optimizer(module, config, device)
        wrapped, wrapped_optimizer = fabric.setup(module, optimizer)
        self.step = make_step(EagerStep(fabric, wrapped, wrapped_optimizer, config.max_grad_norm), config, told.on_note)
        self.average = MovingAverage(module, config.ema_decay) if config.ema_decay else None
        self.judged = module if self.average is None else self.average.module
        self.batches = Batches(
            dataset.train,
            config.batch_size,
            device=device,
            shuffle=True,
            seed=config.seed,
            augment=config.augment,
            drop_last=is_too_small(len(dataset.train.labels), config.batch_size, world, module),
            channels_last=channels_last,
        )
        at_once = images_at_once(device)
        self.validation = Batches(dataset.validation, at_once, device=device, channels_last=channels_last)
        self.state = TrainingState(module, optimizer, self.average)
        self.state.tensors()  # every weight's momentum from the first step on, also of layers that it happens to skip
        if monitor is not None and config.on_masking != "off":
            tensors, tell = self.state.tensors, told.on_note
            self.state.guard = Guard(monitor, config.on_masking, repair, tensors, tell, fabric.broadcast)
        self.guard = self.state.guard
        self.best_weights: dict[str, Tensor] = {}  # where there is no folder for them

    def resume(self) -> None:
        """Go on from the folder's state where there is one."""
        if self.run is not None and (self.run / STATE).exists():
            check = partial(check_same_training, self.run, self.settings, self.schedule)
            self.state.load(self.run / STATE, len(self.batches), check)

    def __call__(self) -> FitResult:
        with self.fabric.autocast():
            check_answers(self.module, self.dataset, self.fabric.device, self.config.seed)
        started = time.perf_counter()
        for epoch in range(len(self.state.metrics) + 1, len(self.schedule) + 1):
            if self.guard is not None and self.guard.did("stop"):
                break
            try:
                self.epoch(epoch)
            except TrainingDiverged:
                if self.best_weights:
                    self.module.load_state_dict(self.best_weights)
                raise
        self.fabric.barrier()
        if self.run is not None:
            load_weights(self.module, self.run / SELECTED)
        else:
            self.module.load_state_dict(self.best_weights)
        self.tell_a_guess()
        best = self.state.best
        return FitResult(best.epoch, best.score, self.state.metrics, time.perf_counter() - started)

    def tell_a_guess(self) -> None:
        """Say so where the selected epoch guesses; one that diverged, or was stopped, was told already."""
        labels, lines = self.dataset.validation.labels, {line["epoch"]: line for line in self.state.metrics}
        line = lines.get(self.state.best.epoch)
        if self.told.on_note is None or line is None or len(labels) == 0:
            return
        stopped = self.guard is not None and self.guard.did("stop")
        if stopped or has_diverged(line, self.dataset.num_classes) or not may_guess(line, labels):
            return
        with self.fabric.autocast():
            given = torch.cat([predictions(self.module, inputs).cpu() for inputs, _ in self.validation])
        if guesses(given, labels):
            better = max(lines.values(), key=lambda line: float(line["validation_clean_accuracy"]))
            found = (
                f"nothing was learned. {remedy(self.config, or_longer=True)}"
                if may_guess(better, labels)
                else f"epoch {better['epoch']} is right on {percent(better)}, but withstands the attack that selects "
                "no better than a guess. Select by clean accuracy (selection=None, --selection-steps 0)."
            )
            self.told.on_note(
                f"epoch {line['epoch']}, which is selected, is right on {percent(line)} of the validation images, as "
                f"often as a guess: {found}"
            )

    def settings(self, epochs: Sequence[Phase], metrics: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """What the weights after these epochs depend on, of which these are the lines."""
        fingerprint = self.dataset.fingerprint()
        return settings_of_training(fingerprint, self.config, self.selection, epochs, self.repair, metrics)

    def rate(self, epoch: int, number: int) -> float:
        """The learning rate of an epoch's step; both count from 1."""
        base = self.schedule[epoch - 1].learning_rate or self.config.learning_rate
        done = (epoch - 1 + (number - 1) / len(self.batches)) / len(self.schedule)
        return base * SCHEDULES[self.config.schedule](done)

    def objective(self, epoch: int) -> Objective:
        """What an epoch minimises: what was planned, or the repair from where the monitor went back."""
        planned = self.schedule[epoch - 1].objective
        return planned if self.guard is None else self.guard.objective(planned)

    def epoch(self, epoch: int) -> None:
        """Train for an epoch, judge what came out, keep it, and tell."""
        started = time.perf_counter()
        if epoch > 1 and self.schedule[epoch - 1] is not self.schedule[epoch - 2]:
            self.state.best = Best()  # an epoch before it has not been through all phases
        history = self.train(epoch)
        self.refuse_spoiled(epoch)
        train_seconds = time.perf_counter() - started
        clean, robust = self.judge(epoch)
        score = next((each for each in (robust, clean) if each is not None), float(epoch))
        selected = self.is_better(score, clean)
        loss, classification, regularizer = history.arrived(wait=True).mean(dim=0).tolist()
        images = min(history.added * self.config.batch_size, len(self.dataset.train.labels))
        line = {
            "epoch": epoch,
            "objective": type(self.objective(epoch)).__name__,
            "learning_rate": self.rate(epoch, history.added),
            "loss": loss,
            "classification": classification,
            "regularizer": regularizer,
            "validation_clean_accuracy": clean,
            "validation_robust_accuracy": robust,
            "images_per_second": images / train_seconds,
            "train_seconds": train_seconds,
            "seconds": time.perf_counter() - started,
            "selected": selected,
        }
        if self.guard is not None:
            line.update(self.guard.lines(since=(epoch - 1) * len(self.batches)))
        self.state.metrics.append(line)
        if self.told.on_note is not None and has_diverged(line, self.dataset.num_classes):
            self.told.on_note(
                f"epoch {epoch} has a mean classification loss of {classification:.4g}, where guessing one of "
                f"{self.dataset.num_classes} classes has {math.log(self.dataset.num_classes):.3g}: the training has "
                f"diverged. {remedy(self.config)}"
            )
        if selected:
            self.state.best = Best(epoch, score)
        self.keep(epoch, selected)
        if self.told.on_epoch is not None:
            self.told.on_epoch(line)

    def is_better(self, score: float, clean: float | None) -> bool:
        """Is an epoch to be selected instead of the best so far? Of equal scores by its clean accuracy."""
        best = self.state.best
        if score != best.score or clean is None:
            return score > best.score
        return clean > float(self.state.metrics[best.epoch - 1]["validation_clean_accuracy"])

    def train(self, epoch: int) -> LossHistory:
        """The epoch's steps, up to where the monitor stops; gives their losses."""
        fabric, rank, world = self.fabric, self.fabric.global_rank, self.fabric.world_size
        torch.manual_seed((self.config.seed * 1_000_003 + epoch) * 1_009 + rank)  # resuming needs no generator's state
        history, started, checked = LossHistory(len(self.batches), fabric.device), time.perf_counter(), 0
        for number, (inputs, labels) in enumerate(self.batches.epoch(epoch), start=1):
            objective = self.objective(epoch)
            history.add(self.step(objective, inputs[rank::world], labels[rank::world], self.rate(epoch, number)))
            if self.average is not None:
                self.average.update(self.module)
            last = number == len(self.batches)
            if last or number % CHECK_EVERY == 0:
                losses = history.arrived(wait=last)
                back = f"{self.way_back(epoch)}. {remedy(self.config)}"
                refuse_non_finite(losses[checked:], epoch, checked, partial(self.rate, epoch), back)
                if self.told.on_step is not None and len(losses) > checked:
                    self.told.on_step(self.report(epoch, number, losses, checked, time.perf_counter() - started))
                checked = len(losses)
            if self.guard is not None and is_watched(objective, self.guard.monitor.eps):
                with fabric.autocast():
                    put_back = self.guard(self.module, (epoch - 1) * len(self.batches) + number)
                if put_back:
                    self.state.best = Best()  # an epoch before it may have been masked already
                if put_back and self.guard.did("stop"):
                    break
                if put_back:
                    self.tell_what_is_left(epoch, number)
        return history

    def tell_what_is_left(self, epoch: int, number: int) -> None:
        """Say so where the steps and rates that are left after an epoch's step are too small to repair with."""
        steps = range(1, len(self.batches) + 1)
        rates = [self.rate(each, step) for each in range(1, len(self.schedule) + 1) for step in steps]
        left = rates[(epoch - 1) * len(steps) + number :]
        if self.told.on_note is not None and sum(left) < LITTLE * sum(rates):
            at_most = f", at learning rates of at most {max(left):.2g}" if left else ""
            self.told.on_note(
                f"{len(left)} of {len(rates)} steps are left to repair it with{at_most}: they will mend little. Train "
                f"again with {type(self.repair).__name__} from the start, or for more epochs."
            )

    def report(self, epoch: int, number: int, losses: Tensor, checked: int, seconds: float) -> StepReport:
        """How far the training is after an epoch's step, and the mean of the losses that are new."""
        epochs, steps, size = len(self.schedule), len(self.batches), self.config.batch_size
        speed = len(losses) * size / seconds
        left = steps * (epochs - epoch + 1) - number
        loss, classification, regularizer = losses[checked:].mean(dim=0).tolist()
        return StepReport(epoch, epochs, number, steps, loss, classification, regularizer, speed, left * size / speed)

    def judge(self, epoch: int) -> tuple[float | None, float | None]:
        """The accuracy on the validation images, clean and under the selecting attack; None where there is none."""
        if self.average is not None:
            first = islice(self.batches.epoch(epoch), math.ceil(REFRESHING / self.config.batch_size))
            with self.fabric.autocast():
                self.average.refresh(self.module, (inputs for inputs, _ in first))
        if len(self.dataset.validation.labels) == 0:
            return None, None
        with self.fabric.autocast():
            clean = accuracy(self.judged, self.validation)
            return clean, None if self.selection is None else accuracy(self.judged, self.validation, self.selection)

    def refuse_spoiled(self, epoch: int) -> None:
        """Keep no weights that an epoch's last update spoiled, whose loss nobody saw.

        Raises:
            TrainingDiverged: one of them is NaN or infinite.
        """
        if not torch.stack([each.detach().isfinite().all() for each in self.module.parameters()]).all():
            last = len(self.batches)
            raise TrainingDiverged(
                f"weights are NaN or infinite after epoch {epoch}, at learning rate {self.rate(epoch, last):.4g}; "
                f"{self.way_back(epoch)}. {remedy(self.config)}"
            )

    def way_back(self, epoch: int) -> str:
        """What is left of a training that diverged in this epoch."""
        if self.run is not None and epoch > 1:
            return f"the last good checkpoint is {self.run / STATE}, after epoch {epoch - 1}"
        if self.best_weights:
            return f"the model has the weights of epoch {self.state.best.epoch}, the best so far"
        return "there is no checkpoint yet"

    def keep(self, epoch: int, selected: bool) -> None:
        """Write the epoch's weights and all that training goes on from, or remember what was selected."""
        if self.run is None:
            if selected:
                self.best_weights = {name: tensor.clone() for name, tensor in self.judged.state_dict().items()}
            return
        if self.fabric.global_rank > 0:
            return
        if selected:
            save_weights(self.judged, self.run / SELECTED)
        save_weights(self.judged, self.run / LAST)
        write_text(self.run / METRICS, "".join(as_json(line) + "\n" for line in self.state.metrics))
        self.state.save(self.run / STATE, self.settings(self.schedule[:epoch], self.state.metrics))


def check_arguments(
    model: nn.Module,
    dataset: Dataset,
    phases: Sequence[Phase],
    config: FitConfig,
    selection: Attack | None,
    monitor: Monitor | None,
    repair: Objective | None,
) -> None:
    """Refuse what cannot be trained, or not in this way; raises as `fit` does."""
    module = plain_module(model)
    check_made(module, "the model")
    for name, value, kind, how in (
        ("dataset", dataset, Dataset, "a Dataset, as surefoot.data.load gives it"),
        ("config", config, FitConfig, "a FitConfig"),
    ):
        if not isinstance(value, kind):
            raise TypeError(f"{name} is an object of type {type(value).__name__}; give {how}.")
    if isinstance(phases, Phase):
        raise TypeError("phases is a single one; give a list of them, as [phase].")
    if not phases:
        raise ValueError("phases is empty; give at least one Phase(objective, epochs).")
    for phase in phases:
        if not isinstance(phase, Phase):
            raise TypeError(f"phases has {phase!r}; give Phase(objective, epochs).")
    if selection is not None:
        check_attacks([selection])
    if repair is not None:
        check_objective("repair", repair)
    if not any(parameter.requires_grad for parameter in module.parameters()):
        raise ValueError("no weight of the model has requires_grad, so that none would be trained; set it on some.")
    for name, value in module.state_dict().items():
        if not isinstance(value, Tensor):
            raise ValueError(
                f"the model's state has {name}, an object of type {type(value).__name__}, and a checkpoint holds "
                "tensors alone; keep it in a buffer, or out of get_extra_state."
            )
    if config.on_masking in ("stop", "repair") and monitor is None:
        raise ValueError(f"on_masking is {config.on_masking!r}, but nothing looks at the model; give fit a monitor.")
    check_training_split(dataset)


def check_training_split(dataset: Dataset) -> None:
    """Refuse images that cannot be trained on, which a step would not look at and a GPU would die of.

    Raises:
        ValueError: there are none, or a label of them or of the validation images is no class of the data set.
    """
    labels = dataset.train.labels
    if len(labels) == 0:
        raise ValueError("the training split has no images; give some to train on.")
    for name, split in (("training", dataset.train), ("validation", dataset.validation)):
        if len(split.labels) == 0:
            continue
        lowest, highest = int(split.labels.min()), int(split.labels.max())
        if lowest < 0 or highest >= dataset.num_classes:
            raise ValueError(
                f"a label is {lowest if lowest < 0 else highest} in the {name} split; labels are class indices from 0 "
                f"to {dataset.num_classes - 1}, as the data set has {dataset.num_classes} classes."
            )


def check_answers(module: nn.Module, dataset: Dataset, device: torch.device, seed: int) -> None:
    """Let the model answer on two images, and refuse one that has no logit for a class; a GPU would die of it.

    Raises:
        TypeError: it answers with something other than a tensor.
        ValueError: or with one of another shape than `[batch, classes]`; a label beyond its classes.
    """
    labels = torch.cat([dataset.train.labels, dataset.validation.labels])
    with seeded(seed):
        predictions(module, dataset.train.images[:2].to(device).float() / 255, labels)


def is_too_small(images: int, batch_size: int, devices: int, module: nn.Module) -> bool:
    """Is the last mini-batch left out? It has no sample for one of the devices, or no two for a batch-norm.

    >>> [is_too_small(65, 32, 1, nn.BatchNorm1d(2)), is_too_small(65, 32, 1, nn.Linear(2, 2))]
    [True, False]
    """
    normalised = any(isinstance(part, nn.modules.batchnorm._BatchNorm) for part in module.modules())
    return images > batch_size and 0 < images % batch_size < devices * (2 if normalised else 1)


def is_watched(objective: Objective, eps: float) -> bool:
    """Is the monitor's radius the objective's, or within it? Not while that still grows; 0.031 for 8/255 is.

    >>> from surefoot.objectives import FgsmAT
    >>> is_watched(FgsmAT(0.031), 8 / 255), is_watched(FgsmAT(0.24), 0.3)
    (True, False)
    """
    return bool(getattr(objective, "eps", eps) >= 0.95 * eps)


def make_step(eager: EagerStep, config: FitConfig, on_note: Callable[[str], None] | None) -> Step:
    """The step as CUDA graphs where that is possible, else as it is."""
    if not can_capture(eager.fabric.device) or eager.fabric.world_size > 1 or config.capture == "off":
        return eager
    return CapturedStep(eager, on_note or (lambda note: None))


def refuse_non_finite(history: Tensor, epoch: int, first_step: int, rate_of: Callable[[int], float], back: str) -> None:
    """Stop at the first loss in `history [steps, 3]` that is not finite.

    Args:
        history: losses of the epoch's steps.
        epoch: from 1.
        first_step: of `history`, from 0.
        rate_of: tells a step's learning rate.
        back: what can be gone back to, and what may help.

    Raises:
        TrainingDiverged: naming the epoch, the step, the learning rate and `back`.
    """
    bad = (~history[:, 0].isfinite()).nonzero()
    if len(bad) == 0:
        return
    step = first_step + int(bad[0])
    raise TrainingDiverged(
        f"the loss is {history[step - first_step, 0].item()} in epoch {epoch}, step {step + 1}, at learning rate "
        f"{rate_of(step + 1):.4g}; {back}"
    )


def remedy(config: FitConfig, *, or_longer: bool = False) -> str:
    """What may help a training that learned nothing, of what these settings leave.

    >>> remedy(FitConfig(max_grad_norm=1.0), or_longer=True)
    'Train again with a smaller learning rate or more epochs.'
    """
    ways = ["a bound on the gradient (max_grad_norm, for example 1)"] if config.max_grad_norm is None else []
    ways += ["a smaller learning rate", *(["fp32"] if config.precision == "bf16" else [])]
    ways += ["more epochs"] if or_longer else []
    *others, last = ways
    return f"Train again with {', '.join(others)}{' or ' if others else ''}{last}."


def may_guess(line: dict[str, Any], labels: Tensor) -> bool:
    """Is an epoch right on no more validation images than one class for all may be?"""
    count = len(labels)
    right, most = round(line["validation_clean_accuracy"] * count), float(labels.bincount().max()) / count
    return binomial_tail(right, count, most) >= CHANCE


def guesses(given: Tensor, labels: Tensor) -> bool:
    """Are answers right no more often than others in the same shares that know nothing of the images?

    They are not said to be where there are too few images to tell a guess from what is half as far from it as perfect.

    Example:
        >>> labels = torch.arange(10).repeat(20)
        >>> guesses(torch.zeros_like(labels), labels), guesses(labels, labels), guesses(labels[:1], labels[:1])
        (True, False, False)
    """
    if len(labels) == 0:
        return False
    count, chance, right = len(labels), right_by_chance(given, labels), int((given == labels).sum())
    best = max(chance, right_by_chance(labels, labels))
    enough = binomial_tail(math.ceil((1 + best) / 2 * count), count, best) < CHANCE
    return enough and binomial_tail(right, count, chance) >= CHANCE


def percent(line: dict[str, Any]) -> str:
    """An epoch's clean accuracy on the validation images."""
    return f"{100 * line['validation_clean_accuracy']:.1f} %"


def has_diverged(line: dict[str, Any], num_classes: int) -> bool:
    """Is an epoch's loss finite, and so large that nothing was learned?

    Example:
        >>> [has_diverged({"classification": 2e9, "validation_clean_accuracy": share}, 10) for share in (0.11, 0.5)]
        [True, False]
    """
    clean = line["validation_clean_accuracy"]
    return line["classification"] > FAR * math.log(num_classes) and (clean is None or clean < 2 / num_classes)
