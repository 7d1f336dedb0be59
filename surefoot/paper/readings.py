"""The two readings of an objective where the paper and its authors' code differ (docs/reproduce.md has the list)."""

from dataclasses import replace
from typing import Any, Literal

from surefoot.objectives import SatR1, SatR2, SatR3, Trades
from surefoot.paper.printed import TABLE_8, TABLE_8_ITERATED
from surefoot.recipes import RECIPES

Reading = Literal["paper", "code"]


def read_as(reading: Reading, objective: Any, dataset: str) -> Any:
    """The objective as the paper has it, or as its authors' code does; another objective as it is.

    Args:
        reading: whose.
        objective: of a recipe for the data set.
        dataset: whose steps, of the paper's Table 8, or whose random step are taken.

    Example:
        >>> recipe = RECIPES["mnist/sat-r1"]
        >>> read_as("paper", recipe.objective, "mnist").steps, read_as("code", recipe.objective, "mnist").pair
        (40, 'last')
    """
    printed = "imagenet-subset" if dataset == "tiny-imagenet-100" else dataset
    match reading, objective:
        case "paper", SatR1():
            return replace(objective, steps=TABLE_8_ITERATED[printed])
        case "paper", Trades():
            return replace(objective, steps=TABLE_8[printed]["TRADES"])
        case "code", SatR1():
            return replace(objective, pair="last")
        case "code", SatR2():
            return replace(objective, rfgsm_step="full")
        case "code", SatR3():
            alpha = RECIPES[f"{dataset}/sat-r2"].objective
            assert isinstance(alpha, SatR2)
            return replace(objective, random_step=alpha.random_step)
    return objective
