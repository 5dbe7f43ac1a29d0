"""The slides of the lessons in Chromium: each fits its frame, its text is large, nothing comes from elsewhere."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LESSONS = sorted(path.name[:2] for path in (ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb"))
LOOK = """slide => {
    const frame = document.querySelector(".slides").getBoundingClientRect();
    const parts = [...slide.querySelectorAll("h1, h2, p, li, pre, table, img")];
    const beyond = parts.filter(p => { const box = p.getBoundingClientRect(); return box.height && (
        box.bottom > frame.bottom + 2 || box.right > frame.right + 2 || p.scrollWidth > p.clientWidth + 2); });
    const sizes = parts.filter(p => p.tagName != "IMG").map(p => parseFloat(getComputedStyle(p).fontSize));
    return {beyond: beyond.map(p => p.tagName + " " + p.textContent.slice(0, 60)), smallest: Math.min(99, ...sizes),
            empty: !slide.textContent.trim() && !slide.querySelector("img, svg")};
}"""


@pytest.fixture(scope="module")
def folder():
    subprocess.run([sys.executable, ROOT / "docs" / "slides.py"], check=True, cwd=ROOT)
    return ROOT / "docs" / "_build" / "slides"


@pytest.mark.parametrize("number", LESSONS)
def test_each_slide_fits_and_is_legible(browser, folder, number):
    page = browser.new_page(viewport={"width": 1280, "height": 720})
    asked, errors = [], []
    page.on("request", lambda request: asked.append(request.url))
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto((folder / f"{number}.html").as_uri())
    page.wait_for_selector(".reveal.ready")
    page.evaluate("Reveal.configure({transition: 'none'})")  # else it is measured on its way
    slides = page.query_selector_all(".slides > section")
    assert 1 <= len(slides) <= 15
    for place, slide in enumerate(slides):
        page.evaluate(f"Reveal.slide({place})")
        page.wait_for_timeout(50)
        found = slide.evaluate(LOOK)
        assert not found["beyond"] and not found["empty"], f"slide {place + 1}: {found['beyond']}"
        assert found["smallest"] >= 22, f"slide {place + 1}: text of {found['smallest']} pixels of 720"
    assert not errors and all(url.startswith(("file:", "data:")) for url in asked)
    page.close()
