"""`surefoot demo`: five models on embedded digits, which of them are robust, and the page that shows why."""

import dataclasses
import shlex
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.table import Table

from surefoot.attacks import FGSM, PGD
from surefoot.audit import Audit
from surefoot.audit.audit import audit
from surefoot.cli.models import training_curves
from surefoot.cli.options import Common, parse
from surefoot.cli.output import Spinner, TrainingProgress, commit, print_json, say, stdout
from surefoot.core.files import check_can_write
from surefoot.core.limits import check_whole
from surefoot.data import Batches
from surefoot.evaluation import Record, append_records, evaluate
from surefoot.recipes import RECIPES, Recipe, load_run, train
from surefoot.recipes.run import is_run, is_trained
from surefoot.report import attack_label
from surefoot.report.page import check_page, write_page
from surefoot.report.tables import percent

METHODS = {
    "normal": "Normal",
    "fgsm-at": "FGSM-AT",
    "sat-r1": "SAT-R1",
    "sat-r2": "SAT-R2",
    "sat-r3": "SAT-R3",
}

DESCRIPTION = """Train normal, FGSM-AT, SAT-R1, SAT-R2 and SAT-R3 models on scikit-learn's embedded 8 x 8 digits and
attack them with FGSM (one step) and PGD (many), and audit them: do they only look robust? The page with all evidence
is OUT/audit.html. One to six minutes, by how busy the machine is; no network. Models that an earlier demo finished are
not trained again."""

AUDITED = 360  # all test images: of fewer it would end inconclusive, asking for more


@dataclass(frozen=True)
class Options(Common):
    """What `surefoot demo` takes."""

    out: Path = Path("runs/demo")
    """Where the five runs and the page go."""
    epochs: int | None = None
    """Passes over the training set; None is the recipes' own."""
    seed: int = 0
    """Of the weights, the order of the images and the attacks."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_whole("seed", self.seed, least=0, what="--seed")


def run(args: list[str]) -> int:
    """Train what is missing, attack, print one table and what it means; exit code 0."""
    options = parse(Options, args, prog="surefoot demo", description=DESCRIPTION)
    stdout.lasting = True
    torch.set_num_threads(options.threads or 1)  # the network is too small to share out
    started = time.perf_counter()
    page = options.out / "audit.html"
    check_can_write(page, "--out")
    check_page(page)
    try:
        measured = measure_all(options)
        audits = audit_all(options)
    except KeyboardInterrupt:
        again = shlex.join(["surefoot", "demo", *args])
        raise KeyboardInterrupt(f"Finished epochs are kept in {options.out}; go on with: {again}") from None
    conclusion = what_it_means(measured, audits)
    if options.json:
        for method, found in audits.items():
            print_json({"run": str(run_path(method, options)), "verdict": found.verdict, "sentence": found.sentence})
        print_json({"conclusion": conclusion, "seconds": round(time.perf_counter() - started, 1)})
    else:
        stdout.print()
        stdout.print(demo_table(measured, audits))
        stdout.print(conclusion, soft_wrap=False)
    write_page(list(audits.values()), page)
    say(f"{time.perf_counter() - started:.0f} s. The page with the evidence is {page}; open it in a browser.")
    say(f"Try next: {shlex.join(['surefoot', 'audit', str(run_path('sat-r2', options))])}")
    return 0


def run_path(method: str, options: Options) -> Path:
    """Where a method's run is."""
    return options.out / method / str(options.seed)


def measure_all(options: Options) -> dict[str, list[Record]]:
    """Train what is missing and attack each of the five."""
    measured = {}
    for number, method in enumerate(METHODS, start=1):
        recipe = RECIPES[f"digits/{method}"]
        recipe = dataclasses.replace(
            recipe,
            epochs=recipe.epochs if options.epochs is None else options.epochs,
            training=dataclasses.replace(recipe.training, seed=options.seed),
        )
        measured[method] = train_and_attack(recipe, f"[{number}/{len(METHODS)}] {METHODS[method]}", options)
    return measured


def audit_all(options: Options) -> dict[str, Audit]:
    """An audit of each of the five; what is crafted on another network comes from one of the other four."""
    dataset = load_run(run_path("normal", options)).load_data()
    inputs, labels = dataset.test.images[:AUDITED].float() / 255, dataset.test.labels[:AUDITED]
    models = {method: load_run(run_path(method, options)).load_model(dataset) for method in METHODS}
    audits = {}
    for method, model in models.items():
        source = "sat-r1" if method == "normal" else "normal"
        with Spinner(f"audit of {METHODS[method]}") as spinner:
            found = audit(
                model,
                inputs,
                labels,
                RECIPES[f"digits/{method}"].eps,
                name=METHODS[method],
                sources={METHODS[source]: models[source]},
                seed=options.seed,
                about={
                    "dataset": "digits",
                    "recipe": f"digits/{method}",
                    "split": "test",
                    "commit": commit(),
                    "command": shlex.join(
                        [
                            *("surefoot", "audit", str(run_path(method, options))),
                            *("--source", str(run_path(source, options))),
                            *("--num-examples", str(AUDITED), "--seed", str(options.seed)),
                        ]
                    ),
                },
                progress=spinner,
            )
        seen = training_curves(run_path(method, options))
        audits[method] = dataclasses.replace(found, curves=[*found.curves, *seen])
    return audits


def train_and_attack(recipe: Recipe, title: str, options: Options) -> list[Record]:
    """The records of one method: clean, FGSM, PGD."""
    path = run_path(recipe.name.removeprefix("digits/"), options)
    if not is_trained(recipe, path):
        say(f"{title}: training for {recipe.epochs} epochs")
        with TrainingProgress(title) as progress:
            train(recipe, path, on_step=progress.on_step, on_note=say, resume=is_run(path))
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


def demo_table(measured: dict[str, list[Record]], audits: dict[str, Audit]) -> Table:
    """A row a method: accuracy clean, under FGSM, under PGD, and what the audit says."""
    first = next(iter(measured.values()))
    eps = first[1].attack_fields["eps"]
    title = f"Accuracy in % on {first[0].num_examples} test digits, perturbed by at most {eps:g}"
    table = Table(title=title, title_justify="left")
    table.add_column("trained by")
    for record in first:
        table.add_column(attack_label(record.attack, record.attack_fields), justify="right")
    table.add_column("audit: survive all", justify="right")
    table.add_column("verdict")
    for method, records in measured.items():
        found = audits[method]
        table.add_row(
            METHODS[method],
            *(percent(record.robust_accuracy) for record in records),
            percent(found.worst_case_accuracy),
            found.verdict,
        )
    return table


def what_it_means(measured: dict[str, list[Record]], audits: dict[str, Audit]) -> str:
    """A line a verdict: what it says, and of whom, with FGSM's number and the worst case's."""
    told = {
        "robust": "holds against everything that was tried",
        "masked": "only looks robust, for one-step FGSM fails where other attacks do not",
        "not robust": "too little is left",
        "inconclusive": "the evidence does not decide",
    }
    lines = ["From FGSM alone to the worst of all attacks:"]
    for verdict, what in told.items():
        models = [
            f"{METHODS[method]} ({percent(measured[method][1].robust_accuracy)} -> "
            f"{percent(found.worst_case_accuracy)})"
            for method, found in audits.items()
            if found.verdict == verdict
        ]
        if models:
            lines.append(f"- {verdict}, {what}: {', '.join(models)}")
    return "\n".join(lines)
