"""The same tasks on a real Ray cluster of two nodes, one of which is killed in the middle of a training."""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from surefoot.attacks import FGSM
from surefoot.cli import main
from surefoot.core.files import read_lines
from surefoot.paper.cluster import Cluster
from surefoot.paper.matrix import Matrix
from surefoot.paper.profiles import SMOKE
from surefoot.paper.runs import Evaluation, Task, Training, Workplace
from surefoot.paper.schedule import Event, outstanding, run_all

EPOCHS = 12
needs_ray = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed")


@pytest.mark.slow
@needs_ray
@pytest.mark.filterwarnings("ignore")
def test_a_node_that_is_killed_loses_no_task(tmp_path: Path) -> None:
    local: Any = importlib.import_module("ray.cluster_utils")

    place = Workplace(tmp_path / "out")
    recipes = [
        dataclasses.replace(Matrix(SMOKE, 1).training(name).recipe, epochs=EPOCHS)
        for name in ("mnist/sat-r2", "mnist/sat-r3")
    ]
    trainings = [Training(recipe) for recipe in recipes]
    tasks: list[Task] = [Evaluation(training, FGSM(0.3), 16) for training in trainings]
    nodes = local.Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    second = nodes.add_node(num_cpus=1)
    executor = Cluster(place, nodes.address, threads=1)
    killed: list[list[int]] = []
    first_epochs: list[dict[str, Any]] = []

    def kill() -> None:
        """The second node, when both trainings have saved an epoch and none is done."""
        while True:
            done = [len(read_lines(training.folder(place) / "metrics.jsonl")) for training in trainings]
            if min(done) >= 1:
                break
            time.sleep(0.05)
        killed.append(done)
        first_epochs.extend(read_lines(training.folder(place) / "metrics.jsonl")[0] for training in trainings)
        nodes.remove_node(second, allow_graceful=False)

    events: list[Event] = []
    thread = threading.Thread(target=kill)
    try:
        assert executor.slots == 2
        thread.start()
        assert run_all(outstanding(tasks, place), place, executor, events.append) == []
    finally:
        thread.join(timeout=60)
        executor.close()
        nodes.shutdown()
    assert len(killed) == 1
    assert max(killed[0]) < EPOCHS
    starts = []
    for training, first in zip(trainings, first_epochs, strict=True):
        assert read_lines(training.folder(place) / "metrics.jsonl")[0] == first  # it was not begun anew
        assert [line["epoch"] for line in read_lines(training.folder(place) / "metrics.jsonl")] == [
            *range(1, EPOCHS + 1)
        ]
        log = (place.out / "logs" / f"{training.id}.log").read_text(encoding="utf-8")
        starts.append(log.count(training.title))
    assert sorted(starts) == [1, 2]  # the one on the killed node was started again, and went on
    assert all(task.done(place) for task in tasks)
    assert [event.what for event in events].count("done") == 4


def test_without_ray_or_a_cluster_it_is_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    command = ["reproduce", "table8", "--profile", "smoke", "--out", str(tmp_path), "--cluster", "auto"]
    assert main(command) == 2
    assert "pip install 'surefoot[cluster]'" in " ".join(capsys.readouterr().err.split())
