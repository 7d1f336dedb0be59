"""MNIST: every row of Table 3, the sources of its black-box columns, the ablations of Table 7 and Fig. 6, and the
sequences of Table 9.

eps 0.3, LeNet+, batch 32, 20 epochs, SGD 0.01 (SAT-R3: 0.05), 50,000/10,000 training and validation images.
SAT-R1 takes 10 I-FGSM steps, as in the authors' released code; the paper's Table 8 says 40.
"""

from dataclasses import replace

from surefoot.objectives import EnsembleAT, FgsmAT, NormalTraining, PgdAT, RFgsmAT, SatR1, SatR2, SatR3, Trades
from surefoot.recipes.recipe import AnyObjective, Recipe
from surefoot.training import FitConfig, Phase

EPS = 0.3
SAT_R1 = SatR1(EPS, lam=0.2, steps=10, k=1)
SAT_R2 = SatR2(EPS, random_step=0.01, lam=5.0)
SAT_R3 = SatR3(EPS, eps_low=0.1, lam=1.0, tau=0.4)
BATCH = 32
PAIRS = (2, 4, 8, 16, 32)
"""k of Ablation-R1-2 beside SAT-R1's own 1; the paper does not print which it took."""
PERCENTAGES = (20, 40, 60, 80, 100)
"""I-FGSM samples of Ablation-R1-3, in percent of the mini-batch, to be rounded to whole samples; likewise."""


def pairs_of(share: int) -> int:
    """How many of a mini-batch's samples a percentage comes to.

    >>> [pairs_of(share) for share in PERCENTAGES]
    [6, 13, 19, 26, 32]
    """
    return round(share * BATCH / 100)


def mnist(
    method: str,
    description: str,
    objective: AnyObjective,
    *,
    model: str = "lenet-plus",
    learning_rate: float = 0.01,
    epochs: int = 20,
    then: tuple[Phase, ...] = (),
) -> Recipe:
    return Recipe(
        name=f"mnist/{method}",
        description=description,
        dataset="mnist",
        model=model,
        objective=objective,
        epochs=epochs,
        eps=EPS,
        attack_steps=100,
        attack_step_size=0.01,
        training=FitConfig(batch_size=BATCH, learning_rate=learning_rate),
        then=then,
        selection_steps=0 if isinstance(objective, NormalTraining) else 3,
    )


FAST = SatR1(0.36, lam=0.2, steps=5, k=32, classified="both")
"""Trained beyond eps 0.3: what one step leaves of a small network at the edge of the ball, PGD would take."""
FAST_GROWTH = (0.06, 0.12, 0.18, 0.24, 0.30)
"""An epoch each; a faster start costs a small network hidden units that never come back."""

MNIST = (
    Recipe(
        name="mnist/fast",
        description="robust in a minute and a half: SAT-R1 in bf16 on conv-small, a radius that grows to 0.36",
        dataset="mnist",
        model="conv-small",
        objective=replace(FAST, eps=FAST_GROWTH[0]),
        epochs=1,
        eps=EPS,
        attack_steps=100,
        attack_step_size=0.01,
        training=FitConfig(batch_size=64, learning_rate=0.05, schedule="one-cycle", precision="bf16"),
        then=(
            *(Phase(replace(FAST, eps=eps), epochs=1) for eps in FAST_GROWTH[1:]),
            Phase(FAST, epochs=4),
        ),
        selection_steps=20,
        validation_size=1000,
    ),
    mnist("normal", "Table 3, NT: ordinary training of LeNet+", NormalTraining()),
    mnist(
        "normal-a",
        "Table 2: ordinary training of network A, a source for ensemble training",
        NormalTraining(),
        model="mnist-a",
    ),
    mnist(
        "normal-b",
        "Table 2: ordinary training of network B, a source for ensemble training",
        NormalTraining(),
        model="mnist-b",
    ),
    mnist(
        "normal-c",
        "Table 3: ordinary training of network C, a black-box source",
        NormalTraining(),
        model="mnist-c",
    ),
    mnist(
        "normal-d",
        "Table 3: ordinary training of network D, a black-box source",
        NormalTraining(),
        model="mnist-d",
    ),
    mnist("fgsm-at", "Table 3, FGSM-AT: half of each batch replaced by FGSM samples", FgsmAT(EPS)),
    mnist(
        "ensemble-at-a",
        "Table 3, EAT ens-A: FGSM samples of the model, LeNet+ and A",
        EnsembleAT(EPS, sources=("mnist/normal", "mnist/normal-a")),
    ),
    mnist(
        "ensemble-at-b",
        "Table 3, EAT ens-B: FGSM samples of the model, LeNet+ and B",
        EnsembleAT(EPS, sources=("mnist/normal", "mnist/normal-b")),
    ),
    mnist(
        "ensemble-at-c",
        "Table 3, EAT ens-C: FGSM samples of the model, A and B",
        EnsembleAT(EPS, sources=("mnist/normal-a", "mnist/normal-b")),
    ),
    mnist("pgd-at", "Table 3, PGD-AT: 40 steps of 0.01", PgdAT(EPS, steps=40, step_size=0.01)),
    mnist("trades", "Table 3, TRADES: 40 steps of 0.01, beta 1", Trades(EPS, steps=40, step_size=0.01, beta=1.0)),
    mnist("sat-r1", "Table 3, SAT-R1: logits of FGSM and I-FGSM samples kept together", SAT_R1),
    mnist("sat-r2", "Table 3, SAT-R2: logits of FGSM and R-FGSM samples kept together", SAT_R2),
    mnist("sat-r3", "Table 3, SAT-R3: loss kept growing with the radius", SAT_R3, learning_rate=0.05),
    mnist(
        "sat-r1-r3",
        "Table 9: 5 epochs of SAT-R1, then 15 of SAT-R3",
        SAT_R1,
        epochs=5,
        then=(Phase(SAT_R3, epochs=15, learning_rate=0.05),),
    ),
    mnist(
        "sat-r3-r2",
        "Table 9: 15 epochs of SAT-R3, then 5 of SAT-R2",
        SAT_R3,
        learning_rate=0.05,
        epochs=15,
        then=(Phase(SAT_R2, epochs=5, learning_rate=0.01),),
    ),
    mnist(
        "ablation-r1-1",
        "Table 7: SAT-R1 with lam 0, cross-entropy on FGSM and I-FGSM samples",
        replace(SAT_R1, lam=0.0, classified="both"),
    ),
    mnist(
        "ablation-r2-1",
        "Table 7: SAT-R2 with lam 0, cross-entropy on FGSM and R-FGSM samples",
        replace(SAT_R2, lam=0.0, classified="both"),
    ),
    mnist("ablation-r2-2", "Table 7: R-FGSM samples alone", RFgsmAT(EPS, random_step=SAT_R2.random_step)),
    mnist("ablation-r3-1", "Table 7: SAT-R3 with lam 0", replace(SAT_R3, lam=0.0), learning_rate=0.05),
    mnist(
        "ablation-r3-2",
        "Table 7: SAT-R3 with lam 0, cross-entropy at both radii",
        replace(SAT_R3, lam=0.0, classified="both"),
        learning_rate=0.05,
    ),
    *(mnist(f"ablation-r1-2-k{k}", f"Fig. 6: SAT-R1 with {k} pairs a batch", replace(SAT_R1, k=k)) for k in PAIRS),
    *(
        mnist(
            f"ablation-r1-3-{share}",
            f"Fig. 6: FGSM samples and {share} % I-FGSM samples of them, no regularizer",
            replace(SAT_R1, lam=0.0, k=pairs_of(share), classified="both"),
        )
        for share in PERCENTAGES
    ),
)
