"""The command line: `surefoot VERB ...`."""

from surefoot.cli.main import main

__all__ = ["main"]
