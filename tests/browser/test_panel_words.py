"""The panel for words: entities and a language model, asked in a pause, steered, stopped, and loaded by others."""

import pytest
from test_panel_browser import (
    PATIENCE,
    SHOW,
    change_theme,
    run_cell,
    set_rate,
    steps,
    take_picture,
    wait_for_state,
    wait_for_step,
)
from test_panel_tasks import fill, in_view, shot

pytestmark = pytest.mark.browser

# The folder that a run leaves, by transformers alone.
ENTITIES = """\
panel.run.wait()
from transformers import pipeline
find = pipeline("token-classification", str(panel.run.folder / "model"), aggregation_strategy="first")
print(panel.run.state, [(found["entity_group"], found["word"]) for found in find("We flew to Rome with Ann .")])"""
ANSWER = """\
panel.run.wait()
from pathlib import Path
from transformers import pipeline
folder = panel.run.folder / "model"
answer = pipeline("text-generation", str(folder))([{"role": "user", "content": "What does a cat do?"}])
adapters = [path.name for path in Path(folder).glob("adapter*")]
print(panel.run.state, panel.run.recipe.strategy["name"], adapters, answer[0]["generated_text"][-1])"""


def choose(page, task):
    page.locator(".ftnb-task select").select_option(task)
    if task != "text-classification":  # a line of code does not name the usual task
        page.locator(".ftnb-code", has_text=task).wait_for()


def pause(page, least):
    wait_for_step(page, least)
    page.locator(".ftnb-pause").click()
    wait_for_state(page, "paused")
    page.locator(".ftnb-try:not([disabled])").wait_for()
    return steps(page)


def ask(page, text):
    field = page.locator(".ftnb-text input")
    field.fill(text)
    field.press("Enter")
    page.locator(".ftnb-tried-code", has_text=text).wait_for(timeout=PATIENCE * 1000)


def resume_at(page, rate, held):
    """Set another rate in the pause and go on; the chart marks it."""
    set_rate(page, rate)
    page.locator(".ftnb-pause").click()
    wait_for_step(page, held + 5)
    assert page.locator(".ftnb-tryout").is_hidden()  # while it trains, nobody asks
    page.locator(".ftnb-chart svg text.k-lr").first.wait_for()


def stop(page):
    page.locator(".ftnb-stop").click()
    page.locator(".ftnb-status", has_text="Stopped.").wait_for(timeout=PATIENCE * 1000)
    return page.locator(".ftnb-status").inner_text()


def inside(page, name):
    """Nothing of this stands out of the panel to the right."""
    panel, shown = page.locator(".ftnb-panel").first.bounding_box(), page.locator(name).first.bounding_box()
    return shown["x"] + shown["width"] <= panel["x"] + panel["width"] + 1


def cut_off(page):
    """The choices in the right half of the form that are wider than their field leaves room for."""
    return page.locator(".ftnb-settings select").evaluate_all(
        """selects => selects.flatMap(select => {
            const style = getComputedStyle(select), pen = document.createElement('canvas').getContext('2d');
            pen.font = style.font;
            const room = select.clientWidth - parseFloat(style.paddingLeft) - parseFloat(style.paddingRight);
            return [...select.options].map(o => o.text).filter(text => pen.measureText(text).width > room);
        })"""
    )


def cut_labels(page):
    """The labels in the right half of the form that are wider than their place."""
    return page.locator(".ftnb-settings .widget-label").evaluate_all(
        "labels => labels.filter(label => label.scrollWidth > label.clientWidth).map(label => label.innerText)"
    )


def test_no_choice_and_no_label_is_cut_off(lab, open_notebook):
    lab.write("form.ipynb", SHOW.format(settings=""))
    page = open_notebook("form.ipynb")
    page.set_viewport_size({"width": 860, "height": 900})  # the panel is 680 pixels wide then
    run_cell(page, 0, 1)
    page.locator(".ftnb-start:not([disabled])").wait_for()
    for task in page.locator(".ftnb-task option").all_inner_texts():
        choose(page, task)
        assert not cut_off(page), task
        assert not cut_labels(page), task


def test_entities_marked_in_a_pause(lab, open_notebook):
    lab.write("entities.ipynb", SHOW.format(settings="eval_every=15"), ENTITIES)
    page = open_notebook("entities.ipynb")
    page.set_viewport_size({"width": 860, "height": 1500})
    run_cell(page, 0, 1)
    page.locator(".ftnb-start:not([disabled])").wait_for()
    choose(page, "token-classification")
    assert page.locator(".ftnb-data input").input_value() == "builtin:names"
    fill(page, "num-epochs", "200")
    page.locator(".ftnb-start").click()

    held = pause(page, 40)
    ask(page, "The tall museum in Paris opens at nine .")
    page.locator(".ftnb-tried span", has_text="place").first.wait_for()
    assert "Paris" in page.locator(".ftnb-tried").inner_text()
    shot(page, "tried-entities.png")
    page.locator(".ftnb-errors").click()
    page.locator(".ftnb-tried caption", has_text="valid texts have a wrong entity").wait_for(timeout=PATIENCE * 1000)
    assert inside(page, ".ftnb-tried table")
    in_view(page, ".ftnb-tried")
    shot(page, "entity-errors.png")
    change_theme(page, "JupyterLab Dark")
    shot(page, "entity-errors-dark.png")
    change_theme(page, "JupyterLab Light")

    resume_at(page, "0.001", held)
    take_picture(page, "panel-entities.png")
    assert "Best f1" in stop(page)
    answer = run_cell(page, 1, 2).locator(".jp-OutputArea-output").last.inner_text()
    assert answer.startswith("stopped")
    assert "('place', 'rome')" in answer


def test_a_language_model_with_lora_writes_samples_in_a_pause(lab, open_notebook):
    lab.write("language.ipynb", SHOW.format(settings="eval_every=20"), ANSWER)
    page = open_notebook("language.ipynb")
    page.set_viewport_size({"width": 860, "height": 1500})
    run_cell(page, 0, 1)
    page.locator(".ftnb-start:not([disabled])").wait_for()
    choose(page, "text-generation")
    assert page.locator(".ftnb-packing select").is_visible()
    page.locator(".ftnb-strategy select").select_option("lora")
    page.locator(".ftnb-code", has_text="lora").wait_for()
    fill(page, "num-epochs", "200")
    shot(page, "form-language.png")
    page.locator(".ftnb-start").click()

    held = pause(page, 60)
    page.locator(".ftnb-samples").click()
    page.locator(".ftnb-tried table", has_text="right answer").wait_for(timeout=PATIENCE * 1000)
    assert inside(page, ".ftnb-tried table")
    assert page.locator(".ftnb-tried tbody tr").count() == 4
    shot(page, "language-samples.png")
    ask(page, "What does a dog do?")
    assert page.locator(".ftnb-tried").inner_text().strip()
    shot(page, "tried-prompt.png")

    resume_at(page, "0.004", held)
    take_picture(page, "panel-language.png")
    assert "Best token_accuracy" in stop(page)
    page.locator(".ftnb-errors:not([disabled])").click()
    page.locator(".ftnb-tried caption", has_text="answers are not exactly right").wait_for(timeout=PATIENCE * 1000)
    in_view(page, ".ftnb-tried")
    shot(page, "language-errors.png")
    answer = run_cell(page, 1, 2).locator(".jp-OutputArea-output").last.inner_text()
    assert answer.startswith("stopped lora []")  # a plain folder: what LoRA learnt is folded in
    assert "'role': 'assistant'" in answer
