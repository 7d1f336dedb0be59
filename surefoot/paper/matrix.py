"""What each of the paper's tables and figures needs to be trained and measured."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from surefoot.attacks import FGSM, IFGSM, MIFGSM, PGD, MarginLoss
from surefoot.core.types import Attack
from surefoot.evaluation import Record
from surefoot.paper.curves import spaced
from surefoot.paper.profiles import Profile
from surefoot.paper.runs import Evaluation, Training, Transfer, Workplace
from surefoot.recipes import RECIPES, Recipe
from surefoot.recipes.recipe import source_names

MakeAttack = Callable[[Recipe], Attack]
WATCHED = ("fgsm-at", "pgd-at")
"""Methods whose first training is watched for Fig. 1-4."""


@dataclass(frozen=True)
class Matrix:
    """Trainings and measurements at a profile's scale, for so many seeds.

    Args:
        profile: the scale.
        seeds: 0, 1, ...: trainings of a row.
        only: methods (the recipe's name behind the slash) that a table's rows are limited to; None is all.
        dataset: of Tables 6 and 8, of the sanity tests and of the figures; the other tables have their own.
    """

    profile: Profile
    seeds: int
    only: tuple[str, ...] | None = None
    dataset: str = "mnist"

    def training(self, name: str, seed: int = 0) -> Training:
        """The training of a recipe; what it crafts on has seed 0 and is shared by all its seeds."""
        recipe = self.profile.recipe(RECIPES[name], seed)
        sources = tuple(self.training(source) for source in source_names(recipe))
        watched = self.profile.points if seed == 0 and name.partition("/")[2] in WATCHED else 0
        return Training(recipe, sources, watched)

    def trainings(self, name: str) -> tuple[Training, ...]:
        """Of all seeds."""
        return tuple(self.training(name, seed) for seed in range(self.seeds))

    def named(self, target: str) -> str:
        """The file of a table or figure that is of `dataset`: MNIST's go without saying."""
        return target if self.dataset == "mnist" else f"{target}-{self.dataset}"

    @property
    def written(self) -> str:
        """The data set as titles name it."""
        named = {"mnist": "MNIST", "cifar10": "CIFAR-10"}
        if self.profile.imagenet is not None:
            named["tiny-imagenet-100"] = "ImageNet-subset"
        return named.get(self.dataset, self.dataset)

    def wants(self, name: str) -> bool:
        """Is this recipe's row asked for?"""
        return self.only is None or name.partition("/")[2] in self.only


@dataclass(frozen=True)
class Column:
    """A column of a table of accuracies.

    Args:
        title: its head.
        attack: makes the attack from the recipe at its scale.
        images: how many; None is all.
        source: the recipe of the model that crafts; None is the model itself.
        clean: show the accuracy before the attack.
        printed: the paper's column; None where it has none.
        split: of the images.
        last_iterate: count the last step of every image, as the paper does and black-box columns do anyway.
    """

    title: str
    attack: MakeAttack
    images: int | None = None
    source: str | None = None
    clean: bool = False
    printed: str | None = None
    split: str = "test"
    last_iterate: bool = False


@dataclass(frozen=True)
class Grid:
    """Rows of recipes, columns of attacks.

    Args:
        rows: name on paper, and recipe.
        columns: from left to right.
    """

    rows: tuple[tuple[str, str], ...]
    columns: tuple[Column, ...]

    def wanted(self, matrix: Matrix) -> list[tuple[str, str]]:
        """The rows that are asked for."""
        return [(name, recipe) for name, recipe in self.rows if matrix.wants(recipe)]

    def tasks(self, matrix: Matrix) -> list[Evaluation | Transfer]:
        """All that its cells need, each once; a source crafts once for all models."""
        rows = self.wanted(matrix)
        found: list[Evaluation | Transfer] = []
        for column in self.columns:
            if column.source is None:
                found += [
                    self.evaluation(column, training) for _, recipe in rows for training in matrix.trainings(recipe)
                ]
            elif rows:
                found.append(self.transfer(column, matrix))
        return found

    def evaluation(self, column: Column, model: Training) -> Evaluation:
        """A white-box cell of one seed."""
        return Evaluation(model, column.attack(model.recipe), column.images, column.split, column.last_iterate)

    def transfer(self, column: Column, matrix: Matrix) -> Transfer:
        """A black-box column."""
        assert column.source is not None
        models = tuple(model for _, recipe in self.wanted(matrix) for model in matrix.trainings(recipe))
        source = matrix.training(column.source)
        return Transfer(source, models, column.attack(models[0].recipe), column.images)

    def records(self, column: Column, recipe: str, matrix: Matrix, place: Workplace) -> list[Record]:
        """What a cell shows, a record a seed, as far as they are there."""
        found: list[list[Record]]
        if column.source is None:
            found = [self.evaluation(column, model).records(place) for model in matrix.trainings(recipe)]
        else:
            transfer = self.transfer(column, matrix)
            found = [transfer.records(place, model) for model in matrix.trainings(recipe)]
        return [records[0 if column.clean else 1] for records in found if records]


def fgsm(recipe: Recipe) -> Attack:
    return FGSM(recipe.eps)


def ifgsm(recipe: Recipe) -> Attack:
    return IFGSM(recipe.eps, recipe.attack_steps)


def mifgsm(recipe: Recipe) -> Attack:
    return MIFGSM(recipe.eps, recipe.attack_steps)


def pgd(recipe: Recipe) -> Attack:
    return paper_pgd(recipe, recipe.attack_steps)


def pgd_cw(recipe: Recipe) -> Attack:
    step = recipe.attack_step_size
    return PGD(recipe.eps, recipe.attack_steps, step, start_radius=step, loss=MarginLoss(50.0))


def shorter_pgd(recipe: Recipe) -> Attack:
    """PGD-40 where the recipe's has 100 steps."""
    return paper_pgd(recipe, max(1, round(0.4 * recipe.attack_steps)))


def paper_pgd(recipe: Recipe, steps: int, scale: float = 1.0) -> PGD:
    """PGD with the paper's start (Eq. 6), of the recipe's step size; `scale` enlarges radius, steps and start alike."""
    radius, step = (min(1.0, scale * length) for length in (recipe.eps, recipe.attack_step_size))
    return PGD(radius, steps, step, start_radius=min(step, radius))


METHODS = (
    ("NT", "normal"),
    ("FGSM-AT", "fgsm-at"),
    ("EAT ens-A", "ensemble-at-a"),
    ("EAT ens-B", "ensemble-at-b"),
    ("EAT ens-C", "ensemble-at-c"),
    ("PGD-AT", "pgd-at"),
    ("TRADES", "trades"),
    ("SAT-R1", "sat-r1"),
    ("SAT-R2", "sat-r2"),
    ("SAT-R3", "sat-r3"),
)
"""The ten rows of Tables 3, 4 and 5."""
SAT = METHODS[-3:]


def rows_of(dataset: str, methods: Sequence[tuple[str, str]] = METHODS) -> tuple[tuple[str, str], ...]:
    """The rows with the data set's recipes."""
    return tuple((name, f"{dataset}/{method}") for name, method in methods)


def white_box(attacks: Sequence[tuple[str, MakeAttack]], profile: Profile) -> list[Column]:
    """Clean accuracy, and what attacks of a model on itself leave; titles are the paper's."""
    return [
        Column(title, make, profile.images, clean=title == "Clean", printed=title, last_iterate=profile.last_iterate)
        for title, make in (("Clean", fgsm), *attacks)
    ]


def accuracies(dataset: str, sources: Sequence[tuple[str, str]], profile: Profile) -> Grid:
    """Tables 3, 4 and 5: clean, four white-box and four black-box columns, and AutoAttack, which the paper lacks."""
    white = white_box((("FGSM", fgsm), ("IFGSM", ifgsm), ("PGD", pgd), ("PGD-CW", pgd_cw)), profile)
    black = [
        Column(f"{name} {attack}", make, profile.images, source=f"{dataset}/{source}", printed=f"{name} {attack}")
        for name, source in sources
        for attack, make in (("FGSM", fgsm), ("MI-FGSM", mifgsm))
    ]
    auto = Column("AutoAttack", lambda recipe: profile.auto_attack(recipe.eps), profile.auto_images)
    return Grid(rows_of(dataset), (*white, *black, auto))


def ladder(rows: tuple[tuple[str, str], ...], profile: Profile) -> Grid:
    """Tables 7 and 9: clean, FGSM, PGD-40 and PGD-100."""
    return Grid(rows, tuple(white_box((("FGSM", fgsm), ("PGD-40", shorter_pgd), ("PGD-100", pgd)), profile)))


def minimal_norms(dataset: str, profile: Profile) -> Grid:
    """Table 6: DeepFool and C&W; the paper has no row for TRADES."""
    rows = tuple(row for row in rows_of(dataset) if row[0] != "TRADES")
    attacks = profile.minimal_norm()
    return Grid(rows, tuple(Column(name, always(attack), images) for name, (attack, images) in attacks.items()))


def always(attack: Attack) -> MakeAttack:
    """The same attack whatever the recipe."""
    return lambda recipe: attack


def step_columns(matrix: Matrix) -> tuple[Column, ...]:
    """Fig. 7: PGD over its steps, up to five times the tables'.

    The last step counts: otherwise a long attack would be screened and a short one not.
    """
    most = 5 * matrix.training(f"{matrix.dataset}/sat-r1").recipe.attack_steps
    counts = [steps for steps in (1, 2, 5, 10, 20, 50, 100, 200, 500) if steps <= most]
    images = matrix.profile.curve_images
    return tuple(Column(f"PGD-{steps}", partial(paper_pgd, steps=steps), images, last_iterate=True) for steps in counts)


def radius_columns(matrix: Matrix) -> tuple[Column, ...]:
    """Fig. 8: PGD over its radius, from a quarter of the recipe's eps to three times that.

    Its steps grow with the radius: steps of one length would cross a small ball many times and a large one not at all,
    so that a larger radius could leave more.
    """
    points = min(matrix.profile.points, 12)
    images = matrix.profile.curve_images
    return tuple(
        Column(f"PGD at {share:g} eps", partial(pgd_at, share=share), images, last_iterate=True)
        for share in spaced(0.25, 3, points)
    )


def pgd_at(recipe: Recipe, share: float) -> PGD:
    """The tables' PGD, enlarged to another radius."""
    return paper_pgd(recipe, recipe.attack_steps, scale=share)


def column_radius(column: Column, matrix: Matrix) -> float:
    """The radius of a column of `radius_columns`."""
    attack = column.attack(matrix.training(f"{matrix.dataset}/sat-r1").recipe)
    assert isinstance(attack, PGD)
    return attack.eps
