"""The numbers that the paper prints, once, in percent as there: a table is its rows by name, a row its columns.

Source: Vivek and Babu, "Regularizers for Single-step Adversarial Training", 2020. A pair is mean and deviation.
What the paper prints twice is here once: Tables 7 and 9 take it from where it stands first.
"""

Printed = float | tuple[float, float]

TABLE_2: dict[str, dict[str, tuple[str, ...]]] = {
    "mnist": {"EAT ens-A": ("LeNet+", "A"), "EAT ens-B": ("LeNet+", "B"), "EAT ens-C": ("A", "B")},
    "cifar10": {
        "EAT ens-A": ("WRN-28-10", "ResNet-34"),
        "EAT ens-B": ("WRN-28-10", "VGG-19"),
        "EAT ens-C": ("ResNet-34", "VGG-19"),
    },
    "imagenet-subset": {
        "EAT ens-A": ("ResNet-18", "ResNet-34"),
        "EAT ens-B": ("ResNet-18", "VGG-11"),
        "EAT ens-C": ("ResNet-34", "VGG-11"),
    },
}
"""The fixed models that ensemble adversarial training crafts on."""

WHITE_BOX_COLUMNS = ("Clean", "FGSM", "IFGSM", "PGD", "PGD-CW")

TABLE_3_COLUMNS = (*WHITE_BOX_COLUMNS, "C FGSM", "C MI-FGSM", "D FGSM", "D MI-FGSM")
"""MNIST, eps 0.3, 100 steps: white-box, then black-box from models C and D."""

TABLE_3: dict[str, tuple[Printed, ...]] = {
    "NT": (99.24, 11.50, 0.24, 0.00, 0.00, 22.28, 9.57, 51.31, 44.65),
    "FGSM-AT": (99.29, 85.86, 17.02, 3.95, 5.32, 91.81, 88.20, 90.12, 88.92),
    "EAT ens-A": (99.37, 79.63, 5.39, 0.34, 0.41, 89.33, 83.44, 92.14, 90.78),
    "EAT ens-B": (99.31, 84.12, 2.36, 0.06, 0.08, 86.79, 77.79, 91.62, 88.57),
    "EAT ens-C": (99.43, 80.08, 2.87, 0.05, 0.11, 85.82, 76.44, 92.21, 89.52),
    "PGD-AT": (98.41, 95.56, 92.53, 91.18, 91.34, 95.74, 95.52, 95.68, 95.51),
    "TRADES": (98.70, 96.25, 94.96, 93.60, 93.69, 96.43, 95.93, 96.32, 96.05),
    "SAT-R1": (
        (98.15, 0.05),
        (93.42, 0.07),
        (91.45, 0.26),
        (88.76, 0.26),
        (88.63, 0.27),
        (93.99, 0.09),
        (93.81, 0.07),
        (94.04, 0.06),
        (94.23, 0.07),
    ),
    "SAT-R2": (
        (98.23, 0.12),
        (94.36, 0.09),
        (92.17, 0.40),
        (90.03, 0.32),
        (89.73, 0.29),
        (94.64, 0.06),
        (94.50, 0.04),
        (94.72, 0.04),
        (94.91, 0.05),
    ),
    "SAT-R3": (
        (98.79, 0.24),
        (94.44, 0.36),
        (88.01, 0.39),
        (82.88, 0.60),
        (83.50, 0.43),
        (94.52, 0.25),
        (94.48, 0.30),
        (95.03, 0.22),
        (95.11, 0.24),
    ),
}

TABLE_4_COLUMNS = (
    *WHITE_BOX_COLUMNS,
    "VGG-11 FGSM",
    "VGG-11 MI-FGSM",
    "DenseNet-BC-100 FGSM",
    "DenseNet-BC-100 MI-FGSM",
)
"""CIFAR-10, eps 8/255, 20 steps."""

TABLE_4: dict[str, tuple[Printed, ...]] = {
    "NT": (94.75, 28.16, 0.02, 0.00, 0.00, 48.46, 31.61, 39.58, 28.50),
    "FGSM-AT": (94.04, 98.54, 0.04, 0.01, 0.02, 78.70, 76.35, 86.90, 86.42),
    "EAT ens-A": (92.92, 59.56, 19.05, 7.11, 8.02, 80.99, 80.35, 87.52, 87.72),
    "EAT ens-B": (92.75, 63.40, 6.26, 0.85, 0.88, 83.72, 83.60, 89.01, 89.26),
    "EAT ens-C": (93.11, 59.74, 15.36, 3.73, 3.96, 84.21, 84.35, 88.95, 89.35),
    "PGD-AT": (86.30, 53.96, 51.30, 47.92, 48.01, 82.67, 82.82, 84.57, 84.58),
    "TRADES": (86.92, 56.34, 53.00, 49.92, 50.13, 82.83, 82.97, 84.77, 84.87),
    "SAT-R1": (
        (84.68, 1.40),
        (56.85, 0.08),
        (50.36, 0.13),
        (46.81, 0.66),
        (47.36, 0.22),
        (80.76, 1.70),
        (80.86, 1.67),
        (82.77, 1.67),
        (83.06, 1.71),
    ),
    "SAT-R2": (
        (83.51, 0.14),
        (56.38, 0.07),
        (52.90, 0.49),
        (49.07, 1.14),
        (49.22, 0.66),
        (80.05, 0.26),
        (80.13, 0.26),
        (82.21, 0.48),
        (82.26, 0.20),
    ),
    "SAT-R3": (
        (80.95, 0.75),
        (50.63, 2.24),
        (43.96, 2.08),
        (40.13, 2.82),
        (40.30, 2.40),
        (76.47, 1.49),
        (76.53, 1.47),
        (78.99, 1.91),
        (79.34, 1.94),
    ),
}

TABLE_5_COLUMNS = (*WHITE_BOX_COLUMNS, "VGG-13 FGSM", "VGG-13 MI-FGSM", "ResNet-50 FGSM", "ResNet-50 MI-FGSM")
"""ImageNet-subset, 100 classes, eps 8/255, 20 steps."""

TABLE_5: dict[str, tuple[Printed, ...]] = {
    "NT": (78.74, 4.68, 0.04, 0.00, 0.00, 47.08, 26.64, 71.28, 67.30),
    "FGSM-AT": (77.10, 40.51, 12.46, 2.84, 4.08, 72.48, 72.90, 75.78, 74.66),
    "EAT ens-A": (76.04, 39.21, 8.00, 2.92, 3.20, 69.64, 69.74, 73.78, 72.92),
    "EAT ens-B": (76.44, 40.83, 9.00, 3.56, 3.64, 71.20, 71.46, 74.72, 73.70),
    "EAT ens-C": (76.66, 41.72, 8.92, 3.32, 3.26, 70.70, 71.20, 74.66, 73.70),
    "PGD-AT": (68.18, 40.50, 36.48, 33.72, 33.62, 66.84, 66.96, 67.66, 67.44),
    "TRADES": (67.32, 42.10, 36.80, 34.34, 34.53, 65.93, 66.51, 67.30, 67.10),
    "SAT-R1": (
        (61.60, 0.36),
        (38.20, 0.17),
        (32.67, 0.14),
        (30.52, 0.34),
        (29.37, 0.70),
        (60.42, 0.40),
        (60.47, 0.34),
        (60.89, 0.37),
        (60.84, 0.45),
    ),
    "SAT-R2": (
        (61.56, 1.61),
        (37.79, 0.77),
        (32.83, 0.51),
        (30.35, 0.67),
        (28.89, 0.97),
        (60.53, 1.47),
        (60.53, 1.51),
        (61.09, 1.62),
        (60.93, 1.57),
    ),
    "SAT-R3": (
        (67.87, 0.75),
        (38.73, 1.60),
        (30.51, 1.32),
        (27.67, 1.43),
        (28.13, 1.49),
        (65.86, 1.35),
        (67.09, 1.78),
        (67.37, 1.30),
        (66.44, 1.15),
    ),
}

TABLE_6_COLUMNS = ("DeepFool FR", "DeepFool l2", "CW FR", "CW l2")
"""For each data set: fooling rate in percent, and mean l2 norm of the perturbations."""

TABLE_6: dict[str, dict[str, tuple[float, float, float, float]]] = {
    "mnist": {
        "NT": (99, 1.83, 100, 1.68),
        "FGSM-AT": (99, 2.81, 100, 1.96),
        "EAT ens-A": (99, 2.69, 100, 1.88),
        "EAT ens-B": (99, 2.68, 100, 1.86),
        "EAT ens-C": (100, 2.60, 100, 1.84),
        "PGD-AT": (86, 4.62, 100, 3.69),
        "SAT-R1": (89, 4.51, 100, 3.34),
        "SAT-R2": (89, 5.28, 94, 3.55),
        "SAT-R3": (95, 3.01, 100, 2.13),
    },
    "cifar10": {
        "NT": (96, 0.20, 100, 0.12),
        "FGSM-AT": (96, 0.25, 100, 0.10),
        "EAT ens-A": (95, 0.69, 100, 0.61),
        "EAT ens-B": (95, 0.63, 100, 0.70),
        "EAT ens-C": (95, 0.77, 100, 0.70),
        "PGD-AT": (92, 1.22, 100, 0.88),
        "SAT-R1": (92, 1.11, 100, 0.84),
        "SAT-R2": (90, 1.58, 100, 1.01),
        "SAT-R3": (90, 0.98, 100, 0.87),
    },
    "imagenet-subset": {
        "NT": (94, 0.39, 100, 0.32),
        "FGSM-AT": (92, 0.70, 100, 0.23),
        "EAT ens-A": (91, 1.23, 100, 0.89),
        "EAT ens-B": (91, 1.34, 100, 1.03),
        "EAT ens-C": (92, 1.37, 100, 1.09),
        "PGD-AT": (90, 2.04, 100, 1.94),
        "SAT-R1": (91, 1.61, 100, 1.74),
        "SAT-R2": (89, 1.52, 98, 1.36),
        "SAT-R3": (89, 1.95, 100, 1.64),
    },
}

TABLE_7_COLUMNS = ("Clean", "FGSM", "PGD-40", "PGD-100")
"""MNIST, eps 0.3, white-box."""


def _with_pgd_40(name: str, pgd_40: Printed) -> tuple[Printed, ...]:
    """A row of Table 7 whose other numbers Table 3 has too."""
    clean, fgsm, _, pgd_100, *_ = TABLE_3[name]
    return clean, fgsm, pgd_40, pgd_100


TABLE_7: dict[str, tuple[Printed, ...]] = {
    "Ablation-R1-1": (97.71, 91.35, 16.48, 0.97),
    "SAT-R1": _with_pgd_40("SAT-R1", (90.26, 0.16)),
    "Ablation-R2-1": (95.39, 61.60, 34.15, 33.41),
    "Ablation-R2-2": (93.92, 57.06, 29.31, 28.76),
    "SAT-R2": _with_pgd_40("SAT-R2", (91.22, 0.37)),
    "Ablation-R3-1": (97.62, 92.52, 1.89, 0.78),
    "Ablation-R3-2": (97.56, 72.35, 1.53, 0.63),
    "SAT-R3": _with_pgd_40("SAT-R3", (86.48, 0.42)),
}

TABLE_8: dict[str, dict[str, int]] = {
    "mnist": {"FGSM-AT": 1, "EAT": 1, "PGD-AT": 40, "TRADES": 40, "SAT-R1": 1, "SAT-R2": 1, "SAT-R3": 1},
    "cifar10": {"FGSM-AT": 1, "EAT": 1, "PGD-AT": 7, "TRADES": 7, "SAT-R1": 1, "SAT-R2": 1, "SAT-R3": 1},
    "imagenet-subset": {"FGSM-AT": 1, "EAT": 1, "PGD-AT": 7, "TRADES": 7, "SAT-R1": 1, "SAT-R2": 1, "SAT-R3": 1},
}
"""FBP: forward and backward passes that crafting a sample takes."""

TABLE_8_ITERATED = {"mnist": 40, "cifar10": 7, "imagenet-subset": 7}
"""FBP of SAT-R1's one I-FGSM sample a mini-batch, in Table 8's brackets."""

TABLE_8_PRE_TRAINED = ("EAT",)
"""Methods that need pre-trained models."""

TABLE_9_COLUMNS = TABLE_7_COLUMNS
"""MNIST, eps 0.3, white-box; epochs of the first and the second objective."""

TABLE_9: dict[str, tuple[Printed, ...]] = {
    "SAT-R3": TABLE_7["SAT-R3"],
    "SAT-R1 + SAT-R3": ((98.80, 0.09), (94.42, 0.16), (89.84, 0.70), (87.52, 1.21)),
    "SAT-R3 + SAT-R2": ((98.10, 0.25), (93.83, 0.62), (89.08, 0.52), (87.44, 0.46)),
}
