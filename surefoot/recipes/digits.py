"""scikit-learn's embedded 8x8 digits: all methods with no network; what `surefoot demo` runs.

Chosen on the validation images so that FGSM-AT withstands FGSM and falls to PGD where the SAT models stand:
one-cycle at eps 0.3 and equal epochs for all; SAT-R1 pairs 16 samples a batch (with 8 one seed
of four fails), SAT-R3 steps at random by 0.1 first.
"""

from surefoot.objectives import FgsmAT, NormalTraining, PgdAT, SatR1, SatR2, SatR3, Trades
from surefoot.recipes.recipe import AnyObjective, Recipe
from surefoot.training import FitConfig

EPS = 0.3


def digits(method: str, description: str, objective: AnyObjective) -> Recipe:
    return Recipe(
        name=f"digits/{method}",
        description=description,
        dataset="digits",
        model="digits-net",
        objective=objective,
        epochs=30,
        eps=EPS,
        attack_steps=40,
        attack_step_size=0.02,
        selection_steps=0 if isinstance(objective, NormalTraining) else 3,
        training=FitConfig(batch_size=32, learning_rate=0.1, schedule="one-cycle", device="cpu"),
    )


DIGITS = (
    digits("normal", "ordinary training", NormalTraining()),
    digits("fgsm-at", "FGSM-AT: half of each batch replaced by FGSM samples", FgsmAT(EPS)),
    digits("pgd-at", "PGD-AT: 10 steps", PgdAT(EPS, steps=10, step_size=0.06)),
    digits("trades", "TRADES: 10 steps, beta 1", Trades(EPS, steps=10, step_size=0.06, beta=1.0)),
    digits(
        "sat-r1",
        "SAT-R1: logits of FGSM and I-FGSM samples kept together",
        SatR1(EPS, lam=0.5, steps=4, k=16),
    ),
    digits(
        "sat-r2",
        "SAT-R2: logits of FGSM and R-FGSM samples kept together",
        SatR2(EPS, random_step=0.05, lam=1.0),
    ),
    digits(
        "sat-r3",
        "SAT-R3: loss kept growing with the radius",
        SatR3(EPS, eps_low=0.1, lam=1.0, tau=0.4, random_step=0.1),
    ),
)
