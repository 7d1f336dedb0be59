"""Named, complete settings, and the run folders that they train."""

from surefoot.recipes.cifar10 import CIFAR10
from surefoot.recipes.digits import DIGITS
from surefoot.recipes.imagenet import IMAGENET
from surefoot.recipes.mnist import MNIST
from surefoot.recipes.recipe import Recipe
from surefoot.recipes.run import Run, load_run, train

RECIPES: dict[str, Recipe] = {recipe.name: recipe for recipe in (*DIGITS, *MNIST, *CIFAR10, *IMAGENET)}

__all__ = ["RECIPES", "Recipe", "Run", "load_run", "train"]
