"""What `benchmarks/gpu.sh` runs: commands of surefoot, the most worth first, each until it is done, over several calls.

A call works for `--seconds` and then stops what runs as Ctrl-C would: a training has its finished epochs, an
evaluation its finished batches, a reproduction its finished tasks, and the next call goes on from there; a benchmark,
which would begin anew, is not begun where its time is not left. With `--minutes`, all that there are from now on, what
cannot end in them is left out. What is done is kept in `OUT/done.json`. Records are in `OUT/records`, a file a kind;
`OUT/runs` and `OUT/reproduction` have the trained models; `--evidence` is a file of all that is worth keeping but the
weights, written anew after each command. Commands of surefoot run in this process, which imports and starts CUDA once;
after a failure that left CUDA unusable, each in its own. Trainings on MNIST fill a small part of a GPU: where NVIDIA's
MPS is installed it lets several share it. `--tiny` does all of it on the CPU in minutes, on the embedded
digits: the same pieces, too small to mean anything.
"""

import argparse
import contextlib
import gc
import importlib.util
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
import traceback
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

STOPPED = 130
GRACE = 30  # seconds that a command has to end after it was asked to

SAT = ("sat-r2", "sat-r3", "sat-r1")  # in this order: the third masks in its long recipe, docs/performance.md
SHORT = ("sat-r1", "sat-r2", "sat-r3")  # and the first withstands most of PGD in the short one
WORKERS = 6  # of MNIST's trainings; four at a time made twice the steps of one (H200)
PART = 120  # seconds in which a reproduction gets something done
ROOT = Path(__file__).resolve().parents[1]
WEIGHTS = (".safetensors", ".ckpt", ".lock", ".html")  # what is no evidence, or drawn from it


@dataclass(frozen=True)
class Command:
    """Words for `python -m`; `key` tells it from all others; a training goes on with `trains` where that was begun.

    On an H200 it `takes` so many seconds, most of them by estimate. It runs after the command with the key `after`.
    """

    key: str
    words: tuple[str, ...]
    takes: float = 0
    trains: Path | None = None
    after: str | None = None

    @property
    def goes_on(self) -> bool:
        """Does it keep what it had done when it was stopped?"""
        return self.words[:2] in (("surefoot", "train"), ("surefoot", "evaluate"), ("surefoot", "reproduce"))

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
        for name, commands in self.all_pieces():
            yield name, [replace(each, takes=0) for each in commands] if self.tiny else commands

    def all_pieces(self) -> Iterator[tuple[str, list[Command]]]:
        """The same with the times of whole pieces."""
        yield "check", list(self.check())
        yield "attacks", list(self.attacks())
        yield "step-cost", list(self.step_cost())
        yield "short", [*self.cifar10("short", SHORT[:1]), self.accuracy(f"short-{SHORT[0]}")]
        yield "shortest", list(self.shortest())
        yield "mnist", list(self.mnist())
        yield "cifar10", list(self.cifar10("fastat", SAT[:1] if self.tiny else SAT))
        yield "short-others", [] if self.tiny else list(self.cifar10("short", SHORT[1:]))
        yield "table4", list(self.table("table4", 900))
        yield "table5", list(self.table("table5", 1500))

    def check(self) -> Iterator[Command]:
        """Do graphs give an eager step's numbers here, and does everything marked `gpu` pass?"""
        if self.tiny:
            yield Command("check", ("surefoot", "list", "recipes"))
        else:  # only their files: others import what they are about, which need not be installed here
            at_once = ("-n", "8", "-p", "no:benchmark") if importlib.util.find_spec("xdist") else ()
            words = ("pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider", *at_once, *marked_gpu())
            yield Command("check", words, takes=45)

    def attacks(self) -> Iterator[Command]:
        """Attacks beside other libraries."""
        if self.tiny:
            yield self.attack("digits-net", "pgd", 0, "--batch-size", "4", "--steps", "2", "--rounds", "1")
            return
        batch = ("--batch-size", "500", "--rounds")
        yield self.attack("resnet-18", "pgd", 30, *batch, "3")
        yield self.attack("wrn-28-10", "pgd", 40, *batch, "3")
        # One library takes the images of DeepFool one by one, one searches at every step of C&W: they get fewer images.
        # With its usual 900 gradients C&W would take a minute a turn and library on WRN-28-10.
        deepfool = (*batch, "2", "--max-seconds", "5")
        cw = (*batch, "2", "--max-seconds", "6", "--cw-steps", "20", "--cw-search-steps", "2")
        for network, deepfool_takes, cw_takes in (("resnet-18", 25, 20), ("wrn-28-10", 40, 40)):
            yield self.attack(network, "deepfool", deepfool_takes, *deepfool)
            yield self.attack(network, "cw", cw_takes, *cw)
        size = ("--num-examples", "500", "--accuracy-steps", "20")  # float32 proper takes half a second a step
        yield self.attack("wrn-28-10", "accuracy", 60, *batch, "1", *size)

    def attack(self, network: str, attack: str, takes: float, *size: str) -> Command:
        words = ("surefoot", "benchmark", "attacks", network, "--attacks", attack)
        where = ("--device", self.device, "--records", str(self.records("attacks")))
        return Command(f"attacks {network} {attack}", (*words, *size, *where), takes)

    def step_cost(self) -> Iterator[Command]:
        """Step costs of all objectives, eager against captured."""
        if self.tiny:
            yield self.steps("digits-net", "4", "bf16", ("normal", "sat-r1"), 0)
            return
        # In two: each graph keeps its memory until the command is over.
        single, rest = ("normal", "fgsm-at", *sorted(SAT)), ("rfgsm-at", "ensemble-at", "pgd-at", "trades")
        yield self.steps("wrn-28-10", "128", "bf16", single, 40)
        yield self.steps("wrn-28-10", "128", "bf16", rest, 40)
        for network, batch in (("resnet-18", "128"), ("lenet-plus", "32")):
            for precision in ("bf16", "fp32"):
                yield self.steps(network, batch, precision, (*single, *rest), 60)

    def steps(self, network: str, batch: str, precision: str, objectives: tuple[str, ...], takes: float) -> Command:
        words = ("surefoot", "benchmark", "step-cost", network, "--batch-size", batch, "--precision", precision)
        modes = ("eager",) if self.tiny else ("eager", "captured")
        size = ("--rounds", "1", "--peak-size", "64") if self.tiny else ("--rounds", "5", "--steps", "5")
        where = ("--device", self.device, "--records", str(self.records("step-cost")))
        key = f"step-cost {network} {precision} {objectives[0]}"
        return Command(key, (*words, "--mode", *modes, "--objectives", *objectives, *size, *where), takes)

    def mnist(self) -> Iterator[Command]:
        """All of Table 3 in the paper's settings, AutoAttack and Table 6 with it; the cheap rows first."""
        if self.tiny:
            yield self.reproduce("table3", "smoke", 0, "--only", "normal,sat-r1")
            return
        shared = ("--workers", str(WORKERS))
        rows = ",".join(("normal", "fgsm-at", *sorted(SAT)))
        yield self.reproduce("table3", "paper", 200 * self.seeds, "--only", rows, *shared)
        yield self.reproduce("table6", "paper", 60 * self.seeds, "--only", rows, *shared)
        yield self.reproduce("table3", "paper", 600 * self.seeds, *shared)
        yield self.reproduce("table6", "paper", 60 * self.seeds, *shared)

    def table(self, name: str, takes: float) -> Iterator[Command]:
        """Table 4 or 5 with ResNet-18 in 15 epochs a training."""
        if self.tiny:
            yield self.reproduce(name, "smoke", 0, "--only", "normal")
        else:
            yield self.reproduce(name, "short", takes * self.seeds)

    def cifar10(self, prefix: str, methods: tuple[str, ...]) -> Iterator[Command]:
        """SAT on CIFAR-10 with ResNet-18: clean, PGD-50, AutoAttack, and the wall time in the run's metrics."""
        family = "digits" if self.tiny else "cifar10"
        for seed in range(self.seeds):
            for method in methods:
                recipe = method if self.tiny else f"{prefix}-{method}"
                folder = f"{prefix}-{method}"
                yield self.train(f"{family}/{recipe}", family, folder, seed, 80 if prefix == "short" else 300)
                yield self.evaluate(family, folder, seed, "PGD", 15, "--attacks", "pgd")
                yield self.auto_attack(family, folder, seed)

    def shortest(self) -> Iterator[Command]:
        """`cifar10/fast`, and ways that may get to AutoAttack 43.2 % as soon, by what PGD-50 leaves of each."""
        if self.tiny:
            return
        larger = ("--batch-size", "256", "--ema-decay", "0.996", "--learning-rate", "0.5")
        for folder, recipe, options in (
            ("fast", "fast", ()),
            ("fast-at-0.8", "fast", ("--learning-rate", "0.8")),
            ("fast-at-0.8-longer", "fast", ("--learning-rate", "0.8", "--then.0.epochs", "17")),
            ("nfgsm-at-0.5", "short-nfgsm-at", larger),
            ("sat-r1-at-0.5", "short-sat-r1", (*larger, "--objective.k", "16")),
        ):
            yield self.train(f"cifar10/{recipe}", "cifar10", folder, 0, 40, *options)
            yield self.evaluate("cifar10", folder, 0, "PGD", 15, "--attacks", "pgd")
        yield self.auto_attack("cifar10", "fast", 0)

    def accuracy(self, method: str) -> Command:
        """What the accuracy of a trained network costs, here and in other libraries."""
        size = ("--batch-size", "10", "--num-examples", "20", "--accuracy-steps", "2", "--rounds", "1")
        size = size if self.tiny else ("--batch-size", "500", "--rounds", "2")
        family = "digits" if self.tiny else "cifar10"
        command = self.attack(str(self.run(family, method, 0)), "accuracy", 70, *size, *self.data())
        return replace(command, key=f"attacks {method} accuracy", after=f"train {family}/{method} 0")

    @property
    def device(self) -> str:
        return "cpu" if self.tiny else "cuda"

    def run(self, family: str, method: str, seed: int) -> Path:
        return self.out / "runs" / family / method / str(seed)

    def records(self, kind: str) -> Path:
        return self.out / "records" / f"{kind}.jsonl"

    def data(self) -> tuple[str, ...]:
        return () if self.data_dir is None else ("--data-dir", str(self.data_dir))

    def train(self, recipe: str, family: str, method: str, seed: int, takes: float, *options: str) -> Command:
        options = ("--epochs", "1") if self.tiny else options
        words = ("surefoot", "train", recipe, "--seed", str(seed), "--device", self.device, *options, *self.data())
        run = self.run(family, method, seed)
        return Command(f"train {family}/{method} {seed}", (*words, "--out", str(run)), takes, trains=run)

    def reproduce(self, table: str, profile: str, takes: float, *options: str) -> Command:
        out = ("--out", str(self.out / "reproduction"), "--seeds", str(self.seeds), "--profile", profile)
        key = f"{table} {options[1]}" if "--only" in options else table
        return Command(key, ("surefoot", "reproduce", table, *out, *options, *self.data()), takes)

    def evaluate(self, family: str, method: str, seed: int, what: str, takes: float, *options: str) -> Command:
        words = ("surefoot", "evaluate", str(self.run(family, method, seed)), *options, *self.data())
        # A large batch: AutoAttack's last parts run on what is left of it, and small ones wait for their launches.
        size = ("--batch-size", "100", "--num-examples", "20") if self.tiny else ("--batch-size", "5000")
        if "--num-examples" in options:
            size = size[:2]
        # In bf16, AutoAttack in TF32 as other AutoAttacks run there; float32 decides.
        where = ("--precision", "fast", "--device", self.device, "--records", str(self.records(f"{family}-{seed}")))
        trained = f"train {family}/{method} {seed}"
        return Command(f"evaluate {family}/{method} {seed} {what}", (*words, *size, *where), takes, after=trained)

    def auto_attack(self, family: str, method: str, seed: int) -> Command:
        images = "2" if self.tiny else "10000"
        attack = ("--attacks", "auto-attack", "--num-examples", images)
        return self.evaluate(family, method, seed, "AutoAttack", 250, *attack)


def marked_gpu() -> list[str]:
    """The test files that have tests marked `gpu`."""
    files = sorted((ROOT / "tests").glob("test_*.py"))
    return [f"tests/{file.name}" for file in files if "pytest.mark.gpu" in file.read_text(encoding="utf-8")]


def work(plan: Plan, seconds: float, only: list[str], minutes: float = math.inf, evidence: Path | None = None) -> int:
    """Run what is not done until the time is over: 0 all done, 130 more to do, 1 something failed."""
    over = time.monotonic() + 60 * minutes
    deadline = min(time.monotonic() + seconds, over)
    for folder in (plan.out, *([] if evidence is None else [evidence.parent])):
        folder.mkdir(parents=True, exist_ok=True)
    state_file = plan.out / "done.json"
    state: dict[str, str] = json.loads(state_file.read_text()) if state_file.exists() else {}
    apart = False
    pieces = chosen(plan, only)
    for name, command in [(name, command) for name, commands in pieces for command in commands]:
        if state.get(command.key) in ("done", "failed") or (command.after and state.get(command.after) != "done"):
            continue
        left, needs = deadline - time.monotonic(), command.takes - spent(command, plan.out)
        if left < GRACE:
            break
        if command.words[1] == "reproduce":
            needs = min(needs, PART)
        if needs > (over if command.goes_on else deadline) - time.monotonic() - GRACE / 2:
            print(f"[{name}] {command.key}: not begun, it takes {needs:.0f} s", flush=True)
            continue
        print(f"[{name}] {command.key}: {left:.0f} s left", flush=True)
        started = time.monotonic()
        with sharing(plan.out) if "--workers" in command.words else contextlib.nullcontext():
            code = run(command, left - GRACE / 2, plan.out, apart)
        took = time.monotonic() - started
        with open(plan.out / "times.jsonl", "a", encoding="utf-8") as file:
            file.write(json.dumps({"piece": name, "command": command.key, "seconds": took, "code": code}) + "\n")
        if code == 2 and command.trains is not None and "holds a finished run" in last_line(plan.out):
            code = 0  # it was done, and the note of it was lost
        if code != STOPPED:
            state[command.key] = "failed" if code else "done"
            state_file.write_text(json.dumps(state, indent=1) + "\n")
        apart = apart or (code not in (0, STOPPED) and cuda_is_broken())
        if evidence is not None:
            pack(plan.out, evidence)
        if code == STOPPED:
            break
    return report(pieces, state)


def chosen(plan: Plan, only: list[str]) -> list[tuple[str, list[Command]]]:
    """What is asked for, in that order, by pieces or by how commands' names begin; all pieces where nothing is."""
    pieces = list(plan.pieces())
    if not only:
        return pieces
    found: list[tuple[str, list[Command]]] = []
    for word in only:
        for name, commands in pieces:
            kept = [each for each in commands if word == name or each.key.startswith(word)]
            if kept:
                found.append((name, kept))
    return found


def spent(command: Command, out: Path) -> float:
    """Seconds that earlier calls have put into what goes on from there."""
    file = out / "times.jsonl"
    if not command.goes_on or not file.exists():
        return 0.0
    lines = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    return float(sum(line["seconds"] for line in lines if line["command"] == command.key))


def pack(out: Path, file: Path) -> None:
    """Everything of OUT that is worth keeping but the weights, as one file, which is whole at any time."""
    unfinished = file.with_name(f"{file.name}.tmp")
    with tarfile.open(unfinished, "w:gz") as archive:
        for name in ("records", "runs", "reproduction", "log", "times.jsonl", "done.json"):
            if (out / name).exists():
                archive.add(out / name, arcname=name, filter=worth_keeping)
    unfinished.replace(file)


def worth_keeping(entry: tarfile.TarInfo) -> tarfile.TarInfo | None:
    """No weights, no locks, and of a reproduction neither logs nor what is unfinished."""
    left_out = entry.name.endswith(WEIGHTS) or Path(entry.name).name in ("logs", "unfinished", ".gitignore")
    return None if left_out else entry


def run(command: Command, seconds: float, out: Path, apart: bool) -> int:
    """One command, its words to `out/log`; asked to stop when its time is over."""
    with open(out / "log", "a", encoding="utf-8") as log:
        words = command.now()
        log.write(f"$ python -m {' '.join(words)}\n")
        log.flush()
        if words[0] == "surefoot" and not apart:
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
    try:
        signal.setitimer(signal.ITIMER_REAL, max(seconds, 1), 20)  # again: a destructor may swallow one
        return surefoot_main(list(words))
    except KeyboardInterrupt:  # just before or after the command
        return STOPPED
    except Exception:  # a bug of ours shall not cost the rest of the call
        traceback.print_exc()
        return 1
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        free_memory()


def cuda_is_broken() -> bool:
    """After an illegal access, say, CUDA refuses everything that this process asks of it."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return False
    try:
        torch.cuda.synchronize()
    except RuntimeError:
        return True
    return False


def free_memory() -> None:
    """Give back what the last command held on the GPU: models and their graphs hang together in circles."""
    gc.collect()
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        with contextlib.suppress(RuntimeError):
            torch.cuda.empty_cache()


@contextlib.contextmanager
def sharing(out: Path) -> Iterator[None]:
    """Processes begun inside share the GPU by NVIDIA's MPS, where that is installed and works.

    MPS is a program beside ours; no setting of the card is touched.
    """
    control = shutil.which("nvidia-cuda-mps-control")
    if control is None or "CUDA_MPS_PIPE_DIRECTORY" in os.environ:
        yield
        return
    folder = out.resolve() / "mps"
    folder.mkdir(parents=True, exist_ok=True)
    names = ("CUDA_MPS_PIPE_DIRECTORY", "CUDA_MPS_LOG_DIRECTORY")
    os.environ.update(dict.fromkeys(names, str(folder)))
    try:
        # Where MPS runs and fails, so does every program that finds it.
        tried = [sys.executable, "-c", "import torch; torch.ones(1, device='cuda').cpu()"]
        if not (succeeds([control, "-d"]) and succeeds(tried)):
            quit_sharing(control, names)
        yield
    finally:
        quit_sharing(control, names)


def succeeds(words: list[str], told: str = "") -> bool:
    """Does a program end well, and in time?"""
    try:
        return subprocess.run(words, input=told, text=True, check=False, timeout=60).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False


def quit_sharing(control: str, names: tuple[str, ...]) -> None:
    """End MPS and forget where it was."""
    if names[0] in os.environ:
        succeeds([control], "quit\n")
        for name in names:
            del os.environ[name]


@contextlib.contextmanager
def workplace(out: Path) -> Iterator[None]:
    """Decoded data, and the finished batches of evaluations, lie in `out`."""
    before = os.environ.get("XDG_CACHE_HOME")
    os.environ["XDG_CACHE_HOME"] = str(out.resolve() / "cache")
    try:
        yield
    finally:
        del os.environ["XDG_CACHE_HOME"]
        if before is not None:
            os.environ["XDG_CACHE_HOME"] = before


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
    parser.add_argument("--minutes", type=float, default=math.inf, help="of this and all later calls (no end)")
    parser.add_argument("--seeds", type=int, default=1, help="of each training (1)")
    parser.add_argument("--evidence", type=Path, default=None, help="a .tar.gz of all but the weights, kept up to date")
    parser.add_argument("--tiny", action="store_true", help="on the CPU, far too small, in minutes")
    parser.add_argument("--retry", action="store_true", help="try again what failed in an earlier call")
    parser.add_argument(
        "--plan", action="store_true", help="say what is run in which order and takes how long; run nothing"
    )
    names = ", ".join(name for name, _ in Plan(Path(), None, seeds=1, tiny=True).pieces())
    parser.add_argument("pieces", nargs="*", help=f"{names}, or how a command's name begins, in that order; all")
    options = parser.parse_args(argv)
    for limit in ("seconds", "minutes", "seeds"):
        if not (value := getattr(options, limit)) > 0:
            parser.error(f"--{limit} is {value:g}; give a number above 0.")
    plan = Plan(options.out, options.data_dir, options.seeds, options.tiny)
    for word in options.pieces:
        if not chosen(plan, [word]):
            parser.error(f"there is no piece {word!r}; it is one of {names}, or how a command's name begins (--plan).")
    if options.plan:
        total = 0.0
        for name, commands in chosen(plan, options.pieces):
            for command in commands:
                total += command.takes
                print(f"[{name}] {command.key}: {command.takes:.0f} s, {total:.0f} s in all")
        return 0
    state_file = options.out / "done.json"
    if options.retry and state_file.exists():
        state = json.loads(state_file.read_text())
        state_file.write_text(json.dumps({key: value for key, value in state.items() if value != "failed"}))
    with workplace(plan.out):
        return work(plan, options.seconds, options.pieces, options.minutes, options.evidence)


if __name__ == "__main__":
    sys.exit(main())
