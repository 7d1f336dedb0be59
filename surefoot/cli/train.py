"""`surefoot train RECIPE`."""

import dataclasses
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from surefoot.cli.options import Common, parse, split_name, unknown
from surefoot.cli.output import TrainingProgress, print_json, say, stdout
from surefoot.recipes import RECIPES, Recipe, load_run, train
from surefoot.recipes.recipe import source_names
from surefoot.recipes.run import build_recipe_model, check_folder, check_source, is_run, load_recipe_data, start_from
from surefoot.training.machines import started_by_torchrun

RUNS = Path("runs")

DESCRIPTION = """Train a recipe. Every field below can be changed: `surefoot train mnist/sat-r3 --epochs 5
--objective.lam 0.5`. Another radius is two fields, what it is trained at and what it is measured at: `surefoot train
cifar10/sat-r2 --objective.eps 4/255 --eps 4/255`. The run goes to runs/RECIPE/SEED."""


@dataclass(frozen=True)
class Options(Common):
    """What `surefoot train` takes beside the recipe's name."""

    recipe: Annotated[Recipe, tyro.conf.arg(name="")] = dataclasses.field(
        default_factory=lambda: next(iter(RECIPES.values()))
    )
    out: Path | None = None
    """The run's folder; None is runs/RECIPE/SEED."""
    data_dir: Path | None = None
    """A folder of parquet shards; None is $SUREFOOT_DATA, or the hub."""
    resume: bool = False
    """Go on with the unfinished run in the folder."""


def recipe_named(name: str) -> Recipe:
    """A recipe by its key.

    Raises:
        ValueError: there is none, with the nearest.
    """
    if name.startswith("imagefolder:"):
        raise ValueError(
            f"{name!r} is a data set, which a recipe is given: surefoot train cifar10/sat-r2 --dataset {name} "
            "--num-classes N --image-size PIXELS."
        )
    if name not in RECIPES:
        raise unknown("recipe", name, RECIPES, "surefoot list recipes")
    return RECIPES[name]


def run(args: list[str]) -> int:
    """Train; exit code 0."""
    name, rest = split_name(args)
    if name is None:
        if {"-h", "--help"} & set(rest):
            print(f"usage: surefoot train RECIPE [OPTIONS]\n\n{DESCRIPTION}\n")
            print("\n".join(f"  {recipe.name:<28} {recipe.description}" for recipe in RECIPES.values()))
            print("\n`surefoot train RECIPE --help` shows a recipe's fields and their values.")
            return 0
        raise ValueError(
            "train needs a recipe, before any option: for example `surefoot train mnist/sat-r3`; `surefoot list "
            "recipes` shows them."
        )
    recipe = recipe_named(name)
    options = parse(
        Options, rest, prog=f"surefoot train {name}", description=DESCRIPTION, default=Options(recipe=recipe)
    )
    options.set_threads()
    stdout.lasting = True
    path = options.out or default_path(options.recipe)
    command = "surefoot train " + shlex.join(args)
    check_folder(options.recipe, path, options.resume)
    planned = {source: source_recipe(source, options.recipe) for source in source_names(options.recipe)}
    check_sources(options.recipe, planned, options.data_dir, begun=options.resume)
    sources = {name: trained_source(source, options.recipe, options, command) for name, source in planned.items()}
    if radii_of(options.recipe) != radii_of(recipe) and (told := radii_apart(options.recipe)):
        say(f"{recipe.name}: {told}")
    again = command if options.resume else f"{command} --resume"
    train_with_progress(options.recipe, path, options, sources, resume=options.resume, again=again)
    return 0


def radii_of(recipe: Recipe) -> tuple[float, list[float]]:
    """What a recipe's model is measured at, and what its phases train at."""
    trained = [phase.objective.eps for phase in recipe.phases() if hasattr(phase.objective, "eps")]
    return recipe.eps, trained


def radii_apart(recipe: Recipe) -> str | None:
    """What to say where no phase trains at the radius that the model is measured at: one is easily forgotten.

    >>> radii_apart(RECIPES["digits/sat-r3"]), radii_apart(dataclasses.replace(RECIPES["digits/sat-r3"], eps=0.2))
    (None, 'trained at ε = 0.3 and measured at 0.2; --objective.eps is the one, --eps the other.')
    """
    measured, trained = radii_of(recipe)
    if not trained or measured in trained:
        return None
    least, most = f"{min(trained):g}", f"{max(trained):g}"
    at = least if least == most else f"{least} to {most}"
    return f"trained at ε = {at} and measured at {measured:g}; --objective.eps is the one, --eps the other."


def default_path(recipe: Recipe) -> Path:
    """runs/RECIPE/SEED."""
    return RUNS / recipe.name / str(recipe.training.seed)


def source_recipe(name: str, recipe: Recipe) -> Recipe:
    """A source that `recipe` crafts on, with its seed and data."""
    source = recipe_named(name)
    training = dataclasses.replace(
        source.training,
        seed=recipe.training.seed,
        device=recipe.training.device,
        precision=recipe.training.precision,
    )
    return dataclasses.replace(
        source,
        dataset=recipe.dataset,
        num_classes=recipe.num_classes,
        image_size=recipe.image_size,
        validation_size=recipe.validation_size,
        data_seed=recipe.data_seed,
        mean=recipe.mean,
        std=recipe.std,
        training=training,
    )


def check_sources(recipe: Recipe, sources: dict[str, Recipe], data_dir: Path | None, *, begun: bool) -> None:
    """Refuse, before the first is trained, a source whose run is there on other data, or that does not take these.

    So are the weights that the recipe starts from, where it was not `begun` before.

    Raises:
        ValueError: with what to do.
    """
    if not sources:
        return
    dataset = load_recipe_data(recipe, data_dir)
    if recipe.initial_weights is not None and not begun:
        start_from(recipe.initial_weights, build_recipe_model(recipe, dataset), recipe, dataset)
    for name, source in sources.items():
        folder = default_path(source)
        if is_run(folder):
            check_source(recipe, name, load_run(folder))
        else:
            build_recipe_model(source, dataset)


def trained_source(source: Recipe, recipe: Recipe, options: Options, command: str) -> Path:
    """The run of a source that `recipe` crafts on; trained now where it is missing."""
    name = source.name
    folder = default_path(source)
    started = is_run(folder)
    if not started or not load_run(folder).is_finished():
        if started_by_torchrun():
            raise ValueError(
                f"{recipe.name} crafts on {name}; train it before, without torchrun, in {folder}: surefoot train {name}"
            )
        say(f"{recipe.name} crafts on {name}, which is trained first, in {folder}")
        train_with_progress(source, folder, options, {}, resume=started, again=command)
    return folder


def train_with_progress(
    recipe: Recipe, path: Path, options: Options, sources: dict[str, Path], *, resume: bool, again: str
) -> None:
    """Train one recipe and say how it goes, and when it is interrupted what to type to go on: `again`."""
    try:
        with TrainingProgress(recipe.name) as progress:
            result = train(
                recipe,
                path,
                data_dir=options.data_dir,
                resume=resume,
                sources=sources,
                on_start=lambda model, dataset: say(f"{recipe.name}: {dataset.name}, {dataset.described()}"),
                on_note=lambda note: say(f"{recipe.name}: {note}"),
                on_step=progress.on_step,
                on_epoch=(lambda line: print_json({"run": str(path), **line})) if options.json else progress.on_epoch,
            )
    except KeyboardInterrupt:
        if not is_run(path):
            again = again.removesuffix(" --resume")
            raise KeyboardInterrupt(f"Nothing of {recipe.name} is saved yet; start again with: {again}") from None
        done = load_run(path).epochs_done()
        raise KeyboardInterrupt(f"{done} epochs of {recipe.name} are saved; go on with: {again}") from None
    best = result.metrics[result.best_epoch - 1]
    clean, robust = best["validation_clean_accuracy"], best["validation_robust_accuracy"]
    score = "the last" if clean is None else f"{100 * (clean if robust is None else robust):.2f} % on validation"
    masking = best.get("masking") or {}
    put_back = masking.get("action") == "stop"
    selected = f"the state of step {masking['back_to']}" if put_back else f"epoch {result.best_epoch}"
    say(f"{recipe.name}: {selected} is selected ({score}); {path} holds the run.")
    say(f"Measure it with: surefoot evaluate {shlex.quote(str(path))}")
