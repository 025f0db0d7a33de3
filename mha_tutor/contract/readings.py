"""Where the weights of an unknown layer may be: by names, by order, packed in some way."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from torch import Tensor, nn

from mha_tutor.contract.steps import Weights

__all__ = ["Reading", "guessed_heads", "linear", "packed_rows", "readings"]

QUERY_NAMES = [
    "q_proj",
    "query_proj",
    "query",
    "w_q",
    "wq",
    "q_linear",
    "linear_q",
    "to_q",
    "w_query",
    "queries",
    "q",
]
OUT_NAMES = [
    "out_proj",
    "o_proj",
    "output_proj",
    "fc_out",
    "w_o",
    "wo",
    "w_out",
    "to_out",
    "out_linear",
    "linear_out",
    "c_proj",
    "proj",
    "fc",
    "out",
    "output",
    "dense",
    "o",
]
PACKED_NAMES = [
    "in_proj",
    "qkv",
    "qkv_proj",
    "c_attn",
    "wqkv",
    "w_qkv",
    "to_qkv",
    "query_key_value",
]
CUTS = {
    "one after the other": lambda rows, heads: rows.unflatten(0, (3, -1)),
    "side by side in each head": lambda rows, heads: (
        rows.unflatten(0, (heads, 3, -1)).transpose(0, 1).flatten(1, 2)
    ),
    "in turn, feature by feature": lambda rows, heads: rows.unflatten(0, (-1, 3)).transpose(0, 1),
}


@dataclass(frozen=True)
class Reading:
    """A guess where the four maps are.

    Attributes:
        words: for the report; empty for what the names say.
        weights: module → `Weights`.
        sure: whether to keep to it though nothing fits.
        likely: whether to look for known bugs under it.
        num_heads: H, where that is a guess as well.
    """

    words: str
    weights: Callable[[nn.Module], Weights]
    sure: bool = False
    likely: bool = False
    num_heads: int | None = None


def readings(module: nn.Module, num_heads: int) -> list[Reading]:
    """List where the weights may be, the most plausible first; empty if there is no idea."""
    found = []
    for paths in _by_name(module):
        found += _named(module, paths, num_heads)
    return found or list(_in_order(module))


def guessed_heads(module: nn.Module) -> Iterator[tuple[int, str]]:
    """List what H may be where no attribute has a telling name, and in words why."""
    maps = [part for part in module.parameters() if part.ndim == 2]
    width = min((size for part in maps for size in part.shape), default=0)
    told = {n: v for n, v in vars(module).items() if type(v) is int and not n.startswith("_")}
    found = {}
    for name, number in told.items():
        if 1 <= number <= width and width % number == 0 and not _is_width(name):
            found.setdefault(number, f"`{name}` = {number} is taken for the number of heads.")
    for name, number in told.items():
        if 1 <= number <= width and width % number == 0:
            said = f"`{name}` = {number} is taken for head_dim."
            found.setdefault(width // number, said)
    yield from found.items()


def _is_width(name: str) -> bool:
    return any(part in name.lower() for part in ("dim", "width", "size", "d_"))


def _named(module: nn.Module, paths: dict[str, str], num_heads: int) -> list[Reading]:
    out = next((paths[name] for name in OUT_NAMES if name in paths), None)
    packed = next((paths[name] for name in PACKED_NAMES if name in paths), None)
    if packed is not None:
        return list(_packed(module, packed, out, num_heads))
    for name in QUERY_NAMES:
        trio = [name, _exchange(name, "key", "k"), _exchange(name, "value", "v")]
        if all(part in paths for part in trio):
            maps = [paths[part] for part in trio]
            plain = not any(path.startswith(".") for path in maps)
            found = [Reading("", _separate([*maps, out]), sure=plain, likely=True)]
            if out is None:
                found += _with_another_out(module, maps)
            return found
    return []


def _packed(module, packed: str, out: str | None, num_heads: int) -> Iterator[Reading]:
    rows = _map(module, packed)[0].shape[0]
    if rows % (3 * num_heads):
        return
    for order in itertools.permutations("qkv"):
        for words, cut in CUTS.items():
            first = order == ("q", "k", "v")
            plain = first and not words.startswith(("side", "in turn"))
            bare = packed.endswith(TURNED)

            def weights(m, order=order, cut=cut) -> Weights:
                weight, bias = _map(m, packed)
                cuts = cut(weight, num_heads).unbind()
                biases = (None,) * 3 if bias is None else cut(bias, num_heads).unbind()
                maps = dict(zip(order, zip(cuts, biases, strict=True), strict=True))
                last = None if out is None else _map(m, out)
                return Weights(maps["q"], maps["k"], maps["v"], last)

            said = f"In its packed map {', '.join(order)} lie {words}."
            yield Reading("" if plain else said, weights, sure=plain and not bare, likely=first)


def _with_another_out(module: nn.Module, maps: list[str]) -> Iterator[Reading]:
    """Take a map that nothing else accounts for as the output projection."""
    for path, part in module.named_modules():
        if isinstance(part, nn.Linear) and path not in maps:
            words = f"`{path}` is taken for the output projection."
            yield Reading(words, _separate([*maps, path]), likely=True)


def _in_order(module: nn.Module) -> Iterator[Reading]:
    """Take three or four maps without telling names for q, k, v and out, in any order."""
    paths = [path for path, part in module.named_modules() if isinstance(part, nn.Linear)]
    if len(paths) not in (3, 4):
        return
    listed = any(isinstance(part, nn.ModuleList) and len(part) > 2 for part in module.children())
    for order in itertools.permutations(paths):
        first = order == tuple(paths)
        said = ", ".join(f"`{path}`" for path in order)
        words = f"{said} are taken for query, key, value" + (" and output." * (len(paths) == 4))
        four = [*order, None][:4]
        yield Reading(words, _separate(four), sure=first and listed, likely=first)


def _separate(paths: list[str | None]) -> Callable[[nn.Module], Weights]:
    def weights(module: nn.Module) -> Weights:
        return Weights(*(None if p is None else _map(module, p) for p in paths))

    return weights


def _by_name(module: nn.Module) -> Iterator[dict[str, str]]:
    """Map the name of each child, in small letters, to the path of its only linear map.

    A matrix without a module may be stored as (out, in) or as (in, out): one dictionary for each.
    """
    found = {}
    for name, child in module.named_children():
        inside = [path for path, part in child.named_modules() if isinstance(part, nn.Linear)]
        if len(inside) == 1:
            found[name.lower()] = f"{name}.{inside[0]}".rstrip(".")
    bare = _bare(module)
    if not bare:
        yield found
        return
    for end in ("", TURNED):
        yield found | {name.lower().removesuffix("_weight"): f".{name}{end}" for name in bare}


TURNED = ".T"


def _bare(module: nn.Module) -> list[str]:
    """List the matrices among the module's own parameters."""
    return [name for name, part in module.named_parameters(recurse=False) if part.ndim == 2]


def _map(module: nn.Module, path: str) -> tuple[Tensor, Tensor | None]:
    """Return weight and bias of a module, or of a bare parameter: `.name`, `.name.T`."""
    if not path.startswith("."):
        return linear(module.get_submodule(path))
    name = path.removeprefix(".").removesuffix(TURNED)
    weight = getattr(module, name)
    weight = weight.T if path.endswith(TURNED) else weight
    names = [name.replace("weight", "bias"), f"b{name[1:]}", f"{name}_bias"]
    biases = (getattr(module, other, None) for other in names if other != name)
    fitting = (b for b in biases if isinstance(b, Tensor) and b.shape == weight.shape[:1])
    return weight, next(fitting, None)


def _exchange(name: str, word: str, letter: str) -> str:
    """Say the name of the query's map for the key or the value."""
    plural = {"key": "keys", "value": "values"}[word]
    if "queries" in name:
        return name.replace("queries", plural)
    if "query" in name:
        return name.replace("query", word)
    return letter.join(name.rsplit("q", 1))


def linear(part: nn.Linear) -> tuple[Tensor, Tensor | None]:
    """Return weight and bias."""
    return part.weight, part.bias


def packed_rows(packed: tuple[Tensor, Tensor | None]) -> list[tuple[Tensor, Tensor | None]]:
    """Cut q, k and v, one below the other, from the rows of a packed map."""
    weight, bias = packed
    biases = (None,) * 3 if bias is None else bias.chunk(3)
    return list(zip(weight.chunk(3), biases, strict=True))
