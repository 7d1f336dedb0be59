"""Training objectives: frozen dataclasses called with (model, inputs, labels) that return `LossTerms`."""

from collections.abc import Callable

from surefoot.core.types import LossTerms, Objective
from surefoot.objectives.multi_step import PgdAT, Trades
from surefoot.objectives.sat import SatR1, SatR2, SatR3
from surefoot.objectives.single_step import EnsembleAT, FgsmAT, NFgsmAT, RFgsmAT
from surefoot.objectives.standard import NormalTraining

OBJECTIVES: dict[str, Callable[..., Objective]] = {
    "normal": NormalTraining,
    "fgsm-at": FgsmAT,
    "rfgsm-at": RFgsmAT,
    "nfgsm-at": NFgsmAT,
    "ensemble-at": EnsembleAT,
    "pgd-at": PgdAT,
    "trades": Trades,
    "sat-r1": SatR1,
    "sat-r2": SatR2,
    "sat-r3": SatR3,
}

__all__ = [
    "OBJECTIVES",
    "EnsembleAT",
    "FgsmAT",
    "LossTerms",
    "NFgsmAT",
    "NormalTraining",
    "Objective",
    "PgdAT",
    "RFgsmAT",
    "SatR1",
    "SatR2",
    "SatR3",
    "Trades",
]
