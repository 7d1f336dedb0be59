"""What `benchmarks/gpu.sh` runs: commands of surefoot in a fixed order, each until it is done, over several calls.

A call works for `--seconds` and then stops what runs as Ctrl-C would: a training has its finished epochs, an
evaluation its finished batches, and the next call goes on from there. What is done is kept in `OUT/done.json`. Records
are in `OUT/records`, a file a kind; `OUT/runs` and `OUT/reproduction` have the trained models. Commands of surefoot run
in this process, which imports and starts CUDA once. Trainings on MNIST fill a small part of a GPU: where NVIDIA's MPS
is installed it lets several share it. `--tiny` does all of it on the CPU in minutes, on the embedded digits: the same
pieces, too small to mean anything.
"""

import argparse
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

STOPPED = 130
GRACE = 45  # seconds that a command has to end after it was asked to

SAT = ("sat-r2", "sat-r3", "sat-r1")  # in this order: the third masks in its long recipe, docs/performance.md
WORKERS = 6  # of MNIST's trainings; four at a time made twice the steps of one (H200)


@dataclass(frozen=True)
class Command:
    """Words for `python -m`; `key` tells it from all others; a training goes on with `trains` where that was begun."""

    key: str
    words: tuple[str, ...]
    trains: Path | None = None

    def now(self) -> tuple[str, ...]:
        """The words at this moment."""
        begun = self.trains is not None and (self.trains / "recipe.json").exists()
        return (*self.words, "--resume") if begun else self.words


@dataclass(frozen=True)
class Plan:
    """What to run, at which size, where."""

    out: Path
    data_dir: Path | None
    seeds: int
    tiny: bool

    def pieces(self) -> Iterator[tuple[str, list[Command]]]:
        """Each piece's name and its commands, in order."""
        yield "check", list(self.check())
        yield "step-cost", list(self.step_cost())
        yield "attacks", list(self.attacks())
        yield "mnist", list(self.mnist())
        yield "table4", list(self.table4())
        yield "cifar10", list(self.cifar10("fastat", SAT[:1] if self.tiny else SAT))
        yield "short", list(self.cifar10("short", SAT[:1] if self.tiny else SAT))

    def check(self) -> Iterator[Command]:
        """Do graphs give an eager step's numbers here, and does everything marked `gpu` pass?"""
        if self.tiny:
            yield Command("check", ("surefoot", "list", "recipes"))
        else:
            yield Command("check", ("pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider"))

    def step_cost(self) -> Iterator[Command]:
        """Step costs of all objectives, eager against captured."""
        networks = (
            [("digits-net", "4")] if self.tiny else [("lenet-plus", "32"), ("resnet-18", "128"), ("wrn-28-10", "128")]
        )
        modes = ("eager",) if self.tiny else ("eager", "captured")
        size = (
            ("--rounds", "1", "--peak-size", "64", "--objectives", "normal", "sat-r1")
            if self.tiny
            else ("--rounds", "5", "--steps", "5")
        )
        for network, batch in networks:
            for precision in ("bf16",) if network == "wrn-28-10" else ("fp32", "bf16"):
                yield Command(
                    f"step-cost {network} {precision}",
                    (
                        *(
                            "surefoot",
                            "benchmark",
                            "step-cost",
                            network,
                            "--batch-size",
                            batch,
                            "--precision",
                            precision,
                        ),
                        *("--mode", *modes, *size, "--device", self.device),
                        *("--records", str(self.records("step-cost"))),
                    ),
                )

    def attacks(self) -> Iterator[Command]:
        """Attacks beside other libraries."""
        size = (
            ("--batch-size", "4", "--steps", "2", "--rounds", "1")
            if self.tiny
            else ("--batch-size", "500", "--rounds", "3")
        )
        for network in ("digits-net",) if self.tiny else ("resnet-18", "wrn-28-10"):
            for attack in ("pgd",) if self.tiny else ("pgd", "deepfool", "cw"):
                yield Command(
                    f"attacks {network} {attack}",
                    (
                        *("surefoot", "benchmark", "attacks", network, "--attacks", attack, *size),
                        *("--device", self.device, "--records", str(self.records("attacks"))),
                    ),
                )

    def mnist(self) -> Iterator[Command]:
        """All of Table 3 in the paper's settings, AutoAttack and Table 6 with it."""
        if self.tiny:
            yield self.reproduce("table3", "smoke", "--only", "normal,sat-r1")
            return
        for table in ("table3", "table6"):
            yield self.reproduce(table, "paper", "--workers", str(WORKERS))

    def table4(self) -> Iterator[Command]:
        """Table 4 with ResNet-18 in 15 epochs a training."""
        yield self.reproduce("table4", *(("smoke", "--only", "normal") if self.tiny else ("short",)))

    def cifar10(self, prefix: str, methods: tuple[str, ...]) -> Iterator[Command]:
        """SAT on CIFAR-10 with ResNet-18: clean, PGD-50, AutoAttack, and the wall time in the run's metrics."""
        family = "digits" if self.tiny else "cifar10"
        for seed in range(self.seeds):
            for method in methods:
                recipe = method if self.tiny else f"{prefix}-{method}"
                folder = f"{prefix}-{method}"
                yield self.train(f"{family}/{recipe}", family, folder, seed)
                yield self.evaluate(family, folder, seed, "PGD", "--attacks", "pgd")
                yield self.auto_attack(family, folder, seed)

    @property
    def device(self) -> str:
        return "cpu" if self.tiny else "cuda"

    def run(self, family: str, method: str, seed: int) -> Path:
        return self.out / "runs" / family / method / str(seed)

    def records(self, kind: str) -> Path:
        return self.out / "records" / f"{kind}.jsonl"

    def data(self) -> tuple[str, ...]:
        return () if self.data_dir is None else ("--data-dir", str(self.data_dir))

    def train(self, recipe: str, family: str, method: str, seed: int) -> Command:
        options: tuple[str, ...] = ("--epochs", "1") if self.tiny else ()
        if not self.tiny and method != "sat-r2":  # which bf16 costs robust accuracy: docs/mnist.md
            options = ("--precision", "bf16")
        words = ("surefoot", "train", recipe, "--seed", str(seed), "--device", self.device, *options, *self.data())
        out = ("--out", str(self.run(family, method, seed)))
        return Command(f"train {family}/{method} {seed}", (*words, *out), trains=self.run(family, method, seed))

    def reproduce(self, table: str, profile: str, *options: str) -> Command:
        out = ("--out", str(self.out / "reproduction"), "--seeds", str(self.seeds))
        return Command(table, ("surefoot", "reproduce", table, *out, "--profile", profile, *options, *self.data()))

    def evaluate(self, family: str, method: str, seed: int, what: str, *options: str) -> Command:
        words = ("surefoot", "evaluate", str(self.run(family, method, seed)), *options, *self.data())
        # A large batch: AutoAttack's last parts run on what is left of it, and small ones wait for their launches.
        size = ("--batch-size", "100", "--num-examples", "20") if self.tiny else ("--batch-size", "5000")
        if "--num-examples" in options:
            size = size[:2]
        where = ("--device", self.device, "--records", str(self.records(f"{family}-{seed}")))
        return Command(f"evaluate {family}/{method} {seed} {what}", (*words, *size, *where))

    def auto_attack(self, family: str, method: str, seed: int) -> Command:
        images = "2" if self.tiny else "10000"
        precision = ("--precision", "fast")  # TF32, as other AutoAttacks run there; float32 decides
        attack = ("--attacks", "auto-attack", "--num-examples", images)
        return self.evaluate(family, method, seed, "AutoAttack", *attack, *precision)


def work(plan: Plan, seconds: float, only: list[str]) -> int:
    """Run what is not done until the time is over: 0 all done, 130 more to do, 1 something failed."""
    deadline = time.monotonic() + seconds
    plan.out.mkdir(parents=True, exist_ok=True)
    state_file = plan.out / "done.json"
    state: dict[str, str] = json.loads(state_file.read_text()) if state_file.exists() else {}

    def keep(key: str, value: str) -> None:
        state[key] = value
        state_file.write_text(json.dumps(state, indent=1) + "\n")

    pieces = [(name, commands) for name, commands in plan.pieces() if not only or name in only]
    for name, commands in pieces:
        for command in commands:
            if state.get(command.key) in ("done", "failed"):
                continue
            left = deadline - time.monotonic()
            if left < GRACE:
                return report(pieces, state)
            print(f"[{name}] {command.key}: {left:.0f} s left", flush=True)
            started = time.monotonic()
            code = run(command, left - GRACE / 2, plan.out)
            took = time.monotonic() - started
            with open(plan.out / "times.jsonl", "a", encoding="utf-8") as file:
                file.write(json.dumps({"piece": name, "command": command.key, "seconds": took, "code": code}) + "\n")
            if code == STOPPED:
                return report(pieces, state)
            if code == 2 and command.trains is not None and "holds a finished run" in last_line(plan.out):
                code = 0  # it was done, and the note of it was lost
            keep(command.key, "failed" if code else "done")
    return report(pieces, state)


def run(command: Command, seconds: float, out: Path) -> int:
    """One command, its words to `out/log`; asked to stop when its time is over."""
    with open(out / "log", "a", encoding="utf-8") as log:
        words = command.now()
        log.write(f"$ python -m {' '.join(words)}\n")
        log.flush()
        if words[0] == "surefoot":
            with contextlib.redirect_stdout(log), contextlib.redirect_stderr(log):
                return run_here(words[1:], seconds)
        environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
        process = subprocess.Popen([sys.executable, "-m", *words], stdout=log, stderr=log, env=environment)
        try:
            return process.wait(timeout=max(seconds, 1))
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGINT)
            try:
                process.wait(timeout=GRACE)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            return STOPPED


def run_here(words: tuple[str, ...], seconds: float) -> int:
    """A command of surefoot in this process, stopped as by Ctrl-C when its time is over."""
    from surefoot.cli import main as surefoot_main

    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, max(seconds, 1))
    try:
        return surefoot_main(list(words))
    except Exception:  # a bug of ours shall not cost the rest of the call
        traceback.print_exc()
        return 1
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@contextlib.contextmanager
def workplace(out: Path, *, shared: bool) -> Iterator[None]:
    """Decoded data in `out`, and processes that share the GPU by NVIDIA's MPS where it is installed.

    MPS is a program beside ours; no setting of the card is touched.
    """
    before = dict(os.environ)
    os.environ["XDG_CACHE_HOME"] = str(out / "cache")
    control = shutil.which("nvidia-cuda-mps-control") if shared and "CUDA_MPS_PIPE_DIRECTORY" not in before else None
    if control is not None:
        folder = out.resolve() / "mps"
        folder.mkdir(parents=True, exist_ok=True)
        os.environ["CUDA_MPS_PIPE_DIRECTORY"] = os.environ["CUDA_MPS_LOG_DIRECTORY"] = str(folder)
        if subprocess.run([control, "-d"], check=False).returncode != 0:
            control = None
    try:
        yield
    finally:
        if control is not None:
            subprocess.run([control], input="quit\n", text=True, check=False)
        os.environ.clear()
        os.environ.update(before)


def last_line(out: Path) -> str:
    """The last line of the log."""
    lines = (out / "log").read_text(encoding="utf-8").strip().splitlines()
    return lines[-1] if lines else ""


def report(pieces: list[tuple[str, list[Command]]], state: dict[str, str]) -> int:
    """Say what is done and what is not."""
    failed = open_ = 0
    for name, commands in pieces:
        done = sum(state.get(command.key) == "done" for command in commands)
        broken = [command.key for command in commands if state.get(command.key) == "failed"]
        failed += len(broken)
        open_ += len(commands) - done - len(broken)
        print(f"{name}: {done} of {len(commands)} done" + (f"; failed: {', '.join(broken)}" if broken else ""))
    return 1 if failed else STOPPED if open_ else 0


def main(argv: list[str] | None = None) -> int:
    """Read the options and work."""
    parser = argparse.ArgumentParser(prog="benchmarks/gpu.sh", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/gpu"), help="where everything goes")
    parser.add_argument(
        "--data-dir", type=Path, default=None, help="folder of parquet shards; else $SUREFOOT_DATA or the hub"
    )
    parser.add_argument("--seconds", type=float, default=540, help="of one call (540)")
    parser.add_argument("--seeds", type=int, default=1, help="of each training (1)")
    parser.add_argument("--tiny", action="store_true", help="on the CPU, far too small, in minutes")
    parser.add_argument("--retry", action="store_true", help="try again what failed in an earlier call")
    parser.add_argument("pieces", nargs="*", help="check step-cost attacks mnist table4 cifar10 short; all, in order")
    options = parser.parse_args(argv)
    plan = Plan(options.out, options.data_dir, options.seeds, options.tiny)
    known = [name for name, _ in plan.pieces()]
    unknown = [name for name in options.pieces if name not in known]
    if unknown:
        parser.error(f"there is no piece {unknown[0]!r}; it is one of {', '.join(known)}.")
    state_file = options.out / "done.json"
    if options.retry and state_file.exists():
        state = json.loads(state_file.read_text())
        state_file.write_text(json.dumps({key: value for key, value in state.items() if value != "failed"}))
    with workplace(plan.out, shared=not options.tiny):
        return work(plan, options.seconds, options.pieces)


if __name__ == "__main__":
    sys.exit(main())
