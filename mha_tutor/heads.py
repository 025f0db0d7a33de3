"""Split features into heads, merge them back, and see a projection's weight head by head."""

from typing import Any, Protocol, Self, TypeVar

from mha_tutor.checks import check_integer

__all__ = ["head_columns", "head_rows", "merge_heads", "split_heads"]


class _ArrayLike(Protocol):
    """A NumPy array, a torch tensor, or anything else with `shape`, `reshape` and `swapaxes`."""

    @property
    def shape(self) -> tuple[int, ...]: ...
    def reshape(self, *shape: Any) -> Self: ...
    def swapaxes(self, axis0: int, axis1: int, /) -> Self: ...


Array = TypeVar("Array", bound=_ArrayLike)


def split_heads(x: Array, num_heads: int) -> Array:
    """Give each head its own slice of the features, in a layer those of the projected tokens.

    Args:
        x: (..., L, E), a NumPy array or a torch tensor.
        num_heads: H; must divide E.

    Returns:
        (..., H, L, D) with D = E // H, a view where the layout allows one. Head h holds the
        features h * D to (h + 1) * D - 1 of every token.

    Raises:
        ValueError: H does not divide E, or x has fewer than two dimensions.
        TypeError: x is no array, or num_heads no integer.

    Example:
        >>> import torch
        >>> split_heads(torch.arange(48).reshape(2, 4, 6), num_heads=3).shape
        torch.Size([2, 3, 4, 2])
    """
    *leading, length, embed_dim = _shape("x", x, "(..., L, E)", least=2)
    head_dim = head_dim_of(embed_dim, num_heads)
    x = x.reshape(*leading, length, num_heads, head_dim)  # (..., L, H, D)
    return x.swapaxes(-2, -3)  # (..., H, L, D)


def merge_heads(x: Array) -> Array:
    """Put the heads side by side again: the inverse of `split_heads`.

    Args:
        x: (..., H, L, D), a NumPy array or a torch tensor.

    Returns:
        (..., L, H * D): for each token the features of head 0, then those of head 1, and so on.

    Raises:
        ValueError: x has fewer than three dimensions.
        TypeError: x is no array.

    Example:
        >>> import torch
        >>> x = torch.arange(48).reshape(2, 4, 6)
        >>> torch.equal(merge_heads(split_heads(x, num_heads=3)), x)
        True
    """
    *leading, num_heads, length, head_dim = _shape("x", x, "(..., H, L, D)", least=3)
    x = x.swapaxes(-2, -3)  # (..., L, H, D)
    return x.reshape(*leading, length, num_heads * head_dim)


def head_rows(weight: Array, num_heads: int) -> Array:
    """See the weight of a query, key or value projection head by head.

    Such a weight is cut by its rows, the output features: head h of `x @ weight.T` is
    `x @ head_rows(weight, H)[h].T`.

    Args:
        weight: (E, E_in), as `torch.nn.Linear` stores it.
        num_heads: H; must divide E.

    Returns:
        (H, D, E_in), a view where the layout allows one.

    Raises:
        ValueError: H does not divide E, or weight is not a matrix.
        TypeError: weight is no array, or num_heads no integer.

    Example:
        >>> import torch
        >>> head_rows(torch.zeros(6, 5), num_heads=3).shape
        torch.Size([3, 2, 5])
    """
    rows, columns = _shape("weight", weight, "(rows, columns)", least=2, most=2)
    return weight.reshape(num_heads, head_dim_of(rows, num_heads), columns)


def head_columns(weight: Array, num_heads: int) -> Array:
    """See the weight of the output projection head by head.

    Such a weight is cut by its columns, the input features: `concat @ weight.T` is the sum over
    the heads of `head_h @ head_columns(weight, H)[h].T`.

    Args:
        weight: (E_out, E), as `torch.nn.Linear` stores it.
        num_heads: H; must divide E.

    Returns:
        (H, E_out, D), a view where the layout allows one.

    Raises:
        ValueError: H does not divide E, or weight is not a matrix.
        TypeError: weight is no array, or num_heads no integer.

    Example:
        >>> import torch
        >>> head_columns(torch.zeros(5, 6), num_heads=3).shape
        torch.Size([3, 5, 2])
    """
    rows, columns = _shape("weight", weight, "(rows, columns)", least=2, most=2)
    return weight.reshape(rows, num_heads, head_dim_of(columns, num_heads)).swapaxes(0, 1)


def head_dim_of(embed_dim: int, num_heads: int) -> int:
    """Return D = E // H, or say why there is none.

    Args:
        embed_dim: E.
        num_heads: H; at least 1, and a divisor of E.

    Raises:
        ValueError: H is less than 1 or does not divide E.
        TypeError: H is not an integer.

    Example:
        >>> head_dim_of(6, 3)
        2
        >>> head_dim_of(10, 3)
        Traceback (most recent call last):
        ...
        ValueError: embed_dim (10) must be divisible by num_heads (3)
    """
    check_integer("num_heads", num_heads, least=1)
    if embed_dim % num_heads:
        raise ValueError(f"embed_dim ({embed_dim}) must be divisible by num_heads ({num_heads})")
    return embed_dim // num_heads


def _shape(
    name: str, x: Array, shape: str, least: int, most: float = float("inf")
) -> tuple[int, ...]:
    """Return the shape of x, which must have from `least` to `most` axes."""
    if not all(hasattr(x, needed) for needed in ("shape", "reshape", "swapaxes")):
        raise TypeError(f"{name} must be a NumPy array or a torch tensor, got {type(x).__name__}")
    if not least <= len(x.shape) <= most:
        raise ValueError(f"{name} must have the shape {shape}, got {tuple(x.shape)}")
    return tuple(x.shape)
