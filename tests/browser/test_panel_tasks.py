"""The panel for pictures: another task chosen, a run on handwritten digits, then a picture of one's own and errors."""

import pytest
from conftest import OUT
from sklearn.datasets import load_digits
from test_panel_browser import PATIENCE, SHOW, change_theme, run_cell, save
from tiny_images import tiny_resnet

pytestmark = pytest.mark.browser


def shot(page, name):
    """The panel alone."""
    OUT.mkdir(exist_ok=True)
    page.mouse.move(5, 5)
    box = page.locator(".ftnb-panel").first.bounding_box()
    clip = {"x": box["x"] - 6, "y": box["y"] - 4, "width": box["width"] + 12, "height": box["height"] + 8}
    page.screenshot(path=OUT / name, clip=clip)


def fill(page, name, text):
    field = page.locator(f".ftnb-{name} input")
    field.fill(text)
    field.press("Tab")


def choose_file(page, path):
    with page.expect_file_chooser() as chooser:
        page.locator(".ftnb-upload").click()
    chooser.value.set_files(path)


def in_view(page, name):
    """Scroll to the bottom of the panel, as a person would."""
    page.locator(name).first.scroll_into_view_if_needed()


def write_digit(path):
    from PIL import Image

    pixels = load_digits().images[1500]  # in the test part: no training has seen it
    Image.fromarray((pixels * 15.9).astype("uint8")).save(path)


def test_another_task_a_run_a_picture_of_your_own_and_errors(lab, open_notebook, tmp_path):
    tiny_resnet(lab.folder / "tiny-resnet")
    write_digit(tmp_path / "digit.png")
    (tmp_path / "notes.txt").write_text("no picture", encoding="utf-8")
    lab.write("tasks.ipynb", SHOW.format(settings=""), "panel.run.wait()\nprint(panel.run.recipe.task)")
    page = open_notebook("tasks.ipynb")
    page.set_viewport_size({"width": 860, "height": 1500})  # the panel is 680 pixels wide then
    run_cell(page, 0, 1)
    page.locator(".ftnb-start:not([disabled])").wait_for()
    shot(page, "form-text.png")
    assert page.locator(".ftnb-max-length").is_visible()
    assert page.locator(".ftnb-tryout").is_hidden()

    # Another task: its data, its model, its settings; those of the old one are gone.
    page.locator(".ftnb-task select").select_option("image-classification")
    page.locator(".ftnb-augment").wait_for()
    assert page.locator(".ftnb-max-length").count() == 0
    assert page.locator(".ftnb-data input").input_value() == "builtin:digits"
    assert page.locator(".ftnb-columns input").get_attribute("placeholder") == "image=…, label=…"
    for name in ("task", "data", "columns", "augment", "image-size", "seed", "recipe-lr"):
        assert page.locator(f".ftnb-{name} [title]").first.get_attribute("title"), name
    assert page.locator(".ftnb-augment [title]").get_attribute("title") == "how pictures change in training"
    page.locator(".ftnb-augment select").select_option("shift")
    fill(page, "model", "tiny-resnet")
    fill(page, "image-size", "16")
    fill(page, "num-epochs", "25")
    page.locator(".ftnb-code", has_text="num_epochs=25").wait_for()
    assert "image_size=16, augment='shift'" in page.locator(".ftnb-code").inner_text()
    shot(page, "form-images.png")
    box = page.locator(".ftnb-panel").first.bounding_box()
    assert abs(box["width"] - 680) < 12
    right = box["x"] + box["width"] + 1
    for control in page.locator(".ftnb-form input:visible, .ftnb-form select:visible").all():
        place = control.bounding_box()
        assert place["x"] + place["width"] <= right
        assert place["width"] >= 40

    page.locator(".ftnb-start").click()
    page.locator(".ftnb-status", has_text="Done.").wait_for(timeout=PATIENCE * 1000)
    page.locator(".ftnb-upload:not([disabled])").wait_for()
    assert page.locator(".ftnb-tryout .ftnb-text").is_hidden()

    choose_file(page, tmp_path / "digit.png")
    page.locator(".ftnb-tried .ftnb-bars").wait_for()
    assert "panel.run.predict(['digit.png'])" in page.locator(".ftnb-tried-code").inner_text()
    assert "and 5 more" in page.locator(".ftnb-tried").inner_text()
    in_view(page, ".ftnb-tried")
    shot(page, "tried-picture.png")

    # What is no picture is said by its name; the same picture can be chosen again after it.
    choose_file(page, tmp_path / "notes.txt")
    page.locator(".ftnb-error [role=alert]", has_text="notes.txt is no picture").wait_for()
    assert page.locator(".ftnb-tried .ftnb-bars").count() == 0
    choose_file(page, tmp_path / "digit.png")
    page.locator(".ftnb-tried .ftnb-bars").wait_for()
    page.locator(".ftnb-error [role=alert]").wait_for(state="detached")

    page.locator(".ftnb-errors").click()
    page.locator(".ftnb-tried img[alt*='pictures are wrong']").wait_for()
    assert "panel.run.task.show_errors()" in page.locator(".ftnb-tried-code").inner_text()
    in_view(page, ".ftnb-tried")
    shot(page, "tried-errors.png")
    change_theme(page, "JupyterLab Dark")
    shot(page, "tried-errors-dark.png")

    # After a reload the panel still answers, and a saved notebook does not keep what was uploaded.
    save(page)
    page.reload()
    page.locator(".ftnb-upload:not([disabled])").wait_for(timeout=PATIENCE * 1000)
    choose_file(page, tmp_path / "digit.png")
    page.locator(".ftnb-tried .ftnb-bars").wait_for()
    assert run_cell(page, 1, 2).locator(".jp-OutputArea-output").last.inner_text().strip() == "image-classification"


def test_a_text_of_your_own_and_errors_as_a_table(lab, open_notebook):
    lab.write("texts.ipynb", SHOW.format(settings="num_epochs=2"), "panel.run.wait()")
    page = open_notebook("texts.ipynb")
    page.set_viewport_size({"width": 860, "height": 1500})
    run_cell(page, 0, 1)
    page.locator(".ftnb-start:not([disabled])").click()
    page.locator(".ftnb-status", has_text="Done.").wait_for(timeout=PATIENCE * 1000)
    page.locator(".ftnb-try:not([disabled])").wait_for()
    page.locator(".ftnb-try").click()
    page.locator(".ftnb-error [role=alert]", has_text="no text to try").wait_for()

    text = page.locator(".ftnb-text input")
    text.fill("everything was wonderful . this is a perfect class .")
    text.press("Enter")
    page.locator(".ftnb-tried .ftnb-bars").wait_for()
    assert "positive" in page.locator(".ftnb-tried").inner_text()
    page.locator(".ftnb-error [role=alert]").wait_for(state="detached")
    shot(page, "tried-text.png")

    # A click on the button leaves the field as well: one answer, to what stands there.
    text.fill("a horrible film . the story was boring .")
    page.locator(".ftnb-try").click()
    page.locator(".ftnb-tried-code", has_text="a horrible film").wait_for()
    page.locator(".ftnb-tried .ftnb-bars").wait_for()
    assert page.locator(".ftnb-tried .ftnb-bars span").first.inner_text() == "negative"

    page.locator(".ftnb-errors").click()
    page.locator(".ftnb-tried table").wait_for()
    in_view(page, ".ftnb-tried")
    shot(page, "tried-table.png")
