"""The button that records: what it sends is a WAV, and only while it may be used."""

import base64
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from ftnb.audio.clips import read_clip
from ftnb.widgets.recorder import Recorder

SCRIPT = """
import {{ encodeWav, RATE }} from {module!r};
const samples = Float32Array.from({{ length: RATE / 10 }}, (_, i) => 1.2 * Math.sin((2 * Math.PI * 500 * i) / RATE));
process.stdout.write(Buffer.from(encodeWav(samples).buffer).toString("base64"));
"""


def test_what_the_page_sends_is_a_wav(tmp_path):
    node = shutil.which("node")
    if node is None:
        assert not os.environ.get("CI"), "node is missing: CI needs it to test ftnb/static/recorder.js"
        pytest.skip("node is not installed; it runs the recorder's module outside a browser")
    module = (Path(__file__).resolve().parents[1] / "ftnb" / "static" / "recorder.js").as_uri()
    copy = tmp_path / "recorder.mjs"
    copy.write_text(Path(module.removeprefix("file://")).read_text(encoding="utf-8"), encoding="utf-8")
    (tmp_path / "run.mjs").write_text(SCRIPT.format(module=copy.as_uri()), encoding="utf-8")
    result = subprocess.run([node, str(tmp_path / "run.mjs")], capture_output=True, text=True, timeout=60, check=False)
    assert result.returncode == 0, result.stderr
    samples = read_clip(base64.b64decode(result.stdout), 16_000)
    expected = np.clip(1.2 * np.sin(2 * np.pi * 500 * np.arange(1600) / 16_000), -1, 1)
    assert np.allclose(samples, expected, atol=1e-3)


def test_a_recording_arrives_only_while_the_button_may_be_used():
    heard: list[bytes] = []
    recorder = Recorder(heard.append)
    message = {"type": "recorded"}
    recorder._receive(recorder, message, [memoryview(b"wav")])
    assert heard == []
    recorder.disabled = False
    recorder._receive(recorder, message, [memoryview(b"wav")])
    recorder._receive(recorder, {"type": "else"}, [memoryview(b"x")])
    recorder._receive(recorder, message, [])
    assert heard == [b"wav"]
