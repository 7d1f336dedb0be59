"""The training loop: phases of objectives, the best and the last epoch kept, resumable to the bit."""

import dataclasses
import json
import logging
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.optim import Optimizer

from surefoot.core.devices import image_format
from surefoot.core.files import CheckpointError, load_tensors, save_tensors, write_text
from surefoot.core.gradients import plain_module
from surefoot.core.limits import check_above_zero, check_count, check_number, check_whole
from surefoot.core.types import Attack, Objective, check_attacks, check_objective
from surefoot.data import Batches, Dataset, images_at_once
from surefoot.evaluation import accuracy
from surefoot.evaluation.passes import seeded
from surefoot.evaluation.worker import predictions
from surefoot.training.averaging import MovingAverage
from surefoot.training.captured import CapturedStep, can_capture
from surefoot.training.checkpoint import (
    LAST,
    METRICS,
    SELECTED,
    STATE,
    check_fits,
    load_weights,
    save_weights,
)
from surefoot.training.monitor import Guard, Monitor, OnMasking
from surefoot.training.schedules import SCHEDULES
from surefoot.training.step import EagerStep, LossHistory, Step

EVALUATION_BATCH = 500
REFRESHING = 2048  # training images that measure the batch-norm statistics of averaged weights
CHECK_EVERY = 50  # steps between looks at the loss
FAR = 10  # times the loss of a guess, which a training that learns is below on the mean of an epoch
REMEDY = (
    "Train again with a bound on the gradient (max_grad_norm, for example 1), a smaller learning rate or, where "
    "precision is bf16, with fp32."
)
SAME_WEIGHTS = ("device", "devices", "capture", "on_masking", "monitor_every")  # but for rounding, and for a repair
HEALTHY = "healthy."  # before the names of the tensors to go back to, in state.ckpt


class TrainingDiverged(RuntimeError):
    """A loss that is not finite: where it happened and what can be gone back to."""


@dataclass(frozen=True)
class Phase:
    """A stretch of training under one objective.

    Args:
        objective: what is minimised.
        epochs: passes over the training set, at least 1.
        learning_rate: the base learning rate of this phase; None is the run's.

    Raises:
        ValueError: epochs or a learning rate out of range.
        TypeError: what is no objective, one without its settings, or a learning rate that is no number.

    Example:
        >>> from surefoot.objectives import FgsmAT, SatR3
        >>> phases = [Phase(FgsmAT(eps=0.1), epochs=2), Phase(SatR3(0.3, eps_low=0.1, lam=1.0, tau=0.4), epochs=8)]
        >>> sum(phase.epochs for phase in phases)
        10
    """

    objective: Objective
    epochs: int
    learning_rate: float | None = None

    def __post_init__(self) -> None:
        check_objective("objective", self.objective)
        check_whole("epochs", self.epochs)
        if self.learning_rate is not None:
            check_above_zero("learning_rate", self.learning_rate, example="0.01")


@dataclass(frozen=True)
class FitConfig:
    """How an objective is minimised: SGD, its schedule, the batches and the machine.

    Raises:
        ValueError: a field out of its range.
        TypeError: or no number.

    Example:
        >>> FitConfig(batch_size=64, learning_rate=0.1, schedule="one-cycle", precision="bf16").momentum
        0.9
    """

    batch_size: int = 128
    """Samples a step, over all devices together."""
    learning_rate: float = 0.01
    """Base learning rate of SGD; the schedule multiplies it."""
    schedule: Literal["steps", "one-cycle", "constant"] = "steps"
    """`steps`: a fifth from each further quarter of the run (the paper's authors' code); `one-cycle`: up, then to 0."""
    momentum: float = 0.9
    """Momentum of SGD, in [0, 1)."""
    weight_decay: float = 5e-4
    """L2 penalty of SGD, at least 0."""
    max_grad_norm: float | None = None
    """Longest l2 norm of a step's gradient over all weights; a longer one is shortened to it. None leaves all."""
    augment: Literal["none", "crop-flip"] = "none"
    """`crop-flip`: a random crop after padding by 4, and a horizontal flip."""
    ema_decay: float = 0.0
    """Decay of an exponential moving average of the weights, which is then what is selected and saved; 0 is off."""
    seed: int = 0
    """Of the order of the samples and every random number of the training, and of a recipe's initial weights."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Where to train; `auto` takes an accelerator where there is one."""
    devices: int = 1
    """Number of devices (processes on a CPU), which share each batch; under torchrun, of each machine."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """`bf16`: forward and backward in bfloat16 where that is safe; weights, losses and the update stay fp32."""
    capture: Literal["auto", "off"] = "auto"
    """On one CUDA device, `auto` replays each step as a CUDA graph; `off` is for a model that draws on the host."""
    on_masking: OnMasking = "warn"
    """Where gradients mask: `warn`, `stop` at the last healthy look, `repair` from there on by SAT-R1, or `off`."""
    monitor_every: int | None = None
    """Training steps between two looks of the monitor; None looks every 16,000 images: less than 3 % of the time."""

    def __post_init__(self) -> None:
        check_count("batch_size", self.batch_size)
        check_whole("devices", self.devices)
        if self.batch_size < self.devices:
            raise ValueError(
                f"batch_size is {self.batch_size}, but devices is {self.devices}; each device needs a sample."
            )
        check_whole("seed", self.seed, least=0)
        if self.monitor_every is not None:
            check_count("monitor_every", self.monitor_every)
        check_above_zero("learning_rate", self.learning_rate, example="0.01")
        if self.max_grad_norm is not None:
            check_above_zero("max_grad_norm", self.max_grad_norm, example="1.0", otherwise=", or None for no bound")
        for name in ("momentum", "ema_decay", "weight_decay"):
            check_number(name, getattr(self, name), example="0.9")
        for name in ("momentum", "ema_decay"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be in [0, 1).")
        if not 0 <= self.weight_decay < math.inf:
            raise ValueError(f"weight_decay is {self.weight_decay}; it must be a finite number of at least 0.")
        for field in dataclasses.fields(self):
            value, choices = getattr(self, field.name), get_args(field.type)
            if get_origin(field.type) is Literal and value not in choices:
                raise ValueError(f"{field.name} is {value!r}; it is one of {', '.join(choices)}.")


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
class Best:
    """The selected epoch so far and its score; 0 before the first that may be."""

    epoch: int = 0
    score: float = -1.0


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


def is_first_process() -> bool:
    """Is this the process that writes and speaks, where `devices` above 1 or torchrun start several?"""
    return int(os.environ.get("RANK", os.environ.get("LOCAL_RANK", "0"))) == 0


def started_by_torchrun() -> bool:
    """Is this one of the processes that torchrun starts, on one machine or several?"""
    return torch.distributed.is_available() and torch.distributed.is_torchelastic_launched()


def best_device() -> torch.device:
    """An accelerator that can be used, or the CPU. PyTorch built for CUDA names one on a machine without a GPU too."""
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return accelerator or torch.device("cpu")


def check_device(name: str) -> None:
    """Refuse an accelerator that is not there.

    Raises:
        ValueError: with what to use instead.
    """
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError("device is 'cuda', but PyTorch sees no CUDA device here; use device 'cpu' or 'auto'.")
    if name == "mps" and not torch.backends.mps.is_available():
        raise ValueError("device is 'mps', but PyTorch sees none here; use device 'cpu' or 'auto'.")


def check_devices(config: FitConfig) -> None:
    """Refuse more devices than there are; on a CPU, more processes than its cores.

    Raises:
        ValueError: with how many there are.
    """
    kind = best_device().type if config.device == "auto" else config.device
    there = torch.cuda.device_count() if kind == "cuda" else 1 if kind == "mps" else max(2, os.cpu_count() or 1)
    if config.devices > there:
        raise ValueError(
            f"devices is {config.devices}, but device {kind!r} has room for {there} here; give at most {there}."
        )


def make_fabric(config: FitConfig) -> Fabric:
    """Fabric for these settings, launched; under torchrun on all of its machines, which have as many devices each.

    Raises:
        ValueError: the device that was asked for is not there, or not as many, or torchrun started others.
    """
    check_device(config.device)
    check_devices(config)
    machines = 1
    if started_by_torchrun():
        here = int(os.environ["LOCAL_WORLD_SIZE"])
        if here != config.devices:
            raise ValueError(
                f"torchrun started {here} process{'es' if here > 1 else ''} on this machine to share each batch, but "
                f"devices is {config.devices}; give {here} (--devices {here})."
            )
        machines = int(os.environ["WORLD_SIZE"]) // here
    with quiet("lightning_fabric.utilities.rank_zero", "lightning.fabric.utilities.rank_zero"):
        fabric = Fabric(
            accelerator=config.device,
            devices=config.devices,
            num_nodes=machines,
            precision="bf16-mixed" if config.precision == "bf16" else "32-true",
        )
        fabric.launch()
    return fabric


@contextmanager
def quiet(*names: str) -> Iterator[None]:
    """Loggers of these names say nothing below an error meanwhile."""
    levels = [(logger := logging.getLogger(name), logger.level) for name in names]
    for logger, _ in levels:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in levels:
            logger.setLevel(level)


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
    that scores highest is selected (the paper's authors' code: under I-FGSM with 3 steps). With a `run_dir`,
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
        monitor: looks at the model as `config.on_masking` says; None does not look, nor does any while the objective's
            own eps is below the monitor's, at which the model is weak and not yet masked. Its looks are in the lines.
        repair: what is minimised after going back, where `config.on_masking` is `repair`.
        on_step: told the progress every few steps.
        on_epoch: told the line of `metrics.jsonl` after each epoch.
        on_note: told in a sentence what a user should know: what the monitor saw and what was done about it, that a
            step cannot be captured.

    Raises:
        ValueError: a bad setting, no training images, a label beyond the classes of the data set or the model, no
            phases, no weight to train, no monitor or repair where `on_masking` needs one, a training in `run_dir`
            already where `resume` was not asked for, or no `run_dir` where it was.
        TypeError: an argument of another kind, or an objective that returns no `LossTerms`.
        CheckpointError: a state that is damaged, pickled, of another run or of other settings; selected weights that
            are gone or damaged.
        TrainingDiverged: a loss that is not finite, with where and what can be gone back to.

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
    told = Told(on_step, on_epoch, on_note)
    with seeded(config.seed), left_in_order(plain_module(model)):
        return _fit(model, dataset, phases, config, selection, run, resume, fabric, monitor, repair, told)


@dataclass(frozen=True)
class Told:
    """Who is told what while a training runs."""

    on_step: Callable[[StepReport], None] | None
    on_epoch: Callable[[dict[str, Any]], None] | None
    on_note: Callable[[str], None] | None


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


def _fit(
    model: nn.Module,
    dataset: Dataset,
    phases: Sequence[Phase],
    config: FitConfig,
    selection: Attack | None,
    run: Path | None,
    resume: bool,
    fabric: Fabric,
    monitor: Monitor | None,
    repair: Objective | None,
    told: Told,
) -> FitResult:
    """`fit`, once its arguments are good."""
    module = plain_module(model)
    on_step, on_epoch, on_note = told.on_step, told.on_epoch, told.on_note
    device, rank, world = fabric.device, fabric.global_rank, fabric.world_size

    dims = {parameter.dim() for parameter in model.parameters()}
    channels_last = 4 in dims and 5 not in dims  # PyTorch's channels_last is of images alone
    if channels_last:
        model = model.to(memory_format=image_format(device))  # type: ignore[call-overload]
    optimizer = torch.optim.SGD(
        module.parameters(),
        lr=config.learning_rate,
        momentum=config.momentum,
        weight_decay=config.weight_decay,
        fused=fabric.device.type != "mps" and all(parameter.is_floating_point() for parameter in module.parameters()),
    )
    wrapped, wrapped_optimizer = fabric.setup(module, optimizer)
    average = MovingAverage(module, config.ema_decay) if config.ema_decay else None
    judged = module if average is None else average.module

    batches = Batches(
        dataset.train,
        config.batch_size,
        device=device,
        shuffle=True,
        seed=config.seed,
        augment=config.augment,
        drop_last=is_too_small(len(dataset.train.labels), config.batch_size, world, module),
        channels_last=channels_last,
    )
    at_once = images_at_once(device, on_cpu=EVALUATION_BATCH)
    validation = Batches(dataset.validation, at_once, device=device, channels_last=channels_last)
    step = make_step(EagerStep(fabric, wrapped, wrapped_optimizer, config.max_grad_norm), config, on_note)
    schedule = [phase for phase in phases for _ in range(phase.epochs)]
    settings = partial(settings_of_training, dataset.fingerprint(), config, selection)

    def rate_of(epoch: int, number: int) -> float:
        base = schedule[epoch - 1].learning_rate or config.learning_rate
        return base * SCHEDULES[config.schedule]((epoch - 1 + (number - 1) / len(batches)) / len(schedule))

    guard = None
    if monitor is not None and config.on_masking != "off":
        if config.capture == "off":
            monitor.capture = "off"
        state = partial(training_tensors, module, optimizer, average)
        guard = Guard(monitor, config.on_masking, repair, state, on_note if rank == 0 else None, fabric.broadcast)

    metrics: list[dict[str, Any]] = []
    best = Best()
    best_weights: dict[str, Tensor] = {}
    if resume and run is not None and (run / STATE).exists():
        check = partial(check_same_training, run, settings=settings, schedule=schedule)
        metrics, best = load_state(run / STATE, module, optimizer, average, guard, len(batches), check)

    with fabric.autocast():
        check_answers(module, dataset, device, config.seed)
    started = time.perf_counter()
    for epoch in range(len(metrics) + 1, len(schedule) + 1):
        if guard is not None and guard.did("stop"):
            break
        phase = schedule[epoch - 1]
        if epoch > 1 and phase is not schedule[epoch - 2]:
            best = Best()  # an epoch before it has not been through all phases
        objective = phase.objective if guard is None else guard.objective(phase.objective)
        torch.manual_seed((config.seed * 1_000_003 + epoch) * 1_009 + rank)  # so that resuming needs no generator state
        history = LossHistory(len(batches), device)
        epoch_started = time.perf_counter()
        checked = 0
        for number, (inputs, labels) in enumerate(batches.epoch(epoch), start=1):
            rate = rate_of(epoch, number)
            history.add(step(objective, inputs[rank::world], labels[rank::world], rate))
            if average is not None:
                average.update(module)
            if number % CHECK_EVERY == 0 or number == len(batches):
                losses = history.arrived(wait=number == len(batches))
                refuse_non_finite(losses[checked:], epoch, checked, partial(rate_of, epoch), run)
                if on_step is not None and len(losses) > checked:
                    speed = len(losses) * config.batch_size / (time.perf_counter() - epoch_started)
                    left = len(batches) * (len(schedule) - epoch + 1) - number
                    loss, classification, regularizer = losses[checked:].mean(dim=0).tolist()
                    so_far = epoch, len(schedule), number, len(batches)
                    seconds_left = left * config.batch_size / speed
                    on_step(StepReport(*so_far, loss, classification, regularizer, speed, seconds_left))
                checked = len(losses)
            if guard is not None and is_watched(objective, guard.monitor.eps):
                with fabric.autocast():
                    put_back = guard(module, (epoch - 1) * len(batches) + number)
                if put_back:
                    objective = guard.objective(phase.objective)
                    best = Best()  # an epoch before it may have been masked already
                    if guard.did("stop"):
                        break
        train_seconds = time.perf_counter() - epoch_started

        if average is not None:
            first = islice(batches.epoch(epoch), math.ceil(REFRESHING / config.batch_size))
            with fabric.autocast():
                average.refresh(module, (inputs for inputs, _ in first))
        clean = robust = None
        if len(dataset.validation.labels):
            with fabric.autocast():
                clean = accuracy(judged, validation)
                robust = None if selection is None else accuracy(judged, validation, selection)
        score = next((each for each in (robust, clean) if each is not None), float(epoch))
        means = history.arrived(wait=True).mean(dim=0).tolist()
        line = {
            "epoch": epoch,
            "objective": type(objective).__name__,
            "learning_rate": rate,
            "loss": means[0],
            "classification": means[1],
            "regularizer": means[2],
            "validation_clean_accuracy": clean,
            "validation_robust_accuracy": robust,
            "images_per_second": min(number * config.batch_size, len(dataset.train.labels)) / train_seconds,
            "train_seconds": train_seconds,
            "seconds": time.perf_counter() - epoch_started,
            "selected": score > best.score,
        }
        if guard is not None:
            line.update(guard.lines(since=(epoch - 1) * len(batches)))
        metrics.append(line)
        if on_note is not None and rank == 0 and has_diverged(line, dataset.num_classes):
            on_note(
                f"epoch {epoch} has a mean classification loss of {line['classification']:.4g}, where guessing one of "
                f"{dataset.num_classes} classes has {math.log(dataset.num_classes):.3g}: the training has diverged. "
                f"{REMEDY}"
            )
        if score > best.score:
            best = Best(epoch, score)
            if run is None:
                best_weights = {name: tensor.clone() for name, tensor in judged.state_dict().items()}
            elif rank == 0:
                save_weights(judged, run / SELECTED)
        if run is not None and rank == 0:
            save_weights(judged, run / LAST)
            write_text(run / METRICS, "".join(json.dumps(line) + "\n" for line in metrics))
            chosen = settings(schedule[:epoch])
            save_state(run / STATE, module, optimizer, average, chosen, metrics, best, guard)
        if on_epoch is not None and rank == 0:
            on_epoch(line)

    fabric.barrier()
    if run is not None:
        load_weights(module, run / SELECTED)
    else:
        module.load_state_dict(best_weights)
    return FitResult(best.epoch, best.score, metrics, time.perf_counter() - started)


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


def check_training_split(dataset: Dataset) -> None:
    """Refuse images that cannot be trained on, which a step would not look at and a GPU would die of.

    Raises:
        ValueError: there are none, or a label is no class of the data set.
    """
    labels = dataset.train.labels
    if len(labels) == 0:
        raise ValueError("the training split has no images; give some to train on.")
    lowest, highest = int(labels.min()), int(labels.max())
    if lowest < 0 or highest >= dataset.num_classes:
        raise ValueError(
            f"a label is {lowest if lowest < 0 else highest} in the training split; labels are class indices from 0 to "
            f"{dataset.num_classes - 1}, as the data set has {dataset.num_classes} classes."
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


def refuse_non_finite(
    history: Tensor, epoch: int, first_step: int, rate_of: Callable[[int], float], run: Path | None
) -> None:
    """Stop at the first loss in `history [steps, 3]` that is not finite; `rate_of` tells a step's learning rate.

    Raises:
        TrainingDiverged: naming the epoch, the step, the learning rate and the last good checkpoint.
    """
    bad = (~history[:, 0].isfinite()).nonzero()
    if len(bad) == 0:
        return
    step = first_step + int(bad[0])
    if run is None or epoch == 1:
        back = "there is no checkpoint yet"
    else:
        back = f"the last good checkpoint is {run / STATE}, after epoch {epoch - 1}"
    raise TrainingDiverged(
        f"the loss is {history[step - first_step, 0].item()} in epoch {epoch}, step {step + 1}, at learning rate "
        f"{rate_of(step + 1):.4g}; {back}. {REMEDY}"
    )


def has_diverged(line: dict[str, Any], num_classes: int) -> bool:
    """Is an epoch's loss finite, and so large that nothing was learned?

    Example:
        >>> [has_diverged({"classification": 2e9, "validation_clean_accuracy": share}, 10) for share in (0.11, 0.5)]
        [True, False]
    """
    clean = line["validation_clean_accuracy"]
    return line["classification"] > FAR * math.log(num_classes) and (clean is None or clean < 2 / num_classes)


def training_tensors(module: nn.Module, optimizer: Optimizer, average: nn.Module | None) -> dict[str, Tensor]:
    """Every tensor that training goes on from, under one name each; momentum buffers are made where missing."""
    tensors = {f"model.{name}": tensor for name, tensor in module.state_dict().items()}
    for name, parameter in module.named_parameters():
        state = optimizer.state[parameter]
        if state.get("momentum_buffer") is None:
            state["momentum_buffer"] = torch.zeros_like(parameter)
        tensors[f"momentum.{name}"] = state["momentum_buffer"]
    if average is not None:
        tensors.update({f"average.{name}": tensor for name, tensor in average.state_dict().items()})
    return tensors


def save_state(
    path: Path,
    module: nn.Module,
    optimizer: Optimizer,
    average: nn.Module | None,
    settings: dict[str, Any],
    metrics: list[dict[str, Any]],
    best: Best,
    guard: Guard | None,
) -> None:
    """Write all that training goes on from, and what it may go back to, atomically."""
    about = {"settings": settings, "metrics": metrics, "best_epoch": best.epoch, "best_score": best.score}
    tensors = training_tensors(module, optimizer, average)
    if guard is not None:
        about["healthy_step"] = guard.healthy_step
        tensors.update({f"{HEALTHY}{name}": tensor for name, tensor in guard.healthy.items()})
    save_tensors(path, tensors, about)


def load_state(
    path: Path,
    module: nn.Module,
    optimizer: Optimizer,
    average: nn.Module | None,
    guard: Guard | None,
    steps: int,
    check: Callable[[dict[str, Any]], None],
) -> tuple[list[dict[str, Any]], Best]:
    """Put a saved state back in place; gives the lines so far, the best epoch and its score.

    `steps` is of an epoch. `check` is given what the state tells about itself. Whoever refuses, the model stays as it
    was.

    Raises:
        CheckpointError: a damaged or pickled file, weights alone, or another model.
    """
    tensors, about = load_tensors(path)
    if not {"metrics", "best_epoch", "best_score"} <= about.keys():
        raise CheckpointError(f"{path} is not a training state; give the state.ckpt of a run.")
    wanted = training_tensors(module, optimizer, average)
    kept = {name: tensors.pop(name) for name in list(tensors) if name.startswith(HEALTHY)}
    check_fits(path, tensors, wanted)
    check(about)
    module.load_state_dict(under("model.", tensors))
    if average is not None:
        average.load_state_dict(under("average.", tensors))
    with torch.no_grad():
        for name, tensor in under("momentum.", wanted).items():
            tensor.copy_(tensors[f"momentum.{name}"])
    if guard is not None:
        done = len(about["metrics"]) * steps
        guard.resume(about["metrics"], under(HEALTHY, kept), about.get("healthy_step", 0), done)
    return about["metrics"], Best(about["best_epoch"], about["best_score"])


def under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Those whose names begin so, without it."""
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def settings_of_training(
    fingerprint: str, config: FitConfig, selection: Attack | None, epochs: Sequence[Phase]
) -> dict[str, Any]:
    """What the weights after these epochs depend on, as far as it is numbers and words, one a name.

    Example:
        >>> from surefoot.objectives import FgsmAT
        >>> phases = [Phase(FgsmAT(eps=0.1), epochs=1)]
        >>> found = settings_of_training("3f2a", FitConfig(batch_size=64), None, phases)
        >>> found["batch_size"], found["objective of epoch 1"], found["objective of epoch 1, eps"]
        (64, 'FgsmAT', 0.1)
    """
    found = {name: value for name, value in dataclasses.asdict(config).items() if name not in SAME_WEIGHTS}
    found |= {"fingerprint of the data": fingerprint} | named("selection", selection)
    for number, phase in enumerate(epochs, start=1):
        found |= named(f"objective of epoch {number}", phase.objective)
        found[f"learning rate of epoch {number}"] = phase.learning_rate
    return found


def named(name: str, chosen: Any) -> dict[str, Any]:
    """The class of an attack or an objective and its numbers and words, each under a name of its own."""
    fields = dataclasses.fields(chosen) if dataclasses.is_dataclass(chosen) else ()
    values = {f"{name}, {field.name}": getattr(chosen, field.name) for field in fields}
    return {name: None if chosen is None else type(chosen).__name__} | {
        key: value for key, value in values.items() if isinstance(value, float | int | str | None)
    }


def check_same_training(
    run: Path,
    about: Mapping[str, Any],
    settings: Callable[[Sequence[Phase]], dict[str, Any]],
    schedule: Sequence[Phase],
) -> None:
    """Refuse to go on with a training of more epochs, by other settings than it was begun with, or without weights.

    Raises:
        CheckpointError: naming what differs, or what is damaged.
    """
    path, epochs = run / STATE, len(about["metrics"])
    if epochs > len(schedule):
        raise CheckpointError(
            f"{path} is of another run: it has {epochs} epochs, and the phases {len(schedule)}; give the phases that "
            "it was trained by, or another run_dir."
        )
    before, now = about.get("settings", {}), settings(schedule[:epochs])
    both = [name for name in before if name in now]  # an older or newer version may know others, or none
    changed = [f"{name} was {before[name]} and is {now[name]}" for name in both if before[name] != now[name]]
    if changed:
        raise CheckpointError(
            f"{path} was trained with other settings: {'; '.join(changed)}. Go on with the same ones, or give another "
            "run_dir."
        )
    load_tensors(run / SELECTED)  # what was selected so far is needed at the end: it fails now, not then
