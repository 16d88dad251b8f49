"""The live chart's ladder, with a clock of our own and without a browser."""

import base64
from importlib import resources
from types import SimpleNamespace

import ipywidgets as widgets
import pytest

from ftnb.charts import History
from ftnb.events import Finished, Started, Stepped
from ftnb.widgets import chart as chart_module
from ftnb.widgets.chart import READY_WITHIN, WATCHED_FOR, ChartView, LiveChart
from ftnb.widgets.controls import heed_the_page, hint
from ftnb.widgets.svg import unpack
from ftnb.widgets.tryout import bars_html, forget_upload, uploaded, value_html


class Clock:
    now = 100.0

    def __call__(self):
        return self.now


class Scene:
    """A chart of a history that a test feeds, the messages it sent, and what stands in its outputs."""

    def __init__(self, monkeypatch):
        self.clock, self.history, self.state = Clock(), History(), "running"
        self.outputs, self.polls = [], 0
        self.chart = LiveChart(self._count, self.clock)
        self.sent = []
        self.chart.view.observe(lambda change: self.sent.append(change["new"]), "points")
        self.chart.follow(self.history, lambda: self.state)
        self.feed(1)
        monkeypatch.setattr(chart_module, "display", lambda what, **options: self.outputs.append(what))
        monkeypatch.setattr(chart_module.DisplayHandle, "update", lambda _, what, **options: self.outputs.append(what))

    def _count(self):
        self.polls += 1

    def feed(self, count=1):
        if self.history.started is None:
            self.history.add(
                Started(
                    step=0,
                    num_steps=1000,
                    steps_per_epoch=100,
                    num_epochs=10,
                    num_examples=1,
                    num_parameters=1,
                    num_trainable=1,
                    device="cpu",
                    precision="fp32",
                    metric="accuracy",
                )
            )
        for _ in range(count):
            step = self.history.step + 1
            self.history.add(Stepped(step=step, epoch=0.1, loss=1.0, lr=1e-4, grad_norm=1.0, time=step * 0.1))

    def hear(self, kind):
        self.chart._receive(self.chart.view, {"type": kind}, [])

    def pass_time(self, seconds, every=0.25):
        """Let time pass as the panel's watcher does: new steps, and a refresh four times a second."""
        for _ in range(round(seconds / every)):
            self.clock.now += every
            self.feed()
            self.chart.refresh()


def is_view(bundle):
    return "application/vnd.jupyter.widget-view+json" in bundle


@pytest.fixture
def scene(monkeypatch):
    return Scene(monkeypatch)


def test_nothing_bulky_is_sent_while_nobody_looks(scene):
    scene.pass_time(READY_WITHIN - 1)
    assert not scene.sent
    assert scene.chart.fallback.value == ""


def test_a_view_that_is_ready_gets_the_whole_picture_and_then_what_is_new(scene):
    scene.hear("ready")
    assert len(scene.sent) == 1
    assert unpack(scene.chart.view.summary, scene.chart.view.points)["loss"][0] == [1]
    scene.chart.refresh()
    scene.hear("poll")
    assert len(scene.sent) == 1  # nothing new
    scene.pass_time(1)
    assert unpack(scene.chart.view.summary, scene.chart.view.points)["loss"][0] == [1, 2, 3, 4, 5]


def test_at_most_four_messages_a_second(scene):
    scene.hear("ready")
    before = len(scene.sent)
    scene.pass_time(2, every=0.01)
    assert len(scene.sent) - before <= 2 * 4 + 1


def test_a_page_that_is_closed_gets_nothing_until_it_comes_back(scene):
    scene.hear("ready")
    scene.pass_time(WATCHED_FOR + 1)
    count = len(scene.sent)
    scene.pass_time(60)
    assert len(scene.sent) == count
    assert scene.chart.fallback.value == ""  # the live chart works here: the lower rung stays empty
    scene.hear("ready")
    assert len(scene.sent) == count + 1


def test_without_a_ready_the_html_rung_takes_over_and_grows_rare(scene):
    values = []
    scene.chart.fallback.observe(lambda change: values.append(change["new"]), "value")
    scene.pass_time(60)
    assert 40 <= len(values) <= 60
    assert "<svg" in values[-1]
    assert len(values[-1]) < 30_000
    scene.pass_time(1200 - 60, every=0.5)
    assert len(values) < 700
    assert not scene.sent


def test_a_view_that_comes_late_takes_over_again(scene):
    scene.pass_time(10)
    assert scene.chart.fallback.value
    scene.hear("ready")
    scene.pass_time(1)
    assert scene.chart.fallback.value == ""
    assert scene.sent


def test_polls_are_answered_in_the_thread_that_hears_them(scene):
    scene.hear("ready")
    scene.hear("poll")
    assert scene.polls == 2
    scene.chart._receive(scene.chart.view, {"type": "something else"}, [])
    scene.chart._receive(scene.chart.view, "no message of ours", [])
    assert scene.polls == 2


def test_at_the_end_a_png_and_a_line_take_the_view_s_place_once(scene):
    scene.chart.show()
    scene.hear("ready")
    assert is_view(scene.outputs[0])
    scene.chart.settle()
    assert len(scene.outputs) == 1  # it still runs
    scene.history.add(Finished(step=scene.history.step, reason="done"))
    scene.state = "done"
    scene.chart.settle()
    scene.hear("poll")
    bundle = scene.outputs[1]
    assert len(scene.outputs) == 2
    assert set(bundle) == {"image/png", "text/plain"}
    assert base64.b64decode(bundle["image/png"]).startswith(b"\x89PNG")
    assert bundle["text/plain"].startswith("done: step 1 of 1000")


def test_a_finished_run_is_shown_as_a_picture_at_once(scene):
    scene.state = "stopped"
    scene.chart.show()
    assert "image/png" in scene.outputs[0]


def test_a_run_that_failed_before_it_began_leaves_no_picture(scene):
    scene.chart.follow(History(), lambda: "failed")
    scene.chart.show()
    assert is_view(scene.outputs[0])
    assert not scene.chart.settle()


def test_the_next_run_brings_the_view_back(scene):
    scene.chart.show()
    scene.state = "done"
    scene.chart.settle()
    scene.chart.follow(History(), lambda: "running")
    assert is_view(scene.outputs[-1])


def test_the_view_carries_its_module_and_its_style(scene):
    assert "export default" in ChartView._esm
    assert ".ftnb-svg" in scene.chart.view._css
    assert resources.files("ftnb").joinpath("static", "chart.js").is_file()


def test_a_page_is_heard_in_the_subshell_it_asks_for_after_a_reload():
    class Comm:
        """As in ipykernel 7.4: it remembers the subshell of its last message, which goes with the old page."""

        def _reply_subshell_for(self, data, wanted):
            return "gone with the old page"

    class Node:
        def __init__(self, *children):
            self.comm, self.children = Comm(), children

    inner, older_kernel = Node(), SimpleNamespace(comm=object())
    tree = Node(Node(inner), older_kernel)
    heed_the_page(tree)
    assert inner.comm._reply_subshell_for({}, "the new page's") == "the new page's"
    assert tree.comm._reply_subshell_for({}, None) is None


def test_a_tooltip_can_change_and_the_label_stays_one():
    field = hint(hint(widgets.Text(description="columns"), "first"), "second > first")
    assert field.description.count("columns") == 1
    assert "first" not in field.description.replace("second &gt; first", "")
    if field.has_trait("description_allow_html"):
        assert field.description == '<span title="second &gt; first">columns</span>'


class OldUpload:
    """The part of ipywidgets 7's FileUpload that its users see: setting the counter makes the value."""

    def __init__(self, **files):
        self.metadata = [{"name": name, "size": len(content)} for name, content in files.items()]
        self.data, self._counter = list(files.values()), len(files)

    def has_trait(self, name):
        return name in ("data", "metadata", "_counter")

    @property
    def value(self):
        pairs = zip(self.metadata, self.data, strict=True)
        return {file["name"]: {"metadata": file, "content": content} for file, content in pairs}


class NewUpload:
    """The part of ipywidgets 8's FileUpload that its users see."""

    def __init__(self, **files):
        self.value = tuple({"name": name, "content": memoryview(content)} for name, content in files.items())

    def has_trait(self, name):
        return name == "value"


@pytest.mark.parametrize("kind", [OldUpload, NewUpload])
def test_both_formats_of_an_upload_are_read_and_emptied(kind):
    assert uploaded(kind()) is None
    made = kind(first=b"1", second=b"22")
    assert uploaded(made) == ("second", b"22")
    forget_upload(made)
    assert uploaded(made) is None


def test_bars_are_ranked_and_escaped():
    html = bars_html({"<i>": 0.25, "cat": 0.75})
    assert html.index("cat") < html.index("&lt;i&gt;")
    assert "width:75.0%" in html
    assert "more" not in html
    assert "<i>" not in html


def test_a_value_that_is_only_text_is_escaped():
    assert value_html("<script>") == "<div>&lt;script&gt;</div>"
