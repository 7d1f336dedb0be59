"""Several processes share each batch: two reach the weights of one, and what batch-norm does meanwhile is stated."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from surefoot.core.files import load_tensors
from surefoot.data import Batches
from tests import two_processes

ROOT = Path(__file__).resolve().parents[1]


def start(folder: Path, devices: int) -> None:
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, str(ROOT / "tests" / "two_processes.py"), str(folder), str(devices)]
    environment = {**os.environ, "PYTHONPATH": path}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_two_processes_reach_the_weights_of_one(tmp_path: Path) -> None:
    start(tmp_path / "two", 2)
    two_processes.main(tmp_path / "one", 1)
    one, two = (load_tensors(tmp_path / name / "plain" / "last.safetensors")[0] for name in ("one", "two"))
    start_weights = two_processes.networks()["plain"].state_dict()
    for name, tensor in one.items():
        assert tensor.dtype == torch.float64
        assert (tensor - start_weights[name]).abs().max() > 1e-3  # it has been trained
        torch.testing.assert_close(two[name], tensor, rtol=0, atol=1e-12)

    # Batch-norm: each process normalises its own share; the running statistics are those of the first one's.
    ((inputs, _),) = Batches(two_processes.dataset().train, 64, shuffle=True, seed=0).epoch(1)
    files = [tmp_path / folder / "batch-norm" / "last.safetensors" for folder in ("one", "two")]
    stats = [load_tensors(file)[0]["layers.0.running_mean"] for file in files]
    torch.testing.assert_close(stats[0], 0.1 * inputs.double().mean().reshape(1), rtol=0, atol=1e-12)
    torch.testing.assert_close(stats[1], 0.1 * inputs[0::2].double().mean().reshape(1), rtol=0, atol=1e-12)
    assert not torch.equal(stats[0], stats[1])
