"""Picture every page of the built site: desktop and phone, light and dark, full length.

Usage: python tools/screenshots.py FOLDER [PAGE ...]
"""

import shutil
import sys
from pathlib import Path

import yaml
from playwright.sync_api import sync_playwright

ROOT = Path(__file__).resolve().parent.parent
SIZES = {"desktop": (1280, 900), "phone": (390, 844)}


def main(folder: str, *names: str) -> int:
    """Write one picture for each page, size and scheme; show each name as it is done."""
    toc = yaml.safe_load((ROOT / "_toc.yml").read_text(encoding="utf-8"))
    pages = [toc["root"], *(page["file"] for part in toc["parts"] for page in part["chapters"])]
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
                    target = out / f"{Path(page).name}-{size}-{scheme}.png"
                    window.screenshot(path=target, full_page=True)
                    print(target)
                    window.close()
                context.close()
        browser.close()
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
