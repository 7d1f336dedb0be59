"""CIFAR-10: every row of Table 4, the sources of its black-box columns, and SAT in the FastAT Benchmark's recipe.

eps 8/255, WRN-28-10, batch 64, 100 epochs, SGD 0.1, pad-crop and flip, 40,000/10,000 training and validation
images. SAT-R1 takes 3 I-FGSM steps, as in the authors' released code, and TRADES its own authors' 10; the paper's
Table 8 says 7 of both. `fast`, `fastat-` and `short-` are beyond the paper: first runs of some of them are in
docs/performance.md, where `fastat-sat-r1` masks its gradients.
"""

from surefoot.objectives import EnsembleAT, FgsmAT, NFgsmAT, NormalTraining, PgdAT, SatR1, SatR2, SatR3, Trades
from surefoot.recipes.recipe import AnyObjective, Recipe
from surefoot.training import FitConfig, Phase

EPS = 8 / 255


def cifar10(method: str, description: str, objective: AnyObjective, *, model: str = "wrn-28-10") -> Recipe:
    return Recipe(
        name=f"cifar10/{method}",
        description=description,
        dataset="cifar10",
        model=model,
        objective=objective,
        epochs=100,
        eps=EPS,
        attack_steps=20,
        attack_step_size=2 / 255,
        training=FitConfig(batch_size=64, learning_rate=0.1, augment="crop-flip"),
        selection_steps=0 if isinstance(objective, NormalTraining) else 3,
    )


def fastat(method: str, title: str, objective: AnyObjective, *, prefix: str = "fastat", epochs: int = 100) -> Recipe:
    """The one recipe of the FastAT Benchmark (arXiv 2604.22853) for single-step methods, in bf16.

    ResNet-18, 100 epochs, batch 128, OneCycle to 0.1, label smoothing 0.4, moving average 0.9995, 1,000 images to
    validate on. Shorter runs average over fewer steps.
    """
    return on_resnet_18(
        f"{prefix}-{method}",
        f"{title} in the FastAT Benchmark's recipe: ResNet-18, {epochs} epochs, OneCycle, moving average",
        objective,
        epochs,
        batch_size=128,
        learning_rate=0.1,
        ema_decay=0.9995 if epochs >= 100 else 0.998,
    )


def on_resnet_18(
    method: str,
    description: str,
    objective: AnyObjective,
    epochs: int,
    *,
    batch_size: int,
    learning_rate: float,
    ema_decay: float,
    then: tuple[Phase, ...] = (),
) -> Recipe:
    return Recipe(
        name=f"cifar10/{method}",
        description=description,
        dataset="cifar10",
        model="resnet-18",
        objective=objective,
        epochs=epochs,
        eps=EPS,
        attack_steps=50,
        attack_step_size=2 / 255,
        training=FitConfig(
            batch_size=batch_size,
            learning_rate=learning_rate,
            schedule="one-cycle",
            augment="crop-flip",
            ema_decay=ema_decay,
            precision="bf16",
        ),
        then=then,
        selection_steps=10,
        validation_size=1000,
    )


def source(method: str, model: str, use: str) -> Recipe:
    return cifar10(method, f"{use}: ordinary training of {model}", NormalTraining(), model=model)


CIFAR10 = (
    on_resnet_18(
        "fast",
        "robust in 24 seconds on an H200: 3 ordinary epochs of ResNet-18, then Fast-AT, PGD-AT of one step",
        NormalTraining(),
        epochs=3,
        batch_size=256,
        learning_rate=0.51,
        ema_decay=0.996,
        then=(Phase(PgdAT(EPS, steps=1, step_size=10 / 255), epochs=13),),
    ),
    cifar10("normal", "Table 4, NT: ordinary training of WRN-28-10", NormalTraining()),
    source("normal-resnet-34", "resnet-34", "Table 2, a source for ensemble training"),
    source("normal-vgg-19", "vgg-19", "Table 2, a source for ensemble training"),
    source("normal-vgg-11", "vgg-11", "Table 4, a black-box source"),
    source("normal-densenet-bc-100", "densenet-bc-100", "Table 4, a black-box source"),
    cifar10("fgsm-at", "Table 4, FGSM-AT: half of each batch replaced by FGSM samples", FgsmAT(EPS)),
    cifar10(
        "ensemble-at-a",
        "Table 4, EAT ens-A: FGSM samples of the model, WRN-28-10 and ResNet-34",
        EnsembleAT(EPS, sources=("cifar10/normal", "cifar10/normal-resnet-34")),
    ),
    cifar10(
        "ensemble-at-b",
        "Table 4, EAT ens-B: FGSM samples of the model, WRN-28-10 and VGG-19",
        EnsembleAT(EPS, sources=("cifar10/normal", "cifar10/normal-vgg-19")),
    ),
    cifar10(
        "ensemble-at-c",
        "Table 4, EAT ens-C: FGSM samples of the model, ResNet-34 and VGG-19",
        EnsembleAT(EPS, sources=("cifar10/normal-resnet-34", "cifar10/normal-vgg-19")),
    ),
    cifar10("pgd-at", "Table 4, PGD-AT: 7 steps of 2/255", PgdAT(EPS, steps=7, step_size=2 / 255)),
    cifar10(
        "trades",
        "Table 4, TRADES: eps 0.031, 10 steps of 0.007, beta 6",
        Trades(0.031, steps=10, step_size=0.007, beta=6.0),
    ),
    cifar10(
        "sat-r1",
        "Table 4, SAT-R1: logits of FGSM and I-FGSM samples kept together",
        SatR1(EPS, lam=0.2, steps=3, k=1),
    ),
    cifar10(
        "sat-r2",
        "Table 4, SAT-R2: logits of FGSM and R-FGSM samples kept together",
        SatR2(EPS, random_step=2 / 255, lam=25.0),
    ),
    cifar10(
        "sat-r3",
        "Table 4, SAT-R3: loss kept growing with the radius",
        SatR3(EPS, eps_low=2 / 255, lam=1.0, tau=0.6),
    ),
    fastat("nfgsm-at", "N-FGSM", NFgsmAT(EPS, noise=16 / 255, label_smoothing=0.4)),
    fastat("sat-r1", "SAT-R1", SatR1(EPS, lam=0.2, steps=3, k=8, label_smoothing=0.4)),
    fastat("sat-r2", "SAT-R2", SatR2(EPS, random_step=2 / 255, lam=25.0, label_smoothing=0.4)),
    fastat("sat-r3", "SAT-R3", SatR3(EPS, eps_low=2 / 255, lam=1.0, tau=0.6, label_smoothing=0.4)),
    fastat("nfgsm-at", "N-FGSM", NFgsmAT(EPS, noise=16 / 255), prefix="short", epochs=15),
    fastat("sat-r1", "SAT-R1", SatR1(EPS, lam=0.2, steps=3, k=8), prefix="short", epochs=15),
    fastat("sat-r2", "SAT-R2", SatR2(EPS, random_step=2 / 255, lam=25.0), prefix="short", epochs=15),
    fastat("sat-r3", "SAT-R3", SatR3(EPS, eps_low=2 / 255, lam=1.0, tau=0.6), prefix="short", epochs=15),
)
