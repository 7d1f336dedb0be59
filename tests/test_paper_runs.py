"""The run matrix: nothing twice, what is stopped goes on, what fails holds up nothing else."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import nn
from torch.nn.modules.module import register_module_forward_hook

from surefoot.attacks import FGSM, IFGSM
from surefoot.cli.reproduce import TARGETS
from surefoot.core.files import load_tensors, read_lines
from surefoot.data import Batches, load
from surefoot.paper import estimate, runs, schedule
from surefoot.paper.estimate import Costs, attack_units
from surefoot.paper.matrix import Grid, Matrix, accuracies, fgsm, ladder, rows_of
from surefoot.paper.measurements import Around, PassCount, recipe_passes
from surefoot.paper.profiles import PAPER, QUICK, SHORT, SMOKE
from surefoot.paper.readings import Reading
from surefoot.paper.runs import Evaluation, Task, Training, Transfer, Workplace
from surefoot.paper.schedule import Event, InProcess, Processes, outstanding, run_all
from surefoot.paper.targets import SOURCES, TABLES
from surefoot.recipes import RECIPES, Recipe, train
from tests.tables import at_work

MATRIX = Matrix(SMOKE, seeds=1)


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the recipes that are trained from now on."""
    names: list[str] = []

    def counted(recipe: Any, *args: Any, **named: Any) -> Any:
        names.append(recipe.name)
        return train(recipe, *args, **named)

    monkeypatch.setattr(runs, "train", counted)
    return names


def do(tasks: list[Task], place: Workplace) -> tuple[list[schedule.Failure], list[Event]]:
    events: list[Event] = []
    failures = run_all(outstanding(tasks, place), place, InProcess(place), events.append)
    return failures, events


def test_tables_share_their_trainings_and_nothing_is_done_twice(tmp_path: Path, trained: list[str]) -> None:
    place = Workplace(tmp_path)
    matrix = dataclasses.replace(MATRIX, only=("sat-r3", "normal"))
    tasks = [task for name in ("table3", "table7", "table9") for task in TABLES[name].tasks(matrix)]
    assert do(tasks, place)[0] == []
    assert sorted(trained) == ["mnist/normal", "mnist/normal-c", "mnist/normal-d", "mnist/sat-r3"]
    assert outstanding(tasks, place) == []
    # One more seed trains that seed alone, and crafts on what is there.
    more = dataclasses.replace(matrix, seeds=2)
    again = outstanding(list(TABLES["table3"].tasks(more)), place)
    assert sorted(task.title for task in again if isinstance(task, Training)) == [
        "train mnist/normal, seed 1",
        "train mnist/sat-r3, seed 1",
    ]
    assert {len(task.models) for task in again if isinstance(task, Transfer)} == {2}


def test_sources_are_trained_once_for_all_that_craft_on_them() -> None:
    matrix = Matrix(PAPER, seeds=3, only=("normal", "ensemble-at-a", "ensemble-at-b", "ensemble-at-c"))
    tasks = outstanding(list(TABLES["table3"].tasks(matrix)), Workplace(Path("nowhere")))
    titles = [task.title for task in tasks if isinstance(task, Training)]
    assert len(titles) == len(set(titles)) == 4 * 3 + 4
    assert titles.index("train mnist/normal-a, seed 0") < titles.index("train mnist/ensemble-at-a, seed 2")
    # A source crafts once for every model, whatever its method and seed.
    assert [len(task.models) for task in tasks if isinstance(task, Transfer)] == [12] * 4


def test_no_two_tasks_of_a_plan_read_alike() -> None:
    tasks = {task.id: task for target in TARGETS.values() for task in target.tasks(Matrix(PAPER, seeds=2))}
    titles = [task.title for task in tasks.values()]
    assert len(titles) == len(set(titles))
    assert "PGD-100 on mnist/sat-r1, seed 1" in titles
    assert "the last step of PGD-100 (eps 0.15, 1,000 images) on mnist/sat-r1, seed 0" in titles
    assert "PGD-100 (1,000 validation images) on mnist/sat-r1, seed 0" in titles


def test_what_decides_a_result_is_in_its_key() -> None:
    one = MATRIX.training("mnist/sat-r1")
    changed = [
        MATRIX.training("mnist/sat-r1", seed=1),
        MATRIX.training("mnist/sat-r2"),
        Matrix(QUICK, 1).training("mnist/sat-r1"),
        dataclasses.replace(one, recipe=dataclasses.replace(one.recipe, epochs=2)),
        dataclasses.replace(one, sources=(MATRIX.training("mnist/normal"),)),
    ]
    assert len({one.id, *(task.id for task in changed)}) == 6
    told_otherwise = dataclasses.replace(one.recipe, description="another sentence")
    assert dataclasses.replace(one, recipe=told_otherwise, watched=5).id == one.id
    tasks = [Evaluation(one, FGSM(0.3)), Evaluation(one, FGSM(0.2)), Evaluation(one, FGSM(0.3), images=5)]
    tasks.append(Evaluation(one, FGSM(0.3), last_iterate=True))
    assert len({task.id for task in tasks}) == 4
    assert Evaluation(one, FGSM(0.3), last_iterate=False).id == tasks[0].id


def test_a_stopped_training_goes_on_to_the_same_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = Training(dataclasses.replace(MATRIX.training("mnist/fgsm-at").recipe, epochs=3), watched=3)
    place, other = Workplace(tmp_path / "a"), Workplace(tmp_path / "b")

    def stopped(*args: Any, **named: Any) -> None:
        def on_epoch(line: dict[str, Any]) -> None:
            if line["epoch"] == 2:
                raise KeyboardInterrupt

        train(*args, **named, on_epoch=on_epoch)

    monkeypatch.setattr(runs, "train", stopped)
    with pytest.raises(KeyboardInterrupt):
        do([whole], place)
    assert not whole.done(place)
    monkeypatch.setattr(runs, "train", train)
    assert do([whole], place)[0] == []
    do([dataclasses.replace(whole, watched=0)], other)  # at one go, and unwatched: watching leaves no trace
    assert whole.sha256(place) == whole.sha256(other)
    lines = read_lines(whole.folder(place) / "watch.jsonl")
    assert [line["stage"] for line in lines if line["stage"]] == ["early", "late"]
    steps = [line["step"] for line in lines if "distances" in line]
    assert steps == sorted(set(steps))
    assert steps[-1] == lines[-1]["steps"]


def test_the_last_step_counts_where_a_task_says_so(tmp_path: Path, trained: list[str]) -> None:
    place, model = Workplace(tmp_path), MATRIX.training("mnist/fgsm-at")
    attack = IFGSM(0.6, 20)
    any_step, last_step = (Evaluation(model, attack, last_iterate=last) for last in (False, True))
    assert do([any_step], place)[0] == []
    bases = [Costs(place)(task).basis for task in (any_step, last_step)]
    assert bases == ["measured", "passes"]  # the one let go of what it fooled, and tells nothing of the other
    assert do([last_step], place)[0] == []
    (clean, screened), (_, last) = any_step.records(place), last_step.records(place)
    assert [len(screened.parts), len(last.parts)] == [2, 0]
    assert [screened.attack_fields["stop_when_fooled"], last.attack_fields["stop_when_fooled"]] == [True, False]
    assert last_step.title == "the last step of " + any_step.title
    data = place.data(model.recipe)
    network, (inputs, labels) = model.model(place, data), next(iter(Batches(data.test, batch_size=10_000)))
    right = network(attack(network, inputs, labels)).argmax(dim=1) == labels
    assert last.robust_accuracy == pytest.approx(right.double().mean().item())
    assert screened.robust_accuracy <= min(clean.clean_accuracy, last.robust_accuracy)


def test_what_is_damaged_is_made_anew(tmp_path: Path, trained: list[str]) -> None:
    place = Workplace(tmp_path)
    model = MATRIX.training("mnist/sat-r3")
    task = Evaluation(model, FGSM(0.1), 8)
    assert do([task], place)[0] == []
    file = task.file(place)
    assert file is not None
    whole = file.read_text(encoding="utf-8")
    for damaged in ("", whole[: len(whole) // 3], whole.splitlines()[0] + "\n", "{}\n{}\n"):
        file.write_text(damaged, encoding="utf-8")
        assert (task.done(place), task.records(place)) == (False, [])
    clean, attacked = (json.loads(line) for line in whole.splitlines())
    wrong: list[dict[str, Any]] = [
        {"parts": "zzz"},
        {"parts": ["zzz"]},
        {"versions": 3},
        {"device": None},
        {"attack_fields": []},
        {"attack": "PGD"},
        {"robust_accuracy": 1.5},
        {"clean_accuracy": -0.5},
        {"robust_accuracy": math.nan},
        {"robust_interval": [0.1]},
        {"num_examples": 0},
        {"num_examples": "8"},
        {"seconds": math.inf},
        {"mean_l2": "zzz"},
    ]
    for first, second in ((attacked, clean), *((clean, {**attacked, **fields}) for fields in wrong)):
        file.write_text(f"{json.dumps(first)}\n{json.dumps(second)}\n", encoding="utf-8")
        assert (task.done(place), task.records(place)) == (False, []), second
        Costs(place)  # nor does a plan break on it
    file.write_text(whole, encoding="utf-8")
    assert task.done(place)
    file.write_text("", encoding="utf-8")
    assert outstanding([task], place) == [task]
    assert do([task], place)[0] == []
    assert task.done(place)
    (model.folder(place) / "finished.json").write_text('{"id": "', encoding="utf-8")
    assert not model.done(place)
    assert do([task], place)[0] == []
    assert trained == ["mnist/sat-r3"]  # its weights were whole
    (model.folder(place) / "metrics.jsonl").write_text("{", encoding="utf-8")
    assert (model.minutes(place), model.speed(place)) == (None, None)


def test_a_training_whose_state_is_damaged_begins_anew(tmp_path: Path, trained: list[str]) -> None:
    place, model = Workplace(tmp_path), MATRIX.training("mnist/sat-r3")
    do([model], place)
    folder, before = model.folder(place), model.sha256(place)
    (folder / "finished.json").unlink()
    for damage in ("state.ckpt", "recipe.json"):
        (folder / damage).write_bytes((folder / damage).read_bytes()[:40])
        assert do([model], place)[0] == []
        assert model.sha256(place) == before
        (folder / "finished.json").unlink()
    assert all((folder / name).exists() for name in ("damaged.ckpt", "damaged.safetensors"))  # not thrown away
    assert len(trained) == 3


def test_a_folder_in_which_a_training_is_at_work_is_not_begun_anew(tmp_path: Path) -> None:
    place, model = Workplace(tmp_path), MATRIX.training("mnist/sat-r3")
    do([model], place)
    folder = model.folder(place)
    for name in ("finished.json", "state.ckpt"):  # as it is in a training's first epoch
        (folder / name).unlink()
    (folder / "metrics.jsonl").write_text("", encoding="utf-8")
    before = {file.name for file in folder.iterdir()}
    with at_work(folder), pytest.raises(ValueError, match="another training is at work in"):
        model(place)
    assert {file.name for file in folder.iterdir()} - {".lock"} == before
    assert do([model], place)[0] == []


class Killed(BaseException):
    """As by SIGKILL: nobody catches it."""


@pytest.mark.parametrize("after", range(7))
def test_a_training_killed_while_what_is_left_is_removed_begins_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    place, model = Workplace(tmp_path), MATRIX.training("mnist/sat-r3")
    do([model], place)
    folder, before, unlink = model.folder(place), model.sha256(place), Path.unlink
    (folder / "model.safetensors").unlink()
    calls: list[Path] = []

    def killed(path: Path, *args: Any, **named: Any) -> None:
        if path.parent == folder and path.name in runs.LEFT:
            calls.append(path)
            if len(calls) > after:
                raise Killed
        unlink(path, *args, **named)

    monkeypatch.setattr(Path, "unlink", killed)
    with pytest.raises(Killed):
        model(place)
    monkeypatch.undo()
    model(place)
    assert model.sha256(place) == before
    assert (folder / "model.safetensors").exists()


def test_a_training_killed_while_it_takes_a_finished_run_begins_anew_without_it(tmp_path: Path) -> None:
    place, model = Workplace(tmp_path), MATRIX.training("mnist/sat-r3")
    do([model], place)
    (model.folder(place) / "recipe.json").unlink()  # the last that is copied
    (model.folder(place) / "finished.json").unlink()
    assert do([model], place)[0] == []


@pytest.mark.parametrize("damaged", ["state.ckpt", "model.safetensors"])
def test_an_unfinished_training_with_one_changed_byte_begins_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damaged: str
) -> None:
    def stop(*args: Any, **named: Any) -> Any:
        def after_one(line: dict[str, Any]) -> None:
            raise KeyboardInterrupt

        return train(*args, **named, on_epoch=after_one)

    task = Training(dataclasses.replace(MATRIX.training("mnist/normal").recipe, epochs=2))
    folder = task.folder(Workplace(tmp_path))
    monkeypatch.setattr(runs, "train", stop)
    with pytest.raises(KeyboardInterrupt):
        do([task], Workplace(tmp_path))
    monkeypatch.setattr(runs, "train", train)
    damage(folder / damaged)
    assert do([task], Workplace(tmp_path))[0] == []
    assert do([task], Workplace(tmp_path / "whole"))[0] == []
    assert task.sha256(Workplace(tmp_path)) == task.sha256(Workplace(tmp_path / "whole"))


def test_a_training_goes_on_under_another_description(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place, model = Workplace(tmp_path), MATRIX.training("mnist/sat-r3")

    def stopped(*args: Any, **named: Any) -> None:
        def on_epoch(line: dict[str, Any]) -> None:
            raise KeyboardInterrupt

        train(*args, **named, on_epoch=on_epoch)

    monkeypatch.setattr(runs, "train", stopped)
    with pytest.raises(KeyboardInterrupt):
        do([model], place)
    monkeypatch.setattr(runs, "train", train)
    again = Training(dataclasses.replace(model.recipe, description="in better words"))
    assert again.folder(place) == model.folder(place)
    assert do([again], place)[0] == []


def test_a_run_that_is_there_already_is_taken(tmp_path: Path, trained: list[str]) -> None:
    recipe = MATRIX.training("mnist/sat-r3").recipe
    train(recipe, tmp_path / "runs" / "mine")
    place = Workplace(tmp_path / "out", finished=(tmp_path / "runs",))
    task, other = Training(recipe), Training(dataclasses.replace(recipe, epochs=2))
    estimates = [Costs(place)(training) for training in (task, other)]
    assert [(estimate.seconds > 0, estimate.basis) for estimate in estimates] == [
        (False, "a finished run"),
        (True, "measured"),
    ]
    do([task, other], place)
    assert trained == ["mnist/sat-r3"]  # the one of two epochs is another
    weights = [
        load_tensors(folder / "model.safetensors")[0] for folder in (tmp_path / "runs" / "mine", task.folder(place))
    ]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def damage(file: Path) -> None:
    """Change a bit of a file of tensors, not its length."""
    content = file.read_bytes()
    file.write_bytes(content[:-8] + bytes([content[-8] ^ 1]) + content[-7:])


def test_a_finished_run_is_taken_without_its_state_and_not_with_damaged_weights(
    tmp_path: Path, trained: list[str]
) -> None:
    task = MATRIX.training("mnist/normal")
    mine = tmp_path / "runs" / "mine"
    train(task.recipe, mine)
    (mine / "state.ckpt").unlink()
    first, second = (Workplace(tmp_path / name, finished=(tmp_path / "runs",)) for name in ("first", "second"))
    assert do([task], first)[0] == []
    assert trained == []
    damage(mine / "model.safetensors")
    assert Costs(second)(task).basis != "a finished run"
    assert do([task], second)[0] == []
    assert trained == ["mnist/normal"]
    # One that was taken so before, and could never be finished.
    damage(task.folder(second) / "model.safetensors")
    (task.folder(second) / "finished.json").unlink()
    assert do([task], second)[0] == []
    assert task.sha256(second) == task.sha256(first)


def test_a_run_of_other_images_is_not_taken_and_one_that_was_is_not_measured_on_them(
    tmp_path: Path, trained: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = MATRIX.training("mnist/normal").recipe
    train(recipe, tmp_path / "runs" / "mine")
    task = Training(recipe)
    same, other = (Workplace(tmp_path / name, finished=(tmp_path / "runs",)) for name in ("same", "other"))
    assert do([task], same)[0] == []
    assert (trained, (task.folder(same) / "data.json").exists()) == ([], True)
    monkeypatch.setattr(runs, "load_recipe_data", lambda recipe, _: load("digits", validation_size=50))
    assert task.adoptable(other) is None
    with pytest.raises(ValueError, match="was trained on digits when that had 10 classes"):
        task.model(same, same.data(recipe))


@pytest.mark.parametrize("name", ["pgd-at", "sat-r1", "ensemble-at-a"])
def test_a_training_is_estimated_by_its_own_step_where_that_is_short(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    task = MATRIX.training(f"mnist/{name}")
    images = len(Workplace(tmp_path).data(task.recipe).train.labels)

    forwards: list[int] = []

    def timed(work: Callable[[], Any]) -> float:
        forwards.append(0)

        def count(module: nn.Module, *_: Any) -> None:
            forwards[-1] += isinstance(module, nn.Sequential)

        hook = register_module_forward_hook(count)
        work()
        hook.remove()
        return 0.01

    monkeypatch.setattr(estimate, "timed", timed)
    costs = Costs(Workplace(tmp_path))
    size = task.recipe.training.batch_size
    unit = costs.units(task.recipe, task.recipe.objective)
    costs.training_unit(task.recipe)
    ordinary = forwards[-1]
    costs.step(task.recipe, task.recipe.objective)
    assert forwards[-1] > ordinary
    selection = (2 * task.recipe.selection_steps + 2) * len(costs.place.data(task.recipe).validation.labels)
    a_pass = 0.01 / estimate.TIMED
    by_step = task.recipe.epochs * (images * 0.01 / size + selection * a_pass)
    found = costs(task)
    assert found.basis == "a step"
    assert found.seconds == pytest.approx(by_step)
    monkeypatch.setattr(estimate, "AFFORDABLE", 0.0)
    by_passes = task.recipe.epochs * (images * unit * 0.01 / size / 3 + selection * a_pass)
    found = costs(task)
    assert found.basis == "passes"
    assert found.seconds == pytest.approx(by_passes)


def test_records_without_weights_need_no_training_until_more_is_asked_for(tmp_path: Path, trained: list[str]) -> None:
    place = Workplace(tmp_path)
    model = MATRIX.training("mnist/normal")
    first, second = Evaluation(model, FGSM(0.1), 8), Evaluation(model, FGSM(0.2), 8)
    do([first], place)
    (model.folder(place) / "model.safetensors").unlink()
    (model.folder(place) / "state.ckpt").unlink()
    assert outstanding([first], place) == []
    assert outstanding([first, second], place)[0].title == "train mnist/normal, seed 0"
    assert do([first, second], place)[0] == []
    assert len(trained) == 2
    assert first.records(place)[1].weights_sha256 == second.records(place)[1].weights_sha256 == model.sha256(place)


def test_a_finished_training_whose_weights_are_damaged_is_trained_again_by_the_same_command(
    tmp_path: Path, trained: list[str]
) -> None:
    place, model = Workplace(tmp_path), MATRIX.training("mnist/normal")
    do([model], place)
    file, before = model.folder(place) / "model.safetensors", model.sha256(place)
    for number, content in enumerate((file.read_bytes()[:-40], b"", file.read_bytes()[:40]), start=1):
        file.write_bytes(content)
        task = Evaluation(model, FGSM(number / 10), 8)
        assert outstanding([task], place) == [model, task]
        assert do([task], place)[0] == []
        assert (model.sha256(place), len(trained)) == (before, 1 + number)
        assert file.with_name("damaged.safetensors").read_bytes() == content
    damage(file)
    assert do([Evaluation(model, FGSM(0.5), 8)], place)[0] == []
    assert len(trained) == 5


def test_measurements_count_until_a_training_without_weights_has_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place, model = Workplace(tmp_path), MATRIX.training("mnist/normal")
    first, second = Evaluation(model, FGSM(0.1), 8), Evaluation(model, FGSM(0.2), 8)
    do([first], place)
    before, measured = model.sha256(place), first.records(place)
    (model.folder(place) / "model.safetensors").unlink()

    def stopped(*args: Any, **named: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(runs, "train", stopped)
    with pytest.raises(KeyboardInterrupt):
        do([second], place)
    assert first.records(place) == measured
    assert (model.done(place), model.sha256(place), model.measurements(place)) == (False, before, 1)
    # What is asked for and rests on it is measured anew, as if it had not been stopped.
    assert outstanding([first, second], place) == [model, second, first]

    def other(recipe: Recipe, *args: Any, **named: Any) -> Any:  # as on another machine
        return train(dataclasses.replace(recipe, training=dataclasses.replace(recipe.training, seed=7)), *args, **named)

    monkeypatch.setattr(runs, "train", other)
    assert do([second], place)[0] == []
    assert model.sha256(place) != before
    assert (first.records(place), len(second.records(place))) == ([], 2)
    assert not (model.folder(place) / "before.json").exists()


@dataclass(frozen=True)
class Fake(Training):
    """A training that writes its name, fails, or dies the first time."""

    name: str = ""
    what: str = "works"
    after: tuple[Training, ...] = ()

    @property
    def id(self) -> str:
        return self.name

    @property
    def title(self) -> str:
        return self.name

    @property
    def needs(self) -> tuple[Training, ...]:
        return self.after

    def done(self, place: Workplace) -> bool:
        return (place.out / self.name).exists()

    def has_weights(self, place: Workplace) -> bool:
        return self.done(place)

    def __call__(self, place: Workplace) -> None:
        print(f"{self.name} at work")
        tried = place.out / f"{self.name}-tried"
        if self.what == "dies" and not tried.exists():
            tried.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        if self.what == "fails":
            raise ValueError("the moon is not round enough.")
        (place.out / self.name).touch()


def fake(name: str, what: str = "works", after: tuple[Training, ...] = ()) -> Fake:
    return Fake(RECIPES["digits/normal"], name=name, what=what, after=after)


def test_a_failing_task_is_told_of_with_its_log_and_the_others_finish(tmp_path: Path) -> None:
    bad, good = fake("bad", "fails"), fake("good")
    after_bad, after_good = fake("after-bad", after=(bad, good)), fake("after-good", after=(good,))
    failures, events = do([bad, after_bad, after_good], Workplace(tmp_path))
    assert {path.name for path in tmp_path.iterdir()} == {"good", "after-good", "logs"}
    assert [(failure.title, failure.error) for failure in failures] == [
        ("bad", "the moon is not round enough."),
        ("after-bad", "it needs what failed: bad"),
    ]
    assert failures[0].log is not None
    log = failures[0].log.read_text(encoding="utf-8")
    assert "bad at work" in log
    assert "Traceback" in log
    assert [event.what for event in events].count("failed") == 1


def test_black_box_goes_on_with_the_models_that_could_be_trained(tmp_path: Path) -> None:
    bad, good, source = fake("bad", "fails"), fake("good"), fake("source")
    seen = []

    class Recording(InProcess):
        def start(self, task: Task) -> None:
            if isinstance(task, Transfer):
                seen.append([model.title for model in task.models])
                self.finished.append((task.id, None))
            else:
                super().start(task)

    place = Workplace(tmp_path)
    crafted = Transfer(source, (bad, good), FGSM(0.1))
    failures = run_all([bad, good, source, crafted], place, Recording(place), lambda event: None)
    assert seen == [["good"]]
    assert [failure.title for failure in failures] == ["bad"]
    lost = run_all([bad, Transfer(bad, (good,), FGSM(0.1))], place, Recording(place), lambda event: None)
    assert len(lost) == 2


@pytest.mark.skipif(not hasattr(signal, "pthread_sigmask"), reason="Windows blocks no signals")
def test_ctrl_c_does_not_reach_a_worker_that_still_imports(tmp_path: Path) -> None:
    executor = Processes(Workplace(tmp_path), workers=1, threads=1)
    try:
        worker = executor.hire(0)
        os.kill(worker.process.pid, signal.SIGINT)
        assert not wait([worker.process.sentinel], timeout=1)
        executor.start(fake("good"))
        assert executor.next_finished() == (fake("good").id, None)
        assert executor.deaths == {}
    finally:
        executor.close()


def test_a_killed_worker_is_replaced_and_its_task_done(tmp_path: Path) -> None:
    place = Workplace(tmp_path)
    executor = Processes(place, workers=1, threads=1)
    events: list[Event] = []
    try:
        first, second = fake("first", "dies"), fake("second")
        assert run_all([first, second], place, executor, events.append) == []
    finally:
        executor.close()
    assert first.done(place)
    assert second.done(place)
    assert executor.deaths == {"first": 1}
    assert [event.what for event in events] == ["started", "done", "started", "done"]
    assert "first at work" in (tmp_path / "logs" / "first.log").read_text(encoding="utf-8")


def test_a_task_whose_workers_all_die_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Dead:
        """A process that is over before it has begun."""

        exitcode = -9

        def __init__(self, **named: Any) -> None:
            self.sentinel, end = os.pipe()
            os.close(end)

        def start(self) -> None: ...
        def kill(self) -> None: ...
        def join(self) -> None: ...

    executor = Processes(Workplace(tmp_path), workers=1, threads=1)
    monkeypatch.setattr(executor.context, "Process", Dead, raising=False)
    failures = run_all([fake("never")], Workplace(tmp_path), executor, lambda event: None)
    executor.close()
    assert [failure.error for failure in failures] == ["its process died 3 times, last with -9"]


class Hired:
    """A process that does nothing and knows what it was given."""

    given: ClassVar[list[tuple[int, str | None]]] = []
    sentinel = 0

    def __init__(self, *, args: tuple[Any, ...], **named: Any) -> None:
        self.given.append(args[2:])

    def start(self) -> None: ...


def test_workers_share_out_the_cores_and_the_gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = Workplace(tmp_path)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(8)), raising=False)
    assert [Processes(place, workers).threads for workers in (1, 3, 16)] == [8, 2, 1]
    assert Processes(place, 3, threads=5).threads == 5
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    for visible, names in (("3,7", ["3", "7"]), (None, ["0", "1"])):
        monkeypatch.setattr(Hired, "given", [])
        if visible is None:
            monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        else:
            monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        executor = Processes(place, 4)
        monkeypatch.setattr(executor.context, "Process", Hired, raising=False)
        for index in (0, 1, 2, 1):  # the last in place of one that died
            executor.hire(index)
        assert Hired.given == [(2, names[0]), (2, names[1]), (2, names[0]), (2, names[1])]


ORPHAN = """
import multiprocessing, threading, time
from surefoot.paper.schedule import leave_with

def work(pipe):
    threading.Thread(target=leave_with, args=(multiprocessing.parent_process(),), daemon=True).start()
    pipe.send("at work")
    time.sleep(30)
    print("still there")

if __name__ == "__main__":
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=work, args=(theirs,))
    process.start()
    print(ours.recv(), flush=True)
    time.sleep(30)
"""


def test_a_worker_leaves_with_its_parent(tmp_path: Path) -> None:
    (tmp_path / "orphan.py").write_text(ORPHAN, encoding="utf-8")
    with subprocess.Popen([sys.executable, tmp_path / "orphan.py"], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == "at work\n"
        parent.kill()
        assert parent.stdout.read() == ""  # ends when nobody can write any more, the worker either


def test_the_first_training_of_the_figures_methods_is_watched() -> None:
    matrix = Matrix(QUICK, 2)
    watched = {
        (method, seed): matrix.training(f"mnist/{method}", seed).watched
        for method in ("fgsm-at", "pgd-at", "sat-r1")
        for seed in (0, 1)
    }
    assert {key for key, points in watched.items() if points} == {("fgsm-at", 0), ("pgd-at", 0)}
    assert watched["fgsm-at", 0] == QUICK.points


def test_profiles_change_the_scale_and_nothing_else() -> None:
    for recipe in RECIPES.values():
        assert PAPER.recipe(recipe, recipe.training.seed) == recipe
    sequence = QUICK.recipe(RECIPES["mnist/sat-r1-r3"], 2)
    assert [phase.epochs for phase in sequence.phases()] == [1, 2]
    assert sequence.training.seed == 2
    assert sequence.phases()[1].learning_rate == 0.05
    pgd_at = QUICK.recipe(RECIPES["mnist/pgd-at"], 0).objective
    assert (pgd_at.steps, round(pgd_at.step_size, 6)) == (5, 0.08)  # type: ignore[union-attr]
    colour = QUICK.recipe(RECIPES["tiny-imagenet-100/sat-r1"], 0)
    assert (colour.model, colour.image_size, colour.training.learning_rate) == ("conv-norm", 32, 0.05)
    rates = [QUICK.recipe(RECIPES[name], 0).training.learning_rate for name in ("mnist/sat-r1", "mnist/sat-r3")]
    assert rates == [0.01, 0.05]
    assert QUICK.recipe(RECIPES["cifar10/sat-r1"], 0).image_size is None
    short = SHORT.recipe(RECIPES["cifar10/sat-r2"], 0)
    assert (short.model, short.epochs, short.training.precision) == ("resnet-18", 15, "bf16")
    assert (short.training.schedule, short.training.batch_size, short.training.learning_rate) == ("one-cycle", 128, 0.1)
    assert short.objective == RECIPES["cifar10/sat-r2"].objective
    own = PAPER.of_imagenet(Path("imagenet"))
    assert "the user's own folder" in own.note
    large = own.recipe(RECIPES["tiny-imagenet-100/trades"], 0)
    assert (large.dataset, large.num_classes, large.image_size) == ("imagefolder:imagenet", 100, 224)
    assert QUICK.of_imagenet(Path("x")).recipe(RECIPES["tiny-imagenet-100/trades"], 0).image_size == 32
    assert own.recipe(RECIPES["cifar10/trades"], 0) == RECIPES["cifar10/trades"]
    assert SMOKE.of_imagenet(Path("x")) == SMOKE
    assert "bf16" in QUICK.trained_in("bf16").note
    assert SHORT.note.endswith("Trained in bf16.")
    assert SHORT.trained_in("fp32").note == SHORT.note.replace("bf16", "fp32")
    assert Matrix(QUICK.trained_in("bf16"), 1).training("mnist/normal").recipe.training.precision == "bf16"


@pytest.mark.parametrize(
    ("reading", "name", "changes"),
    [
        ("paper", "mnist/sat-r1", {"steps": 40}),
        ("paper", "cifar10/sat-r1", {"steps": 7}),
        ("paper", "tiny-imagenet-100/sat-r1", {}),
        ("paper", "mnist/trades", {}),
        ("paper", "cifar10/trades", {"steps": 7}),
        ("paper", "tiny-imagenet-100/trades", {"steps": 7}),
        ("paper", "mnist/sat-r2", {}),
        ("paper", "mnist/sat-r3", {}),
        ("paper", "mnist/ablation-r1-1", {"steps": 40}),
        ("code", "mnist/sat-r1", {"pair": "last"}),
        ("code", "mnist/sat-r2", {"rfgsm_step": "full"}),
        ("code", "mnist/sat-r3", {"random_step": 0.01}),
        ("code", "cifar10/sat-r3", {"random_step": 2 / 255}),
        ("code", "tiny-imagenet-100/sat-r3", {"random_step": 2 / 255}),
        ("code", "mnist/ablation-r3-2", {"random_step": 0.01}),
        ("code", "cifar10/trades", {}),
        ("code", "mnist/normal", {}),
    ],
)
def test_a_reading_changes_what_the_paper_and_its_authors_code_do_differently(
    reading: Reading, name: str, changes: dict[str, Any]
) -> None:
    recipe = RECIPES[name]
    profile = PAPER.read_as(reading)
    assert profile.name == f"paper-as-{reading}"
    assert f"are the {reading}'s" in profile.note
    assert profile.recipe(recipe, 0) == dataclasses.replace(
        recipe, objective=dataclasses.replace(recipe.objective, **changes)
    )
    ours, theirs = (Matrix(each, 1).training(name) for each in (PAPER, profile))
    assert (ours.id == theirs.id) == (not changes)


def test_a_reading_holds_in_every_phase_and_at_every_scale() -> None:
    assert PAPER.read_as(None) is PAPER
    phases = PAPER.read_as("code").recipe(RECIPES["mnist/sat-r3-r2"], 0).phases()
    assert phases[0].objective.random_step == 0.01  # type: ignore[attr-defined]
    assert phases[1].objective.rfgsm_step == "full"  # type: ignore[attr-defined]
    assert QUICK.read_as("paper").recipe(RECIPES["mnist/sat-r1"], 0) == QUICK.recipe(RECIPES["mnist/sat-r1"], 0)
    both = PAPER.trained_in("bf16").read_as("code")
    assert (both.name, both.precision) == ("paper-bf16-as-code", "bf16")


@pytest.mark.parametrize(
    ("name", "crafting", "units"),
    [
        ("mnist/normal", 0, 3),
        ("mnist/fgsm-at", 0.5, 4),
        ("mnist/ensemble-at-c", 0.5, 4),
        ("mnist/pgd-at", 40, 83),
        ("mnist/trades", 40, 87),
        ("mnist/sat-r1", 1 + 9 / 32, 5 + 21 / 32),
        ("mnist/sat-r2", 2, 10),
        ("mnist/sat-r3", 1, 8),
    ],
)
def test_passes_are_counted(name: str, crafting: float, units: float) -> None:
    counted = recipe_passes(RECIPES[name])
    assert counted["crafting_backwards"] == pytest.approx(crafting)
    assert counted["units"] == pytest.approx(units)


def test_costs_come_from_finished_runs_or_from_what_is_timed_here(tmp_path: Path) -> None:
    place = Workplace(tmp_path, finished=(tmp_path / "runs",))
    recipe = MATRIX.training("mnist/sat-r3").recipe
    folder = tmp_path / "runs" / "x"
    folder.mkdir(parents=True)
    (folder / "recipe.json").write_text(json.dumps(recipe.to_json()), encoding="utf-8")
    (folder / "metrics.jsonl").write_text('{"seconds": 7.0}\n', encoding="utf-8")
    costs = Costs(place)
    three = Training(dataclasses.replace(recipe, epochs=3))
    assert (costs(three).seconds, costs(three).basis) == (21.0, "measured")
    other = costs(MATRIX.training("mnist/sat-r2"))
    assert other.basis == "a step"
    assert 0 < other.seconds < 600
    one, many = (costs(Evaluation(three, attack, 16)) for attack in (fgsm(recipe), SMOKE.auto_attack(0.3)))
    assert many.seconds > one.seconds > 0
    assert attack_units(fgsm(recipe)) == 3
    tasks: list[Task] = [Around(three, "losses", 16, 3), Around(three, "surface", 16, 3), PassCount(recipe)]
    assert all(costs(task).seconds > 0 for task in tasks)


def test_grids_have_the_papers_rows_and_columns() -> None:
    for dataset, sources in SOURCES.items():
        grid = accuracies(dataset, sources, PAPER)
        assert len(grid.rows) == 10
        assert len(grid.columns) == 10
        for _, recipe in grid.rows:
            assert recipe in RECIPES
    grid = ladder(rows_of("mnist", (("SAT-R1", "sat-r1"),)), PAPER)
    attacks: list[Callable[..., Any]] = [column.attack(RECIPES["mnist/sat-r1"]) for column in grid.columns]
    assert [getattr(attack, "steps", None) for attack in attacks] == [None, None, 40, 100]
    assert isinstance(grid, Grid)
