"""A figure in which you point at an element and see it light up everywhere, with no script.

An element is one `<span>` that holds all its cells, wherever they stand; so the rule that lights
them is one for all, and two figures on a page need no names that differ. Each element has two
native radio buttons. The first is what the keyboard and a screen reader meet. The second is what
a click checks: it is not rendered until then, so that the page does not scroll to it.
"""

from __future__ import annotations

import hashlib
import html
import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from mha_tutor.figures.boxes import BETWEEN, CELL, LABEL, SMALL, Block, Strip, shelves
from mha_tutor.palette import HEAD_COLORS, HEAD_GLYPHS

LETTERS = "abcdeijlnoqsuvwxyz"  # a class for each panel; f, g, h, k, m, p, r and t are taken
MOST_PANELS = len(LETTERS)
RADIO = "<input type=radio name=e data-lm-suppress-shortcuts"  # or JupyterLab takes the arrows
LINE = 1.3  # the height of a line of text, in em
HATCH = (
    "repeating-linear-gradient(135deg,color-mix(in srgb,currentcolor 28%,transparent) 0 1px,"
    "transparent 0 4px)"
)
MARKS = {
    "dashed": "outline:2px dashed;outline-offset:-3px",
    "hatched": f"background-image:{HATCH}",
}
CODE = 0.85  # the font of a panel's text, against the figure's
CHARACTER = 0.605  # of a monospaced font


@dataclass(frozen=True)
class Panel:
    """One array of a figure: its title, its cells, what is said of it, its memory.

    Attributes:
        title: code that makes it.
        notes: lines in words, below the title.
        block: where its cells stand.
        table: lines in a monospaced font, below the cells.
        reading: the row and the column of the table where the element that is lit says its own.
        reading_width: of the longest of these lines, in characters.
        memory: the title of the strip.
        strip: where the places of its memory stand, or None.
        still: cells that are only there to be read: their place, text and class.
    """

    title: str
    notes: tuple[str, ...]
    block: Block
    cell_width: float
    table: tuple[str, ...] = ()
    reading: tuple[int, int] = (0, 0)
    reading_width: int = 0
    memory: str = ""
    strip: Strip | None = None
    still: tuple[tuple[tuple[int, ...], str, str], ...] = ()

    @property
    def top(self) -> float:
        """Where the cells begin."""
        return round(LINE * (1 + len(self.notes)) + 0.4, 2)

    def table_top(self, room: float) -> float:
        """Where the table begins, if the cells are given so much room."""
        return round(self.top + room + 0.5, 2)

    def strip_top(self, room: float) -> float:
        """Where the strip begins."""
        return round(self.table_top(room) + LINE * (len(self.table) + 1) * CODE + 0.5, 2)

    def height(self, room: float) -> float:
        """Return the height, if the cells are given so much room."""
        if self.strip:
            return round(self.strip_top(room) + self.strip.height, 2)
        return round(self.table_top(room) + LINE * CODE * len(self.table), 2)

    @property
    def width(self) -> float:
        """The width that all parts need."""
        texts = [len(self.title), *map(len, self.table), self.reading[1] + self.reading_width]
        words = max(map(len, (*self.notes, self.memory)), default=0) * SMALL * 0.56
        strip = self.strip.width if self.strip else 0
        return round(max(self.block.width, max(texts) * CHARACTER * CODE, words, strip), 1)


@dataclass(frozen=True)
class Element:
    """What lights up together.

    Attributes:
        name: what it is called aloud.
        text: what is written in its cells.
        cells: for each panel where it stands, or None.
        places: for each panel its place in memory, or None.
        readings: for each panel the lines to show when it is lit.
        sources: cells of other elements, lit with it: panel, index and text.
        head: its color, or None.
        marked: it is marked in the figure's marked panels.
        chosen: it is lit at first.
    """

    name: str
    text: str
    cells: tuple[tuple[int, ...] | None, ...]
    places: tuple[int | None, ...]
    readings: tuple[str, ...]
    sources: tuple[tuple[int, tuple[int, ...], str], ...] = ()
    head: int | None = None
    marked: bool = False
    chosen: bool = False


@dataclass(frozen=True)
class Figure:
    """Panels, the elements that stand in them, and the words around."""

    label: str
    lead: str
    panels: Sequence[Panel]
    elements: Sequence[Element]
    heads: int = 0
    marked_panels: frozenset[int] = frozenset()
    mark: str = "dashed"
    footer: tuple[str, ...] = ()
    faded: frozenset[tuple[int, int]] = field(default=frozenset())  # (panel, place)

    def html(self) -> str:
        """Return the figure: the same bytes for the same content."""
        body = self._body()
        rules = self._rules()
        name = "f" + hashlib.sha256((rules + body).encode()).hexdigest()[:7]
        style = CSS + rules.replace("§", f".{name} ")
        return f'<div class="mf {name}"><style>\n{style}</style>\n{body}</div>'

    def _rules(self) -> str:
        """Write what differs from figure to figure: where each panel stands, for each width."""
        lines = []
        for i, panel in enumerate(self.panels):
            rule = f"--w:{panel.cell_width:g};--t:{panel.top:g}"
            rule += f";--l:{panel.reading[0]};--n:{panel.reading[1]}"
            rule += f";--v:{panel.strip.cell_width:g}" if panel.strip else ""
            lines.append(f"{_home(i)}{{{rule}}}")
            said = re.sub(r'[<"\\]', "", panel.title)
            lines.append(f'§u.{_letter(i)}::before{{content:"{said}: "}}')
        for i in sorted(self.marked_panels):
            lines.append(f"§.m i.{_letter(i)}{{{MARKS[self.mark]}}}")
        for need, rows in shelves([panel.width for panel in self.panels]).items():
            text = self._places(rows)
            lines.append(f"@container (min-width:{need:g}em){{{text}}}" if need else text)
        return "\n".join(lines) + "\n"

    def _places(self, rows: Sequence[Sequence[int]]) -> str:
        """Write where the panels stand in a page; in a row, cells get the same room if they can."""
        rules, y = [], 0.0
        for row in rows:
            x = bottom = 0.0
            tallest = max(self.panels[i].block.height for i in row)
            for i in row:
                panel = self.panels[i]
                room = tallest if tallest - panel.block.height <= 6 else panel.block.height
                rule = f"--X:{x:g};--Y:{y:g};--u:{panel.table_top(room):g}"
                rule += f";--m:{panel.strip_top(room):g}" if panel.strip else ""
                rules.append(f"{_home(i)}{{{rule}}}")
                x = round(x + panel.width + BETWEEN, 1)
                bottom = max(bottom, panel.height(room))
            y = round(y + bottom + 1.6, 1)
        return f"§.g{{height:{y:g}em}}{''.join(rules)}"

    def _body(self) -> str:
        lines = ["<form method=dialog>", f"<p>{html.escape(self.lead)}{self._legend()}</p>"]
        lines.append("<div class=g>")
        for i, panel in enumerate(self.panels):
            lines.append(self._panel(i, panel))
        lines.append(f'<div role=radiogroup aria-label="{html.escape(self.label)}">')
        lines += map(self._element, self.elements)
        lines.append("</div></div>")
        lines += [f"<p>{html.escape(line)}</p>" for line in self.footer]
        return "\n".join([*lines, "</form>"])

    def _legend(self) -> str:
        return "".join(f" <span class=q{h}><em></em> head {h}</span>" for h in range(self.heads))

    def _panel(self, i: int, panel: Panel) -> str:
        parts = [
            f'<div class="p {_letter(i)}">',
            f"<b>{html.escape(panel.title)}</b>",
            *(f"<span>{html.escape(note)}</span>" for note in panel.notes),
        ]
        if panel.table:
            text = html.escape("\n".join(panel.table))
            parts.append(f"<samp>{text}</samp>")
        parts.append("<span aria-hidden=true>")
        for f in panel.block.frames:
            box = f"--x:{f.x:g};--y:{f.y:g};width:{f.width:g}em;height:{f.height:g}em"
            parts.append(f'<span class=r style="{box}"><s>{html.escape(f.label)}</s></span>')
        for index, text, kind in panel.still:
            x, y = panel.block.cells[index]
            tint = f" class={kind}" if kind else ""
            parts.append(f"<var{tint} style=--x:{x:g};--y:{y:g}>{html.escape(text)}</var>")
        for y, offset in panel.strip.rows if panel.strip else ():
            parts.append(f"<small style=--y:{y:g}>{offset}</small>")
        parts.append("</span>")
        if panel.strip:
            parts.append(f"<span class=t>{html.escape(panel.memory)}</span>")
        return "".join(parts) + "</div>"

    def _element(self, e: Element) -> str:
        classes = ["k"]
        classes += [] if e.head is None else [f"q{e.head}"]
        classes += ["m"] if e.marked else []
        name = html.escape(e.name)
        said = "".join(
            f"<u class={_letter(i)}>{html.escape(text)}</u>"
            for i, text in enumerate(e.readings)
            if text
        )
        home, cells = self._cells(e)
        return (
            f"<span class={_quoted(' '.join(classes))} style={home}>"
            f"<label>{RADIO}{' checked' * e.chosen}><u>{name}</u>{said}</label>"
            f"<label><span aria-hidden=true>{cells}</span>"
            f"{RADIO} aria-label={_quoted(name)}></label></span>"
        )

    def _cells(self, e: Element) -> tuple[str, str]:
        """Return the style of the element and its cells; a cell has a style only if it differs."""
        home: dict[str, str] = {}
        text, cells = html.escape(e.text), []

        def cell(tag: str, i: int, text: str, axes: str, point, more: str = "") -> None:
            style = ";".join(
                f"--{axis}:{number:g}" for axis, number in zip(axes, point, strict=True)
            )
            own = "" if home.setdefault(tag, style) == style else f" style={style}"
            cells.append(f"<{tag} class={_quoted(_letter(i) + more)}{own}>{text}</{tag}>")

        for i, (panel, index, place) in enumerate(zip(self.panels, e.cells, e.places, strict=True)):
            if index is not None:
                cell("i", i, text, "xy", panel.block.cells[index])
            if place is not None:
                more = " f" if (i, place) in self.faded else ""
                cell("b", i, text, "pq", panel.strip.cells[place], more)
        for i, index, text in e.sources:
            x, y = self.panels[i].block.cells[index]
            style = f"--x:{x:g};--y:{y:g}"
            cells.append(f"<s class={_letter(i)} style={style}>{html.escape(text)}</s>")
        return ";".join(home.values()), "".join(cells)


def _quoted(text: str) -> str:
    """Return an attribute's value, with quotes if it needs them."""
    return text if re.fullmatch(r"[\w.-]+", text) else f'"{text}"'


def _home(i: int) -> str:
    """Return the selector of what stands in a panel; all radio buttons stand in the first."""
    return f"§.{_letter(i)}" if i else "§.a,§input"


def _letter(i: int) -> str:
    return LETTERS[i]


_TINTS = "".join(
    f'.mf .q{h}{{--c:{color};--g:"{glyph}"}}\n'
    for h, (color, glyph) in enumerate(zip(HEAD_COLORS, HEAD_GLYPHS, strict=True))
)
CSS = f"""\
.mf{{container-type:inline-size;min-width:18em;overflow-x:auto;padding:3px;margin-top:.6em;\
font:13px/{LINE} system-ui,sans-serif;text-align:left;print-color-adjust:exact}}
.mf p{{margin:0 0 .8em;font-size:1em}}
.mf p span{{white-space:nowrap}}
.mf .g,.mf form{{position:relative;margin:0;break-inside:avoid}}
.mf .p{{position:absolute;left:calc(var(--X)*1em);top:calc(var(--Y)*1em)}}
.mf .p>*{{display:block;white-space:pre;font-size:{SMALL}em;line-height:1.53;opacity:.8}}
.mf .p>b,.mf samp,.mf u{{font:600 {CODE}em/1.53 monospace;opacity:1}}
.mf .p>[aria-hidden]{{font-size:1em;opacity:1}}
.mf .p>.t{{position:absolute;top:calc((var(--m) - 1.2)*1em/{SMALL})}}
.mf .p>samp,.mf u{{all:unset;position:absolute;white-space:pre;font:{CODE}em/{LINE} monospace;\
left:0;top:calc(var(--u)*1em/{CODE})}}
.mf .r,.mf .p small,.mf var,.mf i,.mf .k b,.mf .k s,.mf em{{all:unset;position:absolute;\
box-sizing:border-box;left:calc(var(--x)*1em);top:calc((var(--t) + var(--y))*1em);\
border:1px solid color-mix(in srgb,currentcolor 35%,transparent)}}
.mf .r{{border-radius:4px}}
.mf .r s{{all:unset;display:block;font-size:{SMALL}em;line-height:{LABEL / SMALL:.2f};\
padding-left:.3em;opacity:.8}}
.mf .p small{{border:0;font-size:{SMALL}em;opacity:.8;line-height:{1.4 / SMALL:.2f};\
top:calc((var(--m) + var(--y))*1em/{SMALL});left:0}}
.mf var,.mf i,.mf .k b,.mf .k s,.mf em{{text-align:center;height:{CELL}em;\
width:calc(var(--w)*1em);line-height:{CELL - 0.1}em;\
background:color-mix(in srgb,var(--c,transparent) 30%,transparent)}}
.mf i,.mf .k b,.mf .k s,.mf input{{left:calc((var(--X) + var(--x))*1em);\
top:calc((var(--Y) + var(--t) + var(--y))*1em);cursor:pointer;touch-action:manipulation}}
.mf .k b{{font-size:{SMALL}em;height:{1.4 / SMALL:.3f}em;width:calc(var(--v)*1em/{SMALL});\
line-height:{1.3 / SMALL:.3f}em;left:calc((var(--X) + var(--p))*1em/{SMALL});\
top:calc((var(--Y) + var(--m) + var(--q))*1em/{SMALL})}}
.mf .k .f{{opacity:.45}}
.mf var.x{{background-image:{HATCH}}}
.mf i::after,.mf var::after,.mf em::after{{content:var(--g,"");position:absolute;right:1px;top:1px;\
font-size:.5em;line-height:1;color:color-mix(in srgb,var(--c) 70%,currentcolor)}}
.mf em{{position:relative;display:inline-block;top:0;left:0;width:1.3em;height:1.3em;\
vertical-align:-.25em;margin-left:.8em}}
.mf u{{left:calc(var(--X)*1em/{CODE} + var(--n)*1ch);pointer-events:none;opacity:0;\
top:calc((var(--Y) + var(--u))*1em/{CODE} + var(--l)*{LINE}em)}}
.mf u:not([class]){{left:0;top:0}}
.mf u::before{{position:absolute;opacity:0;width:0}}
.mf input{{position:absolute;margin:0;width:{CELL}em;height:{CELL}em}}
.mf input,.mf .k s{{opacity:0;pointer-events:none}}
.mf label+label input:not(:checked),.mf .k:has(label+label :checked) label:first-child input\
{{display:none}}
.mf .k:has(:checked) :is(i,b){{box-shadow:0 0 0 2px currentcolor;z-index:1}}
"""
CSS += """\
:is(.mf:not(:has(.k:hover)) .k:has(:checked),.mf .k:has(:focus-visible),\
.mf:not(:has(:focus-visible)) .k:hover){
& :is(i,b,s){background:#ffd54a!important;color:#111;font-weight:700;\
box-shadow:0 0 0 2px #111,0 0 0 3px #ffd54a;opacity:1;z-index:2;forced-color-adjust:none}
& b{box-shadow:0 0 0 1.5px #111,0 0 0 2.5px #ffd54a}
& u[class]{opacity:1}}
.mf .k:has(:focus-visible) :is(i,b){outline:3px solid #1a73e8;outline-offset:3px}
"""
CSS += _TINTS
