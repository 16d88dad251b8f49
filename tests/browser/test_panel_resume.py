"""A kernel that dies while it trains: the run is found again by its folder, and goes on in the panel."""

import os
import signal

import pytest
from conftest import OUT
from test_panel_browser import PATIENCE, SHOW, change_theme, run_cell, steps, take_picture, wait_for_step

from ftnb.events import Changed, Stepped, read_journal, what_counts

pytestmark = pytest.mark.browser

AGAIN = """\
from ftnb import Panel
panel = Panel(run="")  # the newest run there is
panel"""
ASK = """\
print(panel.run.wait(), panel.run.last_snapshot)"""


def test_a_killed_kernel_costs_a_few_steps(lab, open_notebook, watched):
    settings = "num_epochs=1000, eval_every=40, snapshot_every=50"
    lab.write("panel.ipynb", SHOW.format(settings=settings), AGAIN, ASK, "import os\nprint(os.getpid())")
    page = open_notebook("panel.ipynb")
    page.set_viewport_size({"width": 1000, "height": 1100})
    run_cell(page, 0, 1)
    kernel = int(run_cell(page, 3, 2).locator(".jp-OutputArea-output").first.inner_text())
    page.locator(".ftnb-start:not([disabled])").wait_for()
    page.locator(".ftnb-start").click()
    wait_for_step(page, 130)
    os.kill(kernel, signal.SIGKILL)
    page.locator(".jp-Dialog button", has_text="Ok").first.click(timeout=60_000)  # "The kernel died"
    page.evaluate("() => window.jupyterapp.commands.execute('notebook:clear-all-cell-outputs')")

    run_cell(page, 1, 1)
    pause = page.locator(".ftnb-pause:not([disabled])", has_text="Resume")
    pause.wait_for(timeout=PATIENCE * 1000)
    status = page.locator(".ftnb-status").last
    assert "Broken off at step" in status.inner_text()
    assert "Resume goes on from its last snapshot" in status.inner_text()
    page.screenshot(path=OUT / "panel-broken-off.png")
    (folder,) = (lab.folder.parent / "runs").iterdir()
    before = max(e.step for e in read_journal(folder / "events.jsonl") if isinstance(e, Stepped))
    pause.click()
    wait_for_step(page, before + 60)
    change_theme(page, "JupyterLab Dark")
    take_picture(page, "panel-resumed.png")
    assert steps(page) > before
    page.locator(".ftnb-stop:not([disabled])").click()
    page.locator(".ftnb-status", has_text="Stopped.").wait_for(timeout=PATIENCE * 1000)
    answer = run_cell(page, 2, 2).locator(".jp-OutputArea-output").first.inner_text()
    assert answer.startswith("stopped")

    events = read_journal(folder / "events.jsonl")
    (back,) = (e for e in events if isinstance(e, Changed) and e.what == "restored")
    assert before - 50 <= back.step <= before
    counted = [e.step for e in what_counts(events) if isinstance(e, Stepped)]
    assert counted == list(range(1, counted[-1] + 1))
