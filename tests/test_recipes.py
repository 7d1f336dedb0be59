"""Every shipped recipe is complete: its settings survive a file, its network is built, its sources exist."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

from surefoot.data import DATASETS
from surefoot.models import build_model
from surefoot.recipes import RECIPES, Recipe
from surefoot.recipes.recipe import source_names


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_is_complete(name: str) -> None:
    recipe = RECIPES[name]
    assert Recipe.from_json(json.loads(json.dumps(recipe.to_json()))) == recipe
    spec = DATASETS[recipe.dataset]
    with torch.device("meta"):
        model = build_model(
            recipe.model, num_classes=spec.num_classes, in_channels=spec.in_channels, image_size=spec.image_size
        )
    assert isinstance(model, nn.Module)
    for source in source_names(recipe):
        assert RECIPES[source].dataset == recipe.dataset
        assert source_names(RECIPES[source]) == ()
    assert recipe.attack_step_size <= recipe.eps


def test_the_papers_sources_are_there() -> None:
    networks = {
        "mnist": {"mnist-a", "mnist-b", "mnist-c", "mnist-d"},
        "cifar10": {"resnet-34", "vgg-19", "vgg-11", "densenet-bc-100"},
        "tiny-imagenet-100": {"resnet-34", "vgg-11", "vgg-13", "resnet-50"},
    }
    for dataset, wanted in networks.items():
        normal = [recipe for name, recipe in RECIPES.items() if name.startswith(f"{dataset}/normal-")]
        assert {recipe.model for recipe in normal} == wanted
