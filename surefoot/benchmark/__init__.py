"""What things cost: attacks against their limit and against other libraries, timed in turns."""

from surefoot.benchmark.attacks import AttackBenchmark, Line, Subject
from surefoot.benchmark.peers import PEERS

__all__ = ["PEERS", "AttackBenchmark", "Line", "Subject"]
