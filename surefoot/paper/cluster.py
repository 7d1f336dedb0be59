"""The same tasks on several machines, through Ray."""

import importlib
import importlib.util
import logging
import warnings
from typing import Any

import torch

from surefoot.paper.runs import Task, Workplace
from surefoot.paper.schedule import RETRIES, attempt


class Cluster:
    """Several tasks at a time on a Ray cluster, each with so many CPUs, and a GPU where the cluster has some.

    Every machine needs surefoot and the data, and `place.out` must be a folder that they share. A task whose worker
    or machine dies is started again elsewhere, at most `RETRIES` times, and goes on from its last epoch or batch.

    Args:
        place: where.
        address: of the cluster's head, as `ray.init` takes it: `auto`, or `HOST:PORT`.
        threads: CPUs of a task.

    Raises:
        ValueError: Ray is not installed, or there is no cluster at the address.
    """

    def __init__(self, place: Workplace, address: str, threads: int = 1) -> None:
        if importlib.util.find_spec("ray") is None:
            raise ValueError("--cluster needs Ray, which is not installed: pip install 'surefoot[cluster]'.")
        ray: Any = importlib.import_module("ray")
        try:
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise ValueError(
                f"there is no Ray cluster at {address!r} ({error}); start one with `ray start`."
            ) from error
        self.ray, self.place, self.threads = ray, place, threads
        gpus = 1 if ray.cluster_resources().get("GPU", 0) >= 1 else 0
        self.remote: Any = ray.remote(num_cpus=threads, num_gpus=gpus, max_retries=RETRIES)(attempt_with)
        self.running: dict[Any, str] = {}
        self.gpus = gpus

    @property
    def slots(self) -> int:
        """How many tasks the machines that are there now take at a time; at least one, to wait in the queue."""
        resources = self.ray.cluster_resources()
        slots = int(resources.get("CPU", 0) // self.threads)
        return max(1, min(slots, int(resources.get("GPU", 0))) if self.gpus else slots)

    def start(self, task: Task) -> None:
        self.running[self.remote.remote(task, self.place, self.threads)] = task.id

    def next_finished(self) -> tuple[str, str | None]:
        (done, *_), _ = self.ray.wait(list(self.running), num_returns=1)
        key = self.running.pop(done)
        try:
            return key, self.ray.get(done)
        except self.ray.exceptions.RayError as error:
            return key, f"{type(error).__name__}: its worker died, {RETRIES + 1} times"

    def close(self) -> None:
        """Stop what still runs and leave the cluster."""
        for reference in self.running:
            self.ray.cancel(reference, force=True)
        self.ray.shutdown()


def attempt_with(task: Task, place: Workplace, threads: int) -> str | None:
    """Run a task on a machine of the cluster."""
    torch.set_num_threads(threads)
    warnings.filterwarnings("ignore")
    return attempt(task, place)
