"""The widgets as a reader uses them: in JupyterLab, with mouse and keyboard. Minutes, as the notebooks' cells run."""

import base64
import contextlib
import os
import re
import secrets
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).parents[2]
LONG = 300_000  # milliseconds until the cells have run
KERNEL = "window.jupyterapp?.shell.currentWidget?.sessionContext?.session?.kernel?.status"
OTHERS = r"explain\(|heatmap|evaluate\(|rank_correlation"  # in cells that take time, and that no panel needs


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """JupyterLab on copies of the notebooks; a function from a notebook's name to its address."""
    folder = tmp_path_factory.mktemp("lab")
    for name, values in {"02_explanation_methods": {"images": 20, "measured": 6}, "12_playground": {}}.items():
        copied_until_widget(name, values, folder)
    with jupyterlab(folder) as address:
        yield address


@contextlib.contextmanager
def jupyterlab(folder: Path):
    """JupyterLab on the notebooks in a folder; a function from a notebook's name to its address."""
    token = secrets.token_hex(16)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--ip=127.0.0.1", f"--port={port}", "--allow-root"]
    command += [
        "--ServerApp.port_retries=0",
        "--LabApp.expose_app_in_browser=True",
        f"--IdentityProvider.token={token}",
        f"--ServerApp.root_dir={folder}",
    ]
    own = {"JUPYTER_CONFIG_DIR": str(folder / ".config"), "JUPYTER_RUNTIME_DIR": str(folder / ".runtime")}
    own |= {"JUPYTERLAB_WORKSPACES_DIR": str(folder / ".spaces"), "JUPYTERLAB_SETTINGS_DIR": str(folder / ".settings")}
    settings = folder / ".settings" / "@jupyterlab" / "notebook-extension"
    settings.mkdir(parents=True)
    # else what is out of sight is not in the page
    (settings / "tracker.jupyterlab-settings").write_text('{"windowingMode": "none"}')
    environment = {k: v for k, v in os.environ.items() if k != "MPLBACKEND"} | own | {"PYTHONPATH": str(ROOT)}
    log = folder / "lab.log"
    with log.open("w") as output:
        server = subprocess.Popen(command, env=environment, stdout=output, stderr=output)
        try:
            wait_for(f"http://127.0.0.1:{port}/lab?token={token}", server, log)
            yield lambda name: f"http://127.0.0.1:{port}/lab/tree/{name}.ipynb?token={token}&reset"
        finally:
            server.terminate()
            server.wait(30)
            shutil.rmtree(folder / ".runtime", ignore_errors=True)


def wait_for(address: str, server: subprocess.Popen, log: Path) -> None:
    for _ in range(240):
        assert server.poll() is None, log.read_text()
        try:
            urllib.request.urlopen(address, timeout=5).close()
            return
        except OSError:  # not yet
            time.sleep(0.5)
    pytest.fail(f"JupyterLab did not start in two minutes:\n{log.read_text()}")


def copied_until_widget(name: str, values: dict, folder: Path) -> None:
    """A copy of a notebook up to its first panel, with these parameters and without outputs.

    Cells that the panel does not need are left out: what trains, and what draws.
    """
    notebook = nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", as_version=4)
    last = next(i for i, cell in enumerate(notebook.cells) if "widgets." in cell.source and is_panel(cell))
    first = notebook.cells[0]
    needed = [c for c in notebook.cells[1 : last + 1] if c.cell_type == "code" and not re.search(OTHERS, c.source)]
    notebook.cells = [first, *needed]
    for cell in notebook.cells[1:]:
        cell.outputs, cell.execution_count = [], None
    parameters = next(cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", []))
    parameters.source += "".join(f"\n{key} = {value!r}" for key, value in values.items())
    nbformat.write(notebook, folder / f"{name}.ipynb")


def is_panel(cell) -> bool:
    return bool(re.search(r"^widgets\.(Playground|Explanations)\(", cell.source, re.M))


@pytest.fixture
def page(browser):
    page = browser.new_page(viewport={"width": 1600, "height": 1200})
    page.set_default_timeout(LONG)
    yield page
    page.close()


def start_all(page, address: str) -> None:
    """Open a notebook and run its cells."""
    page.goto(address, wait_until="commit")
    page.locator(".jp-Notebook").wait_for()
    page.wait_for_function(KERNEL + " === 'idle'")
    page.evaluate("void jupyterapp.commands.execute('notebook:run-all-cells')")


def run_all(page, address: str, control: str = ".widget-dropdown"):
    """Open a notebook, run its cells, and return the output of the last panel with such a control once it is there."""
    start_all(page, address)
    panel = page.locator(f".jp-OutputArea-output:has({control})").last
    panel.wait_for(timeout=LONG)
    panel.scroll_into_view_if_needed()
    return panel


def picture(panel) -> str:
    """What the panel's picture shows, as text."""
    return panel.locator("img").last.get_attribute("src")


def changed(panel, before: str, shown=picture, seconds: float = 120) -> str:
    """The panel's picture, once it is another one."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        now = shown(panel)
        if now != before:
            return now
        time.sleep(0.2)
    pytest.fail(f"the picture is the same after {seconds} seconds: {panel.inner_text()}")


def settled(panel) -> str:
    """The panel's picture, once the panel does not work any more."""
    working = re.compile(r"^(working|step|measuring on)")
    panel.locator(".widget-html-content", has_text=working).first.wait_for(state="detached")
    return picture(panel)


def choose(panel, label: str, value: str) -> None:
    panel.locator(f'.widget-dropdown:has(label:text-is("{label}")) select').select_option(label=value)


@pytest.mark.alone
def test_the_first_explanation_is_soon_on_screen(page, tmp_path):
    notebook = nbformat.read(ROOT / "notebooks" / "02_explanation_methods.ipynb", as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    last = next(number for number, cell in enumerate(code) if "show_maps" in cell.source)
    for cell in code:
        cell.outputs, cell.execution_count = [], None
    notebook.cells = code[: last + 1]
    nbformat.write(notebook, tmp_path / "02.ipynb")
    begun = time.monotonic()
    with jupyterlab(tmp_path) as address:
        start_all(page, address("02"))
        maps = page.locator(f".jp-Cell:nth-child({last + 1}) .jp-OutputArea-output img")
        maps.wait_for()
        seconds = time.monotonic() - begun
        page.goto("about:blank")
    print(f"first explanation: {seconds:.1f} seconds")
    assert seconds < 90  # 20 on two idle cores


def test_the_explorer_of_notebook_02(lab, page):
    panel = run_all(page, lab("02_explanation_methods"))
    first = picture(panel)
    choose(panel, "method", "gradcam")
    second = changed(panel, first)
    choose(panel, "depth", "Final")
    third = changed(panel, second)
    assert third != first
    upload(page, panel, "mine.png", b"no picture")
    panel.get_by_role("alert").wait_for()
    assert "mine.png cannot be read" in panel.get_by_role("alert").inner_text()
    upload(page, panel, "one.png", base64.b64decode(ONE_PIXEL))
    changed(panel, third)
    panel.get_by_role("alert").wait_for(state="detached")


def upload(page, panel, name: str, content: bytes) -> None:
    with page.expect_file_chooser() as chooser:
        panel.get_by_role("button", name="Your image").click()
    chooser.value.set_files({"name": name, "mimeType": "image/png", "buffer": content})


ONE_PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="


def test_the_playground(lab, page):
    panel = run_all(page, lab("12_playground"))
    canvas = panel.locator("canvas")
    canvas.wait_for()
    start = picture(panel)
    label = canvas.get_attribute("aria-label")

    area = canvas.bounding_box()
    page.mouse.move(area["x"] + 0.1 * area["width"], area["y"] + 0.2 * area["height"])
    page.mouse.down()
    page.mouse.move(area["x"] + 0.5 * area["width"], area["y"] + 0.7 * area["height"], steps=5)
    page.mouse.up()
    drawn = canvas.get_attribute("aria-label")
    assert drawn != label and "left 12, top 25" in drawn
    boxed = changed(panel, start)

    begun = time.monotonic()
    panel.get_by_role("button", name="Guide").click()
    changed(panel, boxed)  # while it learns
    guided = settled(panel)
    print(f"Guide: {time.monotonic() - begun:.1f} seconds")

    canvas.focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowDown")
    assert "left 13, top 26" in canvas.get_attribute("aria-label")
    moved = changed(panel, guided)
    width = int(re.search(r"width (\d+)", canvas.get_attribute("aria-label"))[1])
    page.keyboard.press("Shift+ArrowRight")
    assert f"width {width + 1}," in canvas.get_attribute("aria-label")
    resized = changed(panel, moved)

    remove = panel.get_by_role("button", name="Remove the object")
    remove.click()
    removed = changed(panel, resized)
    remove.click()
    assert changed(panel, removed) == resized

    panel.get_by_role("button", name="Save").click()
    panel.get_by_text("Saved as playground-1.html").wait_for()
    panel.locator(".e2lib-thumbnails button").nth(1).click()
    other = changed(panel, resized)
    panel.get_by_text("keeps what it has learned").wait_for()
    panel.get_by_role("button", name="Reset").click()
    assert changed(panel, other) != guided
    assert panel.get_by_role("button", name="Undo").is_disabled()
    upload(page, panel, "one.png", base64.b64decode(ONE_PIXEL))
    panel.locator(".e2lib-thumbnails button").nth(12).wait_for()
    assert panel.get_by_role("alert").count() == 0
