"""What is printed: results on standard output, progress and messages on standard error."""

import math
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

import surefoot
from surefoot.core.files import as_json
from surefoot.training import StepReport
from surefoot.training.machines import is_first_process


class Results(Console):
    """Standard output.

    Where its reader has gone (`surefoot train ... | head`), or its terminal, a verb that sets `lasting`, whose results
    are files too, goes on without it; the others end, by an OSError.
    """

    lasting = False

    def print(self, *objects: Any, **how: Any) -> None:
        """Print as rich does."""
        with self.reader():
            super().print(*objects, **how)

    def write_line(self, text: str) -> None:
        """Write one line as it is."""
        with self.reader():
            sys.stdout.write(text + "\n")
            sys.stdout.flush()

    def on_broken_pipe(self) -> None:
        """Leave it to `reader`; rich would end the program."""
        raise BrokenPipeError

    @contextmanager
    def reader(self) -> Iterator[None]:
        """Go on, or not, where there is none, or no room for what is printed."""
        try:
            yield
        except OSError as error:
            if not self.lasting:
                raise
            silence(sys.stdout)
            gone = isinstance(error, BrokenPipeError)
            why = "Nobody reads standard output any more" if gone else f"Standard output is lost ({error.strerror})"
            say(f"{why}; the work goes on.")


class Messages(Console):
    """Standard error; the work goes on where nobody reads it, its terminal is closed or its disk is full."""

    def print(self, *objects: Any, **how: Any) -> None:
        """Print as rich does."""
        try:
            super().print(*objects, **how)
        except OSError:
            silence(sys.stderr)

    def on_broken_pipe(self) -> None:
        """Leave it to `print`; rich would end the program."""
        raise BrokenPipeError


def silence(stream: TextIO) -> None:
    """Send what is still to be printed nowhere, or it would be complained of again at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


stderr = Messages(stderr=True, highlight=False)
stdout = Results(highlight=False)


def say(text: str) -> None:
    """A message on standard error, from the first of several processes only."""
    if is_first_process():
        stderr.print(text, markup=False, soft_wrap=True)


def print_json(value: Any) -> None:
    """One JSON object on one line of standard output."""
    stdout.write_line(as_json(value))  # in ASCII, which every terminal and pipe can carry


def commit() -> str | None:
    """The commit of surefoot's own checkout, `+changes` behind it where files differ; None where installed."""
    root = Path(surefoot.__file__).parents[1]
    if not (root / ".git").exists():
        return None

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(root), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        return git("rev-parse", "HEAD") + ("+changes" if git("status", "--porcelain", "--", "surefoot") else "")
    except (OSError, subprocess.CalledProcessError):
        return None


class TrainingProgress:
    """A bar with the loss and its terms, and a line an epoch; plain lines where there is no terminal."""

    def __init__(self, title: str) -> None:
        self.title = title
        self.bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=20),
            TextColumn("{task.fields[terms]}"),
            console=stderr,
            transient=True,
            disable=not (stderr.is_terminal and is_first_process()),
        )
        self.task = self.bar.add_task(title, total=1, terms="")

    def __enter__(self) -> "TrainingProgress":
        self.bar.start()
        return self

    def __exit__(self, *exception: object) -> None:
        if not self.bar.disable:  # or an older rich prints an empty line
            self.bar.stop()

    def on_step(self, report: StepReport) -> None:
        """Move the bar."""
        self.bar.update(
            self.task,
            description=f"{self.title} epoch {report.epoch}/{report.epochs}",
            completed=report.step,
            total=report.steps,
            terms=(
                f"loss {report.loss:.3f}  classification {report.classification:.3f}"
                f"  regularizer {report.regularizer:.3g}"
                f"  {report.images_per_second:.0f} images/s  {duration(report.seconds_left)} left"
            ),
        )

    def on_epoch(self, line: dict[str, Any]) -> None:
        """Print an epoch's line."""
        parts = [
            f"{self.title} epoch {line['epoch']:>3}",
            f"loss {line['loss']:.4f}",
            f"classification {line['classification']:.4f}",
            f"regularizer {line['regularizer']:.4g}",
        ]
        if line["validation_clean_accuracy"] is not None:
            parts.append(f"validation {100 * line['validation_clean_accuracy']:.2f} % clean")
        if line["validation_robust_accuracy"] is not None:
            parts.append(f"{100 * line['validation_robust_accuracy']:.2f} % attacked")
        parts.append(f"{line['images_per_second']:.0f} images/s")
        say("  ".join(parts) + ("  *" if line["selected"] else ""))


class EvaluationProgress:
    """A bar an attack, where there is a terminal."""

    def __init__(self, title: str) -> None:
        self.title = title
        self.bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=20),
            TaskProgressColumn(),
            TimeRemainingColumn(),
            console=stderr,
            transient=True,
            disable=not stderr.is_terminal,
        )
        self.task = self.bar.add_task(title, total=1)
        self.running = ""

    def __enter__(self) -> "EvaluationProgress":
        self.bar.start()
        return self

    def __exit__(self, *exception: object) -> None:
        if not self.bar.disable:  # or an older rich prints an empty line
            self.bar.stop()

    def __call__(self, name: str, done: int, total: int) -> None:
        if name != self.running or done == 0:
            self.running = name
            self.bar.reset(self.task, total=total, description=f"{self.title} {name}")
        self.bar.update(self.task, completed=done)


class Spinner:
    """Says what runs, where there is a terminal."""

    def __init__(self, title: str) -> None:
        self.title = title
        self.status = stderr.status(title)

    def __enter__(self) -> "Spinner":
        if stderr.is_terminal:
            self.status.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.status.stop()

    def __call__(self, what: str) -> None:
        self.status.update(f"{self.title}: {what}")


def duration(seconds: float) -> str:
    """Seconds as `1:02:03` or `2:03`.

    Example:
        >>> duration(3723), duration(123)
        ('1:02:03', '2:03')
    """
    if not math.isfinite(seconds):
        return "?"
    hours, rest = divmod(int(seconds), 3600)
    minutes, left = divmod(rest, 60)
    return f"{hours}:{minutes:02}:{left:02}" if hours else f"{minutes}:{left:02}"
