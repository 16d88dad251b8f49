"""Everything that must hold before a change is done: `make check`.

    python -m tools.check                 all checks
    python -m tools.check pairs imports   some

Each check is a function from the project's folder to a list of findings, one sentence each; an empty list passes.
Reports at the end are for the eye and fail nothing.
"""

import argparse
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from tools.derive import check_pairs
from tools.export import export_all, is_exported, orphans
from tools.imports import check_imports
from tools.lessons import ROOT
from tools.outputs import check_outputs, report_stderr
from tools.requirements import check_requirements
from tools.stale import report_stale

MAX_FILE = 1_000_000  # bytes, of any committed file but a checkpoint's
MAX_WEIGHTS = 4_000_000  # bytes, of a file of a built-in checkpoint
MAX_ALL_WEIGHTS = 16_000_000

Check = Callable[[Path], list[str]]


def check_exports(root: Path = ROOT) -> list[str]:
    """Modules that differ from a fresh export, are missing, have no package, or whose lesson is gone."""
    modules = export_all(root)
    findings = []
    for module in modules:
        path = module.path(root)
        name = path.relative_to(root).as_posix()
        if not path.exists():
            findings.append(f"{name} is missing: run `make export`.")
        elif path.read_text(encoding="utf-8") != module.source:
            hand = "" if is_exported(path) else ", it is written by hand"
            findings.append(f"{name} differs from what nbs/{module.lesson} exports{hand}: run `make export`.")
        if not (path.parent / "__init__.py").exists():
            findings.append(f"{name} has no {path.parent.relative_to(root).as_posix()}/__init__.py beside it.")
    gone = (path.relative_to(root).as_posix() for path in orphans(modules, root))
    return findings + [f"{name} says it is exported, but no lesson exports it: run `make export`." for name in gone]


def _run(root: Path, *command: str) -> list[str]:
    """The output lines of a Python tool that fails; none when it passes."""
    done = subprocess.run([sys.executable, "-m", *command], cwd=root, capture_output=True, text=True, check=False)
    return [line for line in (done.stdout + done.stderr).splitlines() if line.strip()] if done.returncode else []


def hand_written(root: Path = ROOT) -> list[str]:
    """Files that ruff lays out: tools, tests, plain modules. Lessons and their exports are laid out by hand."""
    files = [p for folder in ("ftnb", "tools", "tests") for p in sorted((root / folder).rglob("*.py"))]
    return [p.relative_to(root).as_posix() for p in files if not is_exported(p)]


def check_ruff(root: Path = ROOT) -> list[str]:
    """Complaints of ruff's linter and formatter."""
    findings = _run(root, "ruff", "check", "--quiet", "--output-format", "concise", ".")
    return findings + _run(root, "ruff", "format", "--check", *hand_written(root))


def check_types(root: Path = ROOT) -> list[str]:
    """Complaints of mypy."""
    return _run(root, "mypy", "--no-error-summary", "--hide-error-context")


def check_sizes(root: Path = ROOT) -> list[str]:
    """Files too big to commit, among those that git does not ignore."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=root,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split("\0")
    findings = []
    weights = 0
    for name in filter(None, listed):
        path = root / name
        size = path.stat().st_size if path.is_file() else 0
        is_weights = name.startswith("ftnb/weights/")
        weights += size if is_weights else 0
        limit = MAX_WEIGHTS if is_weights else MAX_FILE
        if size > limit:
            findings.append(f"{name} has {size / 1e6:.1f} MB; at most {limit // 1_000_000} MB are committed.")
    if weights > MAX_ALL_WEIGHTS:
        findings.append(f"ftnb/weights holds {weights / 1e6:.1f} MB; at most {MAX_ALL_WEIGHTS // 1_000_000} MB.")
    return findings


CHECKS: dict[str, Check] = {
    "pairs": check_pairs,
    "exports": check_exports,
    "imports": check_imports,
    "requirements": check_requirements,
    "outputs": check_outputs,
    "sizes": check_sizes,
    "ruff": check_ruff,
    "types": check_types,
}
REPORTS: dict[str, Check] = {"stale outputs": report_stale, "warnings shown": report_stderr}


def run_check(check: Check, root: Path = ROOT) -> list[str]:
    """A check's findings; what it could not read is a finding too."""
    try:
        return check(root)
    except (ValueError, SyntaxError, OSError, KeyError) as error:
        return [f"{type(error).__name__}: {error}"]


def main(argv: list[str] | None = None) -> None:
    """Run the checks and exit with 1 if there are findings."""
    parser = argparse.ArgumentParser(description="Check that lessons, notebooks, modules and settings agree.")
    parser.add_argument("checks", nargs="*", metavar="check", help=f"some of: {', '.join(CHECKS)}; all when left out")
    chosen = parser.parse_args(argv).checks
    if unknown := set(chosen) - set(CHECKS):
        parser.error(f"no check named {', '.join(sorted(unknown))}; there are {', '.join(CHECKS)}")
    total = 0
    for name in chosen or CHECKS:
        start = time.perf_counter()
        findings = run_check(CHECKS[name])
        total += len(findings)
        print(f"{name}: {len(findings) or 'no'} findings ({time.perf_counter() - start:.1f} s)", flush=True)
        for finding in findings:
            print(f"  {finding}")
    for name, report in {} if chosen else REPORTS.items():
        for line in run_check(report):
            print(f"{name}: {line}")
    if total:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
