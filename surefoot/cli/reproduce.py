"""`surefoot reproduce WHAT ...`."""

import dataclasses
import json
import shlex
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from rich.table import Table

from surefoot.cli.options import Common, parse, split_names, unknown
from surefoot.cli.output import commit, duration, print_json, say, stdout
from surefoot.core.files import check_can_fill, locked, write_text
from surefoot.core.limits import check_whole
from surefoot.data import Dataset
from surefoot.paper.cluster import Cluster
from surefoot.paper.estimate import Costs
from surefoot.paper.figures import can_draw, draw
from surefoot.paper.matrix import Matrix
from surefoot.paper.page import write_reproduction
from surefoot.paper.panels import FIGURES, Figure, measured
from surefoot.paper.profiles import PROFILES
from surefoot.paper.runs import Task, Training, Workplace
from surefoot.paper.schedule import Event, Executor, Failure, InProcess, Processes, outstanding, run_all
from surefoot.paper.targets import TABLES, Target
from surefoot.recipes import RECIPES
from surefoot.recipes.run import DATA, RECIPE_FILE
from surefoot.training.machines import best_device

DESCRIPTION = """WHAT is table3 to table9, sanity, fig1 to fig10, or all. Train what is missing, measure it, and write
the paper's tables and figures with our numbers beside the printed ones, and a page of them all. What is done is never
done again: a stopped command, given once more, goes on. Results go to OUT/PROFILE as Markdown, CSV, JSON lines, PNG
and HTML, the runs behind them to OUT/runs."""

NOT_EVIDENCE = (".gitignore", "*.lock", "*.safetensors", "*.ckpt", "*.html", "/logs/", "/unfinished/")
"""What of OUT is not worth a commit: the rest is what the tables and figures are drawn from."""
NO_DATA = (ConnectionError, FileNotFoundError)
"""What loading raises where the data are not there."""
TARGETS: dict[str, Target | Figure] = {**TABLES, **FIGURES}


@dataclass(frozen=True)
class Options(Common):
    """What `surefoot reproduce` takes beside the tables and figures."""

    profile: Literal["paper", "short", "quick", "smoke"] = "quick"
    """`paper`: the paper's settings; `short`: CIFAR-10 in minutes of a GPU; `quick`: for CPU cores; `smoke`: a try."""
    seeds: int | None = None
    """Trainings a row, with seeds 0, 1, ...; None is the profile's own. Tables show all that are there."""
    only: str | None = None
    """Run only these rows: sat-r1,sat-r3; the others are shown as far as they are there."""
    dataset: Literal["mnist", "cifar10", "tiny-imagenet-100"] = "mnist"
    """Of Tables 6 and 8, of the sanity tests and of the figures but Fig. 6; the other tables have their own."""
    out: Path = Path("reproduction")
    """Where everything goes; on several machines a folder that they share."""
    imagenet: Path | None = None
    """Your ImageNet folder for tiny-imagenet-100: 100 random classes, 224 pixels a side where the profile has it."""
    data_dir: Path | None = None
    """A folder of parquet shards; None is $SUREFOOT_DATA, or the hub."""
    runs: tuple[Path, ...] = ()
    """Folders of finished runs of `surefoot train`, to be taken where the settings and the seed are the very same."""
    workers: int = 1
    """Processes at a time, each with its share of the cores or a GPU of its own; 0 runs everything in this one."""
    precision: Literal["fp32", "bf16"] | None = None
    """Of the trainings, and said on every table; None is the recipes' own, fp32. All attacks measure in fp32."""
    reading: Literal["paper", "code"] | None = None
    """Train as the paper or as its authors' code wherever the two differ (docs/reproduce.md); None is the recipes'."""
    cluster: str | None = None
    """A Ray cluster to run on instead (`auto` or HOST:PORT); its machines share OUT; --threads CPUs a task, or 1."""
    last_iterate: bool = False
    """In the tables count the last step of every attack but AutoAttack, as the paper does, in a folder of its own."""
    dry_run: bool = False
    """Print what would be run, and how long it may take; run nothing."""
    draw: bool = False
    """Run nothing: draw tables and figures from what is there."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.seeds is not None:
            check_whole("seeds", self.seeds)
        check_whole("workers", self.workers, least=0)


def run(args: list[str]) -> int:
    """Reproduce; exit code 0, or 1 where a task failed."""
    names, rest = split_names(args)
    options = parse(Options, rest, prog=f"surefoot reproduce {' '.join(names) or 'WHAT'}", description=DESCRIPTION)
    stdout.lasting = True
    targets = named_targets(names)
    matrix = make_matrix(options)
    for folder in options.runs:
        if not any(folder.rglob(RECIPE_FILE)):
            raise ValueError(f"--runs {folder} holds no run of `surefoot train`; give a folder that does, or none.")
    place = Workplace(
        options.out.absolute(),
        options.data_dir and options.data_dir.absolute(),
        tuple(folder.absolute() for folder in options.runs),
        commit(),
    )
    asked = [task for target in targets for task in target.tasks(matrix)]
    if not asked:
        whole = [task for target in targets for task in target.tasks(dataclasses.replace(matrix, only=None))]
        raise ValueError(
            f"--only {options.only} leaves nothing of {' '.join(names)}, whose rows are {', '.join(methods_of(whole))}."
        )
    tasks = outstanding(asked, place)
    before = trained_before(tasks, place)
    if not options.draw:
        with suppress(*NO_DATA) if options.dry_run else nullcontext():  # the plan tells of it
            check_task_data(asked, [] if options.dry_run else tasks, place)
        for training, (_, measurements) in before.items():
            what = "its weights or what a figure shows of it" if training.followed else "its weights"
            say(
                f"{training.title}, again, for {what} are missing or damaged in {training.folder(place)}: unless the "
                f"very same come out, {counted(measurements)} of it no longer count, nor those crafted on it."
            )
    if options.dry_run:
        show_plan(tasks, place, options)
        return 0
    prepare(place.out)
    failures: list[Failure] = []
    if not options.draw:
        with only_one(place.out):
            failures = run_tasks(tasks, place, options, args)
    for training, (sha256, measurements) in before.items() if not options.draw else ():
        if training.sha256(place) != sha256:
            say(
                f"{training.title}: it has other weights than before, and {counted(measurements)} of those no longer "
                "count; what was asked for is measured anew, the other tables and figures are when they are asked for."
            )
    # What was not asked for is shown too, run or missing, so that a later command does not show less.
    shown = dataclasses.replace(matrix, only=None, seeds=max(matrix.seeds, seeds_there(place)))
    for target in targets:
        if isinstance(target, Target):
            write_table(target, shown, place, options)
        else:
            write_figure(target, shown, place, options)
    write_page(shown, place)
    for failure in failures:
        say(f"failed: {failure.title}: {failure.error}" + (f" Its log is {failure.log}." if failure.log else ""))
    return int(bool(failures))


def trained_before(tasks: list[Task], place: Workplace) -> dict[Training, tuple[str, int]]:
    """What is trained again, with the hash of the weights that it had and how many measurements are of those."""
    trainings = [task for task in tasks if isinstance(task, Training)]
    hashes = {training: training.sha256(place) for training in trainings}
    return {training: (found, training.measurements(place)) for training, found in hashes.items() if found is not None}


def counted(measurements: int) -> str:
    """So many, in words."""
    return "1 measurement" if measurements == 1 else f"{measurements} measurements"


def methods_of(tasks: list[Task]) -> list[str]:
    """The rows that tasks are of, each once, as `--only` takes them."""
    found: dict[str, None] = {}
    for task in tasks:
        models = getattr(task, "models", None) or task.needs or (task,)
        recipes = [each.recipe.name for each in models if hasattr(each, "recipe")]
        found.update(dict.fromkeys(name.partition("/")[2] for name in recipes))
    return list(found)


def seeds_there(place: Workplace) -> int:
    """So many seeds some run in OUT has."""
    seeds = [folder.name.partition("-")[0] for folder in (place.out / "runs").glob("*/*/*-*")]
    return max((1 + int(seed) for seed in seeds if seed.isdecimal()), default=0)


def named_targets(names: list[str]) -> list[Target | Figure]:
    """The targets that were asked for, each once; `all` is all."""
    if not names:
        raise ValueError(f"reproduce needs what to reproduce, for example `surefoot reproduce {next(iter(TARGETS))}`.")
    for name in names:
        if name not in (*TARGETS, "all"):
            raise unknown("table or figure", name, [*TARGETS, "all"], "surefoot reproduce --help")
    return list(TARGETS.values()) if "all" in names else [TARGETS[name] for name in dict.fromkeys(names)]


def make_matrix(options: Options) -> Matrix:
    """The scale, the seeds and the rows."""
    profile = (
        PROFILES[options.profile]
        .trained_in(options.precision)
        .read_as(options.reading)
        .counted_as(options.last_iterate)
        .of_imagenet(options.imagenet and options.imagenet.absolute())
    )
    only = None if options.only is None else tuple(part.strip() for part in options.only.split(",") if part.strip())
    if only == ():
        raise ValueError(f"--only is {options.only!r} and names no row; give for example --only sat-r1,sat-r3.")
    known = [name.partition("/")[2] for name in RECIPES]
    for method in only or ():
        if method not in known:
            raise unknown("row", method, known, "surefoot list recipes")
    return Matrix(profile, profile.seeds if options.seeds is None else options.seeds, only, options.dataset)


def show_plan(tasks: list[Task], place: Workplace, options: Options) -> None:
    """What would be run, in order, and how long it may take."""
    options.set_threads()
    costs = Costs(place)
    seconds = 0.0
    lost: dict[str, Exception] = {}  # data sets, and why they are not there
    table = Table(title=f"{len(tasks)} tasks that are not done", title_justify="left")
    for name in ("task", "about", "estimated from"):
        table.add_column(name, justify="right" if name == "about" else "left")
    for task in tasks:
        about, basis, sets = None, "no data", {training.recipe.dataset for training in trainings_of([task])}
        if lost.keys().isdisjoint(sets):
            try:
                estimate = costs(task)
            except NO_DATA as error:
                lost |= dict.fromkeys(sets, error)
            else:
                about, basis = estimate.seconds, estimate.basis
                seconds += about
        if options.json:
            print_json({"task": task.title, "id": task.id, "seconds": about, "basis": basis})
        else:
            table.add_row(task.title, "" if about is None else duration(about), basis)
    if not options.json:
        stdout.print(table)
    for why in dict.fromkeys(map(str, lost.values())):
        say(f"There is no estimate of time where it says `no data`: {why}.")
    if lost and not seconds:
        say("Nothing was run.")
        return
    workers = max(1, options.workers)
    say(
        ("The others: " if lost else "")
        + f"{duration(seconds)} on one worker like this process ({torch.get_num_threads()} threads)"
        + (f", {duration(seconds / workers)} on {workers} that do not slow each other down." if workers > 1 else ".")
        + " `measured`: what finished runs took; `a step`: one of training, timed just now; `passes`: counted passes "
        f"times what one took just now on this machine ({best_device().type}). Nothing was run."
    )


def run_tasks(tasks: list[Task], place: Workplace, options: Options, args: list[str]) -> list[Failure]:
    """Run what is left, and say how it goes."""
    if not tasks:
        say("Everything is there; nothing is run.")
        return []
    executor = make_executor(place, options)
    done = 0

    def on_event(event: Event) -> None:
        nonlocal done
        done += event.what != "started"
        if options.json:
            fields = {"event": event.what, "task": event.task.title, "id": event.task.id, "seconds": event.seconds}
            print_json({**fields, "error": event.error})
        elif event.what == "started":
            say(f"started: {event.task.title}")
        else:
            more = f": {event.error}" if event.error else ""
            say(f"[{done}/{len(tasks)}] {event.what} in {duration(event.seconds)}: {event.task.title}{more}")

    try:
        return run_all(tasks, place, executor, on_event)
    except KeyboardInterrupt:
        again = shlex.join(["surefoot", "reproduce", *args])
        raise KeyboardInterrupt(f"{done} of {len(tasks)} tasks are done; go on with: {again}") from None
    finally:
        executor.close()


def check_task_data(asked: list[Task], tasks: list[Task], place: Workplace) -> None:
    """Find and decode the data that `tasks` need, once and before the first begins.

    And refuse trainings behind what was asked for that are of other data, before any result of theirs is taken.

    Raises:
        ValueError, FileNotFoundError: they are not there, or are not those that were trained on.
    """
    needed = {training.id for training in trainings_of(tasks)}
    found: dict[tuple[Any, ...], Dataset] = {}
    for training in trainings_of(asked):
        if training.id in needed or training.keeps_data(place):
            recipe = training.recipe
            key = tuple(getattr(recipe, name) for name in DATA)
            if key not in found:
                found[key] = place.data(recipe)
            training.check_data(place, found[key])


def trainings_of(tasks: Iterable[Task]) -> list[Training]:
    """The trainings that tasks are or need, and those that these need."""
    found: dict[str, Training] = {}
    for task in tasks:
        found |= {task.id: task} if isinstance(task, Training) else {}
        found |= {training.id: training for training in trainings_of(task.needs)}
    return list(found.values())


def make_executor(place: Workplace, options: Options) -> Executor:
    """What runs the tasks."""
    if options.cluster is not None:
        return Cluster(place, options.cluster, options.threads or 1)
    if options.workers:
        return Processes(place, options.workers, options.threads)
    options.set_threads()
    return InProcess(place)


def write_table(target: Target, matrix: Matrix, place: Workplace, options: Options) -> None:
    """Write and show a table."""
    table = target.table(matrix, place)
    file = place.out / matrix.profile.name / f"{table.name}.md"
    write_text(file, table.markdown())
    write_text(file.with_suffix(".csv"), table.csv())
    if options.json:
        for line in table.lines():
            print_json({"profile": matrix.profile.name, **line})
    else:
        stdout.print(table.markdown(), markup=False, highlight=False, soft_wrap=True)
    say(f"{target.name} is in {file} and .csv.")


def write_figure(figure: Figure, matrix: Matrix, place: Workplace, options: Options) -> None:
    """Write a figure's data and draw it; nothing where there are none."""
    lines = figure.lines(matrix, place)
    file = place.out / matrix.profile.name / figure.file_name(matrix)
    if options.json:
        for line in lines:
            print_json(line)
    if not measured(lines):
        say(f"{figure.name} was not run; there is nothing to draw.")
        return
    write_text(file, "".join(json.dumps(line) + "\n" for line in lines))
    if can_draw():
        draw(lines, file.with_suffix(".png"))
        say(f"{figure.name} is in {file.with_suffix('.png')}, its data in {file.name}.")
    else:
        say(f"{figure.name}'s data are in {file}; to draw it: pip install 'surefoot[figures]'.")


def write_page(matrix: Matrix, place: Workplace) -> None:
    """Write the page of all tables and figures that the folder has."""
    folder = place.out / matrix.profile.name
    tables = [target.table(matrix, place) for target in TABLES.values()]
    figures = [
        lines
        for figure in FIGURES.values()
        if not measured(lines := figure.lines(matrix, place))  # the page names it
        or (folder / figure.file_name(matrix)).exists()
    ]
    file = folder / f"{matrix.named('reproduction')}.html"
    shown = [table for table in tables if (folder / f"{table.name}.md").exists()]
    write_reproduction(shown, figures, file, note=matrix.profile.note)
    say(f"All of it is on one page: {file}.")


def prepare(out: Path) -> None:
    """Make the folder, in which git leaves out what is no evidence."""
    check_can_fill(out, "--out")
    if not (out / ".gitignore").exists():
        write_text(out / ".gitignore", "\n".join(NOT_EVIDENCE) + "\n")


@contextmanager
def only_one(out: Path) -> Iterator[None]:
    """Keep a second reproduction out of the folder.

    Raises:
        ValueError: there is one at work.
    """
    with locked(out / ".lock") as alone:
        if not alone:
            raise ValueError(f"another reproduction is at work in {out}; wait for it, or give another --out.")
        yield
