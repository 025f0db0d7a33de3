"""The checks of plain numbers that several modules need: each names argument, rule and value."""

from typing import Any

__all__ = ["check_integer", "check_number", "check_probability"]


def check_integer(name: str, value: Any, least: int | None = None) -> None:
    """Require an integer, and at least `least` where one is given.

    Raises:
        TypeError: value is not an integer; True and False are not.
        ValueError: value is less than `least`.

    Example:
        >>> check_integer("L", 2.0)
        Traceback (most recent call last):
        ...
        TypeError: L must be an integer, got 2.0
    """
    if not hasattr(value, "__index__") or isinstance(value, bool):
        raise TypeError(f"{name} must be an integer, got {value!r}")
    if least is not None and value < least:
        raise ValueError(f"{name} must be at least {least}, got {value}")


def check_number(name: str, value: Any) -> None:
    """Require a real number.

    Raises:
        TypeError: value is something else.

    Example:
        >>> check_number("scale", 0.5)
    """
    # Not `numbers.Real`: what `torch.compile` and `torch.export` put in a number's place is none.
    if not hasattr(value, "__float__"):
        raise TypeError(f"{name} must be a number, got {value!r}")


def check_probability(name: str, value: Any) -> None:
    """Require a number between 0 and 1.

    Raises:
        TypeError: value is not a number.
        ValueError: value is less than 0 or more than 1.

    Example:
        >>> check_probability("dropout_p", 1.5)
        Traceback (most recent call last):
        ...
        ValueError: dropout_p must be between 0 and 1, got 1.5
    """
    check_number(name, value)
    if not 0 <= value <= 1:
        raise ValueError(f"{name} must be between 0 and 1, got {value}")
