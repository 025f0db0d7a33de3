"""Picture every page of the built site: desktop and phone, light and dark, in strips from the top.

Usage: python tools/screenshots.py FOLDER [PAGE ...]
"""

import shutil
import sys
from pathlib import Path

import yaml
from playwright.sync_api import sync_playwright

ROOT = Path(__file__).resolve().parent.parent
STRIP = 2000  # the height of one picture; a whole chapter in one would be too small to read
SIZES = {"desktop": (1280, 900), "phone": (390, 844)}


def main(folder: str, *names: str) -> int:
    """Write one picture for each page, size and scheme; show each name as it is done."""
    toc = yaml.safe_load((ROOT / "_toc.yml").read_text(encoding="utf-8"))
    chapters = [chapter for part in toc["parts"] for chapter in part["chapters"]]
    pages = [toc["root"]]
    for chapter in chapters:
        pages += [page["file"] for page in (chapter, *chapter.get("sections", []))]
    pages = [page for page in pages if not names or any(name in page for name in names)]
    browser_path = shutil.which("chromium") or shutil.which("google-chrome")
    out = Path(folder)
    out.mkdir(parents=True, exist_ok=True)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=browser_path, args=["--no-sandbox"])
        for size, (width, height) in SIZES.items():
            for scheme in ("light", "dark"):
                context = browser.new_context(
                    viewport={"width": width, "height": height}, color_scheme=scheme
                )
                for page in pages:
                    window = context.new_page()
                    window.goto((ROOT / "_build" / "html" / f"{page}.html").as_uri())
                    window.evaluate(
                        """async () => {
                          for (const image of document.images) image.loading = "eager";
                          await window.MathJax?.startup?.promise;
                          await document.fonts.ready;
                        }"""
                    )
                    length = window.evaluate("document.documentElement.scrollHeight")
                    for number, top in enumerate(range(0, length, STRIP), 1):
                        target = out / f"{Path(page).name}-{size}-{scheme}-{number:02}.png"
                        strip = {
                            "x": 0,
                            "y": top,
                            "width": width,
                            "height": min(STRIP, length - top),
                        }
                        window.screenshot(path=target, full_page=True, clip=strip)
                    print(f"{page}, {size}, {scheme}: {number} pictures")
                    window.close()
                context.close()
        browser.close()
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
