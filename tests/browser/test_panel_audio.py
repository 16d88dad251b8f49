"""The panel for recordings: a run on a folder of words, a recording uploaded, one made with the page's microphone."""

import pytest
from test_panel_browser import PATIENCE, SHOW, run_cell, save
from test_panel_tasks import choose_file, in_view, shot
from tiny_audio import tone_folder, tones

pytestmark = pytest.mark.browser


def test_a_recording_uploaded_and_one_made_here(lab, open_notebook, tmp_path):
    tone_folder(lab.folder / "words", each=12)
    (tmp_path / "beep.wav").write_bytes(tones(1, seed=5)[0]["audio"]["bytes"])
    (tmp_path / "notes.txt").write_text("no sound", encoding="utf-8")
    settings = "task='audio-classification', data='words', model='logmel-cnn', lr=5e-3, num_epochs=4, batch_size=8, "
    lab.write("audio.ipynb", SHOW.format(settings=settings), "panel.run.wait()\nprint(panel.run.recipe.task)")
    page = open_notebook("audio.ipynb")
    page.set_viewport_size({"width": 900, "height": 1500})
    run_cell(page, 0, 1)
    page.locator(".ftnb-start:not([disabled])").click()
    page.locator(".ftnb-status", has_text="Done.").wait_for(timeout=PATIENCE * 1000)

    page.locator(".ftnb-upload:not([disabled])", has_text="Try a recording").wait_for()
    assert page.locator(".ftnb-tryout .ftnb-text").is_hidden()
    choose_file(page, tmp_path / "beep.wav")
    page.locator(".ftnb-tried audio").wait_for()
    page.locator(".ftnb-tried .ftnb-bars").wait_for()
    assert "panel.run.predict(['beep.wav'])" in page.locator(".ftnb-tried-code").inner_text()
    assert "low" in page.locator(".ftnb-tried .ftnb-bars").inner_text()
    choose_file(page, tmp_path / "notes.txt")
    page.locator(".ftnb-error [role=alert]", has_text="notes.txt is no recording").wait_for()

    page.locator(".ftnb-record:not([disabled])", has_text="Record").click()
    page.locator(".ftnb-record-said", has_text="Recording, at most 30 seconds").wait_for()
    page.wait_for_timeout(1500)
    page.locator(".ftnb-record[aria-pressed=true]").click()
    page.locator(".ftnb-tried-code", has_text="recording.wav").wait_for()
    page.locator(".ftnb-tried .ftnb-bars").wait_for()
    seconds = page.locator(".ftnb-tried audio").evaluate(
        "async a => { a.preload = 'auto'; a.load(); await new Promise(r => a.onloadedmetadata = r); return a.duration }"
    )
    assert 0.8 < seconds < 6
    in_view(page, ".ftnb-tried")
    shot(page, "tried-recording.png")

    page.locator(".ftnb-errors").click()
    page.locator(".ftnb-tried caption", has_text="recordings are wrong").wait_for()
    save(page)
    assert "audio/" not in str(lab.read("audio.ipynb").metadata)  # no widget state, so no recording, is kept
