"""What things cost: attacks and training steps against their limits, and other libraries, timed in turns."""

from surefoot.benchmark.attacks import AttackBenchmark, AttackLine, Subject
from surefoot.benchmark.peers import PEERS
from surefoot.benchmark.step_cost import StepCostBenchmark, StepLine, StepSubject

__all__ = ["PEERS", "AttackBenchmark", "AttackLine", "StepCostBenchmark", "StepLine", "StepSubject", "Subject"]
