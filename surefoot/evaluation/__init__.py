"""Accuracy under attack, as data: `evaluate` gives one `Record` an attack."""

from surefoot.evaluation.evaluate import accuracy, evaluate, evaluate_transfer
from surefoot.evaluation.recognise import recognise
from surefoot.evaluation.records import Record, append_records, read_records, wilson_interval

__all__ = [
    "Record",
    "accuracy",
    "append_records",
    "evaluate",
    "evaluate_transfer",
    "read_records",
    "recognise",
    "wilson_interval",
]
