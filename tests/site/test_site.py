"""The built site, page by page, as a reader's browser sees it."""

import functools
import html.parser
import re
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

yaml = pytest.importorskip("yaml")

pytestmark = pytest.mark.site

ROOT = Path(__file__).resolve().parents[2]
CONFIG = yaml.safe_load((ROOT / "_config.yml").read_text(encoding="utf-8"))
TOC = yaml.safe_load((ROOT / "_toc.yml").read_text(encoding="utf-8"))
CHAPTERS = [chapter for part in TOC["parts"] for chapter in part["chapters"]]
PAGES = [TOC["root"]]
for chapter in CHAPTERS:
    PAGES += [page["file"] for page in (chapter, *chapter.get("sections", []))]
NOTEBOOKS = [page for page in PAGES if (ROOT / f"{page}.ipynb").exists()]
VIEWPORTS = {"desktop": (1280, 900), "phone": (390, 844)}

# A dollar, a fence, a role, a directive, a substitution or a target that was not processed.
MARKUP = re.compile(
    r"\$|`{3}|:{3}|\{\{|\}\}|\\[()\[\]]|\{[a-z][a-z:-]*\}|^\([\w-]+\)=|^:\w+:", re.MULTILINE
)

# Everything the tests ask of a page, read in one go.
READ = """
async () => {
  if (window.MathJax?.startup?.promise) await window.MathJax.startup.promise;
  await document.fonts.ready;
  // Lazy images load when they are scrolled to.
  for (const image of document.images) image.loading = "eager";
  await Promise.all([...document.images].map((image) => image.decode().catch(() => null)));
  const article = document.querySelector("article");

  const rest = article.cloneNode(true);
  const silent = "pre, code, script, style, mjx-container, .math";
  rest.querySelectorAll(silent).forEach((node) => node.remove());

  const width = document.documentElement.clientWidth;
  const clipped = (node) => {
    for (let up = node.parentElement; up && up !== article.parentElement; up = up.parentElement)
      if (getComputedStyle(up).overflowX !== "visible") return true;
    return false;
  };
  const sticking = [...article.querySelectorAll("*")]
    .filter((node) => {
      const box = node.getBoundingClientRect();
      return box.width > 1 && box.height > 1 && (box.right > width + 1 || box.left < -1);
    })
    .filter((node) => !clipped(node) && !node.closest("mjx-assistive-mml, .visually-hidden"))
    .map((node) => `${node.tagName}.${node.className}: ${node.textContent.trim().slice(0, 40)}`);

  return {
    title: document.querySelector("h1")?.textContent ?? "",
    text: rest.textContent,
    formulas: article.querySelectorAll(".math").length,
    bare: [...article.querySelectorAll(".math")]
      .filter((node) => !node.querySelector("mjx-container"))
      .map((node) => node.textContent),
    failed: [...article.querySelectorAll("mjx-merror, [data-mjx-error], .MathJax_Error")]
      .map((node) => node.getAttribute("data-mjx-error") ?? node.textContent),
    images: [...document.querySelectorAll("img")].map((image) => ({
      src: image.getAttribute("src"),
      alt: image.getAttribute("alt"),
      loaded: image.complete && image.naturalWidth > 0,
      figure: article.contains(image),
    })),
    links: [...document.querySelectorAll("a[href]")].map((link) => link.href),
    width: Math.max(document.documentElement.scrollWidth, document.body.scrollWidth),
    sticking,
  };
}
"""


class Page:
    """What one load of one page showed."""

    def __init__(self, context, url, base):
        self.console, self.requests = [], []
        page = context.new_page()
        page.on("request", lambda request: self.requests.append(request.url))
        page.on("console", lambda line: self.console.append((line.type, line.text)))
        page.on("pageerror", lambda error: self.console.append(("error", str(error))))
        page.on(
            "requestfailed", lambda request: self.console.append(("error", f"lost {request.url}"))
        )
        # Nothing may leave this machine, also when a page is wrong.
        page.route(lambda address: not address.startswith((base, "data:", "blob:")), abort)
        self.status = page.goto(url, wait_until="load").status
        self.seen = page.evaluate(READ)
        page.close()

    def __getattr__(self, name):
        return self.seen[name]


def abort(route):
    route.abort()


@pytest.fixture(scope="session")
def contexts(browser):
    """A browser window of each size."""
    return {
        name: browser.new_context(viewport={"width": width, "height": height})
        for name, (width, height) in VIEWPORTS.items()
    }


@pytest.fixture(scope="session")
def load(contexts, base):
    """Load a page of the site once for each viewport."""

    @functools.cache
    def load(page, viewport="desktop"):
        return Page(contexts[viewport], f"{base}/{page}.html", base)

    return load


@functools.cache
def anchors(path):
    """Return the anchors of a page."""
    parser = Anchors()
    parser.feed(path.read_text(encoding="utf-8"))
    return parser.found


class Anchors(html.parser.HTMLParser):
    """Collect the anchors of a page."""

    def __init__(self):
        super().__init__()
        self.found = set()

    def handle_starttag(self, tag, attrs):
        self.found.update(value for name, value in attrs if name in {"id", "name"} and value)


each_page = pytest.mark.parametrize("page", PAGES)
each_viewport = pytest.mark.parametrize("viewport", VIEWPORTS)


def test_the_table_of_contents_is_a_book():
    assert NOTEBOOKS
    assert len(PAGES) == len(set(PAGES))


@each_page
@each_viewport
def test_loads_without_complaint(load, page, viewport):
    seen = load(page, viewport)
    assert seen.status == 200
    assert seen.title.strip()
    assert [line for line in seen.console if line[0] in {"error", "warning"}] == []


@each_page
@each_viewport
def test_asks_nobody_else(load, base, page, viewport):
    asked = load(page, viewport).requests
    assert asked
    assert [url for url in asked if not url.startswith((f"{base}/", "data:", "blob:"))] == []


@each_page
def test_formulas_are_typeset(load, page):
    seen = load(page)
    assert (seen.bare, seen.failed) == ([], [])


def test_there_are_formulas(load):
    assert sum(load(page).formulas for page in PAGES) > 0


def markup(text):
    """Return the lines of a page's prose in which unprocessed markup shows."""
    return [line.strip() for line in text.splitlines() if MARKUP.search(line)]


@each_page
def test_no_markup_shows(load, page):
    assert markup(load(page).text) == []


def nameless(image):
    """Tell whether an image has no alternative text of its own; a file name is none."""
    alt = (image["alt"] or "").strip()
    # An ornament of the theme may have an empty one.
    return alt.endswith((".png", ".svg")) or (not alt and (image["figure"] or image["alt"] is None))


@each_page
def test_images_are_there_and_described(load, page):
    images = load(page).images
    assert [image["src"] for image in images if not image["loaded"]] == []
    assert [image["src"] for image in images if nameless(image)] == []


def leads_somewhere(link, base, site):
    """Tell whether a link names a page and an anchor of the site, or leaves it properly."""
    parts = urlsplit(link)
    if not link.startswith(f"{base}/"):
        return parts.scheme in {"https", "mailto"}
    target = site / unquote(parts.path).lstrip("/")
    if not target.is_file() or not parts.fragment or target.suffix != ".html":
        return target.is_file()
    return unquote(parts.fragment) in anchors(target)


@each_page
def test_links_lead_somewhere(load, base, site, page):
    links = set(load(page).links)
    assert links
    assert [link for link in links if not leads_somewhere(link, base, site)] == []


@each_page
def test_colab_link(load, page):
    repository = CONFIG["repository"]
    colab = f"https://colab.research.google.com/{repository['url'].removeprefix('https://')}"
    colab = colab.replace("/github.com/", "/github/")
    links = [link for link in load(page).links if "colab" in link]
    wanted = [f"{colab}/blob/{repository['branch']}/{page}.ipynb"] if page in NOTEBOOKS else []
    assert links == wanted


@each_page
def test_nothing_sticks_out_on_a_phone(load, page):
    seen = load(page, "phone")
    assert seen.width <= VIEWPORTS["phone"][0], seen.sticking[:5]
    assert seen.sticking == []


WITH_EXERCISES = [
    page for page in NOTEBOOKS if "## Your turn" in (ROOT / f"{page}.ipynb").read_text("utf-8")
]


def test_six_chapters_have_exercises():
    assert len(WITH_EXERCISES) == 6


@pytest.mark.parametrize("page", WITH_EXERCISES)
def test_hints_and_solutions_are_folded_and_unfold(contexts, base, page):
    """A solution is out of sight until it is asked for, also in a window made narrow."""
    tab = contexts["desktop"].new_page()
    errors = []
    tab.on("pageerror", lambda error: errors.append(str(error)))
    tab.goto(f"{base}/{page}.html", wait_until="load")
    exercises, solutions = tab.locator("div.exercise"), tab.locator("div.solution")
    assert exercises.count() == solutions.count() >= 3
    for each in solutions.all():
        code = each.locator("pre").first
        assert "@title Solution" in code.text_content()
        assert not code.is_visible()
        each.locator(".admonition-title").first.click()
        code.wait_for(state="visible")
        assert "✓" in each.text_content()
    for hint in exercises.locator("details").all():
        assert hint.get_attribute("open") is None
        words = hint.locator("p").first
        assert not words.is_visible()
        hint.locator("summary").click()
        words.wait_for(state="visible")
    width, height = VIEWPORTS["phone"]
    tab.set_viewport_size({"width": width, "height": height})
    tab.wait_for_function(REACHABLE, timeout=5000)
    assert tab.evaluate("document.documentElement.scrollWidth") <= width
    assert errors == []
    tab.close()


# Every box in sight that is wider than it shows has a place in the order of the Tab key.
REACHABLE = """
() => [...document.querySelectorAll("article :is(pre, table, mjx-container[display=true])")]
  .filter((box) => box.clientWidth && box.scrollWidth > box.clientWidth + 1)
  .every((box) => box.tabIndex === 0)
"""


def test_a_bad_page_is_seen_for_what_it_is(contexts, tmp_path, serve):
    """The checks above are only worth what they would catch."""
    (tmp_path / "bad.html").write_text(
        """<!doctype html><meta name="viewport" content="width=device-width"><article>
        <h1>Bad</h1> <p>costs $x$ {ref}`here`</p> <div class="math">x</div>
        <mjx-merror data-mjx-error="Undefined control sequence">x</mjx-merror>
        <img src="gone.png"><div style="width: 800px">wide</div> <a href="#gone">a</a>
        <a href="gone.html">b</a> <a href="http://a.example/">c</a>
        <script src="https://a.example/x.js"></script><script>throw Error("no")</script>
        <div style="overflow-x: auto"><p style="width: 800px">in a box</p></div>
        </article>"""
    )
    base = serve(tmp_path)
    seen = Page(contexts["phone"], f"{base}/bad.html", base)
    assert any("no" in text for kind, text in seen.console if kind == "error")
    assert "https://a.example/x.js" in seen.requests
    assert (seen.formulas, seen.bare) == (1, ["x"])
    assert seen.failed == ["Undefined control sequence"]
    assert markup(seen.text) == ["Bad costs $x$ {ref}`here`"]
    assert [(image["loaded"], nameless(image)) for image in seen.images] == [(False, True)]
    assert [leads_somewhere(link, base, tmp_path) for link in seen.links] == [False] * 3
    assert seen.width > VIEWPORTS["phone"][0]
    assert [text.split(": ")[1] for text in seen.sticking] == ["wide"]


def test_search_finds_mask(browser, base):
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    page = context.new_page()
    errors = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto(f"{base}/{TOC['root']}.html")
    page.locator(".search-button__button:visible, .search-button:visible").first.click()
    page.locator("input[name=q]:visible").first.fill("mask")
    page.keyboard.press("Enter")
    page.wait_for_url("**/search.html?q=mask*")
    results = page.locator("#search-results ul.search li a")
    results.first.wait_for(timeout=15_000)
    page.wait_for_function(
        "/finished|found/i.test(document.querySelector('.search-summary')?.textContent ?? '')"
    )
    found = {
        urlsplit(link).path.lstrip("/") for link in results.evaluate_all("a => a.map(e => e.href)")
    }
    context.close()
    assert errors == []
    assert any("mask" in path for path in found), found


def test_reads_from_a_file_without_a_server(browser, site):
    """A reader may open the pages straight from the disk."""
    context = browser.new_context(viewport={"width": 1280, "height": 900}, offline=True)
    page = context.new_page()
    requests, errors = [], []
    page.on("request", lambda request: requests.append(request.url))
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto((site / f"{NOTEBOOKS[0]}.html").as_uri(), wait_until="load")
    seen = page.evaluate(READ)
    context.close()
    assert errors == []
    assert [url for url in requests if not url.startswith(("file:", "data:", "blob:"))] == []
    assert seen["formulas"] > 0
    assert (seen["bare"], seen["failed"]) == ([], [])
