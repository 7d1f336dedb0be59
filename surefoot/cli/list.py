"""`surefoot list [WHAT]`."""

from dataclasses import dataclass

from rich.table import Table

from surefoot.attacks import ATTACKS
from surefoot.cli.options import Common, parse, split_name, unknown
from surefoot.cli.output import print_json, stdout
from surefoot.data import DATASETS
from surefoot.models import MODELS
from surefoot.objectives import OBJECTIVES
from surefoot.recipes import RECIPES


def first_line(thing: object) -> str:
    """What a class says of itself in its first line."""
    return (thing.__doc__ or "").strip().splitlines()[0]


def everything() -> dict[str, dict[str, str]]:
    """Each kind of thing, its names and what they are."""
    return {
        "recipes": {recipe.name: recipe.description for recipe in RECIPES.values()},
        "objectives": {key: first_line(kind) for key, kind in OBJECTIVES.items()},
        # As `evaluate --attacks` takes them: the worst case is added to any two.
        "attacks": {key: first_line(kind) for key, kind in ATTACKS.items() if key != "worst-case"}
        | {"pgd-cw": "PGD that drives up Carlini and Wagner's margin of logits."},
        "networks": {spec.name: spec.description for spec in MODELS.values()},
        "datasets": {
            spec.name: f"{spec.num_classes} classes, {spec.image_size} x {spec.image_size} pixels"
            + (f", {spec.hub_id} on the Hugging Face hub" if spec.hub_id else ", embedded: no network")
            for spec in DATASETS.values()
        }
        | {"imagefolder:PATH": "your own images, a folder a class"},
    }


@dataclass(frozen=True)
class Options(Common):
    """What `surefoot list` takes beside the kind."""


def run(args: list[str]) -> int:
    """List; exit code 0."""
    things = everything()
    later = next((arg for arg in args if arg in things), None)  # as in `surefoot list --json recipes`
    what, rest = (later, [arg for arg in args if arg != later]) if later else split_name(args)
    description = f"Show what there is: all, or one of {', '.join(things)}."
    options = parse(Options, rest, prog=f"surefoot list {what or '[WHAT]'}", description=description)
    if what is not None and what not in things:
        raise unknown("list of", what, things, "surefoot list --help")
    for kind in things if what is None else [what]:
        if options.json:
            for name, description in things[kind].items():
                print_json({"kind": kind, "name": name, "description": description})
            continue
        table = Table(title=kind, title_justify="left", show_header=False, box=None)
        for name, description in things[kind].items():
            table.add_row(name, description)
        stdout.print(table)
    return 0
