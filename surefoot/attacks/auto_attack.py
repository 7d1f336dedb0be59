"""AutoAttack: the standard sequence of APGD-CE, APGD-T, FAB-T and Square."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from surefoot.attacks.apgd import APGD, APGDT
from surefoot.attacks.fab import FABT
from surefoot.attacks.square import Square
from surefoot.attacks.worst_case import WorstCase
from surefoot.core.types import Attack


@dataclass(frozen=True)
class AutoAttack:
    """Standard AutoAttack in the l-infinity ball: APGD-CE, APGD-T, FAB-T and Square, each on what is left.

    Args:
        eps: l-infinity radius in pixel units, in [0, 1].
        steps: gradients a run of the three gradient attacks, at least 1.
        queries: windows that Square tries, at least 1.
        targets: target classes of APGD-T and FAB-T at most, at least 1; with fewer classes, all the others.

    Called with `(model, inputs [batch, channels, height, width] in [0, 1], labels [batch] int64)` it returns inputs of
    the same shape in the ball and [0, 1]: the clean one where it is misclassified, else the first that fools the
    model, else what APGD-CE made. `attacks` are the parts, to be run one by one. Any number of classes from
    two and of channels will do; float32 arithmetic without autocast, as in `APGD`.

    Cost of a sample that survives, with t = min(targets, classes - 1): queries + (3 t + 1) steps + t + 11 forwards
    and (2 t + 1) steps backwards; with ten classes 7820 and 1900, of which Square has 5002 forwards.

    Raises:
        ValueError: a radius outside [0, 1], inputs outside [0, 1], one class, or logits without a gradient.
        TypeError: inputs that are not floating or of another type than the weights, or labels that are not int64.

    Example:
        >>> [type(part).__name__ for part in AutoAttack(eps=8 / 255).attacks]
        ['APGD', 'APGDT', 'FABT', 'Square']

    Source:
        Croce and Hein, "Reliable Evaluation of Adversarial Robustness with an Ensemble of Diverse Parameter-Free
        Attacks", 2020, with the standard version's settings. Each part states where it departs.
    """

    float32_only: ClassVar[bool] = True  # a faster precision than asked for would be another attack

    eps: float
    steps: int = 100
    queries: int = 5000
    targets: int = 9

    def __post_init__(self) -> None:
        _ = self.attacks  # each part checks its fields

    @property
    def attacks(self) -> tuple[Attack, ...]:
        """The four parts, in the order in which they run."""
        return (
            APGD(self.eps, self.steps),
            APGDT(self.eps, self.steps, self.targets),
            FABT(self.eps, self.steps, self.targets),
            Square(self.eps, self.queries),
        )

    def __call__(self, model: nn.Module, inputs: Tensor, labels: Tensor) -> Tensor:
        return WorstCase(self.attacks)(model, inputs, labels)
