"""Accuracy of a model on clean and adversarial samples, one record an attack."""

import math
import platform
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import surefoot
from surefoot.core.devices import in_float64
from surefoot.core.files import check_can_fill, save_tensors
from surefoot.core.geometry import check_batch, l2_distance, linf_distance
from surefoot.core.limits import check_whole
from surefoot.core.seeding import seeded
from surefoot.core.types import Attack, check_attacks
from surefoot.evaluation.attack_settings import fields_of, name_of, radius_of
from surefoot.evaluation.identity import LOOKED_AT, Nameless, model_known_by, settings_known_by, weights_sha256
from surefoot.evaluation.outcomes import Cost, Outcome, Store
from surefoot.evaluation.recognise import answers_vary
from surefoot.evaluation.records import Record, wilson_interval
from surefoot.evaluation.stages import Precision, Settings, Stage, StageRunner, check_crafted, crafted, predictions
from surefoot.models.wrappers import shapes_of

Progress = Callable[[str, int, int], None]
"""Told `(what is running, samples done, samples in all)`."""


TOLD = ("recipe", "seed", "dataset", "split", "source", "commit")
"""Fields of a record that only its caller knows."""


def versions() -> dict[str, str]:
    """What the numbers of a record depend on."""
    return {"surefoot": surefoot.__version__, "torch": torch.__version__, "python": platform.python_version()}


def device_name(device: torch.device) -> str:
    """`cpu`, or the accelerator's own name."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def pairs(batches: Iterable[Any]) -> Iterator[tuple[Tensor, Tensor]]:
    """The batches, each looked at first.

    Raises:
        TypeError: one that is no pair of tensors.
    """
    if not isinstance(batches, Iterable):
        raise TypeError(
            f"batches is an object of type {type(batches).__name__}; give pairs of inputs and labels, as "
            "Batches(dataset.test, 250) gives."
        )
    for batch in batches:
        pair = isinstance(batch, tuple | list) and len(batch) == 2
        if not (pair and all(isinstance(part, Tensor) and part.dim() > 0 for part in batch)):
            raise TypeError(
                f"batches gave {shapes_of(batch)}; give pairs of inputs [batch, channels, height, width] and labels "
                "[batch], as [(inputs, labels)] or a DataLoader does."
            )
        yield batch[0].detach(), batch[1]  # they may ask for gradients, and so would all made of them


def accuracy(
    model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], attack: Attack | None = None, *, seed: int = 0
) -> float:
    """The share of samples that `model` classifies rightly, under `attack` where one is given.

    Args:
        model: any module; its mode, buffers and gradients are left as they are.
        batches: of inputs `[batch, channels, height, width]` in [0, 1] and labels `[batch]`, on the model's device.
        attack: None for clean accuracy.
        seed: of torch's global generators, which are put back after.

    Returns:
        A fraction in [0, 1].

    Raises:
        ValueError: there are no samples, or inputs outside [0, 1].
        TypeError: what is no attack, or one without its settings.

    Example:
        >>> net = nn.Linear(2, 2, bias=False)
        >>> _ = net.weight.data.copy_(torch.eye(2))
        >>> accuracy(net, [(torch.eye(2), torch.tensor([0, 1]))])
        1.0
    """
    check_whole("seed", seed, least=0)
    if attack is not None:
        check_attacks([attack])
    right = total = 0
    with seeded(seed):
        for inputs, labels in pairs(batches):
            check_batch(inputs, labels)
            adv_inputs = inputs.clone()  # the model may write to what it is given
            if attack is not None:
                adv_inputs = crafted(attack, model, inputs, labels)
                check_crafted(attack, adv_inputs, inputs)
            right += int((predictions(model, adv_inputs, labels) == labels).sum())
            total += len(labels)
    if total == 0:
        raise ValueError("there are no samples to measure an accuracy on.")
    return right / total


def evaluate(
    model: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    attacks: Sequence[Attack],
    *,
    last_iterate: bool = False,
    precision: Precision = "strict",
    eight_bit: bool = False,
    worst_case: bool = False,
    seed: int = 0,
    source: nn.Module | None = None,
    about: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
    on_record: Callable[[Record], None] | None = None,
    on_note: Callable[[str], None] | None = None,
    unfinished: str | Path | None = None,
    samples: str | Path | None = None,
) -> list[Record]:
    """Clean accuracy and accuracy under each attack, as records.

    By default an accuracy is the share of samples that survive: a sample that is misclassified to begin
    with is not attacked, and an attack lets go of a sample once it is fooled. With `last_iterate` every sample
    is attacked to the last step and only that step counts, as in the paper.

    `strict` precision runs each attack in float32 on the model as it is; `fast` crafts in bfloat16, goes on in float32
    for a tenth of the steps (`LastingAttack`), and scores in float32; what needs float32 (AutoAttack and its parts) is
    crafted in TF32 on CUDA. An attack of 20 steps or more (of PGD, whose steps add up to twice the radius at
    least) is preceded by a screening, the same attack in 5 long steps, in bfloat16 where the hardware has it. What
    float32 confirms as fooled there is fooled, the rest meets the attack itself, so that the result is never above that
    of the attack alone.

    Where memory runs out, the batch is halved and the evaluation goes on.

    Args:
        model: any module; it is scored, and crafts where no `source` does. One whose output is not logits, or which
            answers differently each time: take it through `recognise` first.
        batches: of inputs `[batch, channels, height, width]` in [0, 1] and labels `[batch]`, on the model's
            device; read once an attack.
        attacks: run in turn, each batch from a seed of its own. One with a field `attacks` (`WorstCase`,
            `AutoAttack`) runs part by part, each on what survived the ones before.
        last_iterate: count the last iterate of every sample, as the paper does.
        precision: `strict` or `fast`.
        eight_bit: count only perturbations that still fool after rounding to 8-bit pixels (inside the ball
            where the attack has one).
        worst_case: for each radius that two attacks or more hold, add a record of the samples that survive all of
            these (of all attacks, where none holds a radius: such an attack always fools in the end).
        seed: of torch's global generators, which are put back after.
        source: crafts the samples in the black-box setting; then every attack runs to its last step. DeepFool and FAB-T
            look for the boundary of what they are crafted on and end just beyond it, so they look weaker there.
        about: further fields of `Record`: recipe, seed, dataset, split, source, commit.
        progress: told what runs and how far it is.
        on_record: given each record as soon as its attack is done.
        on_note: told in a sentence what a user should know, as that a batch was halved, or that the model answers
            differently each time.
        unfinished: a folder that keeps finished batches until all is done: the same call goes on from there. A model
            is known by its weights, its modules, their settings and how it answers. Nothing is kept of an attack that
            is or holds something that cannot be imported, such as a lambda, nor where the folder cannot be written.
        samples: a folder to write each attack's per-sample outcomes to, as `1-FGSM.safetensors` for the first attack,
            whose settings are in its metadata; in the batches' order: `adv_inputs`, `labels`, `clean_prediction`,
            `prediction`, `robust` (it survived), `l2` and `linf`.

    Returns:
        The clean record first, then one an attack, in order, then the worst case of each radius.

    Raises:
        ValueError: there are no samples, inputs outside [0, 1], a targeted attack, or batches that can be read only
            once, come in another order or are augmented anew each time; a label beyond the model's classes; an attack
            of your own that leaves [0, 1] or its `eps`.
        TypeError: what is no attack, no pair of tensors, no module, a model that answers with no tensor, or a field in
            `about` that is not one of those.

    Example:
        >>> from surefoot.attacks import FGSM
        >>> batches = [(torch.rand(8, 4), torch.randint(3, (8,)))]
        >>> clean, fgsm = evaluate(nn.Linear(4, 3), batches, [FGSM(eps=0.1)])
        >>> fgsm.attack, fgsm.robust_accuracy <= clean.clean_accuracy
        ('FGSM', True)
    """
    settings = Settings(last_iterate, precision, eight_bit, worst_case, seed)
    tell = Listeners(progress, on_record, on_note)
    return _evaluate([model], source, batches, attacks, settings, [about or {}], tell, unfinished, samples)[0]


def evaluate_transfer(
    source: nn.Module,
    models: Sequence[nn.Module],
    batches: Iterable[tuple[Tensor, Tensor]],
    attacks: Sequence[Attack],
    *,
    eight_bit: bool = False,
    worst_case: bool = False,
    seed: int = 0,
    about: Sequence[Mapping[str, Any]] | None = None,
    progress: Progress | None = None,
    on_record: Callable[[Record], None] | None = None,
    on_note: Callable[[str], None] | None = None,
    unfinished: str | Path | None = None,
) -> list[list[Record]]:
    """The black-box setting for several models at once: what `source` crafts is crafted once and scored on each.

    Args, errors and records are those of `evaluate(model, ..., source=source)`; `about` holds one mapping a model.

    Returns:
        A list a model, as `evaluate` gives it. Each record's seconds and passes are those of the crafting, which is
        shared, and of that model's own scoring.

    Example:
        >>> from surefoot.attacks import FGSM
        >>> batches = [(torch.rand(8, 4), torch.randint(3, (8,)))]
        >>> rows = evaluate_transfer(nn.Linear(4, 3), [nn.Linear(4, 3), nn.Linear(4, 3)], batches, [FGSM(eps=0.1)])
        >>> [len(row) for row in rows]
        [2, 2]
    """
    if not isinstance(source, nn.Module):
        raise TypeError(f"source is {source!r}; give the model to craft on, a torch.nn.Module.")
    if isinstance(models, nn.Module):
        raise TypeError("models is a single one; give a list of them, as [model].")
    if not models:
        raise ValueError("models is empty; give at least one to score on.")
    abouts: Sequence[Mapping[str, Any]] = [{}] * len(models) if about is None else about
    if len(abouts) != len(models):
        raise ValueError(f"about has {len(abouts)} mappings for {len(models)} models; give one for each.")
    settings = Settings(False, "strict", eight_bit, worst_case, seed)
    tell = Listeners(progress, on_record, on_note)
    return _evaluate(models, source, batches, attacks, settings, abouts, tell, unfinished, None)


VARIES = (
    "The model answers differently each time: an attack meets other answers than those that are scored, so that a "
    "stronger one can look weaker. Take the model through `recognise` with draws=16, and their mean is measured."
)


class Reread:
    """Batches that are read once an attack, the same each time; refused where they are not.

    Raises:
        ValueError: other samples, fewer or more than the first time, or in another order.
    """

    def __init__(self, batches: Iterable[tuple[Tensor, Tensor]], total: int) -> None:
        self.batches, self.total = batches, total
        self.first: list[tuple[Tensor, Tensor]] = []

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        known, done = list(self.first), 0
        for number, (inputs, labels) in enumerate(pairs(self.batches)):
            done += len(labels)
            if not known:
                check_batch(inputs, labels)
                self.first.append((some_pixels(inputs), labels.clone()))
            elif number == len(known):
                break
            elif not torch.equal(labels, known[number][1]):
                raise ValueError(
                    f"batch {number} has other labels than when it was first read; they are read once an attack, "
                    "so give them in the same order each time, not shuffled by a generator of their own."
                )
            elif not torch.equal(some_pixels(inputs), known[number][0]):
                raise ValueError(
                    f"batch {number} has other images than when it was first read; they are read once an attack, "
                    "so give the same each time, not augmented at random."
                )
            yield inputs, labels
        if done != self.total:
            raise ValueError(
                f"batches gave {self.total} samples at first and {done} the next time; they are read once an attack, "
                "so give a list or a DataLoader, not a generator."
            )


@dataclass(frozen=True)
class Listeners:
    """Who is told what while an evaluation runs."""

    progress: Progress | None
    on_record: Callable[[Record], None] | None
    on_note: Callable[[str], None] | None


def _evaluate(
    models: Sequence[nn.Module],
    source: nn.Module | None,
    batches: Iterable[tuple[Tensor, Tensor]],
    attacks: Sequence[Attack],
    settings: Settings,
    abouts: Sequence[Mapping[str, Any]],
    tell: Listeners,
    unfinished: str | Path | None,
    samples: str | Path | None,
) -> list[list[Record]]:
    attacks = check_attacks(attacks)
    for given in attacks:
        if getattr(given, "targeted", False):
            raise ValueError(
                f"{type(given).__name__} is targeted: it would need the classes to reach, and an evaluation has "
                "the true ones; give it untargeted, or call it yourself."
            )
    check_about(abouts)
    total, some, sizes = 0, torch.empty(0), set()
    with seeded(settings.seed):  # a shuffling DataLoader draws from the global generator when it is read
        for inputs, labels in pairs(batches):
            some = some if total else inputs[:LOOKED_AT]
            total += len(labels)
            sizes.add(tuple(inputs.shape[1:]))
    if total == 0:
        raise ValueError("there are no samples to evaluate on.")
    if samples is not None and len(sizes) > 1:
        raise ValueError(
            f"batches have images of {len(sizes)} shapes ({', '.join(str(list(each)) for each in sorted(sizes))}), and "
            "samples are kept in one tensor an attack; evaluate each shape into its own folder."
        )
    known: list[dict[str, Any]] = [
        {
            "recipe": None,
            "seed": None,
            "dataset": None,
            "split": "test",
            "source": None if source is None else "model",
            "commit": None,
            **about,
            "weights_sha256": weights_sha256(model),
            "versions": versions(),
            "num_examples": total,
            "eight_bit": settings.eight_bit,
        }
        for model, about in zip(models, abouts, strict=True)
    ]
    if samples is not None:
        check_can_fill(Path(samples), "samples")
    store = Store(None if unfinished is None else Path(unfinished), tell.on_note)
    hashes = [each["weights_sha256"] for each in known]
    identity = {} if unfinished is None else known_by(models, hashes, source, some, settings, samples is not None)
    runner = StageRunner(models, source, settings, samples is not None, tell.on_note)
    reread = Reread(batches, total)
    clean: list[list[Outcome]] = []  # [batch][model]
    finals: list[list[list[Outcome]]] = []  # [attack][batch][model]
    records: list[list[Record]] = [[] for _ in models]

    def emit(list_of: list[Record], record: Record) -> None:
        list_of.append(record)
        if tell.on_record is not None:
            tell.on_record(record)

    def run(stage: Stage | None, state: list[list[Outcome]], what: Mapping[str, Any] | None) -> list[list[Outcome]]:
        """A stage (None: no attack) on every batch, `[batch][model]`, kept under `what`, or not at all."""
        after: list[list[Outcome]] = []
        done = 0
        with seeded(settings.seed):
            for number, (inputs, labels) in enumerate(reread):
                file = None if what is None else store.file(what, number, inputs, labels)
                kept = store.load(file, labels.device)
                if kept is None:
                    kept = runner.run(stage, number, inputs, labels, state[number] if stage else None, clean)
                    store.save(file, kept)
                after.append(kept)
                done += len(labels)
                if tell.progress is not None:
                    tell.progress("clean" if stage is None else stage.name, done, total)
        return after

    for attack in [None, *attacks]:
        stages: Sequence[Stage | None] = [None] if attack is None else runner.stages(attack)
        state: list[list[Outcome]] = [] if attack is None else [runner.start(outcomes) for outcomes in clean]
        try:
            attack_known_by, storable = settings_known_by(attack), True
        except Nameless:  # nothing is kept of an attack that cannot be told from others
            attack_known_by, storable = None, False
        costs = [Cost() for _ in models]
        parts: list[list[dict[str, Any]]] = [[] for _ in models]
        for index, stage in enumerate(stages):
            what = {**identity, "stage": [index, None if stage is None else stage.about(), attack_known_by]}
            state = run(stage, state, what if storable else None)
            for outcomes in state:
                costs = [cost + outcome.cost for cost, outcome in zip(costs, outcomes, strict=True)]
            if stage is not None and len(stages) > 1:
                for each, column in zip(parts, zip(*state, strict=True), strict=True):
                    each.append({**stage.about(), "robust_accuracy": count_robust(column) / total})
        if attack is None:
            clean = state
            if any(answers_vary(model, some) for model in models):
                runner.random = True
                if tell.on_note is not None:
                    tell.on_note(VARIES)
        else:
            finals.append(state)
            if samples is not None:
                with seeded(settings.seed):
                    file = Path(samples) / f"{len(finals)}-{name_of(attack)}.safetensors"
                    told = {"attack": name_of(attack), "attack_fields": fields_of(runner.prepared(attack))}
                    save_samples(file, batches, clean, state, told)
        for about, list_of, own_parts, cost, column, clean_column in zip(
            known, records, parts, costs, zip(*state, strict=True), zip(*clean, strict=True), strict=True
        ):
            emit(list_of, make_record(about, attack, column, clean_column, cost, own_parts, runner))
    radii = [radius_of(attack) for attack in attacks]
    radii = [None if each is None else float(f"{each:.7g}") for each in radii]  # 3 * 0.1 is 0.3, in float32 too
    for eps in dict.fromkeys(each for each in radii if each is not None) or [None]:
        together = [number for number, each in enumerate(radii) if each == eps]
        if not settings.worst_case or len(together) < 2:
            continue
        for index, (about, list_of) in enumerate(zip(known, records, strict=True)):
            columns = [[outcomes[index] for outcomes in finals[number]] for number in together]
            own = [list_of[number + 1] for number in together]  # the first is the clean one
            emit(list_of, worst_case_record(about, columns, [outcomes[index] for outcomes in clean], own))
    store.clear()
    return records


def check_about(abouts: Sequence[Mapping[str, Any]]) -> None:
    """Refuse what is no field of a record that a caller may tell, before anything is run.

    Raises:
        TypeError: with those that are.
    """
    for name in (name for about in abouts for name in about if name not in TOLD):
        raise TypeError(f"about has {name!r}; the fields of a record that it may tell are {', '.join(TOLD)}.")


def known_by(
    models: Sequence[nn.Module],
    hashes: Sequence[str],
    source: nn.Module | None,
    some: Tensor,
    settings: Settings,
    samples: bool,
) -> dict[str, Any]:
    """What finished batches of this evaluation are known by, as JSON.

    Args:
        hashes: of the models' weights.
        some: a few of the images.
    """
    return {
        "weights": [None if source is None else weights_sha256(source), *hashes],
        "models": [model_known_by(model, some, settings.seed) for model in models],
        "source": None if source is None else model_known_by(source, some, settings.seed),
        "settings": [settings.last_iterate, settings.precision, settings.eight_bit, settings.seed],
        "samples": samples,
        "versions": versions(),
        "device": device_name(some.device),
    }


def some_pixels(inputs: Tensor) -> Tensor:
    """A few pixels of each image, `[batch, 64]` at most, by which it is known again."""
    flat = inputs.flatten(1)
    return flat[:, :: max(1, math.ceil(flat.shape[1] / 64))].clone()


def count_robust(outcomes: Sequence[Outcome]) -> int:
    """How many samples nothing fooled so far."""
    return sum(int(outcome.robust.sum()) for outcome in outcomes)


def make_record(
    about: Mapping[str, Any],
    attack: Attack | None,
    outcomes: Sequence[Outcome],
    clean: Sequence[Outcome],
    cost: Cost,
    parts: list[dict[str, Any]],
    runner: StageRunner,
) -> Record:
    """The record of one attack on one model."""
    total, left = about["num_examples"], count_robust(outcomes)
    lengths = torch.cat([outcome.l2 for outcome in outcomes])
    lengths = lengths[~lengths.isnan()]
    return Record(
        **about,
        attack=None if attack is None else name_of(attack),
        attack_fields={} if attack is None else fields_of(runner.prepared(attack)),
        clean_accuracy=count_robust(clean) / total,
        robust_accuracy=left / total,
        robust_interval=wilson_interval(left, total),
        mean_l2=float(in_float64(lengths).mean()) if len(lengths) else None,
        seconds=cost.seconds,
        forwards=cost.forwards,
        backwards=cost.backwards,
        device=device_name(outcomes[0].robust.device),
        precision="fast" if attack is not None and runner.is_fast(attack) else "strict",
        attack_seed=None if attack is None else runner.settings.seed,
        parts=parts,
    )


def worst_case_record(
    about: Mapping[str, Any], columns: Sequence[Sequence[Outcome]], clean: Sequence[Outcome], own: Sequence[Record]
) -> Record:
    """The record of what survives all attacks, from their outcomes alone; its passes and seconds are their sums."""
    total = about["num_examples"]
    every = list(zip(*columns, strict=True))  # [batch][attack]
    left = sum(int(torch.stack([each.robust for each in batch]).all(dim=0).sum()) for batch in every)
    lengths = torch.cat([torch.stack([each.l2 for each in batch]).nan_to_num(torch.inf).amin(dim=0) for batch in every])
    lengths = lengths[lengths.isfinite()]
    return Record(
        **about,
        attack="WorstCase",
        attack_fields={"attacks": [{"name": record.attack, **record.attack_fields} for record in own]},
        clean_accuracy=count_robust(clean) / total,
        robust_accuracy=left / total,
        robust_interval=wilson_interval(left, total),
        mean_l2=float(in_float64(lengths).mean()) if len(lengths) else None,
        seconds=sum(record.seconds for record in own),
        forwards=sum(record.forwards for record in own),
        backwards=sum(record.backwards for record in own),
        device=own[0].device,
        precision=own[0].precision if len({record.precision for record in own}) == 1 else "mixed",
        attack_seed=own[0].attack_seed,
        parts=[],
    )


def save_samples(
    path: Path,
    batches: Iterable[tuple[Tensor, Tensor]],
    clean: Sequence[Sequence[Outcome]],
    state: Sequence[Sequence[Outcome]],
    about: Mapping[str, Any],
) -> None:
    """Write what one attack did to each sample.

    `adv_inputs`, `labels`, `clean_prediction`, `prediction`, `robust`, `l2` and `linf`, in the batches' order.
    """
    images, labels = zip(*((inputs.cpu(), labels.cpu()) for inputs, labels in pairs(batches)), strict=True)
    tensors = {
        name: torch.cat([outcomes[0].tensors()[name].cpu() for outcomes in state]) for name in state[0][0].tensors()
    }
    tensors["l2"] = l2_distance(tensors["adv_inputs"], torch.cat(images))
    tensors["linf"] = linf_distance(tensors["adv_inputs"], torch.cat(images))
    tensors["labels"] = torch.cat(labels)
    tensors["clean_prediction"] = torch.cat([outcomes[0].prediction.cpu() for outcomes in clean])
    save_tensors(path, tensors, about)
