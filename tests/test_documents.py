"""The documents hold together: links and anchors lead somewhere, commands have the options that they show, and what
sentences draw from the committed records is there."""

import json
import re
from importlib import import_module
from pathlib import Path
from statistics import median

import pytest

from surefoot.attacks import MIFGSM, PGD, DeepFool, MarginLoss
from surefoot.cli import main
from surefoot.cli import train as cli_train
from surefoot.core.files import checked_lines
from surefoot.evaluation import read_records, wilson_interval
from surefoot.paper.beside import Cell
from surefoot.paper.curves import IFGSM_STEPS, PGD_STEPS
from surefoot.paper.matrix import Matrix, pgd, radius_columns, step_columns
from surefoot.paper.measurements import REACH
from surefoot.paper.profiles import PROFILES
from surefoot.paper.runs import Workplace
from surefoot.paper.targets import TABLES
from surefoot.recipes import RECIPES, Recipe

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("benchmarks/*.md")])
FENCED = re.compile(r"^( *)```.*?^\1```", flags=re.DOTALL | re.MULTILINE)


def links(text: str) -> list[str]:
    """Where a page's links and pictures lead, but for those out of the repository; brackets in code are no links."""
    prose = re.sub(r"`[^`\n]*`", "", FENCED.sub("", text))
    found = re.findall(r"\]\(([^)\s]+)\)", prose)
    return [target for target in found if not re.match(r"[a-z]+:", target)]


def anchors(text: str) -> set[str]:
    """What GitHub calls a page's headings."""
    headings = re.findall(r"^#+ (.*)$", FENCED.sub("", text), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def broken(page: Path) -> list[str]:
    """The links of a page that lead nowhere."""
    found = []
    for link in links(page.read_text(encoding="utf-8")):
        name, _, anchor = link.partition("#")
        target = page.parent / name if name else page
        if not target.exists() or (anchor and anchor not in anchors(target.read_text(encoding="utf-8"))):
            found.append(link)
    return found


def commands(text: str) -> list[list[str]]:
    """The words of each indented `surefoot` command: continued lines joined, comments left out, several split.

    >>> commands("    surefoot audit A \\\\\\n        --json > a  # or B\\n    surefoot train R; surefoot list")
    [['audit', 'A', '--json'], ['train', 'R'], ['list']]
    """
    lines = re.findall(r"^ {4}(surefoot .*)$", re.sub(r" *\\\n\s*", " ", text), flags=re.MULTILINE)
    parts = [re.split(r"\s[|>]\s", part)[0].split() for line in lines for part in line.split("  #")[0].split(";")]
    return [[word.strip("[]") for word in words[1:]] for words in parts if words[0] == "surefoot"]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_and_anchors_lead_somewhere(page: Path) -> None:
    assert broken(page) == []


def test_a_link_that_leads_nowhere_is_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "# LeNet+ at the paper's scale\n[a](#lenet-at-the-papers-scale) [b](#lenet) [c](none.md) `[d](x)`\n"
    )
    assert broken(page) == ["#lenet", "none.md"]


def test_the_source_distribution_carries_what_the_readme_needs() -> None:
    lines = [line.split() for line in (ROOT / "MANIFEST.in").read_text(encoding="utf-8").splitlines()]
    carried = {word for first, *rest in lines if first in ("include", "graft") for word in rest}
    led_to = {
        link.partition("#")[0].partition("/")[0] for link in links((ROOT / "README.md").read_text(encoding="utf-8"))
    }
    assert carried >= {"Makefile", "constraints.txt", *led_to} - {""}


def test_the_commands_have_the_options_that_they_show(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    used: dict[tuple[str, ...], set[str]] = {}
    for page in PAGES:
        for verb, *rest in commands(page.read_text(encoding="utf-8")):
            named = rest[:1] if verb in ("train", "benchmark") else []  # a recipe's fields are its options
            used.setdefault((verb, *named), set()).update(word for word in rest if word.startswith("--"))
    assert {verb for verb, *_ in used} >= {"audit", "evaluate", "train", "reproduce", "benchmark"}
    for asked, options in used.items():
        assert main([*asked, "--help"]) == 0, asked
        assert options <= set(re.findall(r"--[\w.-]+", capsys.readouterr().out)), asked


def test_the_trainings_that_are_shown_are_taken(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    taken: list[Recipe] = []
    monkeypatch.setattr(cli_train, "train_with_progress", lambda recipe, *_, **__: taken.append(recipe))
    in_help = re.findall(r"`surefoot (train [^`]*--[^`]*)`", " ".join(cli_train.DESCRIPTION.split()))
    assert len(in_help) >= 2
    shown = [command for page in PAGES for command in commands(page.read_text(encoding="utf-8"))]
    shown = [command for command in shown if command[0] == "train" and "--resume" not in command]
    for command in [*map(str.split, in_help), *shown]:
        before = len(taken)
        assert main(command) == 0, command
        assert len(taken) == before + 1


def dotted_names(text: str) -> set[str]:
    """What a page names of the package, also by importing it.

    >>> sorted(dotted_names("`surefoot.audit.audit`, surefoot.attacks. from surefoot.data import Batches, load"))
    ['surefoot.attacks', 'surefoot.audit.audit', 'surefoot.data', 'surefoot.data.Batches', 'surefoot.data.load']
    """
    imported = re.findall(r"from (surefoot[.\w]*) import (\w+(?:, \w+)*)", text)
    found = {f"{module}.{name}" for module, names in imported for name in names.split(", ")}
    return found | set(re.findall(r"(?<![\w/.-])surefoot(?:\.[A-Za-z_]\w*)+", text))


def is_there(name: str) -> bool:
    """Is it a module of the package, or what one has?"""
    parts = name.split(".")
    for count in range(len(parts), 0, -1):
        try:
            thing: object = import_module(".".join(parts[:count]))
        except ModuleNotFoundError:
            continue
        return all((thing := getattr(thing, part, None)) is not None for part in parts[count:])
    return False


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_names_of_the_package_are_there(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert [name for name in sorted(dotted_names(text)) if not is_there(name)] == []


def test_a_name_that_is_not_there_is_found() -> None:
    names = ("audit.Audit.from_json", "audit.Audits", "utils")
    assert [name for name in names if is_there(f"surefoot.{name}")] == ["audit.Audit.from_json"]


def words(page: str) -> str:
    """A page's text in one line."""
    return " ".join((ROOT / page).read_text(encoding="utf-8").split())


ASKED = {  # what users of such libraries ask again and again, and a word that they would look for
    "where normalisation goes": "normalisation",
    "why two libraries disagree": "libraries disagree",
    "the mode during attacks": "model.eval()",
    "a method that collapses": "catastrophic overfitting",
    "which checkpoint": "last?",
    "how many images": "10,000",
    "slow attacks": "too long",
    "few classes": "fewer than ten classes",
    "half precision": "half precision",
    "several GPUs": "several gpus",
    "checkpoints that no longer load": "checkpoint load",
    "version pins": "versions",
    "images that are saved": "8 bits",
    "a worst case of each image": "worst of several attacks",
}


@pytest.mark.parametrize("word", ASKED.values(), ids=ASKED)
def test_what_users_ask_has_a_heading_that_the_readme_leads_to(word: str) -> None:
    headings = re.findall(
        r"^## (.*)$", (ROOT / "docs" / "questions.md").read_text(encoding="utf-8"), flags=re.MULTILINE
    )
    assert any(word in heading.lower() for heading in headings)
    assert "(docs/questions.md)" in (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_intervals_of_questions_md_are_wilsons() -> None:
    (few, many) = (wilson_interval(9 * count // 10, count) for count in (1_000, 10_000))
    told = [f"{100 * low:.1f} to {100 * high:.1f}" for low, high in (few, many)]
    assert f"of 90 % has the interval {told[0]} % on 1,000 images and {told[1]} % on 10,000" in words(
        "docs/questions.md"
    )


def test_what_questions_md_says_of_anothers_network_is_what_was_trained() -> None:
    run = ROOT / "results" / "own-networks" / "shufflenet"
    recipe, (*_, last) = (
        json.loads((run / "recipe.json").read_text(encoding="utf-8")),
        checked_lines(run / "metrics.jsonl"),
    )
    clean, robust = (100 * last[f"validation_{kind}_accuracy"] for kind in ("clean", "robust"))
    text = words("docs/questions.md")
    assert (last["epoch"], recipe["training"]["max_grad_norm"]) == (3, 1.0)
    assert f"after three epochs on CPUs, {clean:.1f} % of the validation images are right and {robust:.1f} %" in text
    assert f"--model {recipe['model']} " in text


def test_what_questions_md_says_of_given_weights_is_what_was_measured() -> None:
    text = (ROOT / "docs" / "questions.md").read_text(encoding="utf-8")
    table = text[text.index("<!-- started -->") : text.index("<!-- end of started -->")].strip().splitlines()[3:]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table]
    names = ("r3", "r3-from-normal", "r2", "r2-after-that", "r2-from-normal")
    for (told, *cells), name in zip(rows, names, strict=True):
        records = read_records(ROOT / "results" / "digits" / "started" / f"{name}.jsonl")
        assert {record.recipe for record in records} == {f"digits/sat-{name[:2]}"}, told
        found = {(record.seed, record.attack): 100 * record.robust_accuracy for record in records}
        assert cells == [f"{found[seed, None]:.1f}, {found[seed, 'PGD']:.1f}" for seed in range(3)]


def test_what_reproduce_md_says_the_paper_leaves_open_is_what_the_code_takes() -> None:
    text, matrix, fool = words("docs/reproduce.md"), Matrix(PROFILES["paper"], 1), DeepFool()
    recipe = RECIPES["mnist/sat-r1"]
    (*_, most), (*_, largest) = step_columns(matrix), radius_columns(matrix)
    measured, steps, radius = pgd(recipe), most.attack(recipe), largest.attack(recipe)
    assert isinstance(measured, PGD)
    assert isinstance(steps, PGD)
    assert isinstance(radius, PGD)
    assert (measured.start_radius, steps.step_size) == (recipe.attack_step_size,) * 2
    assert (radius.eps, radius.step_size) == (3 * recipe.eps, 3 * recipe.attack_step_size)
    for said in (
        f"MI-FGSM's μ of {MIFGSM(0.3, 1).decay:g} and PGD-CW's margin of {MarginLoss().confidence:g}",
        f"at most {fool.steps} steps, an overshoot of {fool.overshoot:g} and {fool.candidates} classes, and shortens",
        f"I-FGSM takes {IFGSM_STEPS} steps there",
        f"PGD samples of {PGD_STEPS} steps of an eighth of the radius",
        f"from a start anywhere in the ball, up to {REACH:g} ε",
        f"over up to {steps.steps // measured.steps} times as many steps (Fig. 7) and",
        f"up to {radius.eps / recipe.eps:g} ε (Fig. 8)",
    ):
        assert said in text, said


def test_what_the_readme_says_of_its_table_is_what_was_measured() -> None:
    text, folder = words("README.md"), ROOT / "results" / "reproduction"
    paper = PROFILES["paper"].trained_in("bf16")
    rows = dict(TABLES["table3"].table(Matrix(paper, paper.seeds), Workplace(folder)).rows)
    masked, left = rows["FGSM-AT"][3], rows["SAT-R3"][9]
    assert isinstance(masked, Cell)
    assert isinstance(left, Cell)
    assert f"PGD-100 leaves {min(masked.values):.1f} to {max(masked.values):.1f} %, depending on the seed" in text
    low, middle, high = sorted(left.values)
    assert f"AutoAttack leaves {low:.0f}, {middle:.0f} and {high:.0f} % of the three" in text


def test_what_mnist_md_says_of_sat_r3_under_auto_attack_is_of_the_very_same_weights() -> None:
    tables = ROOT / "results" / "mnist" / "sat-r3" / "0" / "records.jsonl"
    weights = checked_lines(tables)[0]["weights_sha256"]
    runs = (ROOT / "results" / "reproduction" / "runs" / "mnist" / "sat-r3").glob("*/evaluations/*.jsonl")
    attacked = {
        line["weights_sha256"]: 100 * line["robust_accuracy"]
        for file in runs
        for line in checked_lines(file)
        if (line["attack"], line["num_examples"]) == ("AutoAttack", 1000)  # the quick runs have 100
    }
    text = words("docs/mnist.md")
    assert f"keeps {attacked.pop(weights):.1f} under AutoAttack" in text
    assert f"keep {min(attacked.values()):.1f} and {max(attacked.values()):.1f}" in text


def test_what_audit_md_says_of_its_calibration_is_what_was_measured() -> None:
    text, folder = words("docs/audit.md"), ROOT / "results" / "audit"
    names = ("digits", "mnist", "mnist-lenet-plus-paper", "mnist-lenet-plus-robust", "cifar10")
    files = {name: checked_lines(folder / f"{name}.jsonl") for name in names}
    models = [line for lines in files.values() for line in lines if "truth" in line]
    assert f"Of {len(models)} models whose truth is known" in text
    colour = [line for line in files["cifar10"] if "truth" in line]
    gaps = [
        max(100 * (line["worst_case_accuracy"] - line["facts"]["left"]) for line in lines)
        for lines in (models[: -len(colour)], colour, [line for line in colour if line["truth"] == "robust"])
    ]
    assert (
        f"On the {len(models) - len(colour)} models of digits and MNIST the audit leaves at most {gaps[0]:.1f} " in text
    )
    assert f"on CIFAR-10 up to {gaps[1]:.1f} of a masked one and {gaps[2]:.1f} of a robust one" in text
    examined = [line["num_examples"] for line in models if line["num_examples"] < 128]
    assert examined == [73, 89]
    assert "73 of noise and 89 of resizing on LeNet+" in text
    second, third = (line for line in files["digits"] if line.get("model", "")[-6:] in ("sat-r2", "sat-r3"))
    assert "outside of one class only 17 of 113;" in second["sentence"]
    (plain,) = (attack["robust_accuracy"] for attack in second["attacks"] if attack["name"] == "PGD-40")
    assert f"take {100 * (1 - second['worst_case_accuracy'] / plain):.0f} % of what PGD-40 leaves" in text
    assert "too few to say whether 10.0 % are reached" in third["sentence"]
    for name, lines in files.items():
        for truth in ("robust", "not robust", "masked"):
            verdicts = [line["verdict"] for line in lines if line.get("truth") == truth]
            assert not verdicts or f"{verdicts.count(truth)} of {len(verdicts)}" in text, (name, truth)
    for name, told in (("mnist", "of the robust ones"), ("cifar10", "of what PGD-40 leaves")):
        taken = [
            1 - line["worst_case_accuracy"] / pgd["robust_accuracy"]
            for line in files[name]
            if line.get("truth") == "robust"
            for pgd in line["attacks"]
            if pgd["name"] == "PGD-40"
        ]
        assert f"{told} others fool at most {100 * max(taken):.0f} %" in text


def test_the_order_of_the_methods_in_seconds_is_what_was_measured() -> None:
    seconds: dict[tuple[object, ...], dict[str, list[float]]] = {}  # one a process
    for file in (ROOT / "results" / "benchmark").glob("step-cost-*.jsonl"):
        for line in checked_lines(file):
            setup = (file.name, line["model"], line["precision"], line["mode"])
            seconds.setdefault(setup, {}).setdefault(line["objective"], []).append(line["seconds_per_step"])
    found = {setup: {name: median(each) for name, each in times.items()} for setup, times in seconds.items()}
    small = [times for setup, times in found.items() if setup[1] == "lenet-plus"]
    like_the_paper = [times for times in small if times["sat-r1"] > times["sat-r2"] > times["sat-r3"]]
    for name in ("docs/performance.md", "docs/reproduction.md"):
        assert f"in {len(like_the_paper)} of {len(small)} set-ups of LeNet+" in words(name)
    large = {
        setup: max(times, key=lambda name: times.get(name, 0.0) * name.startswith("sat"))
        for setup, times in found.items()
    }
    dearest = [setup for setup, name in large.items() if (setup[1], name) == ("resnet-18", "sat-r1")]
    assert dearest == [("step-cost-gpu.jsonl", "resnet-18", "bf16", "eager")]


def test_what_monitor_md_says_of_the_digits_and_of_the_cost_is_what_was_measured() -> None:
    text, folder = words("docs/monitor.md"), ROOT / "results"
    runs = checked_lines(folder / "monitor" / "digits.jsonl")
    for recipe in ("digits/fgsm-at", "digits/sat-r2", "digits/pgd-at"):
        mine = [run for run in runs if run["recipe"] == recipe]
        alarms = sorted(run["alarm_step"] for run in mine if run["alarm_step"] is not None)
        shares = ([run[key] for run in mine] for key in ("largest_share", "fgsm_accuracy", "pgd_40_accuracy"))
        cells = [f"{len(alarms)} of {len(mine)}", f"{alarms[0]} - {alarms[-1]}" if alarms else ""]
        cells += [f"{100 * min(each):.0f} - {100 * max(each):.0f} %" for each in shares]
        assert " ".join(f"| {recipe} | {' | '.join(cells)} |".split()) in text
    for place in ("monitor/mnist-warn", "mnist/sat-r2/0"):
        epochs = checked_lines(folder / place / "metrics.jsonl")
        looks = sum(look["seconds"] for epoch in epochs for look in epoch["monitor"])
        assert f"{100 * looks / sum(epoch['seconds'] for epoch in epochs):.1f} % " in text
