"""Our AutoAttack and the official one on the same weights, images and seed, as a JSON line.

    python benchmarks/official_auto_attack.py CHECKOUT RUN [NUM_EXAMPLES] >> results/benchmark/auto-attack.jsonl

CHECKOUT is a clone of the authors' repository (github.com/fra31/auto-attack), which is on no package index.
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

import torch

from surefoot.attacks import AutoAttack
from surefoot.data import Batches, Split
from surefoot.evaluation import evaluate
from surefoot.evaluation.identity import weights_sha256
from surefoot.recipes import load_run

BATCH = 250


def main(checkout: str, run_folder: str, num_examples: str = "1000") -> None:
    """Print what each part of each implementation leaves, in fractions."""
    sys.path.insert(0, checkout)
    from autoattack import AutoAttack as Official  # type: ignore[import-not-found]

    run, count = load_run(Path(run_folder)), int(num_examples)
    dataset = run.load_data()
    model = run.load_model(dataset).requires_grad_(False)
    test = Split(dataset.test.images[:count], dataset.test.labels[:count])
    images, labels = test.images.float() / 255, test.labels

    started = time.process_time()
    record = evaluate(model, Batches(test, BATCH), [AutoAttack(run.recipe.eps)])[1]
    ours = {str(part["attack"]): part["robust_accuracy"] for part in record.parts}
    our_seconds = time.process_time() - started

    official = Official(model, norm="Linf", eps=run.recipe.eps, seed=0, version="standard", device="cpu", verbose=False)
    left, started, theirs = torch.arange(count), time.process_time(), {}
    left = left[model(images).argmax(dim=1) == labels]
    for part in list(official.attacks_to_run):  # each on what is left, as the official sequence does
        official.attacks_to_run = [part]
        if len(left):
            adv_inputs = official.run_standard_evaluation(images[left], labels[left], bs=BATCH)
            left = left[model(adv_inputs).argmax(dim=1) == labels[left]]
        theirs[part] = len(left) / count
    line: dict[str, Any] = {
        "recipe": run.recipe.name,
        "model": run.recipe.model,
        "seed": run.recipe.training.seed,
        "weights_sha256": weights_sha256(model),
        "num_examples": count,
        "clean_accuracy": record.clean_accuracy,
        "ours": ours,
        "official": theirs,
        "our_cpu_seconds": our_seconds,
        "official_cpu_seconds": time.process_time() - started,
    }
    print(json.dumps(line))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(*sys.argv[1:])
