"""The panel without a browser: widgets fire their handlers when code sets them, and a fake run remembers."""

import time

import pytest
from fake_run import FakeRun

from ftnb import panel as panel_module
from ftnb.panel import Panel, device_line
from ftnb.recipe import Recipe, RecipeError
from ftnb.run import RunError
from ftnb.widgets.controls import log_slider


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


def until(condition, seconds=20.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.01)


def slow(monkeypatch):
    monkeypatch.setattr(FakeRun, "num_steps", 100_000)


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
        for widget in controls:
            text = widget.tooltip if widget.has_trait("tooltip") else widget.description_tooltip
            assert text, widget
            assert any(name.startswith("ftnb-") for name in widget._dom_classes), widget


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
