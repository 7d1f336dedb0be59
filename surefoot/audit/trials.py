"""The attacks that checks share: each is run once and kept on the bench."""

import copy
import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from surefoot.attacks import APGD, FGSM, IFGSM, MIFGSM, PGD, RFGSM, MarginLoss, Square
from surefoot.attacks.apgd import dlr_loss
from surefoot.attacks.gradient_sign import ascend
from surefoot.audit.bench import Bench, Trial
from surefoot.audit.label_search import LabelSearch
from surefoot.core.devices import has_float64
from surefoot.core.geometry import project
from surefoot.core.gradients import crafting, is_training, plain_module
from surefoot.core.losses import answered, full_precision, margin
from surefoot.core.types import Attack

MARKS = (1, 2, 5, 10, 20, 40, 100, 200, 500)
"""Steps after which an attack's accuracy is noted."""


@dataclass
class Watched:
    """PGD on cross-entropy from a random start, and how many samples are left after `MARKS` steps.

    Args:
        eps, steps: as `PGD` has them.

    Called as an attack is; `standing` grows by a list of counts a batch.
    """

    eps: float
    steps: int
    marks: tuple[int, ...] = ()
    standing: list[list[int]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.marks = (*[mark for mark in MARKS if mark < self.steps], self.steps)

    def __call__(self, model: nn.Module, inputs: Tensor, labels: Tensor) -> Tensor:
        step_size = crossing_step(self.eps, self.steps)
        adv_inputs = project(inputs + torch.empty_like(inputs).uniform_(-self.eps, self.eps), inputs, self.eps)
        counts, before = [], 0
        with crafting(model) as frozen:
            for mark in self.marks:
                adv_inputs = ascend(
                    frozen, inputs, labels, adv_inputs, eps=self.eps, steps=mark - before, step_size=step_size
                )
                before = mark
                with torch.no_grad():
                    counts.append(int((answered(frozen(adv_inputs)) == labels).sum()))
        self.standing.append(counts)
        return adv_inputs


def crossing_step(eps: float, steps: int) -> float:
    """A step size that crosses the ball four times."""
    return min(1.0, max(4 * eps / steps, 1e-6))


def plain_name(bench: Bench) -> str:
    """What the plain attack is called."""
    return f"PGD-{bench.effort.steps}"


def fgsm(bench: Bench) -> Trial:
    return bench.attack("FGSM", FGSM(bench.eps), "single step")


def r_fgsm(bench: Bench) -> Trial:
    return bench.attack("R-FGSM", RFGSM(bench.eps, bench.eps / 2), "single step")


def i_fgsm(bench: Bench) -> Trial:
    return bench.attack("I-FGSM-10", IFGSM(bench.eps, 10), "gradient")


def pgd(bench: Bench) -> Trial:
    """The plain attack: cross-entropy, float32, one run, one call of the model."""
    name = plain_name(bench)
    if name not in bench.trials:
        watched = Watched(bench.eps, bench.effort.steps)
        bench.attack(name, watched, "gradient", crafter=bench.once)
        bench.course = dict(zip(watched.marks, map(sum, zip(*watched.standing, strict=True)), strict=False))
    return bench.trials[name]


def white_box(bench: Bench) -> list[Trial]:
    """The plain gradient attacks."""
    return [fgsm(bench), i_fgsm(bench), pgd(bench)]


def transfers(bench: Bench) -> list[Trial]:
    """What substitutes craft, on what the plain attacks left."""
    left = survivors(white_box(bench))
    found: list[Trial] = []
    for name, model in bench.substitutes.items():
        for attack in (PGD(bench.eps, 20, crossing_step(bench.eps, 20), loss=MarginLoss(50.0)), MIFGSM(bench.eps, 10)):
            rows = found[-1].robust if found else left
            label = "PGD-20" if isinstance(attack, PGD) else "MI-FGSM-10"
            found.append(bench.attack(f"{label} from {name}", attack, "transfer", rows=rows, crafter=model))
    return found


def gradient_free(bench: Bench, rows: Tensor) -> list[Trial]:
    """Attacks that need no gradient, on what is left."""
    queries = bench.effort.queries
    square = bench.attack(f"Square-{queries}", Square(bench.eps, queries, rescale=True), "gradient-free", rows=rows)
    search = LabelSearch(bench.eps, queries)
    return [square, bench.attack(f"label search-{queries}", search, "gradient-free", rows=square.robust)]


def unsaturated(bench: Bench) -> list[Trial]:
    """The plain attack where nothing can saturate: logits of unit margin, float64, margin losses."""
    left = pgd(bench).robust
    with crafting(bench.model) as frozen, torch.no_grad():
        logits = torch.cat([frozen(part) for part in torch.split(bench.inputs, bench.batch_size)])
    logits = logits.double() if has_float64(logits.device) else logits
    scale = float((-margin(logits, bench.labels))[bench.right].abs().median()) if bench.right.any() else 1.0
    scale = scale if scale > 0 and math.isfinite(scale) else 1.0
    steps, name = bench.effort.steps, plain_name(bench)
    again = PGD(bench.eps, steps, crossing_step(bench.eps, steps), stop_when_fooled=True)
    on_margin = dataclasses.replace(again, loss=margin)
    attacks: list[tuple[str, Attack, nn.Module, torch.dtype | None]] = [
        (f"{name}, margin", on_margin, bench.model, None),
        (f"APGD-DLR-{steps}", APGD(bench.eps, steps, loss=dlr_loss), bench.model, None),
        (f"{name}, rescaled", again, Rescaled(bench.model, scale), None),
    ]
    wide = in_double(bench)
    if wide is not None:
        attacks.append((f"{name}, float64", again, Rescaled(wide, scale), torch.float64))
    found: list[Trial] = []
    for each, attack, crafter, convert in attacks:
        rows = found[-1].robust if found else left
        found.append(bench.attack(each, attack, "gradient", rows=rows, crafter=crafter, convert=convert))
    return found


class Rescaled(nn.Module):
    """A model's logits divided by a constant, so that cross-entropy does not saturate."""

    def __init__(self, model: nn.Module, scale: float) -> None:
        super().__init__()
        self.model, self.scale, self.training = model, scale, is_training(model)

    def forward(self, inputs: Tensor) -> Tensor:
        logits: Tensor = self.model(inputs)
        return full_precision(logits) / self.scale


def in_double(bench: Bench) -> nn.Module | None:
    """A copy of the model in float64, where it can be made and agrees."""
    if not has_float64(bench.inputs.device):
        return None
    try:
        wide = copy.deepcopy(plain_module(bench.model)).double()
        with crafting(wide) as frozen, torch.no_grad():
            answers = frozen(bench.inputs[:8].double())
    except Exception:  # a model may insist on its own type
        return None
    return wide if answers.dtype == torch.float64 else None


def survivors(trials: Sequence[Trial]) -> Tensor:
    """Which samples none of them fooled."""
    return torch.stack([trial.robust for trial in trials]).all(dim=0)


def left_after(trials: Sequence[Trial]) -> dict[str, float]:
    """The accuracy after each of them in turn."""
    return {f"after {trial.name}": float(trial.robust.float().mean()) for trial in trials}
