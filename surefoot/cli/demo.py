"""`surefoot demo`: five models on embedded digits, and which of them are robust."""

import dataclasses
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.table import Table

from surefoot.attacks import FGSM, PGD
from surefoot.cli.options import Common, parse
from surefoot.cli.output import TrainingProgress, commit, print_json, say, stdout
from surefoot.data import Batches
from surefoot.evaluation import Record, append_records, evaluate
from surefoot.recipes import RECIPES, Recipe, load_run, train
from surefoot.report import attack_label
from surefoot.report.tables import percent

METHODS = {
    "normal": "Normal",
    "fgsm-at": "FGSM-AT",
    "sat-r1": "SAT-R1",
    "sat-r2": "SAT-R2",
    "sat-r3": "SAT-R3",
}

DESCRIPTION = """Train normal, FGSM-AT, SAT-R1, SAT-R2 and SAT-R3 models on scikit-learn's embedded 8 x 8 digits and
attack them with FGSM (one step) and PGD (many). About a minute on a CPU core, no network. Models that an earlier demo
finished are taken as they are."""

LOOKS_ROBUST = 0.3  # of the images survive FGSM
MASKED_GAP = 0.75  # of those are lost to PGD


@dataclass(frozen=True)
class Options(Common):
    """What `surefoot demo` takes."""

    out: Path = Path("runs/demo")
    """Where the five runs go."""
    epochs: int | None = None
    """Passes over the training set; None is the recipes' own."""
    seed: int = 0
    """Of the weights, the order of the images and the attacks."""


def run(args: list[str]) -> int:
    """Train what is missing, attack, print one table and what it means; exit code 0."""
    options = parse(Options, args, prog="surefoot demo", description=DESCRIPTION)
    torch.set_num_threads(options.threads or 1)  # the network is too small to share out
    started = time.perf_counter()
    measured = {}
    for number, method in enumerate(METHODS, start=1):
        recipe = RECIPES[f"digits/{method}"]
        recipe = dataclasses.replace(
            recipe,
            epochs=recipe.epochs if options.epochs is None else options.epochs,
            training=dataclasses.replace(recipe.training, seed=options.seed),
        )
        measured[method] = train_and_attack(recipe, f"[{number}/{len(METHODS)}] {METHODS[method]}", options)
    verdict = what_it_means(measured)
    if options.json:
        print_json({"conclusion": verdict, "seconds": round(time.perf_counter() - started, 1)})
    else:
        stdout.print()
        stdout.print(demo_table(measured))
        stdout.print(verdict, soft_wrap=False)
    say(f"{time.perf_counter() - started:.0f} s. The runs are in {options.out}.")
    say(f"Try next: surefoot evaluate {options.out}/sat-r2/{options.seed}")
    return 0


def train_and_attack(recipe: Recipe, title: str, options: Options) -> list[Record]:
    """The records of one method: clean, FGSM, PGD."""
    path = options.out / recipe.name.removeprefix("digits/") / str(options.seed)
    if not is_trained(recipe, path):
        say(f"{title}: training for {recipe.epochs} epochs")
        with TrainingProgress(title) as progress:
            train(recipe, path, on_step=progress.on_step, resume=(path / "recipe.json").exists())
    else:
        say(f"{title}: trained before, in {path}")
    trained = load_run(path)
    dataset = trained.load_data()
    records = evaluate(
        trained.load_model(dataset),
        Batches(dataset.test, 360),
        [FGSM(recipe.eps), PGD(recipe.eps, recipe.attack_steps, recipe.attack_step_size)],
        seed=options.seed,
        about={"recipe": recipe.name, "seed": options.seed, "dataset": recipe.dataset, "commit": commit()},
    )
    append_records(path / "records.jsonl", records)
    if options.json:
        for record in records:
            print_json(dataclasses.asdict(record))
    return records


def is_trained(recipe: Recipe, path: Path) -> bool:
    """Is there a finished run of this very recipe?

    Raises:
        ValueError: there is a run of another.
    """
    if not (path / "recipe.json").exists():
        return False
    found = load_run(path)
    if found.recipe.to_json() != recipe.to_json():
        raise ValueError(f"{path} holds a run with other settings; give another folder with --out.")
    return found.is_finished()


def demo_table(measured: dict[str, list[Record]]) -> Table:
    """A row a method: accuracy clean, under FGSM, under PGD."""
    first = next(iter(measured.values()))
    title = (
        f"Accuracy in % on {first[0].num_examples} test digits, perturbed by at most {first[1].attack_fields['eps']:g}"
    )
    table = Table(title=title, title_justify="left")
    table.add_column("trained by")
    for record in first:
        table.add_column(attack_label(record.attack, record.attack_fields), justify="right")
    for method, records in measured.items():
        table.add_row(METHODS[method], *(percent(record.robust_accuracy) for record in records))
    return table


def what_it_means(measured: dict[str, list[Record]]) -> str:
    """One sentence on which models are robust, drawn from the numbers alone.

    A model that keeps `LOOKS_ROBUST` under FGSM and loses more than `MASKED_GAP` of that to PGD masks its
    gradients; one that keeps more holds.
    """
    masked: list[tuple[str, Record, Record]] = []
    standing: list[tuple[str, Record, Record]] = []
    for method, (_, fgsm, pgd) in measured.items():
        if fgsm.robust_accuracy < LOOKS_ROBUST:
            continue
        lost = 1 - pgd.robust_accuracy / fgsm.robust_accuracy
        (masked if lost > MASKED_GAP else standing).append((METHODS[method], fgsm, pgd))
    steps = next(iter(measured.values()))[2].attack_fields["steps"]

    def tell(models: list[tuple[str, Record, Record]]) -> str:
        return ", ".join(
            f"{name} ({percent(f.robust_accuracy)} -> {percent(p.robust_accuracy)})" for name, f, p in models
        )

    looks = (
        f"{tell(masked)} only looked robust: one-step FGSM fails on it, {steps}-step PGD does not, because it learned "
        "to mask its gradients instead of becoming robust"
        if masked
        else "no model only looked robust this time"
    )
    stands = f"{tell(standing)} hold against PGD too" if standing else "no model holds against PGD"
    return f"From FGSM to PGD: {looks}; {stands}."
