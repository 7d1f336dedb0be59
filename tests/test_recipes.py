"""Every shipped recipe is complete: its settings survive a file, its network is built, its sources exist."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from surefoot.data import DATASETS, load
from surefoot.models import build_model
from surefoot.objectives import LossTerms, NormalTraining
from surefoot.recipes import RECIPES, Recipe, load_run, train
from surefoot.recipes.recipe import source_names
from surefoot.training import load_weights, save_weights


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


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("selection_steps", -1, "selection_steps is -1; it must be"),
        ("validation_size", -1, "validation_size is -1; it must be at least 0"),
        ("num_classes", 1, "num_classes is 1; it must be at least 2"),
        ("image_size", 0, "image_size is 0; it must be at least 1"),
        ("mean", (math.nan,), "mean must hold finite numbers"),
        ("std", (0.0,), "std must be above 0"),
        ("then", (NormalTraining(),), r"then has NormalTraining\(.*; give Phase\(objective, epochs\)"),
        ("eps", 8, "eps is 8"),
        ("attack_steps", 0, "steps is 0"),
        ("attack_step_size", 0.0, "step_size is 0.0"),
        ("epochs", 0, "epochs is 0"),
    ],
)
def test_a_bad_field_is_refused_at_once(field: str, value: object, words: str) -> None:
    with pytest.raises((ValueError, TypeError), match=words):
        replace(RECIPES["digits/normal"], **{field: value})  # type: ignore[arg-type]


@dataclass(frozen=True)
class Own:
    """Somebody's own objective, without a key."""

    def __call__(self, model: nn.Module, inputs: Tensor, labels: Tensor) -> LossTerms:
        return NormalTraining()(model, inputs, labels)


def test_an_objective_without_a_key_is_refused_with_what_takes_it(tmp_path: Path) -> None:
    recipe = replace(RECIPES["digits/normal"], objective=Own())  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"Own has no key in surefoot.objectives.OBJECTIVES.*surefoot.training.fit"):
        train(recipe, tmp_path / "run")


def test_a_run_may_be_named_by_text(tmp_path: Path) -> None:
    place, weights = str(tmp_path / "run"), str(tmp_path / "weights.safetensors")
    train(replace(RECIPES["digits/normal"], epochs=1), place)
    model = load_run(place).load_model(load("digits"))
    save_weights(model, weights)
    load_weights(model, weights)


def test_the_papers_sources_are_there() -> None:
    networks = {
        "mnist": {"mnist-a", "mnist-b", "mnist-c", "mnist-d"},
        "cifar10": {"resnet-34", "vgg-19", "vgg-11", "densenet-bc-100"},
        "tiny-imagenet-100": {"resnet-34", "vgg-11", "vgg-13", "resnet-50"},
    }
    for dataset, wanted in networks.items():
        normal = [recipe for name, recipe in RECIPES.items() if name.startswith(f"{dataset}/normal-")]
        assert {recipe.model for recipe in normal} == wanted
