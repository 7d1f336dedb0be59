"""How an attack is run on a batch: in stages, confirmed, in halves where memory is short, counted."""

import dataclasses
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from surefoot.core.devices import image_format
from surefoot.core.failures import type_name
from surefoot.core.geometry import ONE_NUMBER, check_labels, l2_distance, linf_distance
from surefoot.core.gradients import CHANGES_INPUTS, buffers_put_back, crafting, plain_module, without_gradients
from surefoot.core.limits import check_flag, check_whole
from surefoot.core.losses import answered, check_logits
from surefoot.core.seeding import seeded
from surefoot.core.types import Attack, CompoundAttack, LastingAttack
from surefoot.evaluation.attack_settings import fields_of, name_of, parts_of, radius_of, screening_of, with_stop
from surefoot.evaluation.outcomes import Cost, Outcome
from surefoot.evaluation.passes import PassCounter
from surefoot.evaluation.precision import Arithmetic, computed_in, exact_float32, fast_in_half, has_tf32
from surefoot.models.wrappers import Averaged, averages, is_single, is_wide

Precision = Literal["strict", "fast"]


def check_crafted(attack: object, adv_inputs: object, inputs: Tensor) -> None:
    """Refuse invalid results of an attack, which would otherwise count as fooling the model.

    Raises:
        TypeError: something other than a tensor.
        ValueError: another shape or type, NaN, pixels outside [0, 1], or further away than the attack's own `eps`.
    """
    name, eps = name_of(attack), radius_of(attack)
    if not isinstance(adv_inputs, Tensor):
        raise TypeError(f"{name} returned an object of type {type(adv_inputs).__name__}; an attack returns images.")
    if adv_inputs.shape != inputs.shape:
        raise ValueError(
            f"{name} returned shape {list(adv_inputs.shape)} for inputs of shape {list(inputs.shape)}; an attack "
            "returns an image for each."
        )
    if adv_inputs.dtype != inputs.dtype:
        raise ValueError(
            f"{name} returned pixels of {type_name(adv_inputs.dtype)} for inputs of {type_name(inputs.dtype)}; let it "
            "end with .to(inputs.dtype)."
        )
    if adv_inputs.numel() == 0:
        return
    adv_inputs, inputs = adv_inputs.detach(), inputs.detach()
    low, high = torch.aminmax(adv_inputs)
    if low.isnan():
        raise ValueError(f"{name} returned pixels that are NaN; is the model's gradient NaN on these images?")
    rounding = max(1e-6, 2 * torch.finfo(inputs.dtype).eps)
    if not (low >= -rounding and high <= 1 + rounding):
        raise ValueError(
            f"{name} returned pixels from {low.item():.4g} to {high.item():.4g}; an attack stays in [0, 1]."
        )
    if eps is not None and (moved := float(linf_distance(adv_inputs, inputs).max())) > eps + rounding:
        raise ValueError(f"{name} moved a pixel by {moved:.4g}, further than its eps, {eps:.4g}; let it project.")


def crafted(attack: Attack, model: nn.Module, inputs: Tensor, labels: Tensor) -> Tensor:
    """What the attack makes, which may be anybody's: the model is in evaluation mode and is put back after as it was.

    It may call backward, change the model's mode and all its buffers by that, and write to what it is given.
    """
    module = plain_module(model)
    before = [(parameter, parameter.grad, parameter.requires_grad) for parameter in module.parameters()]
    try:
        with buffers_put_back(module.modules()), crafting(module) as frozen:
            for parameter, _, _ in before:
                parameter.grad = None
            return attack(frozen, inputs.clone(), labels.clone())
    finally:
        for parameter, gradient, learns in before:
            parameter.grad = gradient
            if parameter.requires_grad != learns:
                parameter.requires_grad_(learns)


def predictions(model: nn.Module, inputs: Tensor, labels: Tensor | None = None) -> Tensor:
    """The class that `model`, in evaluation mode, gives each sample, `[batch]`; -1 where a logit is NaN.

    Raises:
        TypeError: the model answers with something other than a tensor.
        ValueError: or with one of another shape than `[batch, classes]`; a label beyond its classes.
    """
    with crafting(model, inputs) as frozen, without_gradients():
        logits = check_logits(frozen(inputs))
    if not is_wide(logits, len(inputs)):
        hint = f"; {ONE_NUMBER}" if is_single(logits, len(inputs)) else ""
        raise ValueError(
            f"the model's logits have shape {list(logits.shape)} for {len(inputs)} images; give [batch, classes]{hint}."
        )
    if labels is not None:
        check_labels(labels, logits.shape[1])
    return answered(logits)


@dataclass(frozen=True)
class Settings:
    """How samples are counted; see `evaluate`."""

    last_iterate: bool
    precision: Precision
    eight_bit: bool
    worst_case: bool
    seed: int

    def __post_init__(self) -> None:
        if self.precision not in ("strict", "fast"):
            raise ValueError(f"precision is {self.precision!r}; it is 'strict' or 'fast'.")
        for name in ("last_iterate", "eight_bit", "worst_case"):
            check_flag(name, getattr(self, name))
        check_whole("seed", self.seed, least=0)


@dataclass(frozen=True)
class Stage:
    """One run through the samples that are left: the attack, or its screening, or a part of it."""

    name: str
    attack: Attack
    arithmetic: Arithmetic
    last: bool

    def about(self) -> dict[str, Any]:
        """As a record's `parts` has it."""
        return {
            "attack": name_of(self.attack),
            "attack_fields": fields_of(self.attack),
            "precision": self.arithmetic,
        }


class StageRunner:
    """Runs stages on batches: crafts, confirms, halves where memory is short, counts."""

    def __init__(
        self,
        models: Sequence[nn.Module],
        source: nn.Module | None,
        settings: Settings,
        keep_inputs: bool,
        on_note: Callable[[str], None] | None,
    ) -> None:
        self.models = models
        self.crafter = models[0] if source is None else source
        self.white_box = source is None
        self.settings = settings
        self.everybody = settings.last_iterate or source is not None
        self.random = averages(self.crafter)
        self.keep_inputs = keep_inputs
        self.on_note = on_note
        self.limit: int | None = None  # the largest batch that memory was enough for

    def stages(self, attack: Attack) -> list[Stage]:
        """What is run for an attack, in turn."""
        name = name_of(attack)
        if isinstance(attack, CompoundAttack):
            return [
                Stage(f"{name}: {name_of(part)}", self.prepared(part), self.arithmetic(attack, part), last=True)
                for part in parts_of(attack)
            ]
        arithmetic = self.arithmetic(attack)
        main = Stage(name, self.prepared(attack), arithmetic, last=True)
        screening = None if self.everybody else screening_of(main.attack)
        if screening is None:
            return [main]
        half: Arithmetic = "bf16" if fast_in_half(self.crafter) else arithmetic
        return [Stage(f"{name}: screening", screening, half, last=False), main]

    def prepared(self, attack: Attack) -> Attack:
        """The attack as it is run: letting go of fooled samples, unless all must be attacked to the end.

        As they must where the model answers at random: what one answer calls wrong the next may call right.
        """
        return with_stop(attack, when_fooled=not (self.everybody or self.random))

    def arithmetic(self, *attacks: Attack) -> Arithmetic:
        """What an attack, or a part of one, is crafted in."""
        if self.settings.precision == "strict":
            return "fp32"
        if not any(getattr(attack, "float32_only", False) for attack in attacks):
            return "bf16"
        return "tf32" if has_tf32(self.crafter) else "fp32"

    def is_fast(self, attack: Attack) -> bool:
        """Is any part of it crafted in less than float32?"""
        return any(self.arithmetic(attack, part) != "fp32" for part in parts_of(attack))

    def start(self, clean: Sequence[Outcome]) -> list[Outcome]:
        """Where an attack starts from: the right samples, or all."""
        return [
            dataclasses.replace(outcome, robust=torch.ones_like(outcome.robust) if self.everybody else outcome.robust)
            for outcome in clean
        ]

    def run(
        self,
        stage: Stage | None,
        number: int,
        inputs: Tensor,
        labels: Tensor,
        state: Sequence[Outcome] | None,
        clean: Sequence[Sequence[Outcome]],
    ) -> list[Outcome]:
        """One stage (None: no attack) on one batch: the outcomes, one a model."""
        # What is drawn here is not seen outside: batches that are shuffled or augmented do not depend on what was kept.
        with seeded(self.seed(number)), exact_float32(inputs.device):
            if stage is None or state is None:
                return [self.clean(model, number, inputs, labels) for model in self.models]
            return self.attacked(stage, number, inputs, labels, state, clean[number])

    def seed(self, number: int) -> int:
        """Each batch has its own, so that a later one does not depend on whether an earlier one was run or kept."""
        return self.settings.seed * 1_000_003 + number

    def clean(self, model: nn.Module, number: int, inputs: Tensor, labels: Tensor) -> Outcome:
        given = inputs.clone()
        prediction, cost = self.score(model, given, labels, seed=self.seed(number))
        if not torch.equal(given, inputs):
            raise ValueError(CHANGES_INPUTS)
        unknown = torch.full(labels.shape, torch.nan, device=labels.device)
        return Outcome(prediction == labels, prediction, unknown, cost, inputs.cpu() if self.keep_inputs else None)

    def score(self, model: nn.Module, inputs: Tensor, labels: Tensor, seed: int | None = None) -> tuple[Tensor, Cost]:
        """The model's predictions, and what they took."""
        with Meter(model) as meter:
            guess = self.halving(lambda part, own: predictions(model, part, own), inputs, labels, seed)
            return meter.waited(guess), meter.cost

    def attacked(
        self,
        stage: Stage,
        number: int,
        inputs: Tensor,
        labels: Tensor,
        state: Sequence[Outcome],
        clean: Sequence[Outcome],
    ) -> list[Outcome]:
        rows = torch.stack([outcome.robust for outcome in state]).any(dim=0)  # still in play for some model
        if not rows.any():
            return [dataclasses.replace(outcome, cost=Cost()) for outcome in state]
        kept, targets = inputs[rows], labels[rows]
        with Meter(self.crafter) as crafting_meter:
            adv_inputs = crafting_meter.waited(self.craft(stage, number, kept, targets))
        after = []
        for model, before, first in zip(self.models, state, clean, strict=True):
            guess, cost = self.score(model, adv_inputs, targets)
            mine = before.robust[rows]
            robust, prediction, l2 = before.robust.clone(), before.prediction.clone(), before.l2.clone()
            robust[rows] = mine & (guess == targets)
            prediction[rows] = torch.where(mine, guess, prediction[rows])
            fooled = mine & (guess != targets) & (first.prediction[rows] == targets)
            l2[rows] = torch.where(fooled, l2_distance(adv_inputs, kept).to(l2.dtype), l2[rows])
            left = None
            if before.adv_inputs is not None:
                left = before.adv_inputs.clone()
                left[before.robust.cpu()] = adv_inputs[mine].cpu()
            after.append(Outcome(robust, prediction, l2, crafting_meter.cost + cost, left))
        return after

    def craft(self, stage: Stage, number: int, inputs: Tensor, labels: Tensor) -> Tensor:
        """Adversarial inputs as they are scored: in float32, in 8 bits where asked for, their hits confirmed."""
        if self.settings.eight_bit:
            stage = dataclasses.replace(stage, attack=at_an_eight_bit_radius(stage.attack, inputs))
        adv_inputs = self.call(stage.attack, stage.arithmetic, number, inputs, labels)
        seen = self.as_scored(stage.attack, adv_inputs, inputs)
        eight_bit, early = self.settings.eight_bit, getattr(stage.attack, "stop_when_fooled", False)
        again_if_missed = early or stage.arithmetic == "tf32"
        if not (self.white_box and stage.last and (again_if_missed or eight_bit)):
            return seen
        # A sample was let go that is not fooled as it is scored, for the attack saw lower precision, unrounded pixels
        # or a model that answers otherwise under autograd: rounded away from the image, then; to the last step; or in
        # float32 where it was TF32 that let go.
        model = self.crafter
        with computed_in(stage.arithmetic, inputs.device):
            again = self.halving(partial(fools_under_autograd, model), adv_inputs, labels)
        if again.any():
            let_go = again.clone()
            again[let_go] = self.halving(partial(predictions, model), seen[let_go], labels[let_go]) == labels[let_go]
        if eight_bit and again.any():
            further = eight_bit_pixels(adv_inputs, inputs, radius_of(stage.attack), outwards=True)
            fools = self.halving(partial(predictions, model), further, labels) != labels
            seen[again & fools] = further[again & fools]
            again &= ~fools
        if again_if_missed and again.any():
            kept, targets = inputs[again], labels[again]
            if stage.arithmetic == "tf32":
                seen[again] = self.craft(dataclasses.replace(stage, arithmetic="fp32"), number, kept, targets)
            else:
                further = self.call(with_stop(stage.attack, False), stage.arithmetic, number, kept, targets)
                seen[again] = self.as_scored(stage.attack, further, kept)
        if stage.arithmetic == "bf16" and isinstance(stage.attack, LastingAttack):
            self.finish(stage.attack, seen, inputs, labels)
        return seen

    def finish(self, attack: LastingAttack, seen: Tensor, inputs: Tensor, labels: Tensor) -> None:
        """Attack what still stands in `seen`, from there on, in a few steps of float32."""
        standing = self.halving(partial(predictions, self.crafter), seen, labels) == labels
        if not standing.any():
            return

        def go_on(pair: Tensor, targets: Tensor) -> Tensor:
            start, centre = pair.unbind(dim=1)
            return attack.go_on(self.crafter, centre, targets, start)

        both = torch.stack([seen[standing], inputs[standing]], dim=1)
        seen[standing] = self.as_scored(attack, self.halving(go_on, both, labels[standing]), inputs[standing])

    def call(self, attack: Attack, arithmetic: Arithmetic, number: int, inputs: Tensor, labels: Tensor) -> Tensor:
        if arithmetic != "fp32" and inputs.dim() == 4:
            inputs = inputs.contiguous(memory_format=image_format(inputs.device))

        def seeded_call(part: Tensor, targets: Tensor) -> Tensor:
            with computed_in(arithmetic, inputs.device):
                adv_inputs = crafted(attack, self.crafter, part, targets)
            return adv_inputs.detach() if isinstance(adv_inputs, Tensor) else adv_inputs

        return self.halving(seeded_call, inputs, labels, seed=self.seed(number))

    def as_scored(self, attack: Attack, adv_inputs: Tensor, inputs: Tensor) -> Tensor:
        check_crafted(attack, adv_inputs, inputs)
        if not self.settings.eight_bit:
            return adv_inputs.clone()
        return eight_bit_pixels(adv_inputs, inputs, radius_of(attack))

    def halving(
        self,
        work: Callable[[Tensor, Tensor], Tensor],
        inputs: Tensor,
        labels: Tensor,
        seed: int | None = None,
    ) -> Tensor:
        """`work` on the batch, in smaller parts once memory was not enough."""
        while True:
            if seed is not None:
                torch.manual_seed(seed)
            size = min(len(inputs), self.limit or len(inputs))
            try:
                pieces = [
                    work(part, targets)
                    for part, targets in zip(torch.split(inputs, size), torch.split(labels, size), strict=True)
                ]
                return pieces[0] if len(pieces) == 1 else torch.cat(pieces)
            except RuntimeError as error:
                if size <= 1 or not is_out_of_memory(error):
                    raise
            self.limit = (size + 1) // 2  # outside the except block, whose traceback holds on to the memory
            if inputs.device.type == "cuda":
                torch.cuda.empty_cache()
            if self.on_note is not None:
                self.on_note(f"Memory was not enough for {size} images at a time; going on with {self.limit}.")


def fools_under_autograd(model: nn.Module, inputs: Tensor, labels: Tensor) -> Tensor:
    """Which inputs `[batch]` an attack that takes gradients saw misclassified."""
    try:
        with crafting(model, inputs) as frozen:
            return answered(frozen(inputs.detach().clone().requires_grad_())).detach() != labels
    except RuntimeError as error:
        if is_out_of_memory(error):
            raise
        return predictions(model, inputs) != labels  # it has no gradient, and the attack needs none


class Meter:
    """Counts the seconds and the passes through a model while it is entered; of an average over draws, each draw."""

    def __init__(self, model: nn.Module) -> None:
        plain = plain_module(model)
        self.counter = PassCounter(plain.model if isinstance(plain, Averaged) else plain)

    def __enter__(self) -> "Meter":
        self.counter.__enter__()
        self.started = time.perf_counter()
        return self

    def __exit__(self, *exception: object) -> None:
        self.counter.__exit__(*exception)

    def waited(self, result: Tensor) -> Tensor:
        """The result, once the device is done with it; the clock is read then."""
        if result.device.type != "cpu":
            torch.accelerator.synchronize(result.device)
        self.seconds = time.perf_counter() - self.started
        return result

    @property
    def cost(self) -> Cost:
        """What it took so far."""
        return Cost(self.seconds, self.counter.forwards, self.counter.backwards)


OUT_OF_MEMORY = (
    *("out of memory", "can't allocate memory", "cublas_status_alloc_failed", "cudnn_status_alloc_failed"),
    "unable to find an engine",  # cuDNN's, where no memory is left for one
)


def is_out_of_memory(error: RuntimeError) -> bool:
    """Is this what a device says when its memory is full?"""
    text = str(error).lower()
    return isinstance(error, torch.OutOfMemoryError) or any(words in text for words in OUT_OF_MEMORY)


RIM = 1e-3
"""Levels of 255 that a radius may miss a whole one by: it often is one, up to rounding."""


def at_an_eight_bit_radius(attack: Attack, inputs: Tensor) -> Attack:
    """The attack at the largest multiple of 1/255 within its radius, where the images are in 8 bits.

    Beyond that no pixel of theirs can move. An attack that ends once it fools would end there, and be undone by
    rounding: at 0.3, which is 76.5/255, by half a level everywhere.

    >>> from surefoot.attacks import FGSM
    >>> at_an_eight_bit_radius(FGSM(eps=0.3), torch.zeros(1, 4)).eps * 255
    76.0
    """
    eps, levels = radius_of(attack), inputs * 255
    whole = 0 if eps is None else math.floor(255 * eps + RIM)
    has_own = "eps" in getattr(attack, "__dataclass_fields__", ())
    if eps is None or not (has_own and 0 < whole / 255 < eps) or (levels - levels.round()).abs().max() > RIM:
        return attack
    try:
        return dataclasses.replace(attack, eps=whole / 255)  # type: ignore[type-var]
    except (TypeError, ValueError):  # it has a step that fits its own radius alone
        return attack


def eight_bit_pixels(adv_inputs: Tensor, inputs: Tensor, eps: float | None, *, outwards: bool = False) -> Tensor:
    """`adv_inputs` in 8 bits: the nearest multiples of 1/255, inside the ball where there is one.

    A pixel whose ball holds no multiple of 1/255, that of an image which is not in 8 bits itself, stays clean.
    With `outwards` the next multiples away from `inputs`: as long a step or a longer one in the same direction.
    """
    levels = adv_inputs * 255
    levels = torch.where(adv_inputs > inputs, levels.ceil(), levels.floor()) if outwards else levels.round()
    if eps is None:
        return levels.clamp(0, 255) / 255
    low, high = ((inputs - eps) * 255 - RIM).ceil().clamp(min=0), ((inputs + eps) * 255 + RIM).floor().clamp(max=255)
    return torch.where(low <= high, levels.clamp(low, high) / 255, inputs)
