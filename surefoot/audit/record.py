"""What an audit finds, as data: everything that its sentence, its JSON and its page are made from."""

import dataclasses
import json
import math
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from surefoot.core.limits import check_number

OutcomeName = Literal["passed", "failed", "unclear"]
VerdictName = Literal["robust", "not robust", "masked", "inconclusive"]

EXIT_CODES: dict[VerdictName, int] = {"robust": 0, "masked": 3, "inconclusive": 4, "not robust": 5}


@dataclass(frozen=True, kw_only=True)
class Check:
    """One question put to a model, and what it answered.

    `failed` is a sign that gradients are masked or that an attack was too weak, never that the model is merely
    not robust; `unclear` is neither, for example where too few samples are left to tell.

    Raises:
        ValueError: another outcome.
    """

    key: str
    """Short and stable: `iterative-beats-single-step`."""
    question: str
    """In plain words, ending in a question mark; passed means yes."""
    outcome: OutcomeName
    measured: str
    """One sentence with the numbers."""
    threshold: str
    """One sentence: what decides, and how often chance alone would make a sound model fail."""
    error_rate: float
    """How often chance alone makes a sound model fail, at most."""
    strength: float
    """How far the evidence goes beyond its threshold, in [0, 1]; orders what the verdict names."""
    values: dict[str, Any] = field(default_factory=dict)
    """The numbers behind `measured`, flat."""
    samples: list[int] = field(default_factory=list)
    """Which images it rests on, by their place in the split."""
    seconds: float = 0.0

    def __post_init__(self) -> None:
        if self.outcome not in get_args(OutcomeName):
            raise ValueError(f"outcome is {self.outcome!r}; it is one of {', '.join(get_args(OutcomeName))}.")


@dataclass(frozen=True, kw_only=True)
class Curve:
    """A line of a plot: `y[i]` measured at `x[i]`, with a 95 % interval where there is one."""

    plot: Literal[
        "accuracy-eps",
        "loss-eps",
        "accuracy-steps",
        "logit-distance",
        "training-accuracy",
        "training-loss",
        "training-distance",
        "training-agreement",
    ]
    """Which picture it belongs to."""
    name: str
    """Its line in the legend: `PGD-100`, `FGSM`, `random noise`."""
    x: list[float]
    y: list[float]
    low: list[float] | None = None
    high: list[float] | None = None


@dataclass(frozen=True, kw_only=True)
class Surface:
    """The loss around one image: `loss[i][j]` at x + e1[j] sign(gradient) + e2[i] sign(noise) (Eq. 12)."""

    sample: int
    """The image's place in the split."""
    label: str
    """Its true class."""
    prediction: str
    """What the clean image is taken for."""
    eps: float
    e1: list[float]
    e2: list[float]
    loss: list[list[float]]
    local_linearity_error: float
    """Largest distance of the loss within eps from its tangent at the image."""


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A clean image and what the strongest attack made of it; pixels are 0-255, `[channels][height][width]`."""

    sample: int
    label: str
    clean: list[list[list[int]]]
    adversarial: list[list[list[int]]]
    clean_prediction: str
    adversarial_prediction: str
    clean_confidence: float
    adversarial_confidence: float
    attack: str
    """What made it: `PGD-100`."""
    linf: float
    l2: float


@dataclass(frozen=True, kw_only=True)
class Audit:
    """The whole of an audit of one model. Accuracies are fractions.

    Raises:
        ValueError: another verdict, a number that is not finite, or an interval without two ends.
        TypeError: no number, or no list of classes.
    """

    model: str
    """As the user named it."""
    verdict: VerdictName
    sentence: str
    """The verdict in one sentence, with its two strongest pieces of evidence."""
    warnings: list[str]
    """What a reader must know: attacks too weak to tell, a time budget that ended early, a wrapped model."""
    required: float
    """The worst-case accuracy at `eps` that counts as robust."""
    eps: float
    dataset: str | None
    split: str
    num_examples: int
    clean_accuracy: float
    worst_case_accuracy: float
    """Per sample, over everything that was tried."""
    worst_case_interval: tuple[float, float]
    """95 % Wilson."""
    checks: list[Check]
    attacks: list[dict[str, Any]]
    """Each attack tried: `name`, `robust_accuracy`, `interval`, `seconds`, `forwards`, `backwards`, `num_examples`."""
    curves: list[Curve]
    surfaces: list[Surface]
    pictures: list[Picture]
    classes: list[str]
    seed: int
    seconds: float
    budget_minutes: float | None
    device: str
    weights_sha256: str
    versions: dict[str, str]
    commit: str | None
    command: str | None
    """What was typed, to do it again."""
    recipe: str | None = None

    def __post_init__(self) -> None:
        if self.verdict not in EXIT_CODES:
            raise ValueError(f"verdict is {self.verdict!r}; it is one of {', '.join(EXIT_CODES)}.")
        for name in ("clean_accuracy", "worst_case_accuracy", "eps", "required"):
            check_number(name, getattr(self, name))
            if not math.isfinite(getattr(self, name)):
                raise ValueError(f"{name} is {getattr(self, name)}; it is a finite number.")
        if len(self.worst_case_interval) != 2:
            raise ValueError(f"worst_case_interval is {self.worst_case_interval}; it is a lower and an upper end.")
        if not isinstance(self.classes, list):
            raise TypeError(f"classes is {self.classes!r}; it is a list of names.")

    def __repr__(self) -> str:
        """The verdict and how much there is beside it: all pixels and points would fill screens."""
        counts = ", ".join(f"{len(getattr(self, name))} {name}" for name in ("checks", "attacks", "curves", "pictures"))
        return f"Audit({self.model!r}, {self.verdict!r}, {self.sentence!r}, {self.num_examples} images, {counts})"

    def exit_code(self) -> int:
        """0 robust, 3 masked, 4 inconclusive, 5 not robust."""
        return EXIT_CODES[self.verdict]

    def to_json(self) -> str:
        """The audit as one line of JSON."""
        return json.dumps(dataclasses.asdict(self), ensure_ascii=False, allow_nan=False)

    @staticmethod
    def from_json(text: str) -> "Audit":
        """The audit that `to_json` gave.

        Raises:
            ValueError: it did not.
        """
        try:
            fields = json.loads(text)
            return Audit(
                **{
                    **fields,
                    "worst_case_interval": tuple(fields["worst_case_interval"]),
                    "checks": [Check(**each) for each in fields["checks"]],
                    "curves": [Curve(**each) for each in fields["curves"]],
                    "surfaces": [Surface(**each) for each in fields["surfaces"]],
                    "pictures": [Picture(**each) for each in fields["pictures"]],
                }
            )
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(f"this is not an audit ({error}).") from error
