"""A recipe: everything that decides what a run becomes, as one frozen dataclass that turns into JSON."""

import dataclasses
import json
from dataclasses import dataclass, field
from typing import Annotated, Any

import tyro
from torch import nn

from surefoot.attacks import FGSM, IFGSM, PGD, MarginLoss
from surefoot.core.limits import as_number, check_count
from surefoot.core.types import Attack
from surefoot.models import Normalize
from surefoot.objectives import (
    OBJECTIVES,
    EnsembleAT,
    FgsmAT,
    NFgsmAT,
    NormalTraining,
    PgdAT,
    RFgsmAT,
    SatR1,
    SatR2,
    SatR3,
    Trades,
)
from surefoot.training import FitConfig, Phase

AnyObjective = Annotated[
    NormalTraining | FgsmAT | RFgsmAT | NFgsmAT | EnsembleAT | PgdAT | Trades | SatR1 | SatR2 | SatR3,
    tyro.conf.AvoidSubcommands,
]


@dataclass(frozen=True)
class Recipe:
    """What to train on what, how, and what to attack it with; every field can be overridden.

    Raises:
        ValueError: a field out of its range.
        TypeError: or of another kind.

    Example:
        >>> from surefoot.recipes import RECIPES
        >>> longer = dataclasses.replace(RECIPES["digits/sat-r3"], epochs=80, eps=0.2)
        >>> [phase.epochs for phase in longer.phases()], longer.selection()
        ([80], IFGSM(eps=0.2, steps=3, loss=cross_entropy, stop_when_fooled=False))
    """

    name: tyro.conf.Suppress[str]
    """Its key, `DATASET/METHOD`."""
    description: tyro.conf.Suppress[str]
    """One line: what it is and where its settings come from."""
    dataset: str
    """digits, mnist, cifar10, tiny-imagenet-100 or imagefolder:PATH."""
    model: str
    """A network of `surefoot list`, or package.module:factory for your own."""
    objective: AnyObjective
    """What is minimised."""
    epochs: int
    """Passes over the training set under this objective."""
    eps: float
    """The l-infinity radius that the model is selected and evaluated at, in pixel units: 8/255."""
    attack_steps: int
    """Steps of I-FGSM, PGD and PGD-CW when the model is evaluated."""
    attack_step_size: float
    """Step size of PGD and PGD-CW when the model is evaluated, in pixel units: 2/255."""
    training: Annotated[FitConfig, tyro.conf.arg(name="")] = field(default_factory=FitConfig)
    then: tuple[Phase, ...] = ()
    """Further phases, after the first `epochs`, as in the paper's Table 9."""
    initial_weights: str | None = None
    """Weights to start from: a run's folder, or a file of the same network's; None draws them from the seed."""
    selection_steps: int = 3
    """I-FGSM steps that select the epoch on the validation split; 0 selects by clean accuracy."""
    validation_size: int | None = None
    """Training images held out for the selection; None is the data set's own (MNIST and CIFAR-10: 10,000)."""
    num_classes: int | None = None
    """Keep that many classes, chosen at random; None is all."""
    image_size: int | None = None
    """Pixels a side that images are resized to; None is the data set's own, 64 for imagefolder."""
    data_seed: int = 0
    """Of the choice of classes and the split of an imagefolder, apart from the seed of the training."""
    mean: tuple[float, ...] | None = None
    """Subtracted from each channel inside the model."""
    std: tuple[float, ...] | None = None
    """Divides each channel inside the model, after the mean."""

    def __post_init__(self) -> None:
        self.attacks()
        check_count("selection_steps", self.selection_steps, least=0)
        Phase(self.objective, self.epochs)
        for phase in self.then:
            if not isinstance(phase, Phase):
                raise TypeError(f"then has {phase!r}; give Phase(objective, epochs).")
        for name, least in (("validation_size", 0), ("num_classes", 2), ("image_size", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"{name} is {value}; it must be at least {least}.")
        if not isinstance(self.initial_weights, str | None):
            raise TypeError(
                f"initial_weights is of type {type(self.initial_weights).__name__}; give a run's folder or a file of "
                "weights as text, as str(path) is."
            )
        Normalize([0.0] if self.mean is None else self.mean, [1.0] if self.std is None else self.std)

    def phases(self) -> tuple[Phase, ...]:
        """The first objective and what comes after it."""
        return (Phase(self.objective, self.epochs), *self.then)

    def selection(self) -> Attack | None:
        """The attack that selects the epoch."""
        return IFGSM(self.eps, self.selection_steps) if self.selection_steps else None

    def attacks(self) -> dict[str, Attack]:
        """The white-box attacks of Tables 3-5 under their names on paper."""
        eps, steps, step_size = self.eps, self.attack_steps, self.attack_step_size
        return {
            "FGSM": FGSM(eps),
            f"I-FGSM-{steps}": IFGSM(eps, steps),
            f"PGD-{steps}": PGD(eps, steps, step_size, start_radius=step_size),
            f"PGD-CW-{steps}": PGD(eps, steps, step_size, start_radius=step_size, loss=MarginLoss(50.0)),
        }

    def to_json(self) -> dict[str, Any]:
        """The recipe as JSON values; objectives carry their key as `name`.

        Example:
            >>> from surefoot.recipes import RECIPES
            >>> RECIPES["mnist/sat-r3"].to_json()["objective"]["name"]
            'sat-r3'
        """
        settings = dataclasses.asdict(self)
        settings["objective"] = objective_to_json(self.objective)
        for phase, saved in zip(self.then, settings["then"], strict=True):
            saved["objective"] = objective_to_json(phase.objective)
        return json.loads(json.dumps(settings, default=as_number))  # type: ignore[no-any-return]

    @staticmethod
    def from_json(settings: dict[str, Any]) -> "Recipe":
        """The recipe that `to_json` gave.

        Raises:
            ValueError: a field that is missing, unknown or out of range.
        """
        try:
            fields = dict(settings)
            fields["objective"] = objective_from_json(fields["objective"])
            fields["training"] = FitConfig(**fields["training"])
            fields["then"] = tuple(
                Phase(**{**phase, "objective": objective_from_json(phase["objective"])}) for phase in fields["then"]
            )
            for name in ("mean", "std"):
                fields[name] = None if fields[name] is None else tuple(fields[name])
            return Recipe(**fields)
        except (AttributeError, KeyError, TypeError) as error:
            raise ValueError(
                f"these are not the settings of a recipe ({error}); give those that to_json makes."
            ) from error


def objective_to_json(objective: Any) -> dict[str, Any]:
    """An objective's key and fields.

    Raises:
        ValueError: it has no key.
    """
    key = next((key for key, kind in OBJECTIVES.items() if kind is type(objective)), None)
    if key is None:
        raise ValueError(
            f"{type(objective).__name__} has no key in surefoot.objectives.OBJECTIVES, by which a recipe's file names "
            "it; give it one, or train with surefoot.training.fit, which takes any objective."
        )
    if not all(isinstance(source, str) for source in getattr(objective, "sources", ())):
        raise ValueError(
            f"{type(objective).__name__} of a recipe has the names of the recipes that train its sources, as "
            "'mnist/normal-a'; give these, or train with surefoot.training.fit, which takes networks."
        )
    return {"name": key, **dataclasses.asdict(objective)}


def objective_from_json(settings: dict[str, Any]) -> Any:
    """The objective that `objective_to_json` gave."""
    fields = {key: tuple(value) if isinstance(value, list) else value for key, value in settings.items()}
    name = fields.pop("name")
    if name not in OBJECTIVES:
        raise ValueError(f"the objective {name!r} is unknown; it is one of {', '.join(OBJECTIVES)}.")
    return OBJECTIVES[name](**fields)


def source_names(recipe: Recipe) -> tuple[str, ...]:
    """The recipes whose models the recipe's objectives craft on, each once."""
    found = [
        source
        for phase in recipe.phases()
        if isinstance(phase.objective, EnsembleAT)
        for source in phase.objective.sources
        if isinstance(source, str)
    ]
    return tuple(dict.fromkeys(found))


def with_sources(phase: Phase, models: dict[str, nn.Module]) -> Phase:
    """The phase with its objective's source names replaced by their models."""
    if not isinstance(phase.objective, EnsembleAT):
        return phase
    sources = tuple(models[source] if isinstance(source, str) else source for source in phase.objective.sources)
    return dataclasses.replace(phase, objective=dataclasses.replace(phase.objective, sources=sources))
