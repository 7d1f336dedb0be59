"""What a training minimises, for how long, and how: its phases and its settings."""

import dataclasses
from dataclasses import dataclass
from typing import Literal, get_args, get_origin

from surefoot.core.limits import check_above_zero, check_count, check_not_negative, check_number, check_whole
from surefoot.core.types import Objective, check_objective
from surefoot.training.monitor import OnMasking


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
    """How an objective is minimised: the optimizer, its schedule, the batches and the machine.

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
    """Base learning rate; the schedule multiplies it. AdamW usually wants a tenth of SGD's or less."""
    schedule: Literal["steps", "one-cycle", "constant"] = "steps"
    """`steps`: a fifth from each further quarter of the run (the paper's authors' code); `one-cycle`: up, then to 0."""
    optimizer: Literal["sgd", "adamw"] = "sgd"
    """`sgd`, as the paper's; `adamw`, which networks with attention usually need."""
    momentum: float = 0.9
    """Momentum of SGD, of AdamW its first beta (the second is 0.999), in [0, 1)."""
    weight_decay: float = 5e-4
    """L2 penalty of SGD; AdamW's is decoupled from the gradient, and usually larger. At least 0."""
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
    """Training steps between two looks of the monitor. None: `fit` leaves it to the monitor it is given, and a recipe
    looks every 16,000 images, which takes less than 3 % of the time."""

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
        check_not_negative("weight_decay", self.weight_decay, example="0.9")
        for name in ("momentum", "ema_decay"):
            check_number(name, getattr(self, name), example="0.9")
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be in [0, 1).")
        for field in dataclasses.fields(self):
            value, choices = getattr(self, field.name), get_args(field.type)
            if get_origin(field.type) is Literal and value not in choices:
                raise ValueError(f"{field.name} is {value!r}; it is one of {', '.join(choices)}.")
