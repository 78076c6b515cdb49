"""``python -m tests.browser.screenshots`` takes the pictures of ``docs/images`` anew: the pages of the demo, light and dark."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import time
from pathlib import Path

from tests.peers.programs import program

IMAGES = Path(__file__).resolve().parent.parent.parent / "docs" / "images"
PAGES = {"fleet": ("/", 760), "modality": ("/modalities/pacs", 1000), "storage": ("/storage", 780)}
# So long the demo needs for a full strip, for duplicates, for studies that are complete, and for a forecast; in seconds.
HISTORY = 330
# Bytes of a picture: who reads the documentation waits for it.
MOST = 150_000


def main() -> int:
    """Take them.

    :return: 0 when all of them are there and small
    """
    from playwright.sync_api import sync_playwright

    demo = subprocess.Popen([sys.executable, "-m", "asyncdicom", "demo"], stdout=subprocess.PIPE, text=True)
    try:
        assert demo.stdout is not None
        address = next(found[1] for line in demo.stdout if (found := re.search(r"fleet page +(\S+)/$", line.rstrip())))
        time.sleep(HISTORY)
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=program("chromium"))
            for scheme, suffix in (("light", ""), ("dark", "-dark")):
                for name, (path, height) in PAGES.items():
                    size = {"width": 1280, "height": height}
                    page = browser.new_page(color_scheme=scheme, viewport=size, locale="en-GB")
                    page.goto(address + path)
                    # Until it was updated once: the bar says so.
                    page.locator("#freshness:not(:empty)").wait_for()
                    page.screenshot(path=IMAGES / f"{name}{suffix}.png")
                    page.close()
            browser.close()
    finally:
        demo.send_signal(signal.SIGINT)
        demo.wait(30)
    large = [path.name for path in IMAGES.glob("*.png") if path.stat().st_size > MOST]
    if large:
        print(f"larger than {MOST} bytes: {', '.join(sorted(large))}", file=sys.stderr)
    return 1 if large else 0


if __name__ == "__main__":
    sys.exit(main())
