"""What is asked of every page: nothing outside it, a text for each picture, and no part beyond the window's edge."""

import html
import re
import shutil
import subprocess
from html.parser import HTMLParser

import pytest

VOID = ("meta", "img", "link", "br", "hr", "input")
# a window is not made as narrow as a telephone, a frame is; the title tells the widths of the frame and of its page
FRAME = """<!doctype html><title></title><iframe width="{width}" height="800" style="border: 0" srcdoc="{page}"
onload="const page = this.contentWindow;
document.title = page.innerWidth + ' ' + page.document.documentElement.scrollWidth"></iframe>"""


class Page(HTMLParser):
    """What a page refers to, its pictures and names of `meta`, and whether its tags are closed."""

    def __init__(self, text):
        super().__init__()
        self.links, self.pictures, self.meta, self.open = [], [], {}, []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.links += [attributes[key] for key in ("src", "href", "srcset", "data", "action") if key in attributes]
        if tag == "img":
            self.pictures.append(attributes)
        elif tag == "meta":
            self.meta[attributes.get("name")] = attributes.get("content")
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def check_page(text, pictures):
    """The page needs no other file, fits a telephone, has a dark look, and says what its pictures show."""
    page = Page(text)
    assert not page.open and len(page.pictures) == pictures
    assert [link.partition(",")[0] for link in page.links] == ["data:image/png;base64"] * pictures
    assert not re.search(r"https?://|@import|url\(|<script", text)
    assert all(len(picture["alt"]) > 20 for picture in page.pictures)
    assert page.meta["viewport"].startswith("width=device-width") and "prefers-color-scheme: dark" in text
    visible = re.sub(r"<style>.*?</style>|<title>.*?</title>|<[^>]*>", "", text, flags=re.S)
    assert "&amp;#" not in visible  # escaped twice
    assert "&amp;#" not in visible  # nothing is escaped twice
    assert not re.search(r"sigma_a|tau_0|[στ]_|\^\d|\^\(|²", visible)  # symbols are written one way, by sub and sup


def check_widths(path, folder):
    """In Chromium no part of the page lies beyond the edge of a window of 390 or 1280 pixels."""
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if not browser:
        pytest.skip("no Chromium here to open a page in")
    framed = folder / "framed.html"
    quiet = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
    for width in (390, 1280):
        framed.write_text(FRAME.format(width=width, page=html.escape(path.read_text())))
        flags = ["--window-size=1400,900", f"--user-data-dir={folder / 'profile'}", "--dump-dom"]
        more = ["--disable-component-update", "--disable-sync", framed.as_uri()]
        done = subprocess.run([browser, *quiet.split(), *flags, *more], capture_output=True, text=True, timeout=120)
        told = re.search(r"<title>(\d+) (\d+)</title>", done.stdout)
        assert told and int(told[1]) == width and int(told[2]) <= width, done.stdout[:200]
