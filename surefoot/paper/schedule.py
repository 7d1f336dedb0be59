"""Runs tasks in the order in which they need each other, in this process or in several, and outlives what fails."""

import contextlib
import multiprocessing
import os
import signal
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, Protocol

import torch

from surefoot.paper.runs import Task, Training, Transfer, Workplace

RETRIES = 2
"""How often a task whose worker died is started again."""


@dataclass(frozen=True)
class Event:
    """Something that happened to a task: it `started`, is `done` after so many seconds, or `failed`, and why."""

    task: Task
    what: str
    seconds: float = 0.0
    error: str | None = None


@dataclass(frozen=True)
class Failure:
    """A task that failed, or could not begin, why, and where its log is."""

    title: str
    error: str
    log: Path | None


class Executor(Protocol):
    """Where tasks run."""

    @property
    def slots(self) -> int:
        """How many at a time."""

    def start(self, task: Task) -> None: ...

    def next_finished(self) -> tuple[str, str | None]:
        """Wait for a task; its id, and why it failed."""

    def close(self) -> None:
        """Stop whatever still runs."""


def outstanding(tasks: Sequence[Task], place: Workplace) -> list[Task]:
    """The tasks that are not done and the trainings that they need, each once, in an order in which they can run.

    A finished training whose weights are gone is run again only where something needs them; then all that was asked
    for and rests on it is measured again.
    """
    todo: dict[str, Task] = {}
    asked = {task.id: task for task in tasks if isinstance(task, Training)}  # for a figure that shows it

    def add(task: Task) -> None:
        if task.id in todo:
            return
        for training in task.needs:
            if not training.has_weights(place):
                add(asked.get(training.id, training))
        todo[task.id] = task

    before = -1
    while before != len(todo):
        before = len(todo)
        for task in tasks:
            again = any(training.id in todo and training.sha256(place) for training in task.needs)
            if not task.done(place) or again:
                add(task if again or not isinstance(task, Transfer) else task.left(place))
    return list(todo.values())


def run_all(
    tasks: Sequence[Task], place: Workplace, executor: Executor, on_event: Callable[[Event], None]
) -> list[Failure]:
    """Run tasks, each when what it needs is done; one that fails holds up only what needs it.

    A black-box measurement whose source is trained goes on with the models that are.

    Args:
        tasks: as `outstanding` gives them.
        place: where.
        executor: runs them.
        on_event: told what happens.

    Returns:
        What failed, and what could not begin because of it.
    """
    left = {task.id: task for task in tasks}
    running: dict[str, tuple[Task, float]] = {}
    failed: dict[str, str] = {}
    failures = []

    def give_up(task: Task, error: str, log: Path | None) -> None:
        failed[task.id] = task.title
        failures.append(Failure(task.title, error, log))

    while left or running:
        for task in list(left.values()):
            lost = [training for training in task.needs if training.id in failed]
            if isinstance(task, Transfer) and lost and task.source not in lost:
                rest = task.without(set(failed))
                if rest.models:
                    del left[task.id]
                    left[rest.id] = rest
                    continue
            if lost:
                del left[task.id]
                give_up(task, f"it needs what failed: {', '.join(training.title for training in lost)}", None)
                continue
            waits = any(training.id in left or training.id in running for training in task.needs)
            if not waits and len(running) < executor.slots:
                del left[task.id]
                running[task.id] = (task, time.monotonic())
                on_event(Event(task, "started"))
                executor.start(task)
        if not running:
            continue
        key, error = executor.next_finished()
        task, started = running.pop(key)
        on_event(Event(task, "failed" if error else "done", time.monotonic() - started, error))
        if error:
            give_up(task, error, log_file(task, place))
    return failures


def log_file(task: Task, place: Workplace) -> Path:
    """Where a task's output and traceback go."""
    return place.out / "logs" / f"{task.id}.log"


def attempt(task: Task, place: Workplace) -> str | None:
    """Run a task, its output in its log; why it failed, in a sentence, or None."""
    file = log_file(task, place)
    file.parent.mkdir(parents=True, exist_ok=True)
    with open(file, "a", encoding="utf-8") as log, contextlib.redirect_stdout(log), contextlib.redirect_stderr(log):
        print(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {task.title}", file=log, flush=True)
        try:
            task(place)
        except Exception as error:
            traceback.print_exc(file=log)
            return f"{error}" if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
    return None


class InProcess:
    """One task at a time, here; for tests and for looking into a fault."""

    slots = 1

    def __init__(self, place: Workplace) -> None:
        self.place = place
        self.finished: list[tuple[str, str | None]] = []

    def start(self, task: Task) -> None:
        self.finished.append((task.id, attempt(task, self.place)))

    def next_finished(self) -> tuple[str, str | None]:
        return self.finished.pop(0)

    def close(self) -> None:
        """Nothing runs."""


@dataclass
class Worker:
    """A process, its pipe, and what it is at."""

    process: Any
    pipe: Connection
    task: Task | None = None


class Processes:
    """Several tasks at a time, each in a process with its share of the cores or with a GPU of its own.

    A process that dies, for want of memory or by a signal, is replaced and its task started again, at most
    `RETRIES` times.

    Args:
        place: where.
        workers: processes, at least 1.
        threads: CPU threads of each; None shares out the cores.
    """

    def __init__(self, place: Workplace, workers: int, threads: int | None = None) -> None:
        self.place, self.slots = place, workers
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        self.threads = threads or max(1, cores // workers)
        self.context = multiprocessing.get_context("spawn")
        self.workers: list[Worker] = []
        self.deaths: dict[str, int] = {}

    def start(self, task: Task) -> None:
        worker = next((worker for worker in self.workers if worker.task is None), None) or self.hire(len(self.workers))
        self.give(worker, task)

    def give(self, worker: Worker, task: Task) -> None:
        """Let a worker have a task."""
        worker.task = task
        with contextlib.suppress(OSError):  # it has died meanwhile, which next_finished sees
            worker.pipe.send(task)

    def hire(self, index: int) -> Worker:
        """A new process, in place of the one at `index` where there is one."""
        ours, theirs = self.context.Pipe()
        gpus = visible_gpus()
        gpu = gpus[index % len(gpus)] if gpus else None
        process = self.context.Process(target=work, args=(theirs, self.place, self.threads, gpu), daemon=True)
        with deaf_to_ctrl_c():
            process.start()
        theirs.close()
        worker = Worker(process, ours)
        self.workers[index : index + 1] = [worker]
        return worker

    def next_finished(self) -> tuple[str, str | None]:
        while True:
            busy = [worker for worker in self.workers if worker.task is not None]
            ready = wait([each for worker in busy for each in (worker.pipe, worker.process.sentinel)])
            for worker in busy:
                task = worker.task
                assert task is not None
                if worker.pipe in ready:
                    with contextlib.suppress(EOFError, OSError):
                        error = worker.pipe.recv()
                        worker.task = None
                        return task.id, error
                if worker.pipe in ready or worker.process.sentinel in ready:
                    worker.process.join()
                    self.deaths[task.id] = self.deaths.get(task.id, 0) + 1
                    fresh = self.hire(self.workers.index(worker))
                    if self.deaths[task.id] > RETRIES:
                        return task.id, f"its process died {RETRIES + 1} times, last with {worker.process.exitcode}"
                    self.give(fresh, task)

    def close(self) -> None:
        """Kill the processes: what they were at goes on from its last epoch or batch the next time."""
        for worker in self.workers:
            worker.process.kill()
            worker.process.join()
            worker.pipe.close()


@contextlib.contextmanager
def deaf_to_ctrl_c() -> Iterator[None]:
    """What is started meanwhile does not hear of it: it reaches a process that still imports, too.

    Windows cannot; there such a process may end with a traceback.
    """
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    resource_tracker.ensure_running()  # it is started with the first process, and would lift what is blocked
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)  # what came here meanwhile is heard now


def visible_gpus() -> list[str]:
    """The names of the GPUs that this process may use, as CUDA_VISIBLE_DEVICES has them."""
    if not torch.cuda.is_available():
        return []
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    return named.split(",") if named else [str(index) for index in range(torch.cuda.device_count())]


def work(pipe: Connection, place: Workplace, threads: int, gpu: str | None) -> None:
    """A worker process: runs what comes through the pipe until it closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent decides
    if gpu is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpu  # before CUDA is first used here
    torch.set_num_threads(threads)
    warnings.filterwarnings("ignore")
    threading.Thread(target=leave_with, args=(multiprocessing.parent_process(),), daemon=True).start()
    with contextlib.suppress(EOFError, OSError):
        while True:
            pipe.send(attempt(pipe.recv(), place))


def leave_with(parent: BaseProcess) -> None:
    """End this process when the parent is gone: nobody would hear of what it does."""
    parent.join()  # not by os.getppid(), which on Windows stays the same
    os._exit(1)
