"""Draw a reading: as text for a terminal, as HTML for a notebook or a file of its own."""

from __future__ import annotations

import html
from importlib import metadata, resources
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

if TYPE_CHECKING:
    from mha_tutor.read.result import Attention, HeadMaps, Reading, Step

SHADES = " ·░▒▓█"
MOST = 24  # tokens that are drawn
CHAPTERS = {  # the page of the book that tells of a step
    "02_reshape_into_heads": ("merge",),
    "04_score_scale_mix": ("scores", "scale", "softmax", "mix"),
    "05_mask_what_must_not_be_seen": ("mask", "bias"),
    "06_assemble_multi_head_attention": ("query", "key", "value", "output"),
}


def verdict(a: Attention) -> str:
    """Say whether it is explained, and how well."""
    if a.explained:
        return f"explained, {a.error:.0e} (4 roundings are {a.tolerance:.0e})"
    return f"not explained: {a.reason}"


def one_line(a: Attention) -> str:
    """Sum an attention up."""
    if a.query is None:
        return verdict(a)
    _, heads, length, size = a.weights.shape
    kv = f", {a.num_kv_heads} of the keys" if a.num_kv_heads < heads else ""
    parts = [
        f"{heads} heads of {a.head_dim}{kv}, {length} queries, {size} keys",
        a.scale_words.split(";")[0],
        "" if a.axis == "keys" else f"softmax over the {a.axis}",
        "" if a.hidden is None else f"hidden: {a.mask_words}",
        f"bias {a.bias_words}" if a.bias is not None else "",
        verdict(a),
    ]
    return "; ".join(filter(None, parts))


def step_lines(a: Attention) -> list[str]:
    """Return the steps as text, each with the reader's own code; ~ marks what is only run again."""
    lines, last = [], ""
    for s in a.steps:
        lines.append(f"{_place(s):>10} {' ~'[not s.explained]} {s.words}{_shape(s)}")
        lines += [f"{'':13}{s.code}"] if s.code not in ("", last) else []
        last = s.code or last
    return lines


def _place(s: Step) -> str:
    return f"line {s.line}" if s.line else ""


def _shape(s: Step) -> str:
    numbers = " × ".join(map(str, s.shape))
    return f"  [{s.letters} = {numbers}]" if s.letters else f"  [{numbers}]" if numbers else ""


def attention_text(a: Attention) -> str:
    """Return an attention with all its steps."""
    files = list(dict.fromkeys(s.file for s in a.steps if s.file))
    lines = [f"{a.module or 'the layer itself'} ({a.kind}): {one_line(a)}", *files, *step_lines(a)]
    lines += [
        f"{'dropout':>10}  {d.p:g} on the {d.where}, in {d.mode}, line {d.line}" for d in a.dropouts
    ]
    if any(not s.explained for s in a.steps):
        lines.append(f"{'~':>12} is run again from the record, not explained")
    lines += [f"{'note':>10}  {note}" for note in a.notes]
    lines += [f"{'free':>10}  {item} has no influence" for item in a.without_influence]
    return "\n".join(lines)


def reading_text(r: Reading) -> str:
    """Return a reading: one attention with its steps, several with a line each."""
    if not r.attentions:
        lines = [f"{r.title}: no attention found"]
    elif len(r.attentions) == 1:
        lines = [f"{r.title}: one attention", attention_text(r.attentions[0])]
    else:
        done = sum(a.explained for a in r.attentions)
        lines = [f"{r.title}: {len(r.attentions)} attentions, {done} explained"]
        lines += [f"[{i}] {a.module}: {one_line(a)}" for i, a in enumerate(r.attentions)]
        lines.append("Open one of them: reading[0], or reading['name of its module'].")
    lines += [f"dropout {d.p:g} elsewhere, in {d.mode}, line {d.line}" for d in r.dropouts]
    if r.parameters_used or r.parameters_unused:
        used, unused = len(r.parameters_used), r.parameters_unused
        rest = f"; not used: {', '.join(unused[:8])}{' …' * (len(unused) > 8)}" if unused else ""
        lines.append(f"{used} parameters used{rest}")
    return "\n".join([*lines, *r.notes])


def maps_text(m: HeadMaps) -> str:
    """Return the heads as shades, a row for each query."""
    if m.weights is None:
        return f"{m.module}: {m.reason}"
    lines = []
    for h, head in enumerate(m.weights[0, :, :MOST, :MOST]):
        lines.append(f"{m.module} head {h}: rows are queries, darkest is 1")
        names = m.tokens or [str(i) for i in range(len(head))]
        for name, row in zip(names, head, strict=False):
            shades = "".join(SHADES[min(int(6 * w), 5)] * 2 for w in row.nan_to_num().tolist())
            lines.append(f"{name[:12]:>12} {shades}")
    return "\n".join(lines)


# --- HTML ---------------------------------------------------------------------------------


def _cells(weights: Tensor, tokens: list[str] | None, head: int) -> str:
    """Return one head's weights as a small picture; with tokens, each cell says its own."""
    rows = weights[:MOST, :MOST].nan_to_num().tolist()
    if tokens is None:
        paths = [""] * 11
        for i, row in enumerate(rows):
            for j, w in enumerate(row):
                paths[round(10 * w)] += f"M{j} {i}h1v1h-1z"
        marks = [f"<path d='{d}' opacity={n / 10}></path>" for n, d in enumerate(paths) if n and d]
    else:
        names = tokens + [str(i) for i in range(len(tokens), MOST)]
        square = len(rows) == len(rows[0])  # tokens are the queries' too
        marks = [
            f"<rect x={j} y={i} width=1 height=1 opacity={w:.2f}><title>"
            f"{html.escape(f'{names[i] if square else i} → {names[j]}: {w:.2f}')}</title></rect>"
            for i, row in enumerate(rows)
            for j, w in enumerate(row)
        ]
    box = f"0 0 {len(rows[0])} {len(rows)}"
    return (
        f"<figure><svg class=h{head % 4} viewBox='{box}' role=img aria-label='weights of head "
        f"{head}'>{''.join(marks)}</svg><figcaption>head {head}</figcaption></figure>"
    )


def heads_html(weights: Tensor, tokens: list[str] | None = None) -> str:
    """Return the weights of all heads for the first element of the batch."""
    figures = "".join(_cells(head, tokens, h) for h, head in enumerate(weights[0]))
    cut = max(weights.shape[2:]) > MOST
    part = f"<p>Rows are queries, columns keys{f'; the first {MOST}' if cut else ''}.</p>"
    return f"<div class=heads>{figures}</div>{part}"


def attention_html(a: Attention, is_open: bool = True) -> str:
    """Return an attention as something to open and close."""
    book = _book()
    rows = []
    for s in a.steps:
        page = next((page for page, roles in CHAPTERS.items() if s.role in roles), "")
        link = f"<a href='{book}book/{page}.html'>chapter {int(page[:2])}</a>" if page else ""
        place = f"{Path(s.file).name}:{s.line}" if s.line else ""
        rows.append(
            f"<tr{'' if s.explained else ' class=rerun'}><td>{html.escape(s.words)}"
            f"<td>{html.escape(_shape(s).strip(' []'))}<td>{html.escape(place)}"
            f"<code>{html.escape(s.code)}</code><td>{link}"
        )
    more = [f"dropout {d.p:g} on the {d.where}, in {d.mode}, line {d.line}" for d in a.dropouts]
    more += a.notes + [f"{item} has no influence." for item in a.without_influence]
    said = "".join(f"<li>{html.escape(x)}" for x in more)
    heads = "<p class=rerun>In italics: run again from the record, not explained.</p>"
    heads += heads_html(a.weights) if a.explained else ""
    name = html.escape(a.module or "the layer itself")
    return (
        f"<details{' open' * is_open}><summary><b>{name}</b> "
        f"{html.escape(one_line(a))}</summary><table>{''.join(rows)}</table><ul>{said}</ul>"
        f"{heads}</details>"
    )


def reading_html(r: Reading) -> str:
    """Return a reading as HTML for a notebook."""
    few = len(r.attentions) == 1
    body = "".join(attention_html(a, few) for a in r.attentions) or "<p>No attention found.</p>"
    text = reading_text(r).split("\n")
    tail = [line for line in text if line in r.notes or "parameters used" in line]
    notes = "".join(f"<p>{html.escape(line)}</p>" for line in tail)
    title = f"<h3>{html.escape(r.title)}</h3>"
    return f"<div class=mha-read><style>{_css()}</style>{title}{body}{notes}</div>"


def maps_html(m: HeadMaps) -> str:
    """Return the heads of one attention as HTML."""
    body = (
        f"<p>{html.escape(m.reason)}</p>" if m.weights is None else heads_html(m.weights, m.tokens)
    )
    return f"<div class=mha-read><style>{_css()}</style><b>{html.escape(m.module)}</b>{body}</div>"


def page(r: Reading) -> str:
    """Return a whole page, which needs nothing else."""
    return (
        "<!doctype html><html lang=en><meta charset=utf-8>"
        "<meta name=viewport content='width=device-width'><meta name=color-scheme "
        f"content='light dark'><title>{html.escape(r.title)}</title>{reading_html(r)}</html>\n"
    )


def _css() -> str:
    return resources.files("mha_tutor.read").joinpath("reading.css").read_text(encoding="utf-8")


def _book() -> str:
    try:
        urls = metadata.metadata("mha-tutor").get_all("Project-URL") or []
    except metadata.PackageNotFoundError:
        urls = []
    return next((url.split(", ")[1] for url in urls if url.startswith("Book")), "")
