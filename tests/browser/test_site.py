"""The course site in a browser: `make site` first. Every page, in light and dark, on a desk and on a phone."""

import re
from pathlib import Path
from urllib.parse import unquote, urldefrag, urljoin, urlparse

import nbformat
import pytest
from axe_playwright_python.sync_playwright import Axe
from bs4 import BeautifulSoup

ROOT = Path(__file__).parents[2]
SITE = ROOT / "docs" / "_build" / "html"
PAGES = sorted(path.relative_to(SITE).as_posix() for path in SITE.rglob("*.html") if "_static" not in path.parts)
PAGES = [page for page in PAGES if page != "index.html"]  # which only leads to docs/index.html
NOTEBOOKS = sorted(path.stem for path in (ROOT / "notebooks").glob("*.ipynb"))
TYPICAL = ["docs/index.html", "notebooks/03_bcos_networks.html", "docs/photographs.html", "docs/teaching.html"]
TYPICAL += ["docs/api/e2lib.guidance.html", "search.html"]


@pytest.fixture
def visit(browser, home):
    """A function that opens a page of the site; what goes wrong in it fails the test at the end."""
    contexts, wrong = [], []

    def listening(address, **options):
        context = browser.new_context(**options)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(120_000)  # milliseconds: the machine may be busy
        page.on("console", lambda message: wrong.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("requestfailed", lambda request: wrong.append(f"{request.failure}: {request.url}"))
        page.on(
            "response", lambda response: wrong.append(f"{response.status}: {response.url}") if not response.ok else None
        )
        page.on(
            "request",
            lambda request: wrong.append(request.url) if not request.url.startswith((home, "data:")) else None,
        )
        page.goto(home + address, wait_until="load")
        return page

    yield listening
    for context in contexts:
        context.close()
    # What was on its way when a test left the page was given up by the browser, and says nothing about the site.
    assert not [line for line in wrong if not line.startswith("net::ERR_ABORTED")]


def test_all_that_was_written_is_there():
    expected = {f"notebooks/{name}.html" for name in NOTEBOOKS} | {"genindex.html", *TYPICAL}
    assert expected <= set(PAGES)
    paths = {path for path in (ROOT / "e2lib").rglob("*.py") if path.name != "__main__.py"}
    modules = {".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for path in paths}
    pages = {path.removeprefix("docs/api/").removesuffix(".html") for path in PAGES if path.startswith("docs/api/")}
    # The page of a package also shows what it takes from its files; these need none of their own.
    wanted = {name for name in modules if len(name.split(".")) == (3 if name.startswith("e2lib.course.") else 2)}
    assert wanted - {"e2lib.course"} <= pages <= modules


IMAGES = "all => all.filter(i => !i.alt.trim() || !i.complete || !i.naturalWidth).map(i => i.outerHTML.slice(0, 200))"
LOOSE = """() => [...document.querySelectorAll('body *')].filter(e => e.getBoundingClientRect().right > innerWidth + 1)
  .map(e => e.outerHTML.slice(0, 120))"""


@pytest.mark.parametrize("page", PAGES)
def test_page(visit, page):
    opened = visit(page, viewport={"width": 390, "height": 844})
    opened.wait_for_load_state("networkidle")
    assert opened.evaluate("document.documentElement.scrollWidth") <= 390, opened.evaluate(LOOSE)[:3]
    opened.locator("img").evaluate_all("all => all.forEach(i => i.loading = 'eager')")
    opened.wait_for_load_state("networkidle")
    assert opened.locator("img").evaluate_all(IMAGES) == []
    assert opened.locator("h1").count() >= 1
    assert not re.search(r"widget not found|Error displaying widget|\(children=|math>", opened.inner_text("body"), re.I)


def test_links_lead_somewhere():
    soups = {page: BeautifulSoup((SITE / page).read_text(), "html.parser") for page in PAGES}
    anchors = {page: {tag["id"] for tag in soup.find_all(id=True)} for page, soup in soups.items()}
    links = {(page, urljoin(page, a["href"])) for page, soup in soups.items() for a in soup.find_all("a", href=True)}
    inside = [(page, *urldefrag(unquote(link))) for page, link in links if not urlparse(link).scheme]
    broken = [
        f"{page}: {file}#{anchor}"
        for page, file, anchor in inside
        if not (SITE / file).is_file() or (anchor and anchor not in anchors.get(file, ()))
    ]
    assert not broken
    assert len(inside) > 10 * len(PAGES)


def test_the_address_of_the_site_leads_to_the_first_page(visit):
    page = visit("")
    page.wait_for_url("**/docs/index.html")


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_notebook_has_a_download_captions_boxes_and_folds(name):
    soup = BeautifulSoup((SITE / "notebooks" / f"{name}.html").read_text(), "html.parser")
    copy = SITE / "notebooks" / soup.select_one("a[href$='.ipynb']")["href"]
    assert copy.resolve().read_bytes() == (ROOT / "notebooks" / f"{name}.ipynb").read_bytes()
    pictures = [image for image in soup.select(".cell_output img[src*=_images]")]
    assert [image.find_next_sibling("p", "picture").text for image in pictures] == [image["alt"] for image in pictures]
    source = "\n".join(cell.source for cell in nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", 4).cells)
    assert len(soup.select("div.admonition.tip")) == len(
        re.findall(r"^\*\*(?:Stop and predict|Your task)\.\*\*", source, re.M)
    )
    parameters, imports, *_ = soup.select(".cell_input")
    assert parameters.parent.name == imports.parent.name == "details" and not parameters.parent.has_attr("open")


def test_a_lesson_leads_on_with_its_question(visit):
    page = visit("notebooks/04_guiding_with_boxes.html")
    questions = [
        row.locator("td").all_inner_texts()[1] for row in visit("docs/index.html").locator("#lessons tbody tr").all()
    ]
    assert [page.locator(f".{way} .question").inner_text() for way in ("left-prev", "right-next")] == [
        questions[2],
        questions[4],
    ]


@pytest.mark.parametrize("word", ["guidance", "e²KD", "GroupAccuracy"])
def test_search_finds(visit, word):
    page = visit(f"search.html?q={word}")
    page.wait_for_selector("#search-results li a")
    page.wait_for_load_state("networkidle")  # the results' summaries
    assert page.locator("#search-results li").count() >= 1
    with page.expect_navigation():
        page.locator("#search-results li a").first.click()
    assert word.lower() in page.inner_text("main").lower()


def test_keyboard_reaches_the_content(visit):
    page = visit("notebooks/04_guiding_with_boxes.html")
    page.keyboard.press("Tab")
    focus = "() => { const e = document.activeElement; return [e.tagName, e.innerText.trim(), e.getAttribute('href')] }"
    assert page.evaluate(focus)[2] == "#main-content", page.evaluate(focus)
    page.keyboard.press("Enter")
    assert page.url.endswith("#main-content")
    for _ in range(20):
        page.keyboard.press("Tab")
        assert page.evaluate("() => !!document.activeElement.closest('main')"), page.evaluate(focus)
        outline = page.evaluate("() => getComputedStyle(document.activeElement).outlineStyle")
        assert outline != "none", f"no focus to see on {page.evaluate(focus)}"


def test_search_opens_by_keyboard(visit):
    page = visit("docs/index.html")
    page.keyboard.press("Control+k")
    page.keyboard.type("guidance")
    with page.expect_navigation():
        page.keyboard.press("Enter")
    assert "search.html?q=guidance" in page.url


def test_mathematics_is_readable(visit):
    page = visit("notebooks/07b_students_from_scratch.html")
    assert page.locator("math").count() >= 4
    assert page.locator("math").first.bounding_box()["width"] > 50
    assert "Σ_c a ∂s/∂a" in visit("docs/api/e2lib.attribution.html").inner_text("main")


def test_dark_and_light_can_be_chosen(visit):
    page = visit("docs/index.html", color_scheme="light")
    colour = "() => getComputedStyle(document.body).backgroundColor"
    light = page.evaluate(colour)
    page.locator(".theme-switch-button:visible").first.click()
    page.locator(".theme-switch-button:visible").first.click()
    assert page.evaluate("document.documentElement.dataset.theme") in ("dark", "light")
    assert visit("docs/index.html", color_scheme="dark").evaluate(colour) != light


def test_code_fits_a_laptop(visit):
    page = visit("notebooks/07_distilling_with_few_images.html", viewport={"width": 1280, "height": 800})
    wide = "all => all.filter(e => e.offsetParent && e.scrollWidth > e.clientWidth).map(e => e.innerText)"
    found = page.locator(".cell_input pre").evaluate_all(wide)
    assert [text for text in found if max(map(len, text.splitlines())) <= 88] == []


@pytest.mark.parametrize(("scheme", "width"), [("light", 1280), ("dark", 390)])
@pytest.mark.parametrize("page", TYPICAL)
def test_axe_finds_no_fault(visit, page, scheme, width):
    opened = visit(page, color_scheme=scheme, viewport={"width": width, "height": 900}, reduced_motion="reduce")
    rules = {"runOnly": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa"], "preload": False}  # contrast is one of them
    found = Axe().run(opened, options=rules).response["violations"]
    assert [(fault["help"], fault["nodes"][0]["html"][:200]) for fault in found] == []
