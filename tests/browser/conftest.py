"""A JupyterLab of its own for each test, and a page of a real Chromium that may reach nothing else."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import nbformat
import pytest

ROOT = Path(__file__).resolve().parents[2]
OUT = Path(__file__).resolve().parent / "out"
CHROMIUM = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update", "--disable-dev-shm-usage",
    "--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream",  # a microphone that beeps, and a yes to it
)  # fmt: skip
DIRECTORIES = ("JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR", "JUPYTERLAB_SETTINGS_DIR",
               "JUPYTERLAB_WORKSPACES_DIR", "IPYTHONDIR")  # fmt: skip


@dataclass
class Lab:
    """A running server and the folder it shows."""

    url: str
    folder: Path

    def write(self, name: str, *cells: str) -> None:
        """Write a notebook of code cells."""
        notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in cells])
        notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
        nbformat.write(notebook, self.folder / name)

    def read(self, name: str) -> nbformat.NotebookNode:
        """The notebook as it lies on the disk."""
        return nbformat.read(self.folder / name, as_version=4)


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2) as reply:
            return reply.status == 200
    except (urllib.error.URLError, TimeoutError, ConnectionError):
        return False


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    """A JupyterLab on a free port, with its own settings, gone when the test ends."""
    folder, private = tmp_path / "work", tmp_path / "jupyter"
    folder.mkdir()
    environment = {**os.environ, **{name: str(private / name.lower()) for name in DIRECTORIES}}
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), str(ROOT / "tests"), environment.get("PYTHONPATH", "")])
    environment |= {"FTNB_RUNS": str(tmp_path / "runs"), "HF_HUB_OFFLINE": "1"}
    config = private / "jupyter_config_dir" / "labconfig"
    config.mkdir(parents=True)
    news = {"disabledExtensions": {"@jupyterlab/apputils-extension:announcements": True}}
    (config / "page_config.json").write_text(json.dumps(news), encoding="utf-8")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [
        sys.executable, "-m", "jupyterlab", "--no-browser", "--ip=127.0.0.1", f"--port={port}",
        "--ServerApp.port_retries=0", "--IdentityProvider.token=", "--ServerApp.allow_root=True",
        "--LabApp.expose_app_in_browser=True", f"--ServerApp.root_dir={folder}",
    ]  # fmt: skip
    with (tmp_path / "server.log").open("w") as log:
        server = subprocess.Popen(
            command, cwd=folder, env=environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            deadline = time.monotonic() + 90
            while not _answers(f"http://127.0.0.1:{port}/api/status"):
                assert server.poll() is None, (tmp_path / "server.log").read_text()[-3000:]
                assert time.monotonic() < deadline, "JupyterLab did not answer within 90 s"
                time.sleep(0.2)
            yield Lab(f"http://127.0.0.1:{port}", folder)
        finally:
            server.terminate()
            try:
                server.wait(20)
            except subprocess.TimeoutExpired:
                server.kill()
                server.wait(10)
            # Kernels live in the server's own session: end what is left of that group, and of no other.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(server.pid, signal.SIGKILL)


@dataclass
class Watched:
    """A page and every request it made to another machine."""

    page: object
    left: list[str] = field(default_factory=list)


@pytest.fixture
def watched(chromium: str, request: pytest.FixtureRequest) -> Iterator[Watched]:
    """A browser page that records each request which leaves 127.0.0.1; the test fails if there is one."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=list(CHROMIUM))
        page = browser.new_page(viewport={"width": 1280, "height": 1000})
        page.set_default_timeout(30_000)
        seen = Watched(page)

        def note(sent: object) -> None:
            if (
                urlsplit(sent.url).scheme in ("http", "https", "ws", "wss")
                and urlsplit(sent.url).hostname != "127.0.0.1"
            ):
                seen.left.append(sent.url)

        page.on("request", note)
        page.on("websocket", note)
        try:
            yield seen
        finally:
            OUT.mkdir(exist_ok=True)
            page.screenshot(path=OUT / f"{request.node.name}-last.png")
            browser.close()
    assert not seen.left, f"requests left this machine: {seen.left[:5]}"


@pytest.fixture
def open_notebook(lab: Lab, watched: Watched) -> Callable[[str], object]:
    """Open a notebook by name, wait for its kernel, and return the page."""

    def open_it(name: str) -> object:
        page = watched.page
        page.goto(f"{lab.url}/lab/tree/{name}?reset")
        page.wait_for_selector(".jp-Notebook .jp-Cell")
        page.wait_for_function(
            "() => window.jupyterapp?.shell.currentWidget?.context?.sessionContext?.session?.kernel?.status === 'idle'",
            timeout=60_000,
        )
        page.evaluate("() => window.jupyterapp.shell.collapseLeft()")
        return page

    return open_it
