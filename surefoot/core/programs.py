"""How a program ends: by an exit code, and a sentence in place of a traceback."""

import os
import sys
from collections.abc import Callable


def reader_gone() -> int:
    """The exit code where nobody reads standard output any more (`... | head`); nothing is said of it at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 141  # 128 + SIGPIPE, as a shell has it


def exit_code(work: Callable[[], None]) -> int:
    """Do what `python -m surefoot.MODULE` is for; its exit code, and one sentence in place of a traceback.

    Example:
        >>> exit_code(lambda: None)
        0
    """
    try:
        work()
        sys.stdout.flush()
    except BrokenPipeError:
        return reader_gone()
    except (OSError, ValueError) as error:
        print(f"surefoot: {error}", file=sys.stderr)
        return 2
    except KeyError as error:
        print(f"surefoot: a line of the file lacks {error}; give a file that this module reads.", file=sys.stderr)
        return 2
    return 0
