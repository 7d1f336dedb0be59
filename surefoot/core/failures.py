"""What another's code failed with, for a sentence of ours."""


def in_one_line(error: BaseException) -> str:
    """The kind of an exception and the first line of what it says.

    Example:
        >>> in_one_line(KeyError("x")), in_one_line(RuntimeError("\\nbad\\nat 3")), in_one_line(ValueError())
        ("KeyError: 'x'", 'RuntimeError: bad', 'ValueError')
    """
    first = next(iter(str(error).strip().splitlines()), "")
    return f"{type(error).__name__}: {first}" if first else type(error).__name__
