"""The JavaScript of the widgets, alone: with a model that only remembers, and no kernel."""

import base64
import io
from pathlib import Path

import pytest
from PIL import Image

E2LIB = Path(__file__).parents[2] / "e2lib" / "course"
MODEL = """async ([source, values, files, width]) => {
    for (const [name, text] of Object.entries(files)) {
        values[name] = Uint8Array.from(atob(text), (character) => character.charCodeAt(0));
    }
    const heard = {};
    window.saved = 0;
    window.model = {
        get: (name) => values[name],
        set: (name, value) => { values[name] = value; heard[`change:${name}`]?.(); },
        save_changes: () => { window.saved += 1; },
        on: (name, call) => { heard[name] = call; },
        off: (name) => { delete heard[name]; },
    };
    const { default: widget } = await import(URL.createObjectURL(new Blob([source], { type: "text/javascript" })));
    const el = document.createElement("div");
    el.style.width = `${width}px`;
    document.body.append(el);
    window.close_widget = widget.render({ model: window.model, el });
}"""


def picture(kind, size):
    content = io.BytesIO()
    Image.new("RGB", size, (120, 160, 200)).save(content, kind)
    return base64.b64encode(content.getvalue()).decode()


@pytest.fixture
def page(browser):
    page = browser.new_page(viewport={"width": 900, "height": 700}, has_touch=True)
    page.set_default_timeout(120_000)
    page.errors = []
    page.on("pageerror", lambda error: page.errors.append(str(error)))
    yield page
    assert not page.errors
    page.close()


@pytest.fixture
def canvas(page):
    values = {"width": 100, "height": 80, "box": [10, 20, 40, 50]}
    source = (E2LIB / "box_canvas.js").read_text()
    page.evaluate(MODEL, [source, values, {"photo": picture("PNG", (100, 80))}, 400])  # a pixel is 4 wide
    return page.locator("canvas")


def box(page):
    return page.evaluate("model.get('box')")


def drag(page, canvas, start, end):
    area = canvas.bounding_box()
    assert area["width"] == pytest.approx(400) and area["height"] == pytest.approx(320)
    page.mouse.move(area["x"] + 4 * start[0], area["y"] + 4 * start[1])
    page.mouse.down()
    page.mouse.move(area["x"] + 4 * end[0], area["y"] + 4 * end[1], steps=3)
    page.mouse.up()


@pytest.mark.parametrize(
    ("start", "end", "drawn"),
    [
        ((10.5, 20.5), (30.5, 60.5), [10, 20, 31, 61]),
        ((30.5, 60.5), (10.5, 20.5), [10, 20, 31, 61]),  # from the lower right
        ((50.5, 50.5), (140.0, 120.0), [50, 50, 100, 80]),  # out of the photograph
        ((50.5, 50.5), (50.6, 60.5), [50, 50, 54, 61]),  # too thin
        ((99.5, 10.5), (99.6, 20.5), [96, 10, 100, 21]),  # and at the edge
        ((50.5, 50.5), (51.5, 51.0), [10, 20, 40, 50]),  # a click
    ],
)
def test_a_box_is_drawn_with_the_mouse(page, canvas, start, end, drawn):
    drag(page, canvas, start, end)
    assert box(page) == drawn


def press(canvas, *keys):
    """All in one call: keys that Python sends one by one can take longer than the pause after which a box is saved."""
    canvas.evaluate(
        """(element, keys) => {
            for (const key of keys) {
                const options = { key: key.replace("Shift+", ""), shiftKey: key.startsWith("Shift+") };
                element.dispatchEvent(new KeyboardEvent("keydown", { ...options, bubbles: true, cancelable: true }));
            }
        }""",
        keys,
    )


def test_a_box_is_moved_and_resized_by_keyboard(page, canvas):
    canvas.focus()
    press(canvas, "ArrowRight", "ArrowDown", "Shift+ArrowRight", "Shift+ArrowUp")
    label = canvas.get_attribute("aria-label")
    assert "box: left 11, top 21, width 31, height 29 pixels" in label and "Arrow keys move it" in label
    page.wait_for_function("saved === 1")  # all four together
    assert box(page) == [11, 21, 42, 50]
    assert canvas.evaluate("(element) => getComputedStyle(element).outlineStyle") == "solid"
    press(canvas, *["ArrowLeft"] * 20, *["Shift+ArrowUp"] * 60)
    page.wait_for_function("saved === 2")
    assert box(page) == [0, 21, 31, 25]  # stops at the edge, and at four pixels
    page.keyboard.press("ArrowDown")  # from the keyboard itself
    page.wait_for_function("saved === 3")
    assert box(page) == [0, 22, 31, 26]


def test_a_finger_draws_and_does_not_scroll(page, canvas):
    assert canvas.evaluate("(element) => getComputedStyle(element).touchAction") == "none"


def test_a_box_from_python_is_shown(page, canvas):
    page.evaluate("model.set('box', [1, 2, 30, 40])")
    assert "left 1, top 2, width 29, height 38" in canvas.get_attribute("aria-label")


def test_a_thumbnail_is_chosen_by_click_and_keyboard(page):
    values = {"labels": ["first", "second"], "chosen": 0, "pictures": []}
    source = (E2LIB / "thumbnails.js").read_text()
    page.evaluate(MODEL, [source, values, {}, 400])
    files = [picture("JPEG", (40, 40))] * 3  # a third without a label yet
    page.evaluate(
        "files => model.set('pictures', files.map((text) => Uint8Array.from(atob(text), (c) => c.charCodeAt(0))))",
        files,
    )
    first, second = (page.get_by_role("button", name=name) for name in ("first", "second"))
    assert page.get_by_role("button").count() == 3 and first.get_attribute("aria-pressed") == "true"
    page.wait_for_function("[...document.images].every((image) => image.naturalWidth === 40)")
    second.click()
    assert page.evaluate("model.get('chosen')") == 1
    assert [button.get_attribute("aria-pressed") for button in (first, second)] == ["false", "true"]
    first.focus()
    page.keyboard.press("Enter")
    assert page.evaluate("[model.get('chosen'), saved]") == [0, 2]
