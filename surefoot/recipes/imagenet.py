"""ImageNet-subset's stand-in, tiny-imagenet-100: every row of Table 5 and the sources of its columns.

eps 8/255, ResNet-18, 100 epochs, pad-crop and flip; lam, k and tau are the paper's, and so are the steps of SAT-R1 and
PGD-AT (Table 8: 7). TRADES takes its authors' 10. The paper gives no more for this data set: batch 64, SGD 0.1, the
random step and eps_low are CIFAR-10's. On ImageNet itself: `--dataset imagefolder:PATH --num-classes 100 --image-size
224`.
"""

from surefoot.objectives import EnsembleAT, FgsmAT, NormalTraining, PgdAT, SatR1, SatR2, SatR3, Trades
from surefoot.recipes.recipe import AnyObjective, Recipe
from surefoot.training import FitConfig

EPS = 8 / 255
NAME = "tiny-imagenet-100"


def imagenet(method: str, description: str, objective: AnyObjective, *, model: str = "resnet-18") -> Recipe:
    return Recipe(
        name=f"{NAME}/{method}",
        description=description,
        dataset=NAME,
        model=model,
        objective=objective,
        epochs=100,
        eps=EPS,
        attack_steps=20,
        attack_step_size=2 / 255,
        training=FitConfig(batch_size=64, learning_rate=0.1, augment="crop-flip"),
        selection_steps=0 if isinstance(objective, NormalTraining) else 3,
    )


def source(model: str, use: str) -> Recipe:
    return imagenet(f"normal-{model}", f"{use}: ordinary training of {model}", NormalTraining(), model=model)


IMAGENET = (
    imagenet("normal", "Table 5, NT: ordinary training of ResNet-18", NormalTraining()),
    source("resnet-34", "Table 2, a source for ensemble training"),
    source("vgg-11", "Table 2, a source for ensemble training"),
    source("vgg-13", "Table 5, a black-box source"),
    source("resnet-50", "Table 5, a black-box source"),
    imagenet("fgsm-at", "Table 5, FGSM-AT: half of each batch replaced by FGSM samples", FgsmAT(EPS)),
    imagenet(
        "ensemble-at-a",
        "Table 5, EAT ens-A: FGSM samples of the model, ResNet-18 and ResNet-34",
        EnsembleAT(EPS, sources=(f"{NAME}/normal", f"{NAME}/normal-resnet-34")),
    ),
    imagenet(
        "ensemble-at-b",
        "Table 5, EAT ens-B: FGSM samples of the model, ResNet-18 and VGG-11",
        EnsembleAT(EPS, sources=(f"{NAME}/normal", f"{NAME}/normal-vgg-11")),
    ),
    imagenet(
        "ensemble-at-c",
        "Table 5, EAT ens-C: FGSM samples of the model, ResNet-34 and VGG-11",
        EnsembleAT(EPS, sources=(f"{NAME}/normal-resnet-34", f"{NAME}/normal-vgg-11")),
    ),
    imagenet("pgd-at", "Table 5, PGD-AT: 7 steps of 2/255", PgdAT(EPS, steps=7, step_size=2 / 255)),
    imagenet(
        "trades",
        "Table 5, TRADES: eps 0.031, 10 steps of 0.007, beta 6",
        Trades(0.031, steps=10, step_size=0.007, beta=6.0),
    ),
    imagenet(
        "sat-r1",
        "Table 5, SAT-R1: logits of FGSM and I-FGSM samples kept together",
        SatR1(EPS, lam=0.05, steps=7, k=1),
    ),
    imagenet(
        "sat-r2",
        "Table 5, SAT-R2: logits of FGSM and R-FGSM samples kept together",
        SatR2(EPS, random_step=2 / 255, lam=3.0),
    ),
    imagenet(
        "sat-r3",
        "Table 5, SAT-R3: loss kept growing with the radius",
        SatR3(EPS, eps_low=2 / 255, lam=1.0, tau=0.6),
    ),
)
