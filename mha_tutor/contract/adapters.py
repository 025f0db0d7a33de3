"""How to call somebody else's layer, and where its weights are.

`adapter_for` knows `torch.nn.MultiheadAttention`, this package's layer, timm's and three of
transformers' by the names of their classes, so none of them is imported here. For any other
module it reads the signature of `forward` and the names of the parameters; what it cannot find
out the caller may say. A layer whose weights are not found is judged from outside.
"""

from __future__ import annotations

import contextlib
import copy
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from mha_tutor.contract.readings import (
    Reading,
    guessed_heads,
    linear,
    packed_rows,
    readings,
)
from mha_tutor.contract.steps import Weights

__all__ = ["Adapter", "adapter_for"]

HEAD_NAMES = ["num_heads", "n_heads", "nhead", "n_head", "heads", "num_attention_heads", "h"]
KV_HEAD_NAMES = ["num_kv_heads", "num_key_value_heads", "n_kv_heads", "kv_heads"]
WIDTH_NAMES = [
    "embed_dim",
    "d_model",
    "embed_size",
    "hidden_size",
    "dim",
    "n_embd",
    "d_in",
    "in_dim",
    "E",
]
FOUND = ("Its weights were found, and it is compared with the formula.",)
MASK_NAMES = ["attn_mask", "mask", "attention_mask", "src_mask"]
CAUSAL_NAMES = ["is_causal", "causal"]
# Parts of names of arguments that are no masks, and are left at their defaults.
OTHER_NAMES = ("weight", "return", "output", "cache", "past", "position", "rotary", "head_mask")
OTHER_NAMES += ("scale", "dropout", "gqa")


@dataclass(frozen=True)
class Adapter:
    """How to call a layer.

    Attributes:
        name: what kind of layer this is, in words.
        call: (module, query, key, value, mask, is_causal) → what the layer returns. Batch first,
            boolean mask with True = may attend.
        embed_dim, kdim, vdim, out_dim: widths of query, key, value and output.
        num_heads, num_kv_heads: None if not known.
        weights: module → `Weights`; None if not known.
        self_attention: whether there is one input.
        takes_mask, takes_causal: whether there are such arguments.
        mask_ndim: 4 for (B, 1, L, S), 3 for (B, L, S), 2 for (L, S).
        causal: whether the layer is causal by itself.
        positions: whether the layer itself knows the order of the keys.
        single_tensor: whether it should return one tensor rather than a tuple.
        conventions: property → what its documentation says.
        notes: how it was understood.
        readings: where else its weights may be; see `settled`.
        unknown: why `weights` is None, in words.
        unused: the arguments of `forward` that `call` never passes.
    """

    name: str
    call: Callable[..., Any]
    embed_dim: int
    kdim: int
    vdim: int
    out_dim: int
    num_heads: int | None = None
    num_kv_heads: int | None = None
    weights: Callable[[nn.Module], Weights] | None = None
    self_attention: bool = False
    takes_mask: bool = True
    takes_causal: bool = False
    mask_ndim: int = 4
    causal: bool = False
    positions: bool = False
    single_tensor: bool = True
    conventions: dict[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    readings: tuple[Reading, ...] = ()
    unknown: str = "its weights are not known"
    unused: tuple[str, ...] = ()

    def with_call(self, call: Callable[..., Any]) -> Adapter:
        """Return the same with another way to call."""
        return replace(self, call=call)

    def read_as(self, reading: Reading | None, module: nn.Module) -> Adapter:
        """Return the same with the weights in another place, or judged from outside."""
        guesses = FOUND + tuple(guess.words for guess in self.readings)
        notes = tuple(note for note in self.notes if note not in guesses)
        if reading is None:
            return replace(self, weights=None, notes=notes)
        found = reading.weights(module)
        num_heads = reading.num_heads or self.num_heads
        E, kdim, vdim = (part[0].shape[1] for part in (found.q, found.k, found.v))
        inner = found.q[0].shape[0]
        head_dim = inner // num_heads
        said = (*FOUND, reading.words) if reading.words else FOUND
        return replace(
            self,
            weights=reading.weights,
            embed_dim=E,
            kdim=kdim,
            vdim=vdim,
            out_dim=inner if found.out is None else found.out[0].shape[0],
            num_heads=num_heads,
            num_kv_heads=max(found.k[0].shape[0] // max(head_dim, 1), 1),
            notes=(*notes, *said),
        )


def sorted_out(unused: Sequence[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Part the arguments that may be a mask from those that are plainly something else."""
    others = tuple(n for n in unused if any(part in n.lower() for part in OTHER_NAMES))
    return tuple(n for n in unused if n not in others), others


def said_of_unused(
    whose: str, puzzling: Sequence[str], others: Sequence[str]
) -> tuple[list[str], list[str]]:
    """Say which arguments were never passed: for the head of the report, and for its notes."""
    missing, notes = [], []
    if puzzling:
        missing.append(
            f"Arguments of {whose} that were never passed: {_listed(puzzling)}. A mask among them "
            "was not tried: call it attn_mask (or is_causal, for an option), or pass an `Adapter`."
        )
    if others:
        notes.append(f"Arguments of {whose} left at their defaults: {_listed(others)}.")
    return missing, notes


def _listed(names: Sequence[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def adapter_for(
    module: nn.Module,
    *,
    embed_dim: int | None = None,
    num_heads: int | None = None,
    batch_first: bool = True,
    causal: bool | None = None,
    black_box: bool = False,
    mask_true: str = "attend",
) -> Adapter:
    """Find out how to call a module.

    Args:
        module: the layer.
        embed_dim: its width; read from it if None.
        num_heads: H; read from it if None.
        batch_first: whether it takes (B, L, E) rather than (L, B, E); known layers tell.
        causal: whether it is causal by itself.
        black_box: whether to forget what its parameters are called.
        mask_true: what True means in its masks, "attend" or "hide"; for the notes.

    Raises:
        ValueError: its width is not given and cannot be read from it.
    """
    kind = f"{type(module).__module__}.{type(module).__name__}"
    for ending, make in KNOWN.items():
        if not black_box and _is_known(kind, ending):
            return make(module)
    adapter = _generic(module, embed_dim, num_heads, batch_first, causal, black_box)
    if not adapter.takes_mask:
        return adapter
    axes = {4: "(B, 1, L, S)", 3: "(B, L, S)", 2: "(L, S)"}[adapter.mask_ndim]
    said = f"Masks are passed as {axes}, True = may {'not ' * (mask_true == 'hide')}attend."
    return replace(adapter, notes=(*adapter.notes, said))


def _is_known(kind: str, ending: str) -> bool:
    package, _, name = ending.partition(":")
    return kind.startswith(package) and kind.endswith("." + name)


# --- layers that are known -----------------------------------------------------------------------


def _ours(module) -> Adapter:
    def call(module, query, key, value, mask, is_causal):
        if key is query and value is query:
            return module(query, attn_mask=mask, is_causal=is_causal)
        return module(query, key, value, attn_mask=mask, is_causal=is_causal)

    def weights(module):
        maps = (module.q_proj, module.k_proj, module.v_proj, module.out_proj)
        return Weights(*map(linear, maps))

    E = module.embed_dim
    kdim, vdim = module.k_proj.in_features, module.v_proj.in_features
    return Adapter(
        "mha_tutor.MultiHeadAttention",
        call,
        E,
        kdim,
        vdim,
        E,
        module.num_heads,
        module.num_heads,
        weights,
        takes_causal=True,
    )


def _torch_module(module: nn.MultiheadAttention) -> Adapter:
    def call(module, query, key, value, mask, is_causal):
        L, S = query.shape[1], key.shape[1]
        if is_causal and mask is None:
            mask = torch.ones(L, S, dtype=torch.bool, device=query.device).tril()
        if mask is not None:
            if mask.dtype == torch.bool:
                mask = ~mask
            if mask.ndim == 4:
                full = mask.expand(query.shape[0], module.num_heads, L, S)
                mask = full.reshape(-1, L, S)
            elif mask.ndim == 2:
                mask = mask.expand(L, S)
        x = [query, key, value]
        if not module.batch_first:
            x = [query.transpose(0, 1)]
            x += x * 2 if key is query else [key.transpose(0, 1), value.transpose(0, 1)]
        out, weights = module(*x, attn_mask=mask, need_weights=False, is_causal=is_causal)
        return (out if module.batch_first else out.transpose(0, 1)), weights

    def weights(module):
        E = module.embed_dim
        if module.in_proj_weight is None:
            w = [module.q_proj_weight, module.k_proj_weight, module.v_proj_weight]
        else:
            w = module.in_proj_weight.split(E)
        b = [None] * 3 if module.in_proj_bias is None else module.in_proj_bias.split(E)
        return Weights(*zip(w, b, strict=True), linear(module.out_proj))

    E = module.embed_dim
    plain = module.bias_k is None and not module.add_zero_attn
    return Adapter(
        "torch.nn.MultiheadAttention",
        call,
        E,
        module.kdim,
        module.vdim,
        E,
        module.num_heads,
        module.num_heads,
        weights if plain else None,
        takes_causal=True,
        single_tensor=False,
        conventions={
            "polarity": "In this layer True means “may not attend”: torch.nn.MultiheadAttention "
            "documents it so, the opposite of torch's scaled_dot_product_attention.",
            "empty row": "A query that may attend to nothing gets NaN in some modes of this layer "
            "(with need_weights=True, and in its fast path); see pytorch issue 41508.",
            "one tensor": "It returns the pair (output, weights).",
            "mask with causal": "`is_causal` is a hint in this layer, next to a mask that must be "
            "given as well; alone it is an error.",
        },
        notes=(
            "As torch.nn.MultiheadAttention: masks turned over before each call, need_weights "
            "is False; `is_causal` is only a hint there, so the causal mask is passed.",
        )
        + (() if module.batch_first else ("Called with (L, B, E): batch_first is False.",)),
    )


def _timm(module) -> Adapter:
    E = module.proj.in_features
    extras = [getattr(module, name, None) for name in ("q_norm", "k_norm", "norm")]
    plain = all(part is None or isinstance(part, nn.Identity) for part in extras)
    accepts = inspect.signature(module.forward).parameters
    takes_mask = "attn_mask" in accepts

    def call(module, query, key, value, mask, is_causal):
        options = {} if mask is None else {"attn_mask": mask}
        if is_causal:
            options["is_causal"] = True
        return module(query, **options)

    def weights(module):
        return Weights(*packed_rows(linear(module.qkv)), linear(module.proj))

    E_in = module.qkv.in_features
    return Adapter(
        "timm's Attention",
        call,
        E_in,
        E_in,
        E_in,
        module.proj.out_features if plain else E,
        module.num_heads,
        module.num_heads,
        weights if plain else None,
        self_attention=True,
        takes_mask=takes_mask,
        takes_causal="is_causal" in accepts,
        conventions={
            "empty row: nan": "Without fused attention a query that may attend to nothing gets "
            "NaN, the textbook's formula; with it zeros (measured with timm 1.0).",
            "mask with causal": "It accepts both: fused attention applies both, the other path "
            "drops the mask (measured with timm 1.0, not documented); pass one of them.",
        },
        notes=("As timm's Attention: q, k and v are rows of `qkv`, in this order.",),
    )


def _additive(mask: Tensor | None, query: Tensor) -> Tensor | None:
    """Turn a boolean mask into the additive one of transformers, (B, 1, L, S)."""
    if mask is None:
        return None
    L = query.shape[1]
    if mask.dtype == torch.bool:
        zeros = torch.zeros(mask.shape, dtype=query.dtype, device=query.device)
        mask = zeros.masked_fill(~mask, torch.finfo(query.dtype).min)
    return mask.expand(query.shape[0], 1, L, mask.shape[-1])


TRANSFORMERS = {
    "one tensor": "It returns a tuple, the output first.",
    "polarity": "Its mask is added to the scores: 0 may attend, the lowest number may not.",
    "empty row": "A query that may attend to nothing gets the mean of the masked values: masked "
    "scores get the lowest finite number, and the model is trusted to have no such row.",
}


def _bert(module) -> Adapter:
    def call(module, query, key, value, mask, is_causal):
        return module(query, attention_mask=_additive(mask, query))

    def weights(module):
        return Weights(*(linear(getattr(module, n)) for n in ("query", "key", "value")), None)

    E, A = module.query.in_features, module.query.out_features
    H = module.num_attention_heads
    return Adapter(
        "transformers' BertSelfAttention",
        call,
        E,
        E,
        E,
        A,
        H,
        H,
        weights,
        self_attention=True,
        single_tensor=False,
        conventions=TRANSFORMERS,
        notes=("As transformers' BERT: its output projection lies in another module.",),
    )


def _gpt2(module) -> Adapter:
    def call(module, query, key, value, mask, is_causal):
        if mask is None:
            mask = torch.ones(query.shape[1], query.shape[1], dtype=torch.bool).tril()
            mask = mask.to(query.device)
        elif mask.dtype == torch.bool:
            L, S = mask.shape[-2:]
            L, S = query.shape[1], S
            mask = mask & torch.ones(L, S, dtype=torch.bool, device=mask.device).tril()
        else:
            L = query.shape[1]
            future = ~torch.ones(L, L, dtype=torch.bool, device=mask.device).tril()
            mask = mask.masked_fill(future, torch.finfo(query.dtype).min)
        return module(query, attention_mask=_additive(mask, query))

    def weights(module):
        # transformers' Conv1D stores (in, out).
        packed = module.c_attn.weight.T, module.c_attn.bias
        return Weights(*packed_rows(packed), (module.c_proj.weight.T, module.c_proj.bias))

    E = module.embed_dim
    return Adapter(
        "transformers' GPT2Attention",
        call,
        E,
        E,
        E,
        E,
        module.num_heads,
        module.num_heads,
        weights,
        self_attention=True,
        causal=True,
        single_tensor=False,
        conventions=TRANSFORMERS
        | {
            "not contiguous": "Its Conv1D calls `view` on the input, and so refuses one that is "
            "not contiguous (measured with transformers 5.23); models pass contiguous ones.",
        },
        notes=("As transformers' GPT-2: causal, with the mask that the model would pass.",),
    )


def _llama(module) -> Adapter:
    D = module.head_dim

    def call(module, query, key, value, mask, is_causal):
        B, L, _ = query.shape
        ones = torch.ones(B, L, D, dtype=query.dtype, device=query.device)
        causal = torch.ones(L, L, dtype=torch.bool, device=query.device).tril()
        if mask is None:
            mask = causal
        elif mask.dtype == torch.bool:
            mask = mask & causal
        else:
            mask = mask.masked_fill(~causal, torch.finfo(query.dtype).min)
        return module(
            query,
            position_embeddings=(ones, torch.zeros_like(ones)),
            attention_mask=_additive(mask, query),
        )

    def weights(module):
        return Weights(*(linear(getattr(module, f"{name}_proj")) for name in "qkvo"))

    E = module.q_proj.in_features
    return Adapter(
        "transformers' LlamaAttention",
        call,
        E,
        E,
        E,
        module.o_proj.out_features,
        module.q_proj.out_features // D,
        module.k_proj.out_features // D,
        weights,
        self_attention=True,
        causal=True,
        positions=True,
        single_tensor=False,
        conventions=TRANSFORMERS,
        notes=(
            "As transformers' Llama: causal, with the mask that the model would pass, and rotary "
            "positions of angle 0, so that the rest can be compared number for number.",
        ),
    )


KNOWN: dict[str, Callable[[Any], Adapter]] = {
    "mha_tutor.multihead:MultiHeadAttention": _ours,
    "torch.nn.:MultiheadAttention": _torch_module,
    "timm.:Attention": _timm,
    "transformers.:BertSelfAttention": _bert,
    "transformers.:GPT2Attention": _gpt2,
    "transformers.:LlamaAttention": _llama,
}


# --- any other layer -----------------------------------------------------------------------------


def _generic(module, embed_dim, num_heads, batch_first, causal, black_box) -> Adapter:
    names = [
        p.name
        for p in inspect.signature(module.forward).parameters.values()
        if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)
    ]
    mask_name = next((n for n in MASK_NAMES if n in names), None)
    causal_name = next((n for n in CAUSAL_NAMES if n in names), None)
    passed = (mask_name, causal_name)
    self_attention = _is_self_attention(module)
    num_heads = num_heads or _attribute(module, HEAD_NAMES)
    guesses = [] if black_box else _guesses(module, num_heads)
    embed_dim = embed_dim or _attribute(module, WIDTH_NAMES)
    if embed_dim is None:
        widths = (m.in_features for m in module.modules() if isinstance(m, nn.Linear))
        embed_dim = next(widths, None)
    if embed_dim is None:
        matrices = (p for p in module.parameters() if p.ndim == 2)
        embed_dim = next((min(p.shape) for p in matrices), None)
    if embed_dim is None:
        raise ValueError("the width of the layer is not known; pass embed_dim")
    ndim = 4

    def call(module, query, key, value, mask, is_causal, ndim=ndim):
        options = {}
        if mask is not None:
            options[mask_name] = _reshaped(mask, ndim, query, key)
        if is_causal:
            options[causal_name] = True
        x = [query] if self_attention else [query, key, value]
        if not batch_first:
            x = [t.transpose(0, 1) for t in x]
        out = module(*x, **options)
        if batch_first:
            return out
        if isinstance(out, Tensor):
            return out.transpose(0, 1)
        return (out[0].transpose(0, 1), *out[1:])

    adapter = Adapter(
        type(module).__name__,
        call,
        embed_dim,
        embed_dim,
        embed_dim,
        embed_dim,
        num_heads,
        num_heads,
        self_attention=self_attention,
        takes_mask=mask_name is not None,
        takes_causal=causal_name is not None,
        causal=bool(causal),
        readings=tuple(guesses),
        unknown=_why_unknown(black_box, num_heads, guesses),
        unused=tuple(n for n in names[1 if self_attention else 3 :] if n not in passed),
    )
    adapter = adapter.read_as(guesses[0] if guesses and guesses[0].sure else None, module)
    return _with_mask_axes(module, adapter, call) if mask_name else adapter


def _guesses(module: nn.Module, num_heads: int | None) -> list[Reading]:
    """List where the weights may be, and where H is not known what it may be, too."""
    if num_heads is not None:
        return readings(module, num_heads)
    return [
        replace(reading, num_heads=H, sure=False, words=f"{words} {reading.words}".rstrip())
        for H, words in guessed_heads(module)
        for reading in readings(module, H)
    ]


def _why_unknown(black_box: bool, num_heads: int | None, guesses: Sequence[Reading]) -> str:
    if black_box:
        return "its weights were not looked for, as you say"
    if guesses:
        return "its weights were not found where they were looked for"
    if num_heads is None:
        return "its weights were not found, and its number of heads is not known"
    return "its weights were not found"


def _is_self_attention(module: nn.Module) -> bool:
    """Tell whether `forward` wants one tensor: no second or third that looks like key and value."""
    parameters = list(inspect.signature(module.forward).parameters.values())
    names = [p.name.lower() for p in parameters]
    if len(names) < 3 or names[1] in MASK_NAMES + CAUSAL_NAMES:
        return True
    if names[2] in MASK_NAMES + CAUSAL_NAMES:
        return True
    return not (names[1].startswith("k") or all(p.default is p.empty for p in parameters[:3]))


def _reshaped(mask: Tensor, ndim: int, query: Tensor, key: Tensor) -> Tensor:
    """Give the mask the number of axes that the layer takes."""
    B, L, S = query.shape[0], query.shape[1], key.shape[1]
    if mask.ndim == 4:
        mask = mask.expand(B, 1, L, S) if ndim != 4 or mask.shape[-2] != L else mask
    if ndim == 4:
        return mask if mask.ndim == 4 else mask.expand(B, 1, L, S)
    if ndim == 3:
        return mask[:, 0] if mask.ndim == 4 else mask.expand(B, L, S)
    return mask[0, 0] if mask.ndim == 4 else mask


def _with_mask_axes(module: nn.Module, adapter: Adapter, call: Callable[..., Any]) -> Adapter:
    """Try which number of axes the layer's mask has: 4, 3 or 2."""
    parameter = next(module.parameters(), None)
    like = {} if parameter is None else {"dtype": parameter.dtype, "device": parameter.device}
    B, L = 2, 5
    S = L if adapter.self_attention else 7
    query = torch.ones(B, L, adapter.embed_dim, **like)
    key = query if adapter.self_attention else torch.ones(B, S, adapter.kdim, **like)
    value = query if adapter.self_attention else torch.ones(B, S, adapter.vdim, **like)
    mask = torch.ones(B, 1, L, S, dtype=torch.bool, device=query.device)

    with contextlib.suppress(Exception):
        module = copy.deepcopy(module)  # a call may leave something behind

    def attempt(ndim):
        with torch.no_grad():
            out = call(module, query, key, value, mask, False, ndim=ndim)
        out = out[0] if isinstance(out, (tuple, list)) else out
        return isinstance(out, Tensor) and tuple(out.shape[:2]) == (B, L)

    for ndim in (4, 3, 2):
        try:
            if attempt(ndim):
                break
        except Exception:
            continue
    else:
        ndim = 4

    def negotiated(module, query, key, value, mask, is_causal):
        return call(module, query, key, value, mask, is_causal, ndim=ndim)

    return replace(adapter, call=negotiated, mask_ndim=ndim)


def _attribute(module: nn.Module, names: list[str]) -> int | None:
    for name in names:
        value = getattr(module, name, None)
        if isinstance(value, int) and not isinstance(value, bool) and value > 0:
            return value
    return None
