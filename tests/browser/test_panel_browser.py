"""The panel in JupyterLab, driven as a person does: click, look, reload."""

import os
import re
import shutil
import time
from pathlib import Path

import pytest
from conftest import OUT

pytestmark = pytest.mark.browser
ROOT = Path(__file__).resolve().parents[2]
PATIENCE = 150  # seconds; a busy machine imports for a minute

SHOW = """\
from ftnb import Panel, Recipe
panel = Panel(Recipe({settings}))
panel"""
ASK = """\
panel.run.wait()
reviews = ["everything was wonderful . this is a perfect class .", "a horrible film . the story was boring ."]
print(panel.run.state, panel.run.predict(reviews))"""


def run_cell(page, index, execution):
    """Run one cell and wait for its prompt; the kernel's own state is no guide once widgets talk."""
    page.evaluate(
        """index => {
            const notebook = window.jupyterapp.shell.currentWidget.content;
            notebook.activeCellIndex = index;
            window.jupyterapp.commands.execute('notebook:run-cell');
        }""",
        index,
    )
    cell = page.locator(".jp-Notebook .jp-CodeCell").nth(index)
    prompt = cell.locator(".jp-InputPrompt")
    deadline = time.monotonic() + PATIENCE
    while prompt.inner_text().strip() != f"[{execution}]:":
        assert time.monotonic() < deadline, f"cell {index} did not finish: {cell.inner_text()[-2000:]}"
        page.wait_for_timeout(100)
    errors = cell.locator("[data-mime-type='application/vnd.jupyter.error'], [data-mime-type$='.stderr'] pre")
    assert "Traceback" not in "".join(errors.all_inner_texts()), errors.first.inner_text()[-3000:]
    return cell


def steps(page):
    """How far the live chart says the run is."""
    return int(page.locator(".ftnb-step").first.inner_text())


def wait_for_step(page, least):
    page.wait_for_function(
        "least => Number(document.querySelector('.ftnb-step')?.textContent ?? -1) >= least",
        arg=least,
        timeout=PATIENCE * 1000,
    )


def wait_for_state(page, state):
    page.locator(f".ftnb-state-{state}").first.wait_for(timeout=PATIENCE * 1000)


def change_theme(page, name):
    page.evaluate("name => window.jupyterapp.commands.execute('apputils:change-theme', {theme: name})", name)
    light = "true" if name.endswith("Light") else "false"
    page.locator(f"body[data-jp-theme-light='{light}']").wait_for(state="attached")
    page.wait_for_timeout(700)


def set_rate(page, text):
    readout = page.locator(".ftnb-lr .widget-readout")
    readout.fill(text)
    readout.press("Enter")


def take_picture(page, name):
    """The panel and the chart, as they stand on the page."""
    OUT.mkdir(exist_ok=True)
    page.mouse.move(5, 5)
    form, chart = (page.locator(name).first.bounding_box() for name in (".ftnb-panel", ".ftnb-chart"))
    bottom = chart["y"] + chart["height"]
    clip = {"x": form["x"] - 10, "y": form["y"] - 2, "width": form["width"] + 20, "height": bottom - form["y"] + 12}
    page.screenshot(path=OUT / name, clip=clip)


def save(page):
    page.evaluate("() => window.jupyterapp.commands.execute('docmanager:save')")
    page.wait_for_function("() => !window.jupyterapp.shell.currentWidget.context.model.dirty", timeout=30_000)


def test_start_steer_reload_stop(lab, open_notebook, watched):
    lab.write("panel.ipynb", SHOW.format(settings="num_epochs=1000, eval_every=20, warmup=0.01"), ASK)
    page = open_notebook("panel.ipynb")
    page.set_viewport_size({"width": 1000, "height": 1100})
    run_cell(page, 0, 1)
    page.locator(".ftnb-start:not([disabled])").wait_for()

    page.locator(".ftnb-start").click()
    wait_for_step(page, 1)
    first = page.locator(".ftnb-chart svg path.loss").nth(1).get_attribute("d")
    wait_for_step(page, 80)
    assert page.locator(".ftnb-chart svg path.loss").nth(1).get_attribute("d") != first

    # A learning rate set while it trains: asked for on the page, in force at a step, marked in the picture.
    set_rate(page, "0.0002")
    page.locator(".ftnb-chart svg text.k-lr").first.wait_for()
    assert page.locator(".ftnb-chart svg text.k-lr").first.text_content() == "lr 2e-4"

    wait_for_step(page, 120)
    page.locator(".ftnb-pause").click()
    wait_for_state(page, "paused")
    page.wait_for_timeout(600)  # the last push before the pause
    held = steps(page)
    page.wait_for_timeout(1500)
    assert steps(page) == held
    assert page.locator(".ftnb-pause").inner_text().strip() == "Resume"
    page.locator(".ftnb-pause").click()
    wait_for_state(page, "running")
    wait_for_step(page, held + 80)

    change_theme(page, "JupyterLab Dark")
    take_picture(page, "panel-dark.png")
    change_theme(page, "JupyterLab Light")

    save(page)
    page.reload()
    wait_for_step(page, 1)
    seen = steps(page)
    wait_for_step(page, seen + 20)

    page.locator(".ftnb-stop").click()
    page.locator(".ftnb-status", has_text="Stopped.").wait_for(timeout=PATIENCE * 1000)
    assert "Best accuracy" in page.locator(".ftnb-status").inner_text()
    answer = run_cell(page, 1, 2).locator(".jp-OutputArea-output").first.inner_text()
    assert answer.startswith("stopped")
    assert re.findall(r"label='(\w+)'", answer) == ["positive", "negative"]
    [model] = (lab.folder.parent / "runs").glob("*/model/model.safetensors")
    assert model.stat().st_size > 0

    # The cell run again shows the run that was, as a picture; the saved notebook keeps it without a widget.
    cell = run_cell(page, 0, 3)
    cell.locator(".jp-RenderedImage img").wait_for()
    save(page)
    outputs = lab.read("panel.ipynb").cells[0].outputs
    assert [set(output.data) for output in outputs[-1:]] == [{"image/png", "text/plain"}]

    # A second run from the same panel: live again, then a picture again, in place.
    epochs = page.locator(".ftnb-num-epochs input")
    epochs.fill("60")
    epochs.press("Tab")
    page.locator(".ftnb-start").click()
    wait_for_step(page, 50)
    page.locator(".ftnb-pause").click()
    wait_for_state(page, "paused")
    set_rate(page, "0.0003")
    page.locator(".ftnb-pause").click()
    wait_for_step(page, 110)
    take_picture(page, "panel-light.png")
    page.locator(".ftnb-stop").click()
    page.locator(".ftnb-status", has_text="Stopped.").wait_for(timeout=PATIENCE * 1000)
    cell.locator(".jp-RenderedImage img").wait_for()
    assert page.locator(".ftnb-chart .ftnb-step").count() == 0

    if os.environ.get("FTNB_UPDATE_PICTURES"):
        assert (OUT / "panel-light.png").stat().st_size < 200_000
        (ROOT / "nbs" / "images").mkdir(exist_ok=True)
        shutil.copy(OUT / "panel-light.png", ROOT / "nbs" / "images" / "panel.png")


def test_where_the_live_chart_cannot_load_html_takes_its_place(lab, open_notebook, watched):
    lab.write("panel.ipynb", SHOW.format(settings="num_epochs=1000, eval_every=40"), ASK)
    watched.page.route(re.compile(r"/anywidget/"), lambda route: route.abort())
    page = open_notebook("panel.ipynb")
    run_cell(page, 0, 1)
    page.locator(".ftnb-start:not([disabled])").click()
    picture = page.locator(".ftnb-chart-fallback svg[role=img]")
    picture.wait_for(timeout=PATIENCE * 1000)
    seen = steps(page)
    wait_for_step(page, seen + 5)
    assert page.locator(".ftnb-chart .ftnb-step").count() == 0
    page.locator(".ftnb-stop").click()
    page.locator(".ftnb-status", has_text="Stopped.").wait_for(timeout=PATIENCE * 1000)
    run_cell(page, 1, 2)
    page.locator(".jp-Notebook .jp-CodeCell").first.locator(".jp-RenderedImage img").wait_for()

    # A mistake is said on the page, and nothing that was typed is lost.
    columns = page.locator(".ftnb-columns input")
    columns.fill("text=review")
    columns.press("Tab")
    page.locator(".ftnb-start").click()
    page.locator(".ftnb-error [role=alert]", has_text="review").wait_for(timeout=PATIENCE * 1000)
    assert columns.input_value() == "text=review"
    page.locator(".ftnb-start:not([disabled])").wait_for()
