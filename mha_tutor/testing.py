"""For your own tests: an assertion that fails with the whole report."""

from typing import Any

from mha_tutor.contract import check

__all__ = ["assert_attention"]


def assert_attention(candidate: Any, form: str | None = None, **options: Any) -> None:
    """Fail, and say what is wrong, unless the candidate is attention.

    A layer whose weights are not found, so that it cannot be compared with the formula, fails too;
    `strict=False` lets it pass.

    Args:
        candidate: what `mha_tutor.check` takes.
        form: as for `mha_tutor.check`.
        options: as for `mha_tutor.check`.

    Raises:
        AssertionError: something does not hold; the message is the report.
        ValueError: an option is not one of `mha_tutor.check`.
        TypeError: the candidate cannot be called.

    Example:
        >>> import torch
        >>> assert_attention(torch.nn.MultiheadAttention(12, 3, batch_first=True))
    """
    __tracebackhide__ = True  # pytest then points at the caller's line
    report = check(candidate, form, **{"strict": True, **options})
    if not report:
        raise AssertionError(f"this is not attention as it should be\n\n{report}")
