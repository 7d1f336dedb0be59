"""The audit of one model: recognised, attacked, questioned, judged."""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from surefoot.audit.bench import Bench, Trial
from surefoot.audit.checks import MOST_TELLING_FIRST, QUESTIONS
from surefoot.audit.effort import SUBSTITUTES_SHARE, Effort, images_to_learn_from, seconds_of_gradient
from surefoot.audit.landscape import surface
from surefoot.audit.record import Audit, Check, Curve, Picture, Surface
from surefoot.audit.substitute import check_others, train_substitute
from surefoot.audit.trials import plain_name
from surefoot.audit.verdict import Looks, decide
from surefoot.core.geometry import check_batch, check_labels, check_radius, l2_distance, linf_distance
from surefoot.core.gradients import crafting
from surefoot.core.limits import check_count, check_not_negative, check_number, check_whole
from surefoot.core.losses import answered, check_logits, check_logits_shape
from surefoot.core.seeding import seeded
from surefoot.evaluation.evaluate import device_name, versions
from surefoot.evaluation.identity import weights_sha256
from surefoot.evaluation.precision import exact_float32
from surefoot.evaluation.recognise import check_repeats
from surefoot.evaluation.records import wilson_interval
from surefoot.models.wrappers import Averaged

REQUIRED = 0.1
"""Worst-case accuracy that counts as robust where nothing else is asked for, and guessing gives no more."""

TOLD = ("dataset", "split", "commit", "command", "recipe")
"""Fields of an audit that only its caller knows."""

DRAWS = 8
"""Calls over which a model's random answers are averaged."""


@torch.inference_mode(False)  # networks that are made on the way could not be differentiated
def audit(
    model: nn.Module,
    inputs: Tensor,
    labels: Tensor,
    eps: float,
    *,
    name: str = "model",
    required: float | None = None,
    others: Tensor | None = None,
    sources: Mapping[str, nn.Module] | None = None,
    notes: Sequence[str] = (),
    classes: Sequence[str] | None = None,
    budget_minutes: float | None = None,
    batch_size: int = 128,
    seed: int = 0,
    about: Mapping[str, Any] | None = None,
    progress: Callable[[str], None] | None = None,
) -> Audit:
    """Is a model robust at `eps`, or does it only look so? Twelve checks, a verdict, and what they rest on.

    Args:
        model: returns logits `[batch, classes]`; take an unusual one through `evaluation.recognise` first. One that
            answers randomly is judged by its mean answer: `Averaged`, over 8 calls where it is not yet.
        inputs: `[images, ...]` in [0, 1] and labels int64 `[images]`, on the model's device.
        eps: l-infinity radius in pixel units.
        name: as the user calls the model.
        required: the worst-case accuracy that counts as robust; None is 10 %, or 1 / classes, what guessing gives,
            where that is more.
        others: further images, of the training set, that substitutes learn the model's answers on; None trains none.
            With neither these nor `sources` a check is missing, and the verdict is never "robust".
        sources: models to craft on instead, by name.
        notes: what a reader must know beforehand, as `recognise` says it; among the warnings.
        classes: the names of the model's classes; None numbers them.
        budget_minutes: buys more steps, restarts and queries, or fewer of them on fewer images; what is not done by
            then is `unclear`. None is the usual effort, on fewer images where that would take long.
        batch_size: images at a time.
        seed: of all that is random; torch's generators are left as they were.
        about: further fields of `Audit`: dataset, split, commit, command, recipe.
        progress: told what runs.

    Returns:
        The audit.

    Raises:
        ValueError: no images, pixels outside [0, 1], a label beyond the model's classes, a bad radius or requirement,
            further images that do not fit, or not a name for each class.
        TypeError: no module, a model that answers with something other than a tensor, or a setting that is no number.

    Example:
        >>> net, inputs = nn.Sequential(nn.Flatten(), nn.Linear(4, 2, bias=False)), torch.rand(40, 1, 2, 2)
        >>> _ = net[1].weight.data.copy_(torch.tensor([[1.0, -1, 1, -1], [-1, 1, -1, 1]]))
        >>> found = audit(net, inputs, net(inputs).argmax(dim=1), eps=0.95)
        >>> found.verdict, len(found.checks)
        ('not robust', 12)
    """
    check_batch(inputs, labels)
    if len(labels) == 0:
        raise ValueError("there are no images to audit on.")
    check_radius("eps", eps, positive=True)
    if required is not None:
        check_number("required", required, example="0.1")
        if not 0 < required < 1:
            raise ValueError(f"required is {required}; it is a share of the images, above 0 and below 1.")
    if budget_minutes is not None:
        check_not_negative("budget_minutes", budget_minutes, example="10")
    check_count("batch_size", batch_size)
    check_whole("seed", seed, least=0)
    if sources is not None and not isinstance(sources, Mapping):
        raise TypeError(
            f"sources is an object of type {type(sources).__name__}; give models by name, as {{name: model}}."
        )
    for key in (key for key in about or {} if key not in TOLD):
        raise TypeError(f"about has {key!r}; the fields of an audit that it may tell are {', '.join(TOLD)}.")
    for key, source in (sources or {}).items():
        if not isinstance(source, nn.Module):
            raise TypeError(
                f"sources has an object of type {type(source).__name__} as {key!r}; give a torch.nn.Module with "
                "the same classes."
            )
    if others is not None:
        check_others(others, inputs)
    with seeded(seed), exact_float32(inputs.device):
        started = time.perf_counter()
        deadline = math.inf if budget_minutes is None else started + 60 * budget_minutes
        count = count_classes(model, inputs)
        check_labels(labels, count)
        if classes is not None and len(classes) != count:
            raise ValueError(
                f"classes has {len(classes)} names, but the model has {count} classes; give a name for each, or None."
            )
        required = max(REQUIRED, 1 / count) if required is None else required
        said: list[str] = []
        if not isinstance(model, Averaged) and check_repeats(model, inputs[:64], DRAWS, said):
            model, notes = Averaged(model, DRAWS), [*notes, *said]
        seconds = seconds_of_gradient(model, inputs[:64], labels[:64])
        effort, images = Effort.within(budget_minutes, seconds, len(labels))
        given = len(labels)
        inputs, labels = inputs[:images], labels[:images]
        bench = Bench(
            model=model,
            once=model.model if isinstance(model, Averaged) else model,
            inputs=inputs,
            labels=labels,
            eps=eps,
            classes=count,
            batch_size=batch_size
            if budget_minutes is None
            else min(batch_size, 32),  # the clock is read between batches
            seed=seed,
            deadline=deadline,
            flips=share_of_flips(model, inputs, seed) if isinstance(model, Averaged) else None,
            substitutes=dict(sources or {}),
            effort=effort,
            progress=progress,
        )
        if not sources and others is not None:
            share = math.inf if budget_minutes is None else SUBSTITUTES_SHARE * 60 * budget_minutes
            bench.substitutes = substitutes(bench, others[: images_to_learn_from(budget_minutes, seconds)], share)
        checks = {key: QUESTIONS[key](bench) for key in MOST_TELLING_FIRST}
        names = [str(each) for each in (range(count) if classes is None else classes)]
        standing = bench.standing()
        total, left = len(labels), int(standing.sum())
        verdict = decide(
            [checks[key] for key in QUESTIONS],
            [looks(trial, bench, standing) for trial in cheap(bench)],
            eps=eps,
            total=total,
            standing=left,
            required=required,
            right=int(bench.right.sum()),
            guessed=bench.share_of_guesses(),
            elsewhere=but_for_one_class(standing, labels),
        )
        return Audit(
            **{
                "dataset": None,
                "split": "test",
                "commit": None,
                "command": None,
                **(about or {}),
            },
            model=name,
            verdict=verdict.name,
            sentence=verdict.sentence,
            warnings=[*notes, *fewer(images, given), *verdict.warnings],
            required=required,
            eps=eps,
            num_examples=total,
            clean_accuracy=float(bench.right.float().mean()),
            worst_case_accuracy=left / total,
            worst_case_interval=wilson_interval(left, total),
            checks=[checks[key] for key in QUESTIONS],
            attacks=[trial.as_json() for trial in bench.trials.values()],
            curves=curves(bench, checks),
            surfaces=surfaces(bench, names),
            pictures=pictures(bench, names),
            classes=names,
            seed=seed,
            seconds=time.perf_counter() - started,
            budget_minutes=budget_minutes,
            device=device_name(inputs.device),
            weights_sha256=weights_sha256(model),
            versions=versions(),
        )


def count_classes(model: nn.Module, inputs: Tensor) -> int:
    """How many classes the model has a logit for."""
    with crafting(model, inputs) as frozen, torch.no_grad():
        logits = check_logits(frozen(inputs[:2]))
    check_logits_shape(logits)
    return logits.shape[1]


def but_for_one_class(standing: Tensor, labels: Tensor) -> tuple[int, int]:
    """How many images stand, and how many there are, outside the class of which most stand.

    >>> but_for_one_class(torch.tensor([True, True, False, True]), torch.tensor([0, 0, 1, 1]))
    (1, 2)
    """
    outside = labels != labels[standing].bincount(minlength=1).argmax()
    return int((standing & outside).sum()), int(outside.sum())


def share_of_flips(model: Averaged, inputs: Tensor, seed: int) -> float:
    """How many predictions change between two calls of a model that answers randomly."""
    with seeded(seed), crafting(model.model) as frozen, torch.no_grad():
        first, second = (frozen(inputs).argmax(dim=1) for _ in range(2))
    return float((first != second).float().mean())


def fewer(images: int, given: int) -> list[str]:
    """What to say where time was not enough for all images."""
    if images == given:
        return []
    return [f"{images} of {given} images were examined, because more would take too long; give a larger --budget."]


def substitutes(bench: Bench, others: Tensor, seconds: float) -> dict[str, nn.Module]:
    """Two networks that learn the model's answers, one of them on adversarial samples, in so many seconds each."""
    if bench.progress is not None:
        bench.progress("training substitutes")
    steps = bench.effort.substitute_steps
    return {
        name: train_substitute(
            bench.model,
            others,
            bench.classes,
            eps=eps,
            steps=steps,
            seed=bench.seed,
            deadline=time.perf_counter() + seconds,
        )
        for name, eps in (("a substitute", None), ("a robust substitute", bench.eps))
    }


def cheap(bench: Bench) -> list[Trial]:
    """The attacks that somebody may have judged the model by: one step, and plain PGD."""
    made = (bench.trials.get(name) for name in ("FGSM", plain_name(bench)))
    return [trial for trial in made if trial is not None and not trial.cut]


def looks(trial: Trial, bench: Bench, standing: Tensor) -> Looks:
    """What that attack alone reports, and how much of it others take."""
    left = int(trial.robust.sum())
    lost, steps = left - int((trial.robust & standing).sum()), 1 if trial.kind == "single step" else bench.effort.steps
    return Looks(trial.name, int(bench.right.sum()), left, lost, steps)


def curves(bench: Bench, checks: Mapping[str, Check]) -> list[Curve]:
    """Accuracy and loss against eps, accuracy against steps, the logits' distances, as far as they were measured."""
    found: list[Curve] = []
    total = len(bench.labels)

    def accuracies(plot: Any, name: str, x: Sequence[float], shares: Sequence[float]) -> None:
        low, high = zip(*(wilson_interval(round(share * total), total) for share in shares), strict=True)
        found.append(Curve(plot=plot, name=name, x=list(x), y=list(shares), low=list(low), high=list(high)))

    if values := checks["accuracy-never-rises"].values:
        accuracies("accuracy-eps", "FGSM", values["radii"], values["accuracy"])
        accuracies("accuracy-eps", "random noise", values["radii"], values["noise_accuracy"])
        accuracies("accuracy-eps", values["pgd"], values["pgd_radii"], values["pgd_accuracy"])
    if values := checks["loss-rises"].values:
        found.append(Curve(plot="loss-eps", name="FGSM", x=values["radii"], y=values["losses"]))
        found.append(Curve(plot="loss-eps", name="random noise", x=values["radii"], y=values["noise_losses"]))
        pgd = Curve(
            plot="loss-eps", name=plain_name(bench), x=[0.0, bench.eps], y=[values["losses"][0], values["pgd_loss"]]
        )
        found.append(pgd)
    if bench.course:
        accuracies("accuracy-steps", "PGD", list(bench.course), [count / total for count in bench.course.values()])
    if values := checks["logits-lie-close"].values:
        for name, key in (("FGSM to R-FGSM", "fgsm_r_fgsm"), ("FGSM to I-FGSM", "fgsm_i_fgsm")):
            found.append(Curve(plot="logit-distance", name=name, x=values["radii"], y=values[f"{key}_by_radius"]))
    return found


def surfaces(bench: Bench, names: Sequence[str]) -> list[Surface]:
    """The loss around the first four rightly classified images."""
    if bench.inputs.dim() != 4:
        return []
    found = [
        surface(bench.model, bench.inputs[i], int(bench.labels[i]), bench.eps, sample=i, names=names, seed=bench.seed)
        for i in bench.right.nonzero().squeeze(1)[:4].tolist()
    ]
    return [each for each in found if all(map(math.isfinite, chain(*each.loss, [each.local_linearity_error])))]


def pictures(bench: Bench, names: Sequence[str]) -> list[Picture]:
    """What fooled the first images of each class, at most ten."""
    if bench.inputs.dim() != 4:
        return []
    found, seen = [], set()
    for i in bench.right.nonzero().squeeze(1).tolist():
        label = int(bench.labels[i])
        met = [t for t in bench.trials.values() if t.eps <= bench.eps and t.tried[i] and not t.refused]
        if label in seen or not met:
            continue
        seen.add(label)
        trial = next((t for t in met if t.fooled[i]), met[-1])
        clean, changed = bench.inputs[i], trial.adv_inputs[i]
        with crafting(bench.model) as frozen, torch.no_grad(), seeded(bench.seed):
            logits = frozen(torch.stack([clean, changed])).float()
        shares = logits.softmax(dim=1).nan_to_num(0)
        before, after = answered(logits).tolist()
        found.append(
            Picture(
                sample=i,
                label=names[label],
                clean=pixels(clean),
                adversarial=pixels(changed),
                clean_prediction=names[before],
                adversarial_prediction="no answer (NaN)" if after < 0 else names[after],
                clean_confidence=float(shares[0, before]),
                adversarial_confidence=float(shares[1, after]),
                attack=trial.name,
                linf=float(linf_distance(changed[None], clean[None])),
                l2=float(l2_distance(changed[None], clean[None])),
            )
        )
        if len(found) == 10:
            break
    return found


def pixels(image: Tensor) -> list[list[list[int]]]:
    """In 0-255, `[channels][height][width]`."""
    return (image * 255).round().to(torch.int64).tolist()
