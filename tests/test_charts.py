"""Charts: what a picture must not lose, and that all its forms say the same."""

import base64
import json
import math
import os
import random
import re
import shutil
import subprocess
import threading
import warnings
import xml.etree.ElementTree as ET
from pathlib import Path

import matplotlib as mpl
import matplotlib.style as mpl_style
import numpy as np
import pytest

from ftnb.charts import (
    CURVES,
    MAX_MARKS,
    History,
    RunningMean,
    Series,
    history_html,
    history_svg,
    history_text,
    plot_history,
)
from ftnb.events import Changed, Evaluated, Finished, Started, Stepped, Warned
from ftnb.widgets import svg
from ftnb.widgets.figure import font_families

ROOT = Path(__file__).resolve().parent.parent


def started(num_steps=300, steps_per_epoch=100, **fields):
    return Started(
        step=0,
        num_steps=num_steps,
        steps_per_epoch=steps_per_epoch,
        num_epochs=3,
        num_examples=1600,
        num_parameters=10,
        num_trainable=10,
        device="cpu",
        precision="fp32",
        metric=fields.pop("metric", "accuracy"),
        **fields,
    )


def stepped(step, loss=1.0, **fields):
    values = {"epoch": step / 100, "lr": 1e-4, "grad_norm": 1.0, "examples_per_second": 200.0, "time": step * 0.1}
    return Stepped(step=step, loss=loss, **(values | fields))


def evaluated(step, value, best=False, **fields):
    return Evaluated(
        step=step, epoch=step / 100, loss=0.5, metrics={"accuracy": value}, best=best, time=step * 0.1, **fields
    )


def events(num_steps=300, until=None, seed=0):
    draw = random.Random(seed)
    out = [started(num_steps)]
    for step in range(1, (until or num_steps) + 1):
        out.append(stepped(step, loss=0.3 + math.exp(-step / 60) + 0.1 * draw.random(), lr=1e-4 * (1 - step / 301)))
        if step % 50 == 0:
            out.append(evaluated(step, 0.9 - 0.4 * math.exp(-step / 80), best=True))
        if step == 120:
            out.append(Changed(step=120, time=12.0, what="lr", old=1e-4, new=3e-4))
        if step == 170:
            out.append(Changed(step=170, time=17.0, what="phase", old="head", new="full"))
    return out


class TestSeries:
    @pytest.mark.parametrize("length", [0, 1, 7, 512, 513, 5000])
    def test_keeps_the_lowest_the_highest_and_the_last(self, length):
        values = np.random.default_rng(length).standard_normal(length).tolist()
        series = Series(max_buckets=64)
        for x, y in enumerate(values):
            series.add(x, y)
        points = series.points(100)
        assert len(points) <= 100
        if values:
            ys = [y for _, y in points]
            assert (min(ys), max(ys)) == (min(values), max(values))
            assert points[-1] == (length - 1, values[-1])
            assert [x for x, _ in points] == sorted(x for x, _ in points)
            assert all(values[int(x)] == y for x, y in points)  # nothing invented

    def test_memory_does_not_grow(self):
        series = Series(max_buckets=64)
        for x in range(20_000):
            series.add(x, x % 17)
        assert len(series._low) < 64
        assert len(series._high) < 64

    def test_a_short_curve_is_kept_whole(self):
        series = Series()
        for x in range(300):
            series.add(x, math.sin(x))
        assert len(series.points(1000)) == 300

    def test_what_is_not_finite_is_counted_and_left_out(self):
        series = Series()
        for y in (1.0, math.nan, math.inf, 2.0):
            series.add(0, y)
        assert series.num_skipped == 2
        assert [y for _, y in series.points()] == [1.0, 2.0]


def test_running_mean_of_a_constant_is_that_constant_from_the_start():
    mean = RunningMean(50)
    assert math.isnan(mean.add(math.nan))
    assert [mean.add(3.0) for _ in range(5)] == pytest.approx([3.0] * 5)
    assert mean.add(math.nan) == pytest.approx(3.0)


class TestHistory:
    def test_all_curves_together_stay_within_the_points_asked_for(self):
        history = History.from_events([started(20_000), *(stepped(s, loss=s % 7) for s in range(1, 4001))])
        for max_points in (1000, 300):
            summary, points = history.snapshot(max_points)
            assert sum(part["count"] for part in summary["series"]) <= max_points
            assert len(points) == 8 * sum(part["count"] for part in summary["series"])
        assert sum(CURVES.values()) <= 1

    def test_a_snapshot_is_json_and_bytes_that_unpack(self):
        summary, points = History.from_events(events()).snapshot()
        curves = svg.unpack(json.loads(json.dumps(summary, allow_nan=False)), points)
        assert set(curves) == set(CURVES)
        assert len(curves["metric"][0]) == 6
        assert curves["metric"][0] == [50, 100, 150, 200, 250, 300]
        assert curves["lr"][1][0] == pytest.approx(1e-4 * (1 - 1 / 301), rel=1e-6)

    def test_before_anything_happened(self):
        history = History()
        summary, points = history.snapshot()
        assert (summary["state"], points) == ("idle", b"")
        ET.fromstring(history_svg(history))
        assert plot_history(history).png()

    def test_time_left_leaves_pauses_out(self):
        history = History.from_events([started(), *(stepped(s) for s in range(1, 101))])
        before = history.seconds_left
        history.add(Changed(step=100, time=10.0, what="paused"))
        assert history.state == "paused"
        history.add(Changed(step=100, time=1010.0, what="resumed"))
        for step in range(101, 121):
            history.add(stepped(step, time=1000 + step * 0.1))
        assert history.state == "running"
        assert history.seconds_left == pytest.approx(before - 2.0, rel=0.01)
        pause = history.marks[-1]
        assert (pause.kind, pause.step, pause.hint) == ("pause", 100, "paused for 16:40 at step 100")

    def test_nothing_is_left_when_finished(self):
        history = History.from_events([*events(), Finished(step=300, time=31.0, reason="early_stopping")])
        assert (history.state, history.seconds_left) == ("done", None)

    @pytest.mark.parametrize(
        ("reason", "state"),
        [("done", "done"), ("stopped", "stopped"), ("failed", "failed"), ("early_stopping", "done")],
    )
    def test_states_at_the_end(self, reason, state):
        assert History.from_events([started(), Finished(step=9, reason=reason)]).state == state

    def test_a_loss_that_is_not_finite_is_said_and_marked(self):
        history = History.from_events([started(), stepped(1), stepped(2, loss=math.nan), stepped(3)])
        summary, _ = history.snapshot()
        assert "step 2" in summary["note"]
        assert [m["kind"] for m in summary["marks"]] == ["warning"]
        assert math.isfinite(summary["last"]["loss"])

    def test_best_is_the_evaluation_that_said_so(self):
        history = History.from_events(
            [started(), evaluated(50, 0.8, True), evaluated(100, 0.7), evaluated(150, 0.9, True)]
        )
        assert history.best == (150, 0.9)
        assert "best accuracy 0.9 at step 150" in history_text(history)

    def test_other_splits_are_not_drawn(self):
        history = History.from_events([started(), evaluated(50, 0.8), evaluated(60, 0.1, split="test")])
        assert [y for _, y in history.curves["metric"].points()] == [0.8]

    def test_events_of_a_loop_that_never_said_started(self):
        history = History.from_events([stepped(1), evaluated(1, 0.5), stepped(2)])
        assert (history.metric, history.state) == ("accuracy", "running")
        ET.fromstring(history_svg(history))

    def test_marks_are_bounded_and_said_in_words(self):
        history = History.from_events([started()])
        for step in range(250):
            history.add(Changed(step=step, what="lr", old=1e-4, new=2e-4, group="head"))
        assert len(history.marks) == MAX_MARKS
        assert history.marks[-1].hint == "learning rate 1e-4 → 2e-4 (head) at step 249"

    def test_phases_are_marked_when_there_are_several(self):
        first = Changed(step=0, what="phase", new="head", by="strategy")
        history = History.from_events([started(), first, stepped(1)])
        assert history.marks == []
        history.add(Changed(step=9, what="phase", old="head", new="full", by="strategy"))
        assert [(mark.step, mark.label) for mark in history.marks] == [(0, "head"), (9, "full")]

    def test_a_warning_is_shown(self):
        history = History.from_events([started(), Warned(step=1, code="rng", message="the generator was disturbed")])
        assert "the generator was disturbed" in history_html(history)

    def test_drawing_while_another_thread_adds(self):
        history, errors = History.from_events([started(20_000)]), []

        def feed():
            try:
                for step in range(1, 6001):
                    history.add(stepped(step, loss=step % 5))
            except Exception as error:  # noqa: BLE001  any error in the thread is what we look for
                errors.append(error)

        thread = threading.Thread(target=feed)
        thread.start()
        snapshots = [history.snapshot()]
        while thread.is_alive():
            snapshots.append(history.snapshot())
        thread.join()
        assert not errors
        for summary, points in snapshots[:: max(1, len(snapshots) // 20)]:
            assert {name: len(c[0]) for name, c in svg.unpack(summary, points).items()}["lr"] <= 150


class TestPictures:
    def test_png_from_any_thread_without_pyplot(self):
        history, out = History.from_events(events()), []
        threads = [threading.Thread(target=lambda: out.append(plot_history(history).png())) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(out) == 3
        assert all(png.startswith(b"\x89PNG") and len(png) < 300_000 for png in out)

    def test_the_picture_shows_itself_and_is_at_most_80_dpi(self):
        figure = plot_history(History.from_events(events()))
        assert figure._repr_png_().startswith(b"\x89PNG")
        assert figure.dpi <= 80

    def test_a_reader_s_style_changes_neither_picture_nor_settings(self):
        history = History.from_events(events())
        before = plot_history(history).png()
        with mpl_style.context("dark_background"):
            settings = dict(mpl.rcParams)
            face = plot_history(history).get_facecolor()
            assert dict(mpl.rcParams) == settings
        assert face == (1, 1, 1, 1)
        assert plot_history(history).png() == before

    def test_names_in_any_script(self):
        history = History.from_events([started(metric="точность"), evaluated(50, 0.8)])
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert plot_history(history).png()
        assert font_families()[0] == "DejaVu Sans"

    def test_many_epochs_are_not_a_wall_of_lines(self):
        history = History.from_events([started(3000, steps_per_epoch=3), *(stepped(s) for s in range(1, 3001, 10))])
        assert plot_history(history).png()
        assert 'class="e"' not in history_svg(history)

    def test_svg_is_well_formed_and_says_what_it_shows(self):
        picture = ET.fromstring(history_svg(History.from_events(events())))
        assert picture.get("role") == "img"
        assert "validation loss" in picture.get("aria-label")
        assert picture.find("title").text == picture.get("aria-label")

    def test_names_from_outside_cannot_become_markup(self):
        evil = "<script>alert(1)</script>"
        history = History.from_events([started(metric=evil), Warned(step=1, code="x", message=evil)])
        assert "<script>" not in history_html(history)

    def test_log_axis_only_where_it_can_be(self):
        logged = history_svg(History.from_events(events()), log=True)
        assert logged != history_svg(History.from_events(events()))
        ET.fromstring(history_svg(History.from_events([started(), stepped(1, loss=0.0), stepped(2)]), log=True))

    def test_one_palette_everywhere(self):
        css = svg.stylesheet()
        for name, color in svg.PALETTE.items():
            assert re.search(rf"--ftnb-{name}: {color};", css)


def pictures():
    """Snapshots in several states with the picture that Python draws of each."""
    running = History.from_events(events(until=230))
    paused = History.from_events([*events(until=40), Changed(step=40, time=4.0, what="paused")])
    done = History.from_events([*events(), Finished(step=300, time=30.0, reason="done")])
    odd = History.from_events([started(metric='F1 <"mean">'), stepped(1, loss=math.nan), stepped(2, loss=2e6)])
    for name, history, log in (
        ("running", running, False),
        ("running, log", running, True),
        ("paused", paused, False),
        ("done", done, False),
        ("odd", odd, False),
        ("idle", History(), False),
    ):
        summary, points = history.snapshot()
        for width in (700, 913) if name == "running" else (700,):
            yield {
                "name": name if width == 700 else f"{name}, {width}",
                "summary": summary,
                "points": base64.b64encode(points).decode(),
                "width": width,
                "log": log,
                "svg": svg.draw_svg(summary, points, width, log=log),
                "header": svg.header_html(summary),
            }


def test_the_live_chart_draws_what_python_draws(tmp_path):
    node = shutil.which("node")
    if node is None:
        assert not os.environ.get("CI"), "node is missing: CI needs it to test ftnb/static/chart.js"
        pytest.skip("node is not installed; it runs the chart's module outside a browser")
    cases = list(pictures())
    curves = svg.unpack(cases[0]["summary"], base64.b64decode(cases[0]["points"]))
    numbers = [0, 0.5, 1, 123.456, 1234.5, 99999, 123456, 2e-5, -0.00042, 0.30000000000000004, 1e-3, 3.14159]
    data = {
        "pictures": cases,
        "numbers": [{"value": v, "text": svg.format_number(v)} for v in numbers],
        "durations": [{"value": v, "text": svg.format_duration(v)} for v in (0, 59.6, 61, 3599, 3600, 36061)],
        "pointer": {
            "step": 121,
            "values": {
                name: curves[key][1][curves[key][0].index(121)] for name, key in (("loss", "smooth"), ("lr", "lr"))
            }
            | {"metric": curves["metric"][1][1]},
            "hints": ["learning rate 1e-4 → 3e-4 at step 120"],
        },
    }
    (tmp_path / "cases.json").write_text(json.dumps(data, allow_nan=False), encoding="utf-8")
    command = [
        node,
        str(ROOT / "tests/js/chart.test.mjs"),
        str(ROOT / "ftnb/static/chart.js"),
        str(tmp_path / "cases.json"),
    ]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
