"""Our numbers beside the paper's: cells, tables, sanity tests and figures from data alone."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from surefoot.attacks import PGD
from surefoot.audit import loss_surface
from surefoot.evaluation import Record, evaluate
from surefoot.evaluation.attack_settings import screening_of, with_stop
from surefoot.objectives import SatR1, SatR2, SatR3
from surefoot.paper import figures
from surefoot.paper.beside import PERCENT, Cell, Table, accuracy_cell, fooling_cells
from surefoot.paper.curves import logit_gaps, loss_curves
from surefoot.paper.matrix import (
    SAT,
    Grid,
    Matrix,
    accuracies,
    ladder,
    pgd,
    pgd_at,
    radius_columns,
    rows_of,
    step_columns,
)
from surefoot.paper.measurements import Around
from surefoot.paper.page import Number
from surefoot.paper.panels import FIGURES
from surefoot.paper.profiles import PAPER, QUICK, SMOKE, Profile
from surefoot.paper.runs import Evaluation, Training, Transfer, Workplace, write_records
from surefoot.paper.targets import SOURCES, TABLES, sanity_grid, screened, seeds_behind
from surefoot.recipes import RECIPES


def record(robust: float, clean: float = 0.9, **changes: Any) -> Record:
    (found,) = evaluate(nn.Linear(2, 2), [(torch.rand(2, 2), torch.tensor([0, 1]))], [])
    interval = (max(0.0, robust - 0.1), min(1.0, robust + 0.1))
    fields = {"robust_accuracy": robust, "clean_accuracy": clean, "robust_interval": interval}
    return Record(**{**vars(found), "attack": "PGD", "attack_fields": {"steps": 5}, **fields, **changes})


def test_a_cell_shows_mean_and_deviation_beside_the_papers() -> None:
    one = accuracy_cell([record(0.5)], (50.5, 0.1))
    assert one.text() == "50.00 (50.50 ± 0.10)"
    assert one.bounds() == pytest.approx((40, 60))  # Wilson's, as the record has it
    three = accuracy_cell([record(0.4), record(0.5), record(0.6)], 50.0)
    assert three.text() == "50.00 ± 10.00 (50.00)"
    # Student's 97.5 % quantile for two degrees of freedom is 4.302653.
    assert three.bounds() == pytest.approx((50 - 4.302653 * 10 / 3**0.5, 50 + 4.302653 * 10 / 3**0.5))
    alike = accuracy_cell([record(0.5), record(0.5)])
    assert alike.bounds() == pytest.approx((40, 60))  # no spread to go by, and yet not certain
    clean = accuracy_cell([record(0.5, clean=0.9, num_examples=1000)], clean=True)
    assert clean.text() == "90.00"
    assert clean.bounds() == pytest.approx((87.98, 91.71), abs=0.01)  # its own, not that of the attack
    assert accuracy_cell([], 1.0).text() == "- (1.00)"


def test_fooling_rates_count_what_was_wrong_before() -> None:
    rate, length = fooling_cells([record(0.05, mean_l2=4.2)], (89.0, 4.51))
    assert (rate.text(), length.text()) == ("95.0 (89)", "4.20 (4.51)")
    rate, length = fooling_cells([record(1.0, mean_l2=None)], None)
    assert (rate.text(), length.text()) == ("0.0", "-")
    assert Table("t", "", "", ("FR", "l2"), (("x", (rate, length)),)).missing() == []  # run, but nothing fooled


def test_a_table_is_markdown_and_csv_and_says_what_is_missing_and_far() -> None:
    rows = (
        ("A", (Cell((50.0,), (40.0, 60.0), 16, 55.0, limits=PERCENT), "Yes")),
        ("B", (Cell(paper=(1.0, 0.5), limits=PERCENT), "No")),
    )
    table = Table("table0", "A title", "trained by", ("PGD", "models"), rows, ("A note.",))
    assert table.grid().splitlines()[2:] == ["| A | 50.00 (55.00) | Yes |", "| B | - (1.00 ± 0.50) | No |"]
    text = table.markdown()
    assert text.startswith("# A title\n")
    assert "| A | 40.00 to 60.00 |" in text
    assert text.endswith("A note.\n")
    assert table.missing() == ["B"]
    part = dataclasses.replace(table, columns=("PGD", "FGSM"), rows=(("B", (Cell((1.0,)), Cell())),))
    assert part.missing() == ["B FGSM"]
    assert table.far() == ["A PGD -5.00"]
    assert dataclasses.replace(part, rows=(("B", (Cell((53.0,), paper=55.0, limits=PERCENT), Cell())),)).far() == []
    assert table.far_note() == "More than two points from the paper's: A PGD -5.00."
    first, second = csv.DictReader(io.StringIO(table.csv()))
    assert (first["row"], first["ours"], first["low"], first["images"], first["paper"]) == (
        "A",
        "50.0",
        "40.0",
        "16",
        "55.0",
    )
    assert (second["seeds"], second["ours"], second["paper_deviation"]) == ("0", "", "0.5")


def test_lengths_are_far_from_a_tenth_of_the_papers_on_in_the_note_and_on_the_page() -> None:
    found = [record(0.0, mean_l2=length) for length in (1.46, 2.45, 2.41)]
    rows = tuple((f"row {number}", fooling_cells([each], (97.0, 2.69))) for number, each in enumerate(found))
    table = Table("table6", "Table 6", "trained by", ("FR", "l2"), rows)
    assert table.far() == ["row 0 FR +3.00", "row 0 l2 -1.23", "row 1 FR +3.00", "row 2 FR +3.00", "row 2 l2 -0.28"]
    assert table.far_note().startswith("More than two points from the paper's, or a tenth of it where it is a length: ")
    assert [Number.of(cells[1]).state for _, cells in rows] == ["far", "near", "far"]
    assert dataclasses.replace(table, rows=()).far_note() == ""


@pytest.mark.parametrize(
    ("behind", "told"),
    [
        ({"a": (0,), "b": (0,)}, "1 seed (0)"),
        ({"a": (1,), "b": (1,)}, "1 seed (1)"),
        ({"a": (1, 2), "b": (2, 1)}, "2 seeds (1-2)"),
        ({"a": (0, 2)}, "2 seeds (0, 2)"),
        ({"a": (0,), "b": (1,)}, "1 seed a number"),
        ({"a": (0, 1), "b": (1, 2)}, "2 seeds a number"),
        ({"a": (0, 1, 2), "b": (1,)}, "1 to 3 seeds a number"),
        ({"a": (None,)}, "1 seed"),
    ],
)
def test_a_table_names_the_seeds_that_are_behind_it(behind: dict[str, tuple[int | None, ...]], told: str) -> None:
    records = [record(0.5, recipe=recipe, seed=seed) for recipe, seeds in behind.items() for seed in seeds]
    assert seeds_behind(records, 3) == told


def finish(training: Training, place: Workplace) -> None:
    """As if it were trained."""
    folder = training.folder(place)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "finished.json").write_text(json.dumps({"weights_sha256": training.id}), encoding="utf-8")
    line = {"seconds": 90.0, "train_seconds": 60.0, "images_per_second": 20.0}
    (folder / "metrics.jsonl").write_text(json.dumps(line) + "\n", encoding="utf-8")


def pretend(place: Workplace, matrix: Matrix, name: str, accuracy: Any) -> None:
    """Write the records of a table's tasks; `accuracy(task)` is what each of them found."""
    for task in TABLES[name].tasks(matrix):
        for training in task.needs:
            finish(training, place)
        if isinstance(task, Transfer | Evaluation):
            attack = type(task.attack).__name__
            records = [record(0.9, attack=None), record(accuracy(task), attack=attack)]
        if isinstance(task, Transfer):
            for model in task.models:
                write_records(task.file(place, model), records)
        elif isinstance(task, Evaluation):
            write_records(task.file(place), records)


def test_section_5_4_fails_a_model_that_masks(tmp_path: Path) -> None:
    def robust(task: Any) -> float:
        eps: float = task.attack.eps
        steps: int = getattr(task.attack, "steps", 1)
        return max(0.0, 0.8 - eps - (0.1 if steps > 1 else 0.0) + (0.2 if isinstance(task, Transfer) else 0.0))

    def masked(task: Any) -> float:
        eps: float = task.attack.eps
        return 0.1 if isinstance(task, Transfer) else 0.5 + eps / 10  # white-box gets weaker with the radius

    matrix = Matrix(dataclasses.replace(SMOKE, points=4), 1, ("sat-r1",))
    verdicts = {}
    for name, accuracy in (("robust", robust), ("masked", masked)):
        place = Workplace(tmp_path / name)
        assert "not run" in TABLES["sanity"].table(matrix, place).grid()
        pretend(place, matrix, "sanity", accuracy)
        ((_, cells),) = TABLES["sanity"].table(matrix, place).rows
        verdicts[name] = [cell for cell in cells if isinstance(cell, str)]
    assert verdicts == {"robust": ["passed"] * 4, "masked": ["FAILED"] * 4}


def test_section_5_4_and_the_curves_of_pgd_count_the_last_step_and_the_tables_where_it_is_asked_for() -> None:
    """By any step, or screened, many steps beat one where they get stuck, and white-box beats black-box at par."""

    def counting(grid: Grid, profile: Profile) -> dict[str, bool]:
        tasks = [task for task in grid.tasks(Matrix(profile, 1, ("sat-r1",))) if isinstance(task, Evaluation)]
        return {type(task.attack).__name__: task.last_iterate for task in tasks}

    iterated = ("FGSM", "IFGSM", "PGD")
    last = QUICK.counted_as(last_iterate=True)
    assert counting(sanity_grid(Matrix(QUICK, 1)), QUICK) == dict.fromkeys(iterated, True)
    assert QUICK.counted_as(last_iterate=False) is QUICK
    for profile in (QUICK, last):
        white_box, (row, *_) = dict.fromkeys(iterated, profile is last), rows_of("mnist", SAT)
        assert counting(accuracies("mnist", SOURCES["mnist"], profile), profile) == {**white_box, "AutoAttack": False}
        assert counting(ladder((row,), profile), profile) == {"FGSM": profile is last, "PGD": profile is last}
        for columns in (step_columns, radius_columns):
            assert counting(Grid((row,), columns(Matrix(profile, 1))), profile) == {"PGD": True}


@pytest.mark.parametrize("profile", [PAPER, QUICK, SMOKE], ids=lambda profile: profile.name)
@pytest.mark.parametrize("dataset", ["mnist", "cifar10"])
def test_pgd_is_as_strong_for_its_radius_at_each_of_fig_8(profile: Profile, dataset: str) -> None:
    matrix = dataclasses.replace(Matrix(profile, 1), dataset=dataset)
    recipe = matrix.training(f"{dataset}/sat-r1").recipe
    attacks = [column.attack(recipe) for column in radius_columns(matrix)]
    assert all(isinstance(attack, PGD) for attack in attacks)
    assert len({round(attack.step_size / attack.eps, 9) for attack in attacks if attack.eps < 1}) == 1  # type: ignore[attr-defined]
    assert len({screening_of(with_stop(attack, when_fooled=True)) is None for attack in attacks}) == 1
    assert pgd_at(recipe, 1) == pgd(recipe)


def test_a_table_is_drawn_from_what_is_there_and_names_the_rest(tmp_path: Path) -> None:
    place = Workplace(tmp_path)
    matrix = Matrix(PAPER, 2, ("sat-r1", "sat-r3"))
    pretend(place, dataclasses.replace(matrix, only=("sat-r3",)), "table9", lambda task: 0.875)
    table = TABLES["table9"].table(matrix, place)
    cells = dict(table.rows)["SAT-R3"]
    assert [cell.text() for cell in cells if isinstance(cell, Cell)] == [
        "90.00 ± 0.00 (98.79 ± 0.24)",
        "87.50 ± 0.00 (94.44 ± 0.36)",
        "87.50 ± 0.00 (86.48 ± 0.42)",
        "87.50 ± 0.00 (82.88 ± 0.60)",
        "1.5 ± 0.0",
    ]
    assert "PGD-100 +4.62" in table.markdown()
    other = TABLES["table7"].table(dataclasses.replace(matrix, only=("ablation-r1-1",)), place)
    assert "Not run: Ablation-R1-1." in other.markdown()
    assert "97.71" in other.grid()  # the paper's number is there all the same


def test_a_table_tells_how_it_counts(tmp_path: Path) -> None:
    def told(name: str, profile: Profile) -> str:
        return TABLES[name].table(Matrix(profile, 1), Workplace(tmp_path)).notes[1]

    last = SMOKE.counted_as(last_iterate=True)
    assert "once any step fools it" in told("table3", SMOKE)
    assert told("table3", last).endswith("attacked too; AutoAttack stops at the first success.")
    for profile in (SMOKE, last):
        assert told("sanity", profile) == told("table7", last)
        assert told("sanity", profile).endswith("images that are wrong before it are attacked too.")


def test_fig_6_has_the_share_of_samples_that_the_trainings_take(tmp_path: Path) -> None:
    matrix, place = Matrix(SMOKE, 1), Workplace(tmp_path)
    for task in FIGURES["fig6"].tasks(matrix):
        assert isinstance(task, Evaluation)
        finish(task.model, place)
        write_records(task.file(place), [record(0.9, attack=None), record(0.5)])
    _, _, panel = FIGURES["fig6"].lines(matrix, place)
    trained = [RECIPES[f"mnist/ablation-r1-3-{share}"] for share in (20, 40, 60, 80, 100)]
    samples = [recipe.objective.k for recipe in trained if isinstance(recipe.objective, SatR1)]
    assert panel["series"][0]["x"] == [100 * k / 32 for k in samples] == [18.75, 40.625, 59.375, 81.25, 100]


def test_a_table_tells_the_screening_and_the_attacks_that_it_outreaches() -> None:
    def pgd(steps: int, *parts: tuple[int, float]) -> Record:
        fields = {"eps": 0.3, "steps": steps, "step_size": 0.01}
        own = [{"attack": "PGD", "attack_fields": {**fields, "steps": n, "step_size": size}} for n, size in parts]
        return record(0.5, attack_fields=fields, parts=own)

    auto_attack = record(0.5, attack="AutoAttack", parts=[{"attack": "APGD", "attack_fields": {"steps": 5}}])
    assert screened([record(0.5), pgd(10), auto_attack]) == ()
    (long,) = screened([pgd(100, (5, 0.12), (100, 0.01)), record(0.5)])
    assert long == "Screened first by the same attack in 5 long steps, whose successes count: PGD-100."
    (both,) = screened([pgd(100, (5, 0.12)), pgd(40, (5, 0.12)), pgd(100, (5, 0.12))])
    assert both.startswith(long.removesuffix("."))
    assert both.endswith("PGD-100, PGD-40. The steps of PGD-40 add up to less than those, and alone may leave more.")


def test_figures_are_drawn_from_data_alone(tmp_path: Path) -> None:
    place = Workplace(tmp_path)
    matrix = Matrix(SMOKE, 1)
    for name, figure in FIGURES.items():
        lines = figure.lines(matrix, place)
        assert lines[0]["figure"] == name
        assert len(lines) > 1
        assert all("missing" in panel for panel in lines[1:])
    surface = {"e1": [-1.0, 0.0, 1.0], "e2": [-2.0, 2.0], "loss": [[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]}
    series = [{"name": "PGD", "x": [1, 10], "y": [90.0, 80.0]}]
    panels = [
        {"title": "a", "surface": surface},
        {"title": "b", "x_label": "x", "y_label": "y", "log_x": True, "series": series},
        {"title": "c", "missing": "not run"},
    ]
    about = {"figure": "fig0", "title": "t", "columns": 2, "note": "n"}
    file = tmp_path / "fig0.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in [about, *panels]), encoding="utf-8")
    assert figures.main([str(file)]) == 0
    assert file.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    file.write_text("{}\n", encoding="utf-8")
    assert figures.main([str(file)]) == 2


def test_a_figure_tells_the_images_that_it_is_measured_on(tmp_path: Path) -> None:
    """They are fewer than those of the tables, which the profile's note tells."""
    told = {name: figure.lines(Matrix(QUICK, 1), Workplace(tmp_path))[0]["images"] for name, figure in FIGURES.items()}
    assert told["fig9"] == told["fig5"] == "Measured on the first 200 test images."
    assert told["fig8"] == told["fig7"]
    assert told["fig7"] == "Measured on the first 200 test images; the last step counts, as in the paper."
    assert told["fig6"] == "Measured on the first 200 validation images; any step counts."
    assert told["fig1"] == told["fig2"] == "Measured on the first 64 validation images."
    assert told["fig3"] == told["fig4"] == "Measured on the first validation image."
    assert told["fig10"] == "Measured on the first test image."
    (task, *_) = FIGURES["fig9"].tasks(Matrix(QUICK, 1))
    assert isinstance(task, Around)
    assert task.images == 200
    about: dict[str, Any] = {"figure": "fig0", "title": "t", "columns": 1, "note": "n", "images": told["fig9"]}
    assert (
        figures.picture([about, {"title": "", "missing": "x"}]).get_supxlabel()
        == "n Measured on the first 200 test images."
    )


def test_panels_that_show_the_same_are_drawn_on_one_scale() -> None:
    def lines(*y: float) -> dict[str, Any]:
        series = [{"name": "PGD", "x": [1, 10], "y": list(y)}]
        return {"title": "a", "x_label": "x", "y_label": "accuracy (%)", "log_x": False, "series": series}

    def surface(height: float) -> dict[str, Any]:
        loss = [[0.0, height], [height, height]]
        return {"title": "b", "surface": {"e1": [-1.0, 1.0], "e2": [-1.0, 1.0], "loss": loss}}

    note = "Profile `quick`, " + "not the paper's scale; " * 9
    about: dict[str, Any] = {"figure": "fig0", "title": "t", "columns": 2, "note": note}
    left, right = figures.picture([about, lines(79.0, 83.0), lines(55.0, 70.0)]).axes
    assert left.get_ylim() == right.get_ylim()
    flat, late = figures.picture([about, lines(2.2, 2.4), lines(0.0, 20.0)]).axes
    assert flat.get_ylim() != late.get_ylim()  # flat lines could not be told apart
    assert figures.footnote(note, [lines(2.2, 2.4), lines(0.0, 20.0)]).endswith("on its own scale.")
    solid = figures.picture([about, surface(2.0), surface(0.5)])
    assert solid.axes[0].get_zlim() == solid.axes[1].get_zlim()
    assert "`" not in solid.get_supxlabel()
    solid.canvas.draw()
    (below,) = (text for text in solid.texts if text.get_text() == solid.get_supxlabel())
    for axes in solid.axes:
        for label in (axes.xaxis.label, axes.yaxis.label):
            assert label.get_window_extent().y0 > below.get_window_extent().y1  # neither touches the footnote
    figures.picture([about, surface(0.0), surface(0.0), lines(1.0, 1.0), lines(1.0, 1.0)])  # no height at all


def test_curves_of_a_linear_model_are_known() -> None:
    model = nn.Linear(2, 2, bias=False)
    model.weight.data = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    inputs, labels = torch.full((3, 2), 0.5), torch.zeros(3, dtype=torch.int64)
    curves = loss_curves(model, inputs, labels, [0.0, 0.25, 0.5])
    # The logits move by the radius, one down and one up: log(1 + e^(2 radius)).
    wanted = [float(torch.tensor(2 * radius).exp().log1p()) for radius in curves["radii"]]
    assert curves["fgsm"] == pytest.approx(wanted)
    assert curves["pgd"] == pytest.approx(wanted)
    gaps = logit_gaps(model, inputs, labels, eps=0.25, random_step=0.0)
    assert gaps["ifgsm"] == pytest.approx(0, abs=1e-6)
    curved = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 2))
    for parameter in curved.parameters():
        parameter.data.mul_(20)
    assert logit_gaps(curved, inputs, labels, eps=0.5, random_step=0.25)["rfgsm"] > 0.1


def test_what_the_figures_show_of_a_curved_model_is_their_equations_by_hand() -> None:
    """Eq. 1-8 and 12 in float64, without surefoot's attacks."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 16), nn.Tanh(), nn.Linear(16, 3)).double().train()
    for parameter in model.parameters():
        parameter.data.mul_(3)
    x, y = torch.rand(6, 3, 2, 2, dtype=torch.float64), torch.tensor([0, 1, 2, 0, 1, 2])

    def sign(points: torch.Tensor) -> torch.Tensor:
        leaf = points.clone().requires_grad_()
        return torch.autograd.grad(nn.functional.cross_entropy(model(leaf), y[: len(leaf)]), leaf)[0].sign()

    def seeded_like(draw: Callable[[torch.Tensor], torch.Tensor], like: torch.Tensor) -> torch.Tensor:
        torch.manual_seed(0)
        return draw(like)

    def loss(points: torch.Tensor) -> float:
        return float(nn.functional.cross_entropy(model(points), y[: len(points)]).detach())

    def distance(one: torch.Tensor, other: torch.Tensor) -> float:
        return float((model(one) - model(other)).square().sum(dim=1).sqrt().mean().detach())

    eps, alpha = 0.3, 0.05
    fgsm, ifgsm = (x + eps * sign(x)).clip(0, 1), x
    for _ in range(10):
        ifgsm = (ifgsm + eps / 10 * sign(ifgsm)).clip(0, 1)
    start = (x + alpha * seeded_like(torch.randn_like, x).sign()).clip(0, 1)
    rfgsm = (start + (eps - alpha) * sign(start)).clip(0, 1)
    gaps = logit_gaps(model, x, y, eps=eps, random_step=alpha)
    assert gaps == pytest.approx({"ifgsm": distance(fgsm, ifgsm), "rfgsm": distance(fgsm, rfgsm)}, rel=1e-10)
    assert min(gaps.values()) > 1e-2

    pgd = (x + seeded_like(lambda like: torch.empty_like(like).uniform_(-eps, eps), x)).clip(0, 1)
    for _ in range(20):
        pgd = (pgd + eps / 8 * sign(pgd)).clip(x - eps, x + eps).clip(0, 1)
    curves = loss_curves(model, x, y, [eps])
    assert [*curves["fgsm"], *curves["pgd"]] == pytest.approx([loss(fgsm), loss(pgd)], rel=1e-10)

    e1, e2, surface = loss_surface(model, x[0], 0, eps, points=3)
    along, across = sign(x[:1]), seeded_like(torch.randn_like, x[:1]).sign()
    by_hand = [[loss((x[:1] + one * along + other * across).clip(0, 1)) for one in e1] for other in e2]
    assert surface == [pytest.approx(row, rel=1e-6) for row in by_hand]


@pytest.mark.parametrize(
    "objective",
    [
        SatR1(0.1, lam=0.0, steps=4, k=2, classified="both"),
        SatR2(0.1, random_step=0.05, lam=0.0, classified="both"),
        SatR3(0.1, eps_low=0.03, lam=0.0, tau=0.5, classified="both"),
    ],
)
def test_an_ablation_classifies_both_kinds_of_samples(objective: Any) -> None:
    """With lam 0 the loss is the mean cross-entropy of every sample in the objective's one forward."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).double()
    inputs, labels = torch.rand(5, 4, dtype=torch.float64), torch.tensor([0, 1, 2, 0, 1])
    seen: list[torch.Tensor] = []
    model.train()
    handle = model.register_forward_hook(
        lambda module, args, out: seen.append(out.detach()) if module.training else None
    )
    terms = objective(model, inputs, labels)
    handle.remove()
    (logits,) = seen
    assert len(logits) == (7 if isinstance(objective, SatR1) else 10)
    all_labels = torch.cat([labels, labels])[: len(logits)]
    wanted = torch.nn.functional.cross_entropy(logits, all_labels)
    assert float(terms.loss.detach()) == pytest.approx(float(wanted), abs=1e-12)
    torch.manual_seed(0)
    one = dataclasses.replace(objective, classified="one")
    assert float(one(model, inputs, labels).loss.detach()) != pytest.approx(float(wanted), abs=1e-6)
    with pytest.raises(ValueError, match="classified is 'all'"):
        dataclasses.replace(objective, classified="all")
