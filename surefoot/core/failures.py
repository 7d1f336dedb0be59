"""Turns errors of other people's code into a sentence of ours."""

import torch
from torch import Tensor, nn


def in_one_line(error: BaseException) -> str:
    """The kind of an exception and the first line of what it says.

    Example:
        >>> in_one_line(KeyError("x")), in_one_line(RuntimeError("\\nbad\\nat 3")), in_one_line(ValueError())
        ("KeyError: 'x'", 'RuntimeError: bad', 'ValueError')
    """
    first = next(iter(str(error).strip().splitlines()), "")
    return f"{type(error).__name__}: {first}" if first else type(error).__name__


def type_name(dtype: torch.dtype) -> str:
    """A type as a person writes it.

    >>> type_name(torch.bfloat16)
    'bfloat16'
    """
    return str(dtype).removeprefix("torch.")


def types_apart(model: nn.Module, inputs: Tensor, error: Exception) -> str:
    """What to say where a model failed because its weights are of another type than its inputs; empty elsewhere.

    Asked only once it has failed, this takes no time and wrongs no model that converts its inputs.

    Example:
        >>> net, inputs = nn.Linear(2, 2).double(), torch.zeros(1, 2)
        >>> types_apart(net, inputs, RuntimeError("they must have the same dtype"))
        "the model's weights are float64, the images float32, and it does not take them (they must have the same dtype)"
        >>> types_apart(net, inputs, RuntimeError("out of memory"))
        ''
    """
    kinds = {each.dtype for each in (*model.parameters(), *model.buffers()) if each.is_floating_point()}
    if not kinds - {inputs.dtype} or "type" not in str(error):
        return ""
    weights, given = " and ".join(sorted(map(type_name, kinds))), type_name(inputs.dtype)
    return f"the model's weights are {weights}, the images {given}, and it does not take them ({error})"


def explain_types(model: nn.Module, inputs: Tensor, error: RuntimeError) -> None:
    """Turn a model's error into a sentence where `types_apart` has one, for the caller to raise the error elsewhere.

    Raises:
        TypeError: with what to convert.
    """
    if told := types_apart(model, inputs, error):
        raise TypeError(f"{told}; convert one of the two, for example with model.to(inputs.dtype).") from error
    if any(each.is_inference() for each in model.parameters()) and "nference tensor" in str(error):
        raise TypeError(
            f"the model's weights were made under torch.inference_mode, which no gradient goes through ({error}); "
            "make or copy the model outside of it."
        ) from error
