"""Several processes share each batch: two reach the weights of one, and what batch-norm does meanwhile is stated."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from surefoot.core.files import load_tensors
from surefoot.data import Batches
from tests import two_processes

ROOT = Path(__file__).resolve().parents[1]


def start(folder: Path, *launchers: Sequence[str], devices: int) -> None:
    """Run `two_processes.py`, once with each launcher in front of it, at the same time."""
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    words = [str(ROOT / "tests" / "two_processes.py"), str(folder), str(devices)]
    started = [
        subprocess.Popen(
            [sys.executable, *launcher, *words],
            env={**os.environ, "PYTHONPATH": path},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for launcher in launchers
    ]
    for process in started:
        _, err = process.communicate(timeout=300)
        assert process.returncode == 0, err


def machine(number: int, port: int) -> list[str]:
    """torchrun's own launcher on the first or the second of two machines with a process each."""
    where = ["--master-addr", "127.0.0.1", "--master-port", str(port)]
    return ["-m", "torch.distributed.run", "--nnodes", "2", "--node-rank", str(number), *where, "--nproc-per-node", "1"]


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


@pytest.mark.slow
@pytest.mark.parametrize("machines", [1, 2])
def test_two_processes_reach_the_weights_of_one(machines: int, tmp_path: Path) -> None:
    if machines == 1:
        start(tmp_path / "two", [], devices=2)
    else:
        port = free_port()
        start(tmp_path / "two", machine(0, port), machine(1, port), devices=1)
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
