"""The panel without a browser: widgets fire their handlers when code sets them, and a fake run remembers."""

import io
from types import SimpleNamespace

import pandas as pd
import pytest
from fake_run import FakeRun
from PIL import Image

from ftnb import panel as panel_module
from ftnb.panel import Panel, device_line
from ftnb.recipe import Recipe, RecipeError
from ftnb.rules import Rule, is_named
from ftnb.run import RunError
from ftnb.tables import DataError
from ftnb.tasks import TASKS
from ftnb.tasks.display import TextTable
from ftnb.widgets import form as form_module
from ftnb.widgets.controls import log_slider
from ftnb.widgets.figure import Picture
from tests.toys import until


@pytest.fixture
def runs(monkeypatch, tmp_path):
    """Panels make fake runs; the list of those made."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(FakeRun, "made", [])
    monkeypatch.setattr(panel_module, "Run", FakeRun)
    found = lambda key="": next((r for r in reversed(FakeRun.made) if r.key == key), None)  # noqa: E731
    monkeypatch.setattr(panel_module, "current_run", found)
    yield FakeRun.made
    for run in FakeRun.made:
        run.stop()


def slow(monkeypatch):
    monkeypatch.setattr(FakeRun, "num_steps", 100_000)


def choose(panel, task):
    panel.form.fields["task"].value = task


def tip(widget):
    return widget.tooltip if widget.has_trait("tooltip") else widget.description_tooltip


def started(panel):
    run = panel.start()
    until(lambda: run.state == "running" and run.history.step > 0)
    panel.refresh()
    return run


class TestForm:
    def test_shows_the_recipe_and_gives_it_back(self, runs):
        recipe = Recipe(
            data="reviews.csv", columns={"text": "review", "label": 3}, strategy={"name": "top-k", "k": 1}, lr=2e-5,
            num_epochs=5, batch_size=8, seed=7, device="cpu", precision="fp32", warmup=0.2, patience=4,
        )  # fmt: skip
        assert Panel(recipe).recipe == recipe

    def test_the_default_form_is_the_default_recipe(self, runs):
        assert Panel().recipe == Recipe()

    def test_every_edit_reaches_the_recipe_and_the_line_of_code(self, runs):
        panel, fields = Panel(), None
        fields = panel.form.fields
        fields["lr"].value, fields["num_epochs"].value, fields["seed"].value = 1e-3, 7, 5
        fields["columns"].value = "text=0, label=1"
        assert panel.recipe == Recipe(lr=1e-3, num_epochs=7, seed=5, columns={"text": 0, "label": 1})
        assert "num_epochs=7" in panel.code.value

    @pytest.mark.parametrize(("name", "knob"), [("top-k", "k"), ("layer-decay", "decay")])
    def test_a_strategy_brings_its_own_numbers(self, runs, name, knob):
        panel = Panel()
        panel.form.fields["strategy"].value = name
        widget = panel.form._knobs[knob]
        widget.value = widget.value / 2 if isinstance(widget.value, float) else widget.value + 1
        assert panel.recipe.strategy == {"name": name, knob: widget.value}
        panel.form.fields["strategy"].value = "full"
        assert panel.recipe.strategy == "full"

    def test_what_cannot_be_is_said_and_nothing_is_lost(self, runs):
        panel = Panel()
        panel.form.fields["num_epochs"].value = 9
        panel.form.fields["columns"].value = "text"
        assert "key=value" in panel.error.value
        panel.buttons["start"].click()
        assert not runs
        assert panel.error.value
        panel.form.fields["columns"].value = ""
        assert panel.error.value == ""
        assert panel.recipe.num_epochs == 9

    def test_data_in_memory_is_kept(self, runs):
        rows = [{"text": "good", "label": "pos"}, {"text": "bad", "label": "neg"}]
        panel = Panel(Recipe(data=rows))
        panel.form.fields["num_epochs"].value = 1
        assert panel.recipe.data is rows
        panel.form.fields["data"].value = "builtin:reviews"
        assert panel.recipe == Recipe(num_epochs=1)

    def test_a_device_that_is_not_here_is_said(self, runs):
        panel = Panel()
        panel.form.fields["device"].value = "mps"
        assert "mps" in panel.error.value
        assert "free" in device_line(Recipe(device="cpu"))

    def test_every_control_has_a_tooltip_and_a_class(self, runs):
        panel = Panel()
        controls = [*panel.form.fields.values(), *panel.buttons.values(), panel.lr]
        controls += [panel.tryout.errors, panel.tryout.text, panel.tryout.ask, panel.tryout.upload]
        for task in TASKS:
            choose(panel, task)
            controls += panel.form.settings.values()
        for widget in controls:
            assert tip(widget), widget
            assert any(name.startswith("ftnb-") for name in widget._dom_classes), widget


class TestTasks:
    def test_another_task_brings_its_data_model_roles_and_settings(self, runs):
        panel = Panel()
        form = panel.form
        assert set(form.settings) == {"batch_tokens", "max_length", "label_separator", "trunk_cache"}
        choose(panel, "image-classification")
        entry = TASKS["image-classification"]
        assert panel.recipe == Recipe(task="image-classification")
        assert "image-classification" in panel.code.value
        assert (form.fields["data"].value, form.fields["model"].value) == (entry.data, entry.model)
        assert list(form.fields["model"].options) == [entry.model, *entry.models]
        assert list(form.fields["data"].options) == [entry.data]
        assert form.fields["columns"].placeholder == "image=…, label=…"
        assert "image=0, label=1" in tip(form.fields["columns"])
        assert set(form.settings) == {"image_size", "augment", "batch_norm", "trunk_cache"}
        assert form._made["max_length"] not in form._pairs.children
        assert form.settings["augment"] in form._pairs.children
        choose(panel, "text-classification")
        assert panel.recipe == Recipe()

    @pytest.mark.parametrize("task", TASKS)
    def test_every_task_is_offered_with_what_its_entry_names(self, runs, task):
        panel = Panel()
        choose(panel, task)
        assert panel.recipe == Recipe(task=task)
        assert set(panel.form.settings) - {"batch_norm", "trunk_cache"} == set(TASKS[task].own_settings)
        assert ("batch_norm" in panel.form.settings) == ("image" in TASKS[task].roles)

    def test_the_settings_of_a_task_reach_the_recipe_and_come_back(self, runs):
        panel = Panel()
        panel.form.settings["max_length"].value = "64"
        assert panel.recipe == Recipe(max_length=64)
        choose(panel, "image-classification")
        settings = panel.form.settings
        settings["image_size"].value, settings["augment"].value, settings["batch_norm"].value = "32", "flip", "fixed"
        recipe = Recipe(task="image-classification", image_size=32, augment="flip", batch_norm="fixed")
        assert panel.recipe == recipe
        assert Panel(recipe, key="another").recipe == recipe
        settings["image_size"].value = ""
        assert panel.recipe.image_size is None

    def test_a_budget_of_tokens_stands_beside_the_batch_size(self, runs):
        panel = Panel()
        form, field = panel.form, panel.form.settings["batch_tokens"]
        children = list(form._pairs.children)
        assert children.index(field) == children.index(form.fields["batch_size"]) + 1
        assert "in place of batch_size" in tip(field)
        field.value = "2048"
        assert panel.recipe == Recipe(batch_tokens=2048)
        assert "batch_tokens=2048" in panel.code.value
        for wrong in ("many", "0", "1.5"):
            field.value = wrong
            assert "batch_tokens must be a whole number" in panel.error.value
        field.value = "none"
        assert panel.recipe == Recipe()
        assert panel.error.value == ""
        field.value = "512"
        choose(panel, "image-classification")
        assert panel.recipe == Recipe(task="image-classification")
        assert "batch_tokens" not in panel.form.settings

    def test_hidden_settings_do_not_leak(self, runs):
        panel = Panel(Recipe(task="image-classification", image_size=32, augment="flip", batch_norm="fixed"))
        choose(panel, "text-classification")
        assert panel.recipe == Recipe()
        panel.form._made["augment"].value = "strong"  # nobody sees this widget now
        assert panel.recipe == Recipe()
        choose(panel, "image-classification")
        assert panel.recipe == Recipe(task="image-classification")

    def test_what_all_tasks_have_stays_and_so_does_what_the_form_does_not_show(self, runs):
        panel = Panel(Recipe(lr=1e-3, num_epochs=7, seed=3, patience=4, strategy="head"))
        panel.form.fields["batch_size"].value = 8
        choose(panel, "image-classification")
        told = {"lr": 1e-3, "num_epochs": 7, "seed": 3, "patience": 4, "strategy": "head", "batch_size": 8}
        assert panel.recipe == Recipe(task="image-classification", **told)

    def test_data_and_model_of_your_own_stay_but_a_suggested_model_goes(self, runs):
        panel = Panel(Recipe(data="mine", model="my-model"))
        choose(panel, "image-classification")
        assert panel.recipe == Recipe(task="image-classification", data="mine", model="my-model")
        panel = Panel(Recipe(model=TASKS["text-classification"].models[0]))
        choose(panel, "image-classification")
        assert panel.recipe == Recipe(task="image-classification")

    def test_data_in_memory_stays(self, runs):
        table = pd.DataFrame({"image": ["a.png"], "label": ["x"]})
        panel = Panel(Recipe(data=table))
        choose(panel, "image-classification")
        assert panel.recipe.data is table
        assert not is_named(panel.recipe.data)

    def test_a_field_that_cannot_be_is_said_and_the_task_waits(self, runs):
        panel = Panel()
        panel.form.settings["max_length"].value = "long"
        assert "max_length must be a whole number" in panel.error.value
        choose(panel, "image-classification")
        assert panel.form.fields["task"].value == "text-classification"
        assert "max_length must be a whole number" in panel.error.value
        assert panel.form.settings["max_length"].value == "long"
        panel.form.settings["max_length"].value = ""
        choose(panel, "image-classification")
        assert panel.error.value == ""
        assert panel.recipe.task == "image-classification"

    def test_a_running_run_locks_the_task_and_its_settings(self, runs, monkeypatch):
        slow(monkeypatch)
        panel = Panel(Recipe(task="image-classification"))
        run = started(panel)
        locked = [panel.form.fields["task"], *panel.form.settings.values()]
        assert all(widget.disabled for widget in locked)
        run.stop()
        until(lambda: run.state == "stopped")
        panel.refresh()
        assert not any(widget.disabled for widget in locked)

    def test_a_setting_that_is_shown_after_the_run_can_be_edited(self, runs, monkeypatch):
        slow(monkeypatch)
        panel = Panel()
        run = started(panel)
        panel.form.fill(Recipe(task="image-classification"))
        panel.refresh()
        assert panel.form.settings["augment"].disabled
        run.stop()
        until(lambda: run.state == "stopped")
        panel.refresh()
        choose(panel, "text-classification")
        assert not panel.form.settings["max_length"].disabled

    def test_an_optional_choice_can_be_left_to_the_task(self, runs, monkeypatch):
        rule = Rule(kind="text", help="how boxes are meant", choices=("xyxy", "xywh"), optional=True)
        monkeypatch.setattr(form_module, "rules", lambda: {"box_format": rule})
        widget = form_module._setting("box_format")
        assert widget.value is None
        widget.value = "xywh"
        assert "how boxes are meant" in tip(widget)


class TestSlider:
    @pytest.mark.parametrize("value", [2e-5, 0.01, 5e-9, 3.0])
    def test_no_rate_is_clamped(self, value):
        assert log_slider("x", "x", "x", value).value == value


class TestCommands:
    def test_buttons_ask_and_labels_follow(self, runs, monkeypatch):
        slow(monkeypatch)
        panel = Panel()
        assert [b.disabled for b in panel.buttons.values()] == [False, True, True, True]
        panel.buttons["start"].click()
        run = panel.run
        until(lambda: run.state == "running")
        panel.refresh()
        assert [b.disabled for b in panel.buttons.values()] == [True, False, False, False]
        assert all(widget.disabled for widget in panel.form.fields.values())
        panel.buttons["evaluate"].click()
        panel.buttons["pause"].click()
        assert panel.buttons["pause"].description == "Resume"
        assert "Paused at step" in panel.status.value
        panel.buttons["pause"].click()
        assert panel.buttons["pause"].description == "Pause"
        panel.buttons["stop"].click()
        until(lambda: run.state == "stopped")
        panel.refresh()
        assert run.asked == ["start True", "evaluate", "pause", "resume", "stop"]
        assert not any(widget.disabled for widget in panel.form.fields.values())
        assert "Stopped." in panel.status.value

    def test_a_second_click_takes_a_pause_back_before_it_is_in_force(self, runs, monkeypatch):
        slow(monkeypatch)
        panel = Panel()
        run = started(panel)
        for name in ("pause", "resume"):  # a real run holds only after the work in hand
            monkeypatch.setattr(run, name, lambda name=name: run.asked.append(name))
        panel.buttons["pause"].click()
        assert panel.buttons["pause"].description == "Resume"
        panel.buttons["pause"].click()
        assert panel.buttons["pause"].description == "Pause"
        assert run.asked[-2:] == ["pause", "resume"]

    def test_the_live_rate_is_asked_for_and_acknowledged(self, runs, monkeypatch):
        slow(monkeypatch)
        panel = Panel()
        run = started(panel)
        assert panel.lr.value == run.recipe.lr
        panel.lr.value = 1e-3
        assert run.asked[-1] == "lr 0.001"
        panel.refresh()
        assert "asked for" not in panel.status.value

    def test_a_rate_set_in_code_moves_the_slider_and_is_not_asked_twice(self, runs, monkeypatch):
        slow(monkeypatch)
        panel = Panel()
        run = started(panel)
        run.set_lr(2e-4)
        panel.refresh()
        assert panel.lr.value == 2e-4
        assert run.asked == ["start False", "lr 0.0002"]

    def test_a_refused_command_is_said(self, runs, monkeypatch):
        slow(monkeypatch)
        panel = Panel()
        started(panel)
        panel.lr.max = 2
        panel.lr.value = 10.0
        assert "too much" in panel.error.value

    def test_editing_the_rate_before_the_start_asks_nobody(self, runs):
        panel = Panel()
        panel.lr.value = 1e-3
        assert not runs
        assert panel.error.value == ""


class TestRuns:
    def test_start_in_code_and_wait(self, runs):
        panel = Panel()
        run = panel.start()
        assert run.wait(20) == "done"
        until(lambda: "Done." in panel.status.value)
        assert "accuracy" in panel.status.value
        assert not panel.buttons["start"].disabled

    def test_a_second_run_only_after_the_first(self, runs, monkeypatch):
        slow(monkeypatch)
        panel = Panel()
        run = started(panel)
        with pytest.raises(RunError, match="still running"):
            panel.start()
        run.stop()
        until(lambda: run.state == "stopped")
        assert panel.start() is not run

    def test_running_the_cell_again_shows_the_run_that_is_there(self, runs, monkeypatch):
        slow(monkeypatch)
        first = Panel(Recipe(lr=1e-3))
        run = started(first)
        again = Panel(Recipe(lr=7e-4))
        assert again.run is run
        assert again.recipe.lr == 1e-3  # what runs, not what would be started
        assert Panel(key="another").run is None
        again.buttons["pause"].click()
        assert run.state == "paused"
        first.refresh()
        assert first.buttons["pause"].description == "Resume"

    def test_after_the_end_the_cell_s_own_recipe_is_shown(self, runs):
        Panel(Recipe(lr=1e-3)).start().wait(20)
        assert Panel(Recipe(lr=7e-4)).recipe.lr == 7e-4
        assert Panel().recipe.lr == 1e-3

    def test_errors_before_training_are_raised_in_code_and_said_on_the_page(self, runs, monkeypatch):
        monkeypatch.setattr(FakeRun, "fail_with", RecipeError("column 'lable' not found in reviews.csv."))
        panel = Panel()
        with pytest.raises(RecipeError, match="lable"):
            panel.start()
        panel.buttons["start"].click()
        until(lambda: panel.run.state == "failed")
        panel.refresh()
        assert "lable" in panel.error.value
        assert not panel.buttons["start"].disabled

    def test_names_from_outside_cannot_become_markup(self, runs):
        panel = Panel(Recipe(data="<img src=x onerror=alert(1)>.csv"))
        panel._try(lambda: (_ for _ in ()).throw(ValueError("<script>")))
        assert "<script>" not in panel.error.value
        assert "<img" not in panel.code.value


def ended(recipe=None, **task):
    """A panel whose fake run is over, with a task that has what is given."""
    panel = Panel(recipe)
    run = panel.start()
    assert run.wait(20) == "done"
    run.task = SimpleNamespace(**task)
    panel.refresh()
    return panel


def hidden(widget):
    return widget.layout.display == "none"


def png(color="red"):
    with io.BytesIO() as file:
        Image.new("RGB", (8, 8), color).save(file, "PNG")
        return file.getvalue()


def upload(panel, name, content):
    """As the browser does it, in the format of the ipywidgets that is installed."""
    widget, about = panel.tryout.upload, {"name": name, "type": "image/png", "size": len(content)}
    if widget.has_trait("data"):  # 7
        widget.set_state({"metadata": [about], "data": [memoryview(content)], "_counter": widget._counter + 1})
    else:
        widget.set_state({"value": [{**about, "last_modified": 0, "content": memoryview(content)}]})


IMAGES = Recipe(task="image-classification")


class TestTryout:
    def test_it_is_offered_after_the_end_and_taken_away_while_a_run_trains(self, runs, monkeypatch):
        panel = Panel()
        assert hidden(panel.tryout.widget)
        slow(monkeypatch)
        run = started(panel)
        assert hidden(panel.tryout.widget)
        assert all(w.disabled for w in (panel.tryout.errors, panel.tryout.ask, panel.tryout.upload))
        run.stop()
        until(lambda: not hidden(panel.tryout.widget))
        assert not panel.tryout.errors.disabled
        panel.tryout.text.value = "a film"
        assert panel.tryout.value.value
        started(panel)
        assert hidden(panel.tryout.widget)
        assert panel.tryout.errors.disabled
        assert panel.tryout.value.value == ""  # it was the answer of another model

    def test_in_a_pause_the_model_can_be_asked_until_the_run_goes_on(self, runs, monkeypatch):
        slow(monkeypatch)
        panel = Panel()
        run = started(panel)
        panel.buttons["pause"].click()
        until(lambda: run.state == "paused" and not hidden(panel.tryout.widget))
        panel.tryout.text.value = "a film"
        assert "positive" in panel.tryout.value.value
        panel.buttons["pause"].click()
        until(lambda: run.state == "running" and hidden(panel.tryout.widget))

    def test_samples_are_offered_where_the_task_writes(self, runs):
        assert hidden(ended(Recipe()).tryout.samples)
        panel = ended(Recipe(task="text-generation"))
        assert not hidden(panel.tryout.samples)
        assert not hidden(panel.tryout.text)

    def test_it_is_not_offered_where_nothing_was_trained(self, runs, monkeypatch):
        monkeypatch.setattr(FakeRun, "fail_with", RecipeError("no."))
        panel = Panel()
        panel.buttons["start"].click()
        until(lambda: panel.run.state == "failed")
        panel.refresh()
        assert hidden(panel.tryout.widget)

    @pytest.mark.parametrize(("recipe", "text"), [(Recipe(), True), (IMAGES, False)])
    def test_a_field_for_texts_an_upload_for_pictures(self, runs, recipe, text):
        tryout = ended(recipe).tryout
        assert [hidden(w) for w in (tryout.text, tryout.ask, tryout.upload)] == [not text, not text, text]
        assert not hidden(tryout.errors)

    def test_errors_as_a_table_with_the_line_of_code(self, runs):
        table = TextTable(("row", "text"), [("3", "<b>bold</b>")])
        panel = ended(show_errors=lambda: table)
        panel.tryout.errors.click()
        assert "panel.run.task.show_errors()" in panel.tryout.code.value
        assert "&lt;b&gt;bold" in panel.tryout.value.value
        assert "<table" in panel.tryout.value.value

    def test_errors_as_a_picture_with_its_caption_for_who_cannot_see_it(self, runs):
        picture = Picture(figsize=(1, 1))
        picture.suptitle("2 of 9 are wrong")
        panel = ended(IMAGES, show_errors=lambda: picture)
        panel.tryout.errors.click()
        assert 'alt="2 of 9 are wrong"' in panel.tryout.value.value
        assert "data:image/png;base64,iVBOR" in panel.tryout.value.value

    def test_a_text_becomes_bars(self, runs, monkeypatch):
        asked = []
        scores = {f"class {i}": score for i, score in enumerate([0.5, 0.2, 0.1, 0.1, 0.05, 0.03, 0.02])}

        def predict(run, texts):
            asked.append(texts)
            return [SimpleNamespace(label="class 0", score=0.5, scores=scores)]

        monkeypatch.setattr(FakeRun, "predict", predict)
        panel = ended()
        panel.tryout.text.value = " it's fine "
        assert "it&#x27;s fine" in panel.tryout.code.value
        shown = panel.tryout.value.value
        assert "class 0" in shown
        assert "0.500" in shown
        assert "class 5" not in shown
        assert "and 2 more" in shown
        panel.tryout.ask.click()  # leaving the field for the button must not ask twice
        assert asked == [["it's fine"]]

    @pytest.mark.parametrize("text", ["", "  "])
    def test_an_empty_text_is_said(self, runs, text):
        panel = ended()
        panel.tryout.text.value = text
        panel.tryout.ask.click()
        assert "no text to try" in panel.error.value
        panel.tryout.text.value = "a film"
        assert panel.error.value == ""
        assert "positive" in panel.tryout.value.value

    def test_a_picture_is_read_predicted_and_forgotten(self, runs, monkeypatch):
        asked = []
        monkeypatch.setattr(FakeRun, "predict", lambda run, images: asked.extend(images) or ["seven"])
        panel = ended(IMAGES)
        for _ in range(2):  # the same file can be tried again
            upload(panel, "<seven>.png", png())
            assert not panel.tryout.upload.value
        assert [image.getpixel((0, 0)) for image in asked] == [(255, 0, 0)] * 2
        assert "seven" in panel.tryout.value.value
        assert 'alt="&lt;seven&gt;.png"' in panel.tryout.value.value
        assert "panel.run.predict" in panel.tryout.code.value

    def test_a_task_that_draws_its_predictions_does(self, runs):
        panel = ended(IMAGES, show_prediction=lambda image: Picture(figsize=(image.width / 8, 1)))
        upload(panel, "street.png", png())
        assert "panel.run.task.show_prediction" in panel.tryout.code.value
        assert "data:image/png" in panel.tryout.value.value

    @pytest.mark.parametrize("content", [b"", b"just words", png()[:40]])
    def test_what_is_no_picture_is_said_by_its_name(self, runs, content):
        panel = ended(IMAGES)
        upload(panel, "notes.txt", content)
        assert "notes.txt" in panel.error.value
        assert panel.tryout.value.value == ""
        assert not panel.tryout.upload.disabled
        upload(panel, "seven.png", png())
        assert panel.error.value == ""

    def test_what_the_task_refuses_is_said_and_nothing_stays_locked(self, runs):
        def refuse():
            raise DataError("there is no split 'valid'.")

        panel = ended(show_errors=refuse)
        panel.tryout.errors.click()
        assert "no split" in panel.error.value
        assert not panel.tryout.errors.disabled
        assert panel.tryout.value.value == ""

    def test_several_things_found_in_one_picture_are_listed(self, runs, monkeypatch):
        found = iter([[["cat <1>", "dog"]], [[]]])
        monkeypatch.setattr(FakeRun, "predict", lambda run, images: next(found))
        panel = ended(IMAGES)
        upload(panel, "a.png", png())
        assert "<div>cat &lt;1&gt;</div><div>dog</div>" in panel.tryout.value.value
        upload(panel, "b.png", png("blue"))
        assert "Nothing was found." in panel.tryout.value.value


class TestARunThatCanGoOn:
    """With a real run, since its folder is what counts."""

    @pytest.fixture
    def stopped(self, tmp_path, monkeypatch):
        from ftnb.run import Run
        from tests.tiny import tiny_bert, write_csv

        monkeypatch.setenv("FTNB_RUNS", str(tmp_path / "runs"))
        recipe = Recipe(data=str(write_csv(tmp_path / "r.csv")), model=str(tiny_bert(tmp_path / "bert")), device="cpu")
        run = Run(recipe.replace(num_epochs=4, snapshot_every=3))
        unsubscribe = run.subscribe(lambda e: run.stop() if (e.kind, e.step) == ("step", 5) else None)
        run.start().wait()
        unsubscribe()
        return run

    def test_resume_is_offered_and_goes_on(self, stopped):
        panel = Panel(key="again", run=stopped)
        panel.refresh()
        assert panel.buttons["pause"].description == "Resume"
        assert not panel.buttons["pause"].disabled
        assert panel.buttons["stop"].disabled
        assert "Resume goes on with it." in panel.status.value
        panel.buttons["pause"].click()
        assert stopped.wait(60) == "done"
        panel.refresh()
        assert panel.buttons["pause"].disabled
        assert stopped.history.step == 20
        assert "Resume" not in panel.status.value

    def test_a_run_of_another_process_is_shown_by_its_name(self, stopped):
        name, folder = stopped.folder.name, stopped.folder
        (folder / "events.jsonl").write_text(
            "".join(
                line for line in (folder / "events.jsonl").open(encoding="utf-8") if '"kind": "finished"' not in line
            ),
            encoding="utf-8",
        )
        from ftnb.registry import RUNS

        RUNS.known.clear()
        panel = Panel(key="other", run=name)
        panel.refresh()
        assert panel.run.state == "failed"
        assert panel.form.recipe() == stopped.recipe
        assert "Broken off at step 5." in panel.status.value
        assert "Resume goes on from its last snapshot (step 5)" in panel.status.value
        panel.buttons["pause"].click()
        assert panel.run.wait(60) == "done"

    def test_what_cannot_go_on_is_said_in_the_panel(self, stopped):
        from pathlib import Path

        panel = Panel(key="gone", run=stopped)
        Path(stopped.recipe.data).unlink()
        panel.buttons["pause"].click()
        until(stopped.ended.is_set)
        panel.refresh()
        assert stopped.state == "failed"
        assert "r.csv" in panel.error.value
