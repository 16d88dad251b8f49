"""Set up `.venv` with the package, the versions of `constraints.txt`, and one extra; do nothing if that is done.

Runs under whatever Python `tools/setup.sh` found, so it needs nothing but the standard library. What was installed is
remembered in the `.venv` itself, as a fingerprint of the files that say what to install.
"""

import hashlib
import importlib.util
import json
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
STAMP = "ftnb-setup.json"
INCLUDES = {"lab": ("lab",), "dev": ("dev", "lab")}  # an extra, and what it brings with it
DISK = 8_000_000_000  # bytes: torch for NVIDIA GPUs, which pip installs on Linux, is most of it


class SetupError(Exception):
    """A prerequisite is missing; the message is one sentence that says what to do."""


def fingerprint(root: Path = ROOT) -> str:
    """A hash of everything that decides what gets installed."""
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))
    decides = json.dumps([project["project"], project["build-system"], project["tool"]["hatch"]], sort_keys=True)
    constraints = (root / "constraints.txt").read_text(encoding="utf-8")
    return hashlib.sha256((decides + constraints + str(root)).encode()).hexdigest()


def installed(root: Path = ROOT) -> set[str]:
    """The extras that `.venv` holds in the state that the project's files ask for."""
    stamp = root / ".venv" / STAMP
    if not stamp.exists():
        return set()
    stored = json.loads(stamp.read_text(encoding="utf-8"))
    return set(stored["extras"]) if stored["fingerprint"] == fingerprint(root) else set()


def create_venv(root: Path = ROOT) -> None:
    """Make an empty `.venv`.

    Raises:
        SetupError: if this Python cannot make one.
    """
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    missing = [name for name in ("venv", "ensurepip") if importlib.util.find_spec(name) is None]
    if missing:
        raise SetupError(
            f"Python {version} ({sys.executable}) cannot make virtual environments (no module {missing[0]}): "
            f"install it (Debian, Ubuntu: apt-get install python{version}-venv) or name another Python by PYTHON=..."
        )
    free = shutil.disk_usage(root).free
    if free < DISK:
        print(f"Only {free / 1e9:.0f} GB free here; on Linux .venv takes about {DISK / 1e9:.0f} GB.", file=sys.stderr)
    print(
        f"Setting up .venv with Python {version} (once; some minutes, a download of about 3 GB on Linux).", flush=True
    )
    if subprocess.run([sys.executable, "-m", "venv", str(root / ".venv")], check=False).returncode:
        shutil.rmtree(root / ".venv", ignore_errors=True)
        raise SetupError(f"Python {version} ({sys.executable}) could not make .venv; its message is above.")


def install(extra: str, root: Path = ROOT) -> None:
    """Install the package in place with one extra, and remember it.

    Raises:
        SetupError: if pip fails.
    """
    quiet = [] if sys.stdout.isatty() else ["--quiet"]
    pip = [str(root / ".venv" / "bin" / "python"), "-m", "pip", "--disable-pip-version-check", "install", *quiet]
    if subprocess.run([*pip, "-c", "constraints.txt", "-e", f".[{extra}]"], cwd=root, check=False).returncode:
        raise SetupError(
            "Installing failed; pip's message is above. The first set-up needs a network; "
            "run the same command again to go on where it stopped."
        )
    extras = sorted(installed(root) | set(INCLUDES[extra]))
    stamp = {"fingerprint": fingerprint(root), "extras": extras}
    (root / ".venv" / STAMP).write_text(json.dumps(stamp) + "\n", encoding="utf-8")


def main(extra: str, root: Path = ROOT) -> None:
    """Make sure that `.venv` holds `extra`."""
    if extra not in INCLUDES:
        raise SetupError(f"No set-up named {extra!r}; there are {', '.join(INCLUDES)}.")
    if extra in installed(root):
        return
    if not (root / ".venv").exists():
        create_venv(root)
    install(extra, root)


if __name__ == "__main__":
    try:
        main(sys.argv[1])
    except SetupError as error:
        sys.exit(str(error))
