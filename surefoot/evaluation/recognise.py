"""What kind of model is this? Wrapped so that attacks can use it, or refused with the reason."""

import math
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn

from surefoot.core.failures import types_apart
from surefoot.core.geometry import check_batch
from surefoot.core.gradients import CHANGES_INPUTS, buffers_put_back, crafting, input_gradient, plain_module
from surefoot.core.losses import cross_entropy, full_precision
from surefoot.core.seeding import seeded
from surefoot.evaluation.precision import exact_float32
from surefoot.models.wrappers import (
    Averaged,
    FromProbabilities,
    LogitsOnly,
    TwoLogits,
    averages,
    is_single,
    is_wide,
    logits_entry,
    shapes_of,
)

FALSE_ALARM = 1e-4
"""The largest chance of refusing a model for its range where another range only seems better."""

ENOUGH = 16
"""From so many images on, outputs that all lie in [0, 1] are taken for probabilities."""

Range = tuple[tuple[float, ...], tuple[float, ...]]
ANY_RANGE: dict[str, Range] = {"[0, 255]": ((0.0,), (1 / 255,)), "[-1, 1]": ((0.5,), (0.5,))}
CHANNEL_RANGES: dict[int, dict[str, Range]] = {
    1: {"MNIST's mean and std": ((0.1307,), (0.3081,))},
    3: {
        "ImageNet's mean and std": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        "CIFAR-10's mean and std": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    },
}
"""What models are fed instead of [0, 1], by the number of channels, each with the mean and std that make it."""


def recognise(
    model: nn.Module, inputs: Tensor, labels: Tensor, *, draws: int | None = None, check_range: bool = True
) -> tuple[nn.Module, list[str]]:
    """Find out what a model answers with, and wrap it so that attacks see logits, or refuse it.

    In this order, on the batch given:

    - A dict, a tuple or an object with `.logits`: the logits are taken out (`LogitsOnly`); refused where several
      parts may be them, or where another part of a tuple is clearly more often right than the one taken.
    - NaN or infinite outputs, or a label without an output: refused.
    - Every row a distribution (no entry below 0, sums within 0.01 of 1), or 16 rows or more of sigmoids (all
      entries in [0, 1], some below 0.05, some above 0.95): their log or log-odds (`FromProbabilities`).
    - One number a sample, a logit or, where all are in [0, 1], a probability: two logits (`TwoLogits`).
    - Answers that change from call to call by more than rounding: refused, or with `draws` averaged (`Averaged`).
    - An answer to an image that changes with the other images of its batch, or with its place there: refused.
    - Another range than [0, 1]: refused, see below. Not asked of a model that answers randomly: brighter pixels
      truly help against noise.
    - A gradient by the pixels that is NaN on one of the first 16 images: said.
    - Answers to slightly noisy images that change where a gradient is taken: said.

    Changes are measured in units of the logits' spread, their median distance from their row's median, which a few
    huge logits, as those of masked classes, do not move: rounding is 0.001 of it for the same shape of batch (or the
    square root of the type's precision, if more) and 0.05 between a single image and a batch.

    Another range counts as the model's where, on the same images, it is right more often by a sign test
    (Hoeffding's bound, exp(-(gained - lost)^2 / 2 (gained + lost)) < 1e-4 / ranges tried) and wrong at most half
    as often. Where no other range is truly better, fewer than 1 model in 10,000 is refused, and none on fewer
    than 20 images. The half is for robust and for weak models, which more contrast truly helps: 12 networks in
    adversarial training on digits, at 9 stages each, never had fewer than 0.55 of their errors in another range.

    Log-probabilities are logits and pass as they are. A model without gradient passes: the attacks refuse it.

    Args:
        model: any module, in any mode; it is called in evaluation mode.
        inputs: a few hundred clean images `[batch, channels, height, width]` in [0, 1], on the model's device.
        labels: int64 `[batch]`.
        draws: calls to average over where the model answers randomly; None refuses it.
        check_range: False where the range is known, for example because a mean and a std were given.

    Returns:
        The model to attack, the very same object where nothing needed to be done, and a sentence for each thing
        that was found and done. The model's mode, buffers, gradients and torch's generators are left as they
        were; a generator of the model's own is not seen, and moves on.

    Raises:
        ValueError: the model is refused, or there are no images.
        TypeError: inputs that are not floating, labels that are not int64.

    Example:
        >>> inputs, labels = torch.rand(32, 4), torch.randint(3, (32,))
        >>> model, said = recognise(nn.Sequential(nn.Linear(4, 3), nn.Softmax(dim=1)), inputs, labels)
        >>> type(model).__name__, said
        ('FromProbabilities', ['The model answers with probabilities; their logarithm is attacked.'])
    """
    check_batch(inputs, labels)
    if len(labels) == 0:
        raise ValueError("there are no images to recognise a model by; give a few hundred.")
    plain = plain_module(model)
    if draws is not None:
        Averaged(plain, draws)  # a bad number is refused whatever the model is
    said: list[str] = []
    # float32 alone: TF32 rounds one image and a batch differently
    with buffers_put_back(plain.modules()), exact_float32(inputs.device):
        wrapped = with_logits(plain, inputs, labels, said)
        random = check_repeats(wrapped, inputs, draws, said)
        check_neighbours(wrapped, inputs, random=random)
        if check_range and not random:  # a brighter range would seem better where it drowns the model's noise
            check_pixels(wrapped, inputs, labels)
        tell_of_nan(wrapped, inputs[:ENOUGH], labels[:ENOUGH], said)
        if not random:
            tell_of_autograd(wrapped, inputs, said)
    if random and draws is not None:
        wrapped = Averaged(wrapped, draws)
    return model if wrapped is plain else wrapped, said


def tell_of_nan(model: nn.Module, inputs: Tensor, labels: Tensor, said: list[str]) -> None:
    """Say so where the gradient is NaN; one that is missing is left to the attacks, which refuse it."""
    with seeded(0), crafting(model) as frozen, suppress(ValueError):
        gradient, _ = input_gradient(frozen, inputs, lambda logits: cross_entropy(logits, labels))
        spoiled = int(gradient.isnan().flatten(1).any(dim=1).sum())
        if spoiled:
            said.append(
                f"The gradient by the pixels is NaN on {spoiled} of {len(labels)} images, as that of a square root at "
                "0 is; attacks take it for 0 there, and may be weak: add a small number under the root."
            )


def tell_of_autograd(model: nn.Module, inputs: Tensor, said: list[str]) -> None:
    """Say so where the model is another one under autograd; not asked of clean images, which rounding may not move."""
    with seeded(0):
        noisy = (inputs + (torch.rand_like(inputs) - 0.5) / 5).clamp(0, 1)
    scored = answer(model, noisy)
    with seeded(0), crafting(model) as frozen, suppress(RuntimeError, ValueError):  # the attacks refuse it, and say why
        seen = frozen(noisy.requires_grad_()).detach()
        if differ(scored, seen):
            flips = percent(scored.argmax(dim=1) != seen.argmax(dim=1))
            said.append(
                f"The model answers otherwise where a gradient is taken: {flips} of its predictions on noisy images "
                "change. Attacks follow the one answer and the other is scored, so that they may be weak."
            )


def answer(model: nn.Module, inputs: Tensor, *, seed: int = 0) -> Any:
    """What the model returns in evaluation mode, with torch's generators at `seed`.

    Raises:
        ValueError: it writes to its inputs; the caller's stay as they are.
    """
    given = inputs.clone()
    with seeded(seed), crafting(model) as frozen, torch.no_grad():
        output = frozen(given)
    if not torch.equal(given, inputs):
        raise ValueError(CHANGES_INPUTS)
    return output


def with_logits(model: nn.Module, inputs: Tensor, labels: Tensor, said: list[str]) -> nn.Module:
    """The model, wrapped where its output is not `[batch, classes]` logits."""
    batch = len(labels)
    output = first_answer(model, inputs)
    if not isinstance(output, Tensor):
        entry = logits_entry(output, batch)
        if isinstance(entry, int) and isinstance(output, tuple | list):
            check_entry(output, entry, labels)
        said.append(f"The model returns {shapes_of(output)}; its entry {entry!r} is attacked as the logits.")
        model = LogitsOnly(model, entry)
        output = answer(model, inputs)
    if not (is_wide(output, batch) or is_single(output, batch)):
        raise ValueError(
            f"the model returns {shapes_of(output)} for {batch} images; make it return floating logits "
            f"[{batch}, classes]."
        )
    rows = output.reshape(batch, -1).float()
    spoiled = int((~rows.isfinite()).any(dim=1).sum())
    if spoiled:
        raise ValueError(
            f"the model's outputs are NaN or infinite for {spoiled} of {batch} clean images; fix the model first."
        )
    single = rows.shape[1] == 1
    classes = 2 if single else rows.shape[1]
    if labels.max() >= classes:
        raise ValueError(
            f"a label is {int(labels.max())}, but the model has {classes} classes, from 0; give the data set "
            "that it was trained on."
        )
    if not single and is_distribution(rows):
        model = FromProbabilities(model)
        said.append("The model answers with probabilities; their logarithm is attacked.")
    elif is_sigmoid(rows):
        model = FromProbabilities(model, per_class=True)
        said.append("Each of the model's outputs is a probability of its own; their log-odds are attacked.")
    if single:
        model = TwoLogits(model)
        said.append("The model answers with one number for two classes; the logits [0, z] are attacked, z class 1's.")
    return model


def first_answer(model: nn.Module, inputs: Tensor) -> Any:
    """The model's output; a clear sentence where it is of another type than the images."""
    try:
        return answer(model, inputs)
    except RuntimeError as error:
        told = types_apart(model, inputs, error)
        if not told:
            raise
        raise ValueError(
            f"{told}; convert the model where it is made, with model.float(), or let its forward convert its inputs."
        ) from error


def check_entry(output: tuple[Any, ...] | list[Any], entry: int, labels: Tensor) -> None:
    """Refuse a tuple with a part that is clearly more often right than the first that could be logits."""
    right = {place: value.argmax(dim=1) == labels for place, value in enumerate(output) if is_wide(value, len(labels))}
    better = [place for place in right if clearly_better(right[place], right[entry], tried=len(right) - 1)]
    if better:
        raise ValueError(
            f"the model returns {shapes_of(output)}; its entry {entry} is right on {percent(right[entry])} of the "
            f"clean images and its entry {better[0]} on {percent(right[better[0]])}; say which are the logits with "
            f"LogitsOnly(model, entry={better[0]})."
        )


def is_distribution(rows: Tensor) -> bool:
    """Are all rows `[batch, classes]` distributions, to half precision?"""
    return bool((rows >= 0).all() and ((rows.sum(dim=1) - 1).abs() <= 0.01).all())


def is_sigmoid(rows: Tensor) -> bool:
    """Are all outputs `[batch, classes or 1]` probabilities, each by itself?

    Raises:
        ValueError: there are too few images to tell the one output of a binary model from a logit.
    """
    low, high = torch.aminmax(rows)
    if low < 0 or high > 1:
        return False
    if rows.shape[1] > 1:
        return len(rows) >= ENOUGH and bool(low < 0.05 and high > 0.95)
    if len(rows) < ENOUGH:
        raise ValueError(
            f"the model's only output is in [0, 1] for {len(rows)} images, which leaves open whether it is a "
            f"probability or a logit; recognise it by {ENOUGH} images or more."
        )
    return True  # as a logit it would be class 1 for every image


def check_repeats(model: nn.Module, inputs: Tensor, draws: int | None, said: list[str]) -> bool:
    """Does the model answer differently from call to call? Refused without `draws`."""
    first, *others = (answer(model, inputs, seed=seed) for seed in (0, 1, 0))
    changed = [other for other in others if differ(first, other)]
    if not changed:
        if draws is not None:
            said.append(f"The model answers the same each time and is called once; draws, {draws}, is not needed.")
        return False
    flips = percent(first.argmax(dim=1) != changed[0].argmax(dim=1))
    what = f"between two calls {flips} of its {len(inputs)} predictions change"
    if differ(first, others[1]):
        what += ", under the same seed too, so that its numbers will not repeat"
    if draws is None:
        raise ValueError(
            f"the model answers differently each time: {what}; pass --draws 16 (draws=16), and the mean of 16 "
            "answers is attacked and scored."
        )
    said.append(f"The model answers differently each time: {what}; the mean of {draws} answers is attacked and scored.")
    return True


def answers_vary(model: nn.Module, inputs: Tensor) -> bool:
    """Does a model that is called as it is answer differently from call to call?

    >>> images = torch.rand(8, 4)
    >>> answers_vary(nn.Linear(4, 3), images), answers_vary(Averaged(nn.Linear(4, 3), 2), images)
    (False, False)
    """
    if averages(model):
        return False
    with exact_float32(inputs.device):
        first, second = (answer(model, inputs, seed=seed) for seed in (0, 1))
    return differ(first, second)


def check_neighbours(model: nn.Module, inputs: Tensor, *, random: bool) -> None:
    """Refuse a model whose answer to an image changes with the rest of the batch, or that fails without one."""
    half = len(inputs) // 2
    if half:
        # The same shape, seed and places, so that rounding and random draws are the same too.
        others = torch.cat([inputs[:half], (inputs[half:] + 0.5) % 1])
        whole, replaced, again = (answer(model, batch) for batch in (inputs, others, inputs))
        if differ(whole[:half], replaced[:half]) and not differ(whole, again):
            refuse_neighbours(whole[:half], replaced[:half], "when the other images of its batch are replaced")
    try:
        alone = answer(model, inputs[-1:])
    except Exception as error:
        raise ValueError(
            f"the model fails on a batch of one image ({type(error).__name__}: {error}), which attacks give it."
        ) from error
    if not is_wide(alone, 1):
        raise ValueError(
            f"the model returns {shapes_of(alone)} for a batch of one image; make it keep the batch, with [1, classes]."
        )
    if half and not random and differ(whole, torch.cat([whole[:-1], alone]), rounding=0.05):
        refuse_neighbours(whole[-1:], alone, "when it is alone in its batch")


def refuse_neighbours(first: Tensor, second: Tensor, when: str) -> None:
    """Say that an image's answer depends on its batch, and by how much."""
    moved = float((first - second).abs().max())
    raise ValueError(
        f"the model's answer to an image depends on its batch: its logits move by up to {moved:.3g} {when}, so that "
        "the robustness of one image would depend on others; make the model use running statistics (batch-norm in "
        "evaluation mode) and nothing drawn by an image's place."
    )


def check_pixels(model: nn.Module, inputs: Tensor, labels: Tensor) -> None:
    """Refuse a model that is clearly more often right on pixels in another range than [0, 1]."""
    ranges = ANY_RANGE | (CHANNEL_RANGES.get(inputs.shape[1], {}) if inputs.dim() == 4 else {})
    right = {"[0, 1]": right_answers(answer(model, inputs), labels)}
    for name, (mean, std) in ranges.items():
        shape = [1, -1, *[1] * (inputs.dim() - 2)]
        shifted = (inputs - inputs.new_tensor(mean).view(shape)) / inputs.new_tensor(std).view(shape)
        with suppress(Exception):  # a model may check its inputs
            right[name] = right_answers(answer(model, shifted), labels)
    given, *others = right
    better = [name for name in others if clearly_better(right[name], right[given], tried=len(others))]
    if not better:
        return
    better.sort(key=lambda name: -int(right[name].sum()))
    raise ValueError(
        f"the model seems to be made for pixels in another range: of {len(labels)} clean images it has "
        f"{', '.join(f'{percent(share)} right in {name}' for name, share in right.items())}; pass the mean and std it "
        f"was trained with, {' or '.join(flags(*ranges[name]) for name in better)} (applied inside the model), or "
        f"{flags((0.0,), (1.0,))} if [0, 1] is right."
    )


def flags(mean: tuple[float, ...], std: tuple[float, ...]) -> str:
    """A mean and std on the command line.

    >>> flags((0.0,), (1 / 255,))
    '--mean 0 --std 0.00392157'
    """
    return " ".join(["--mean", *(f"{value:.6g}" for value in mean), "--std", *(f"{value:.6g}" for value in std)])


def right_answers(logits: Tensor, labels: Tensor) -> Tensor:
    """Which samples are classified rightly, with finite logits."""
    return (logits.argmax(dim=1) == labels) & logits.isfinite().all(dim=1)


def clearly_better(right: Tensor, given: Tensor, *, tried: int) -> bool:
    """Is `right` right more often than `given` on the same samples, beyond chance and by a good part?

    >>> clearly_better(torch.ones(40).bool(), torch.arange(40) < 10, tried=3)
    True
    >>> clearly_better(torch.ones(10).bool(), torch.arange(10) < 1, tried=3)
    False
    """
    gained, lost = int((right & ~given).sum()), int((given & ~right).sum())
    if gained <= lost or 2 * int((~right).sum()) > int((~given).sum()):
        return False
    return math.exp(-((gained - lost) ** 2) / (2 * (gained + lost))) < FALSE_ALARM / tried


def differ(first: Tensor, second: Tensor, *, rounding: float = 0.001) -> bool:
    """Do two answers `[batch, classes]` differ by more than rounding, in units of the logits' spread?

    A logit that is often farther from its row's median than the spread, as a huge one is, is measured by that distance.
    One that is the same in both, infinite as it may be, does not differ.

    >>> logits = torch.tensor([[1.0, 2.0, 6.0]])
    >>> differ(logits, logits + 0.001), differ(logits, logits + 0.1)
    (False, True)
    >>> logits[0, 2] = -1e9
    >>> differ(logits, logits + 0.1)
    True
    """
    precision = torch.finfo(first.dtype).eps
    first, second = full_precision(first), full_precision(second)
    distances = (first - middle(first)).abs()
    spreads = middle(distances)
    spread = spreads[spreads > 0].median() if bool((spreads > 0).any()) else spreads.new_zeros(())
    # the lower median, by a way that CUDA also has under torch.use_deterministic_algorithms
    units = torch.maximum(spread, distances.quantile(0.5, dim=0, interpolation="lower"))
    allowed = max(rounding, precision**0.5) * units + 8 * precision * first.abs().amax(dim=0)
    moved = (first - second).abs()
    return not bool(((first == second) | (moved.isfinite() & (moved <= allowed))).all())  # NaN differs


def middle(rows: Tensor) -> Tensor:
    """The median of each row's different values, `[batch, 1]`: many classes masked by one value are one.

    >>> middle(torch.tensor([[1.0, 2.0, 3.0, -9.0, -9.0, -9.0]]))
    tensor([[1.5000]])
    """
    rows = rows.sort(dim=1).values
    again = torch.zeros_like(rows, dtype=torch.bool)
    again[:, 1:] = rows[:, 1:] == rows[:, :-1]
    rows = rows.masked_fill(again, torch.inf).sort(dim=1).values
    count = (~again).sum(dim=1, keepdim=True)
    return rows.gather(1, (count - 1) // 2) / 2 + rows.gather(1, count // 2) / 2


def percent(share: Tensor) -> str:
    """How many are true, in percent."""
    return f"{float(share.float().mean()):.1%}"
