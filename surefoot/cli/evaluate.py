"""`surefoot evaluate MODEL ...`."""

import dataclasses
import itertools
import os
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from surefoot.attacks import (
    APGD,
    APGDT,
    FABT,
    FGSM,
    IFGSM,
    MIFGSM,
    PGD,
    RFGSM,
    AutoAttack,
    CarliniWagnerL2,
    DeepFool,
    MarginLoss,
    Square,
)
from surefoot.cli.models import ModelOptions, Opened, open_models, open_source, ready, split_batches
from surefoot.cli.options import parse, split_names
from surefoot.cli.output import EvaluationProgress, commit, print_json, say, stdout
from surefoot.core.files import check_can_fill
from surefoot.core.limits import check_count
from surefoot.core.types import Attack
from surefoot.data.cache import cache_root
from surefoot.evaluation import Record, append_records, evaluate, evaluate_transfer, read_records
from surefoot.evaluation.records import check_records
from surefoot.report import record_table

DESCRIPTION = """Measure the accuracy of models on clean images and under attack. A MODEL is a run's folder, or
package.module:factory with --weights, --dataset and --eps. A sample that is fooled counts as
fooled and leaves (--last-iterate counts the last step only, as the paper does); the attacks run in fp32, from a
seed (--precision fast: crafted in bf16). With --source the attacks are crafted on that model and scored on each
MODEL: the black-box setting. Records are appended to RUN/records.jsonl, each as soon as its attack is done. After a
Ctrl-C the same command goes on where it stopped."""

AttackName = Literal[
    "fgsm",
    "r-fgsm",
    "i-fgsm",
    "mi-fgsm",
    "pgd",
    "pgd-cw",
    "auto-attack",
    "apgd",
    "apgd-t",
    "fab-t",
    "square",
    "deepfool",
    "cw",
]
WHITE_BOX: tuple[AttackName, ...] = ("fgsm", "i-fgsm", "pgd", "pgd-cw")
BLACK_BOX: tuple[AttackName, ...] = ("fgsm", "mi-fgsm")


@dataclass(frozen=True)
class Options(ModelOptions):
    """What `surefoot evaluate` takes beside the models."""

    eps: tuple[float, ...] = ()
    """l-infinity radii in pixel units: 8/255, or several for accuracy against the radius; none is the recipe's."""
    attacks: tuple[AttackName, ...] | None = None
    """Which to run, in turn, after clean accuracy. None: fgsm i-fgsm pgd pgd-cw; with --source: fgsm mi-fgsm."""
    steps: int | None = None
    """Steps of I-FGSM, MI-FGSM, PGD and PGD-CW; None is the recipe's, 20 for package.module:factory."""
    step_size: float | None = None
    """Step size of PGD and PGD-CW: 2/255; None is the recipe's, in proportion to eps, or eps / 4 without a recipe."""
    random_step: float | None = None
    """R-FGSM's random step; None is half of eps."""
    restarts: int = 1
    """Runs of PGD and PGD-CW a sample; one that fools the model is kept."""
    deepfool_steps: int = 50
    """Linearisations of DeepFool at most."""
    deepfool_shorten: int = 6
    """Halvings by which DeepFool shortens what fooled; 0 is DeepFool as published."""
    cw_steps: int = 1000
    """Steps of C&W for each weight c."""
    cw_search_steps: int = 9
    """How many weights c C&W tries."""
    cw_learning_rate: float = 0.01
    """Adam's step in C&W; the README's MNIST models are measured with 0.05, 200 steps and 5 weights."""
    precision: Literal["strict", "fast"] = "strict"
    """`strict`: fp32, and never weaker than fp32 alone; `fast`: crafted in bf16, scored in fp32."""
    last_iterate: bool = False
    """Attack every sample to the last step and count only that, as the paper does."""
    eight_bit: bool = False
    """Count only perturbations that still fool after rounding to 8-bit pixels."""
    records: Path | None = None
    """A file to append the records to as well."""
    save_samples: Path | None = None
    """A folder for each attack's adversarial inputs and per-sample outcomes, as safetensors."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_count("restarts", self.restarts)
        if self.source is not None:
            for name in ("last_iterate", "save_samples"):
                if getattr(self, name):
                    raise ValueError(
                        f"--{name.replace('_', '-')} is for attacks on the model itself; leave it out with --source."
                    )
            if self.precision == "fast":
                raise ValueError("--precision fast is for attacks on the model itself; a --source crafts in fp32.")
        if self.attacks == ():
            raise ValueError("attacks is empty, so there is nothing to run; name at least one, or leave it out.")
        # Whatever is run, a setting that an attack would refuse is refused.
        for eps in self.eps:
            FGSM(eps)
        if self.steps is not None:
            IFGSM(1.0, self.steps)
        if self.step_size is not None:
            PGD(1.0, 1, self.step_size)
        if self.random_step is not None:
            RFGSM(1.0, self.random_step)
        deepfool(self)
        carlini_wagner(self)


def run(args: list[str]) -> int:
    """Evaluate; exit code 0."""
    names, rest = split_names(args)
    if not names and not {"-h", "--help"} & set(rest):
        raise ValueError(
            "evaluate needs a model, before any option: for example `surefoot evaluate runs/mnist/sat-r3/0`."
        )
    options = parse(Options, rest, prog=f"surefoot evaluate {' '.join(names) or 'MODEL'}", description=DESCRIPTION)
    if len(names) > 1 and options.save_samples is not None:
        raise ValueError(f"--save-samples is one folder for one model, and {len(names)} are given; evaluate one.")
    options.set_threads()
    if options.records is not None:
        check_records(options.records, "--records")
    if options.save_samples is not None:
        check_can_fill(options.save_samples, "--save-samples")
    opened = open_models(names, options)
    for number, each in enumerate(opened):
        if each.folder is None:
            continue
        if options.records is not None and not os.access(each.folder, os.W_OK):
            say(f"{each.folder} may not be written in; its records go to {options.records} alone.")
            opened[number] = dataclasses.replace(each, folder=None)
        else:
            check_records(each.folder / "records.jsonl", "the file of the run's records (--records FILE is another)")
    try:
        if options.source is None:
            of_each = [make_attacks(options.attacks or WHITE_BOX, each.settings, options) for each in opened]
            for each, attacks in zip(opened, of_each, strict=True):
                white_box(each, attacks, options)
        else:
            black_box(opened, options.source, options)
    except KeyboardInterrupt:
        again = shlex.join(["surefoot", "evaluate", *args])
        raise KeyboardInterrupt(f"Finished batches are kept; go on with: {again}") from None
    files = [str(file) for each in opened for file in record_files(each, options)]
    if files:
        say("Records are in " + " and ".join(dict.fromkeys(files)) + ".")
    return 0


def white_box(each: Opened, attacks: list[Attack], options: Options) -> None:
    """Attack a model on itself."""
    device, batches = split_batches(each.dataset, options)
    with EvaluationProgress(each.name) as progress:
        records = evaluate(
            ready(each.model, each.name, batches, device, options),
            batches,
            attacks,
            last_iterate=options.last_iterate,
            precision=options.precision,
            eight_bit=options.eight_bit,
            worst_case=not options.last_iterate,
            seed=options.seed,
            about=about_of(each, options),
            progress=progress,
            on_record=keeper(each, options),
            on_note=say,
            unfinished=cache_root(None) / "evaluations",
            samples=options.save_samples,
        )
    show(each.name, records, options)


def black_box(opened: list[Opened], source_name: str, options: Options) -> None:
    """Craft on the source, score on every model."""
    first = opened[0]
    for each in opened[1:]:
        if each.about["dataset"] != first.about["dataset"]:
            raise ValueError(
                f"{first.name} is of {first.about['dataset']} and {each.name} of {each.about['dataset']}; "
                "with --source give models of one data set."
            )
        if each.dataset.class_names != first.dataset.class_names:
            raise ValueError(
                f"{first.name} and {each.name} tell other classes of {first.about['dataset']} apart; with --source "
                "give models of the same classes."
            )
    source = open_source(source_name, first, options)
    device, batches = split_batches(first.dataset, options)
    keepers = itertools.cycle([keeper(each, options) for each in opened])  # a record a model, once an attack
    with EvaluationProgress(source_name) as progress:
        rows = evaluate_transfer(
            ready(source.model, source.name, batches, device, options),
            [ready(each.model, each.name, batches, device, options) for each in opened],
            batches,
            make_attacks(options.attacks or BLACK_BOX, first.settings, options),
            eight_bit=options.eight_bit,
            seed=options.seed,
            about=[{**about_of(each, options), "source": source.about["recipe"]} for each in opened],
            progress=progress,
            on_record=lambda record: next(keepers)(record),
            on_note=say,
            unfinished=cache_root(None) / "evaluations",
        )
    for each, records in zip(opened, rows, strict=True):
        show(f"{each.name}, crafted on {source_name}", records, options)


def about_of(each: Opened, options: Options) -> dict[str, Any]:
    """What a record says of where it comes from."""
    return {**each.about, "split": options.split, "commit": commit()}


def record_files(each: Opened, options: Options) -> list[Path]:
    """Where a model's records go."""
    own = [] if each.folder is None else [each.folder / "records.jsonl"]
    return [*own, *([options.records] if options.records else [])]


def keeper(each: Opened, options: Options) -> Callable[[Record], None]:
    """Appends a record to its files, once, and prints it where JSON is asked for."""

    def keep(record: Record) -> None:
        for file in record_files(each, options):
            if not file.exists() or record not in read_records(file):  # it is there where a stop came after it
                append_records(file, [record])
        if options.json:
            print_json(dataclasses.asdict(record))

    return keep


def show(title: str, records: list[Record], options: Options) -> None:
    """A table, where JSON is not asked for."""
    if not options.json:
        stdout.print(record_table(records, f"{title}, {records[0].num_examples} {options.split} images"))


def deepfool(options: Options) -> DeepFool:
    """DeepFool with the settings that were given."""
    return DeepFool(options.deepfool_steps, shorten=options.deepfool_shorten)


def carlini_wagner(options: Options) -> CarliniWagnerL2:
    """C&W with the settings that were given."""
    return CarliniWagnerL2(
        learning_rate=options.cw_learning_rate, steps=options.cw_steps, search_steps=options.cw_search_steps
    )


def make_attacks(names: tuple[AttackName, ...], settings: dict[str, Any], options: Options) -> list[Attack]:
    """The attacks that were asked for, each at every radius; PGD has the paper's start (Eq. 6).

    Args:
        names: in turn.
        settings: the recipe's own eps, steps and step_size; a network of one's own has none.
        options: what was given instead.

    Raises:
        ValueError: eps, where one of them needs it, is neither given nor known from a recipe.
    """
    radii = tuple(dict.fromkeys(options.eps)) or ((settings["eps"],) if "eps" in settings else ())
    steps = options.steps or settings.get("steps", 20)  # of a network of one's own what the paper takes on CIFAR-10

    def pgd(eps: float, **more: Any) -> Attack:
        step_size = options.step_size or step_at(eps, settings)
        return PGD(eps, steps, step_size, restarts=options.restarts, start_radius=step_size, **more)

    without_radius: dict[AttackName, Callable[[], Attack]] = {
        "deepfool": lambda: deepfool(options),
        "cw": lambda: carlini_wagner(options),
    }
    within: dict[AttackName, Callable[[float], Attack]] = {
        "fgsm": FGSM,
        "r-fgsm": lambda eps: RFGSM(eps, eps / 2 if options.random_step is None else options.random_step),
        "i-fgsm": lambda eps: IFGSM(eps, steps),
        "mi-fgsm": lambda eps: MIFGSM(eps, steps),
        "pgd": pgd,
        "pgd-cw": lambda eps: pgd(eps, loss=MarginLoss(50.0)),
        "apgd": APGD,
        "apgd-t": APGDT,
        "fab-t": FABT,
        "square": Square,
        "auto-attack": AutoAttack,
    }
    attacks: list[Attack] = []
    for name in names:
        if name in without_radius:
            attacks.append(without_radius[name]())
        elif not radii:
            raise ValueError(f"{name} needs --eps, which only a run knows by itself; give --eps, for example 8/255.")
        else:
            attacks += [within[name](eps) for eps in radii]
    return attacks


def step_at(eps: float, settings: dict[str, Any]) -> float:
    """PGD's step at a radius: as large a share of it as the recipe's own step is of its own radius.

    >>> step_at(0.1, {"eps": 0.2, "step_size": 0.02}), step_at(0.1, {})
    (0.01, 0.025)
    """
    own, step_size = settings.get("eps", 0), settings.get("step_size", 0.25)
    if eps != own:
        step_size = min(step_size * eps / own, 1.0) if own else eps / 4
    return step_size or 1 / 255  # a step of 0 is refused
