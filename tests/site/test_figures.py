"""The figures in which an element lights up, in a real browser: mouse, touch and keyboard.

What is lit is read from the page as a reader sees it: from boxes, their labels, and where the
cells stand in them. It is compared with NumPy, not with what the figure says of itself.
"""

import contextlib
import itertools

import numpy as np
import pytest

from mha_tutor import compare, explain_einsum, follow, follow_mask

pytestmark = pytest.mark.site

B, L, H, D = 2, 4, 3, 2
E = H * D
X = np.arange(B * L * E).reshape(B, L, E)
SPLIT = X.reshape(B, L, H, D)
HEADS = SPLIT.swapaxes(1, 2)
FOLDED = np.ascontiguousarray(HEADS).reshape(B * H, L, D)
STAGES = [X, SPLIT, HEADS, FOLDED]
MEMORY = [X.ravel(), X.ravel(), X.ravel(), FOLDED.ravel()]  # in storage order
WRONG = X.reshape(B, H, L, D)
PANELS = "abcd"

SCREENS = {"desktop": (1280, 900), "phone": (390, 844)}
SCHEMES = {"light": "background:#fff;color:#111", "dark": "background:#121212;color:#e8e8e8"}

# What a reader sees of figure number n: lit cells with their index, or offset in a strip; the
# readings; whether the page asks for something or is too wide.
SEE = """
(n) => {
  const figure = document.querySelectorAll(".mha")[n];
  const box = (e) => e.getBoundingClientRect();
  const middle = (r) => [r.left + r.width / 2, r.top + r.height / 2];
  const holds = (r, [x, y]) => r.left <= x && x <= r.right && r.top <= y && y <= r.bottom;
  const letter = (e) => [...e.classList].find((c) => "abcde".includes(c));
  const rank = (values, value) =>
    [...new Set(values.map((v) => Math.round(v)))].sort((a, b) => a - b).findIndex(
      (v) => Math.abs(v - value) < 3);
  const visible = (e) => getComputedStyle(e).opacity === "1";
  const yellow = (e) => getComputedStyle(e).backgroundColor === "rgb(255, 213, 74)";

  const indexOf = (cell, panel) => {
    const at = middle(box(cell));
    const frames = [...panel.querySelectorAll(".r")].filter((f) => holds(box(f), at));
    const inner = frames.at(-1);
    const own = figure.querySelectorAll(`i.${letter(panel)}`);
    const cells = [...own, ...panel.querySelectorAll("var")]
      .map((c) => middle(box(c)))
      .filter((c) => !inner || holds(box(inner), c));
    const numbers = frames.map((f) => Number(f.textContent.split(" ").at(-1)));
    return [...numbers, rank(cells.map((c) => c[1]), at[1]), rank(cells.map((c) => c[0]), at[0])];
  };
  const offsetOf = (cell, panel) => {
    const at = middle(box(cell));
    const inRow = [...figure.querySelectorAll(`.k b.${letter(panel)}`)]
      .map((c) => middle(box(c))).filter((c) => Math.abs(c[1] - at[1]) < 3);
    const label = [...panel.querySelectorAll("small")].find(
      (s) => Math.abs(middle(box(s))[1] - at[1]) < 6);
    return Number(label.textContent) + rank(inRow.map((c) => c[0]), at[0]);
  };
  const lit = [...figure.querySelectorAll(".k :is(i, b, s)")]
    .filter((e) => yellow(e) && visible(e))
    .map((e) => {
      const panel = figure.querySelector(`.p.${letter(e)}`);
      const under = [...panel.querySelectorAll("var")].find(
        (v) => Math.hypot(box(v).left - box(e).left, box(v).top - box(e).top) < 1);
      return {
        tag: e.tagName.toLowerCase(), panel: letter(e), text: e.textContent,
        at: e.tagName === "B" ? offsetOf(e, panel) : indexOf(e, panel),
        under: under?.textContent,
      };
    });
  const readings = [...figure.querySelectorAll("u[class]")].filter(visible)
    .map((u) => u.textContent.split("\\n")[0].trim().split(/ +/).map(Number));
  return { lit, readings };
}
"""


@pytest.fixture(scope="module")
def figures():
    x = follow((B, L, E), "BLE")
    right = x.view(B, L, H, D, names="BLHD").transpose(1, 2)
    wrong = x.view(B, H, L, D, names="BHLD")
    mask = np.array([[True, True, True, False], [True, True, False, False]])
    q = np.arange(24.0).reshape(1, 4, 3, 2)
    return {
        "follow": right.reshape(B * H, L, D, names=["n", "L", "D"]),
        "compare": compare(right, wrong),
        "mask": follow_mask(mask.reshape(2, 1, 1, 4), (2, 2, 3, 4)),
        "einsum": explain_einsum("nqhd,nkhd->nhqk", q, q[:, ::-1].copy()),
    }


@pytest.fixture
def open_page(browser, figures, tmp_path):
    """Open a page with some of the figures, in a window of some size and scheme."""
    with contextlib.ExitStack() as stack:

        def open_page(*names, screen="desktop", scheme="light"):
            width, height = SCREENS[screen]
            context = browser.new_context(
                viewport={"width": width, "height": height},
                color_scheme=scheme,
                has_touch=screen == "phone",
                is_mobile=screen == "phone",
                offline=True,
            )
            stack.callback(context.close)
            bodies = "<hr>".join(figures[name]._repr_html_() for name in names)
            path = tmp_path / "page.html"
            path.write_text(
                '<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content="'
                f'width=device-width"><title>Figures</title><body style="margin:16px;'
                f'{SCHEMES[scheme]}"><button>before</button>{bodies}<button>after</button>',
                encoding="utf-8",
            )
            page = context.new_page()
            page.requests, page.errors = [], []
            page.on("request", lambda request: page.requests.append(request.url))
            page.on("console", lambda line: page.errors.append(line.text))
            page.on("pageerror", lambda error: page.errors.append(str(error)))
            page.goto(path.as_uri())
            return page

        yield open_page


def cell(page, n, element, selector):
    """Return the one cell of an element that the selector names."""
    return page.locator(".mha").nth(n).locator(".k").nth(element).locator(selector)


def check_lit(page, element, n=0, stages=STAGES, memory=MEMORY):
    """All cells of one element are lit, each where NumPy has it, and no others."""
    seen = page.evaluate(SEE, n)
    boxes = {c["panel"]: c for c in seen["lit"] if c["tag"] == "i"}
    strips = {c["panel"]: c for c in seen["lit"] if c["tag"] == "b"}
    if element is None:
        assert (seen["lit"], seen["readings"]) == ([], [])
        return
    assert len(seen["lit"]) == len(boxes) + len(strips) == 2 * len(stages)
    panels = PANELS[: len(stages)]
    for panel, array, stored, reading in zip(panels, stages, memory, seen["readings"], strict=True):
        index = tuple(boxes[panel]["at"])
        assert array[index] == int(boxes[panel]["text"]) == element
        assert stored[strips[panel]["at"]] == int(strips[panel]["text"]) == element
        assert tuple(reading) == index


each_scheme = pytest.mark.parametrize("scheme", SCHEMES)
each_screen = pytest.mark.parametrize("screen", SCREENS)


@each_scheme
def test_the_mouse_lights_an_element_everywhere(open_page, scheme):
    page = open_page("follow", scheme=scheme)
    check_lit(page, None)
    # every element from one panel or strip, each panel and strip with every eighth
    ways = [f"{tag}.{panel}" for tag in "ib" for panel in PANELS]
    for element, way in zip(range(B * L * E), itertools.cycle(ways), strict=False):
        cell(page, 0, element, way).hover()
        check_lit(page, element)
    page.mouse.move(2, 2)
    check_lit(page, None)
    assert page.errors == []
    assert len(page.requests) == 1


def test_a_click_stays_and_pointing_goes_before_it(open_page):
    page = open_page("follow")
    cell(page, 0, 44, "i.c").click()
    page.mouse.move(2, 2)
    check_lit(page, 44)
    cell(page, 0, 7, "b.d").hover()
    check_lit(page, 7)
    ring = "e => getComputedStyle(e).boxShadow"
    assert cell(page, 0, 44, "i.a").evaluate(ring) != "none"  # the choice can still be seen
    assert cell(page, 0, 43, "i.a").evaluate(ring) == "none"
    page.mouse.move(2, 2)
    check_lit(page, 44)
    cell(page, 0, 7, "b.d").click()
    page.mouse.move(2, 2)
    check_lit(page, 7)


@each_scheme
def test_a_tap_lights_an_element_and_the_page_stays(open_page, scheme):
    page = open_page("follow", screen="phone", scheme=scheme)
    ways = [f"{tag}.{panel}" for tag in "ib" for panel in PANELS]
    for element, way in zip(range(0, 48, 5), itertools.cycle(ways), strict=False):
        target = cell(page, 0, element, way)
        target.scroll_into_view_if_needed()
        before = page.evaluate("scrollY")
        target.tap()
        check_lit(page, element)
        assert page.evaluate("scrollY") == before, way
    page.locator("button").first.tap()
    check_lit(page, element)


@each_screen
def test_the_keyboard_walks_the_elements_at_one_tab_stop(open_page, screen):
    page = open_page("follow", screen=screen)
    page.locator("button").first.focus()
    page.keyboard.press("Tab")
    check_lit(page, 0)
    outline = "e => getComputedStyle(e).outlineStyle"
    assert cell(page, 0, 0, "i.a").evaluate(outline) == "solid"
    for element in range(1, 48):
        page.keyboard.press("ArrowRight" if element % 2 else "ArrowDown")
        if element % 4 == 3:
            check_lit(page, element)
    page.keyboard.press("ArrowRight")
    check_lit(page, 0)
    page.keyboard.press("ArrowLeft")
    check_lit(page, 47)
    page.keyboard.press("Enter")  # submits nothing
    assert page.url.endswith("page.html")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "after"
    check_lit(page, 47)
    assert cell(page, 0, 47, "i.a").evaluate(outline) == "none"
    page.keyboard.press("Shift+Tab")
    page.keyboard.press("ArrowUp")
    check_lit(page, 46)


def test_the_keyboard_goes_on_from_a_click(open_page):
    page = open_page("follow")
    cell(page, 0, 30, "i.d").click()
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.type") == "radio"
    check_lit(page, 30)
    page.keyboard.press("ArrowRight")
    check_lit(page, 31)  # although the mouse still rests on 30
    page.keyboard.press("ArrowLeft")
    check_lit(page, 30)


def test_figures_on_a_page_do_not_disturb_each_other(open_page):
    page = open_page("follow", "follow")
    cell(page, 0, 12, "i.b").click()
    cell(page, 1, 33, "i.c").click()
    page.mouse.move(2, 2)
    check_lit(page, 12, 0)
    check_lit(page, 33, 1)
    page.locator("button").first.focus()
    page.keyboard.press("Tab")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Tab")
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("Tab")
    check_lit(page, 13, 0)
    check_lit(page, 32, 1)
    assert page.evaluate("document.activeElement.textContent") == "after"


def test_a_screen_reader_hears_where_the_element_is(open_page):
    page = open_page("follow")
    session = page.context.new_cdp_session(page)
    tree = session.send("Accessibility.getFullAXTree")["nodes"]
    tree = [(n["role"]["value"], n["name"]["value"]) for n in tree if "name" in n]
    radios = [name for role, name in tree if role == "radio"]
    assert len(radios) == B * L * E
    said = " ".join(radios[44].split())
    assert said == (
        "44 x: 1 3 2 24+18+2 = 44 .view(2, 4, 3, 2): 1 3 1 0 24+18+2+0 = 44 "
        ".transpose(1, 2): 1 1 3 0 24+2+18+0 = 44 .reshape(6, 4, 2): 4 3 0 32+6+0 = 38"
    )
    assert ("radiogroup", "elements of x") in tree
    # the cells say nothing twice
    assert sum(role == "StaticText" and name == "44" for role, name in tree) <= 1


@each_screen
@each_scheme
def test_figures_fit_the_screen_and_can_be_read(open_page, screen, scheme):
    page = open_page("follow", "compare", "mask", "einsum", screen=screen, scheme=scheme)
    width = SCREENS[screen][0]
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    tops = page.locator(".mha").first.locator(".p").evaluate_all("ps => ps.map(p => p.offsetTop)")
    assert len(set(tops)) == (1 if screen == "desktop" else len(STAGES))
    ink = page.evaluate("getComputedStyle(document.body).color")
    looks = page.locator(".k i").evaluate_all(
        "cells => cells.map(c => [getComputedStyle(c).color, c.scrollWidth <= c.clientWidth,"
        " c.getBoundingClientRect().width, c.getBoundingClientRect().height])"
    )
    assert {color for color, *_ in looks} == {ink}
    assert all(fits for _, fits, *_ in looks)
    assert min(min(w, h) for *_, w, h in looks) >= 24  # a finger's width, by WCAG 2.2


def test_print_keeps_the_choice(open_page):
    page = open_page("follow")
    cell(page, 0, 20, "i.a").click()
    page.mouse.move(2, 2)
    page.emulate_media(media="print")
    check_lit(page, 20)


def test_compare_lights_one_cell_in_each(open_page):
    page = open_page("compare")
    for element in range(0, 48, 7):
        cell(page, 0, element, "i.c").hover()
        seen = page.evaluate(SEE, 0)
        found = {c["panel"]: tuple(c["at"]) for c in seen["lit"] if c["tag"] == "i"}
        arrays = {"a": X, "b": HEADS, "c": WRONG}
        assert {p: array[found[p]] for p, array in arrays.items()} == dict.fromkeys("abc", element)
        outline = cell(page, 0, element, "i.c").evaluate("e => getComputedStyle(e).outlineStyle")
        assert (outline == "dashed") == (found["b"][:3] != found["c"][:3])


@each_screen
def test_a_score_lights_the_mask_element_that_governs_it(open_page, screen):
    page = open_page("mask", screen=screen)
    source = np.broadcast_to(np.arange(8).reshape(2, 1, 1, 4), (2, 2, 3, 4))
    for n, index in enumerate(np.ndindex(source.shape)):
        score = cell(page, 0, n, "i.a")
        score.tap() if screen == "phone" else score.hover()
        lit = {c["tag"]: c for c in page.evaluate(SEE, 0)["lit"]}
        assert sorted(lit) == ["i", "s"]
        assert tuple(lit["i"]["at"]) == index
        assert np.ravel_multi_index(lit["s"]["at"], (2, 1, 1, 4)) == source[index]
        assert lit["s"]["text"] == lit["s"]["under"] == lit["i"]["text"]


def test_an_entry_lights_the_two_rows_it_is_summed_from(open_page):
    page = open_page("einsum")
    for n, (i, h, q, k) in enumerate(np.ndindex(1, 3, 4, 4)):
        cell(page, 0, n, "i.a").hover()
        lit = page.evaluate(SEE, 0)["lit"]
        places = sorted((c["panel"], *c["at"]) for c in lit)
        rows = [("b", i, q, h, d) for d in range(2)] + [("c", i, k, h, d) for d in range(2)]
        assert places == [("a", i, h, q, k), *rows]
        assert all(c["text"] == c["under"] for c in lit if c["tag"] == "s")


# --- the same figures where readers meet them


@each_screen
def test_chapter_2_lights_44_in_the_right_split_and_in_the_wrong_one(browser, base, screen):
    width, height = SCREENS[screen]
    page = browser.new_page(viewport={"width": width, "height": height})
    page.goto(f"{base}/book/02_reshape_into_heads.html", wait_until="domcontentloaded")
    splits = {"stages": [X, HEADS, WRONG], "memory": [X.ravel()] * 3}
    check_lit(page, 44, **splits)  # at first
    cell(page, 0, 9, "i.b").hover()
    check_lit(page, 9, **splits)
    cell(page, 0, 44, "i.c").hover()
    check_lit(page, 44, **splits)
    cell(page, 0, 9, "i.c").click()
    page.locator("article h1").first.hover()
    check_lit(page, 9, **splits)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.close()


def test_figures_leave_code_alone(browser, base):
    """No name in a figure's style is one that colors code, such as .mf, a float."""
    page = browser.new_page()
    page.goto(f"{base}/book/01_split_y_equals_ax.html", wait_until="domcontentloaded")
    paddings = page.locator(".highlight span").evaluate_all(
        "spans => [...new Set(spans.map(s => getComputedStyle(s).padding))]"
    )
    assert paddings == ["0px"]
    page.close()
