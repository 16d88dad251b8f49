"""`pyproject.toml`, `environment.yml`, `constraints.txt` and the package's imports must agree.

- `constraints.txt` holds exact versions (`name==version`), sorted, without addresses or paths: one for every direct
  dependency of every extra, inside its range, and one for everything those need in turn.
- What torch brings for its accelerator (nvidia-*, cuda-*, triton) follows torch and is not pinned.
- `environment.yml` gives Python and pip and leaves the rest to pip: the same constraints, the same extra as `make lab`.
- What `ftnb/` and the lessons import from elsewhere is declared.

`python -m tools.requirements --freeze` writes `constraints.txt` from what is installed.
"""

import argparse
import functools
import re
import sys
import tomllib
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import yaml
from packaging.requirements import InvalidRequirement, Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion, Version

from tools.imports import imports_of, module_files
from tools.lessons import ROOT, code, lessons

FOLLOWS_TORCH = re.compile(r"^(nvidia-|cuda-|triton$|pytorch-triton)")
PIP_LINES = ["-c constraints.txt", "-e .[lab]"]
HEADER = """\
# Exact versions known to work together; `make` installs with them (pip install -c constraints.txt).
# Written by `python -m tools.requirements --freeze`. What torch brings for its accelerator follows torch.
"""


def read_project(root: Path = ROOT) -> dict[str, Any]:
    """The whole of `pyproject.toml`."""
    return tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))


def direct_requirements(project: dict[str, Any]) -> dict[str, Requirement]:
    """Every requirement of the package and of its extras by canonical name, the package itself left out."""
    own = project["project"]["name"]
    extras = project["project"].get("optional-dependencies", {})
    texts = [*project["project"]["dependencies"], *(text for extra in extras.values() for text in extra)]
    requirements = [Requirement(text) for text in texts]
    return {canonicalize_name(r.name): r for r in requirements if canonicalize_name(r.name) != own}


@functools.cache
def needed(names: frozenset[str]) -> frozenset[str]:
    """Canonical names of the installed packages that `names` need on this machine, themselves included."""
    found: set[str] = set()
    queue = [(canonicalize_name(name), frozenset[str]()) for name in names]
    visited = set(queue)
    while queue:
        name, extras = queue.pop()
        if FOLLOWS_TORCH.match(name):
            continue
        try:
            requires = metadata.requires(name) or []
        except metadata.PackageNotFoundError:
            continue
        found.add(name)
        for requirement in map(Requirement, requires):
            environments = [{"extra": extra} for extra in extras or {""}]
            if requirement.marker and not any(requirement.marker.evaluate(e) for e in environments):
                continue
            step = (canonicalize_name(requirement.name), frozenset(requirement.extras))
            if step not in visited:
                visited.add(step)
                queue.append(step)
    return frozenset(found)


@functools.cache
def _distributions() -> Mapping[str, list[str]]:
    """Which installed packages provide a top-level module."""
    return metadata.packages_distributions()


def read_constraints(root: Path = ROOT) -> tuple[dict[str, Version], list[str]]:
    """The pins of `constraints.txt` by canonical name, and what is wrong with its lines."""
    pins: dict[str, Version] = {}
    findings = []
    names = []
    for line in (root / "constraints.txt").read_text(encoding="utf-8").splitlines():
        if not line.strip() or line.startswith("#"):
            continue
        try:
            requirement = Requirement(line)
            (specifier,) = requirement.specifier
            version = Version(specifier.version)
            if specifier.operator != "==" or requirement.url or version.local:
                raise ValueError
        except (InvalidRequirement, InvalidVersion, ValueError):
            findings.append(f"constraints.txt: {line!r} is not of the form name==version.")
            continue
        name = canonicalize_name(requirement.name)
        if name in pins:
            findings.append(f"constraints.txt pins {name} twice.")
        if FOLLOWS_TORCH.match(name):
            findings.append(f"constraints.txt pins {name}, which follows torch: leave it out.")
        pins[name] = version
        names.append(name)
    if names != sorted(names):
        findings.append("constraints.txt is not sorted by name.")
    return pins, findings


def _constraint_findings(root: Path, project: dict[str, Any]) -> list[str]:
    pins, findings = read_constraints(root)
    direct = direct_requirements(project)
    for name, requirement in direct.items():
        if name not in pins:
            findings.append(f"constraints.txt has no version for {name}, which pyproject.toml requires.")
        elif not requirement.specifier.contains(pins[name], prereleases=True):
            findings.append(f"constraints.txt pins {name}=={pins[name]}; pyproject.toml wants {requirement.specifier}.")
    required = needed(frozenset(direct))
    indirect = sorted(required - set(pins) - set(direct))
    findings += [f"constraints.txt has no version for {name}, which a dependency needs." for name in indirect]
    return findings


def _environment_findings(root: Path, project: dict[str, Any]) -> list[str]:
    findings = []
    environment = yaml.safe_load((root / "environment.yml").read_text(encoding="utf-8"))
    if environment.get("name") != project["project"]["name"]:
        findings.append(
            f"environment.yml is named {environment.get('name')!r}, the project {project['project']['name']!r}."
        )
    conda = [item for item in environment["dependencies"] if isinstance(item, str)]
    pip = [line for item in environment["dependencies"] if isinstance(item, dict) for line in item.get("pip", [])]
    if pip != PIP_LINES:
        findings.append(f"environment.yml should install by pip exactly {PIP_LINES}, it has {pip}.")
    names = sorted(re.split(r"[<>=! ]", item)[0] for item in conda)
    if names != ["pip", "python"]:
        findings.append(f"environment.yml should take python and pip from conda, it takes {', '.join(names)}.")
    allowed = SpecifierSet(project["project"]["requires-python"])
    for item in conda:
        match = re.fullmatch(r"python\s*=+\s*([\d.]+)", item)
        if match and not allowed.contains(match[1]):
            findings.append(f"environment.yml takes python {match[1]}; pyproject.toml requires {allowed}.")
        if item.startswith("python") and not match:
            findings.append(f"environment.yml should name one version of python, it has {item!r}.")
    return findings


def _floor_findings(project: dict[str, Any]) -> list[str]:
    floor = project["project"]["requires-python"].removeprefix(">=")
    tools = {
        "tool.ruff.target-version": (project["tool"]["ruff"]["target-version"], "py" + floor.replace(".", "")),
        "tool.mypy.python_version": (project["tool"]["mypy"]["python_version"], floor),
    }
    return [
        f"pyproject.toml: {key} is {found}, requires-python asks for {wanted}."
        for key, (found, wanted) in tools.items()
        if found != wanted
    ]


def _import_findings(root: Path, project: dict[str, Any]) -> list[str]:
    """Packages that the code of `ftnb/` or of a lesson imports and `dependencies` does not declare."""
    declared = {canonicalize_name(Requirement(text).name) for text in project["project"]["dependencies"]}
    homes = _distributions()
    texts = {name: path.read_text(encoding="utf-8") for name, path in module_files(root).items()}
    texts |= {lesson.name: code(lesson) for lesson in lessons(root)}
    findings = []
    for where, text in texts.items():
        for top in sorted({imported.module.partition(".")[0] for imported in imports_of(text)} - {""}):
            known = {canonicalize_name(name) for name in homes.get(top, [top])}
            if top not in sys.stdlib_module_names and top != project["project"]["name"] and not known & declared:
                findings.append(f"{where} imports {top}, which pyproject.toml does not declare.")
    return findings


def check_requirements(root: Path = ROOT) -> list[str]:
    """Where the three files, or the package's imports, disagree."""
    project = read_project(root)
    return [
        *_constraint_findings(root, project),
        *_environment_findings(root, project),
        *_floor_findings(project),
        *_import_findings(root, project),
    ]


def freeze(root: Path = ROOT) -> str:
    """The text of `constraints.txt` for what is installed now."""
    names = needed(frozenset(direct_requirements(read_project(root))))
    versions = {name: metadata.version(name).partition("+")[0] for name in names}
    return HEADER + "".join(f"{name}=={versions[name]}\n" for name in sorted(versions))


def main(argv: list[str] | None = None) -> None:
    """Compare the files, or write the constraints."""
    parser = argparse.ArgumentParser(description="Compare pyproject.toml, environment.yml and constraints.txt.")
    parser.add_argument("--freeze", action="store_true", help="write constraints.txt from what is installed")
    if parser.parse_args(argv).freeze:
        (ROOT / "constraints.txt").write_text(freeze(), encoding="utf-8", newline="\n")
    findings = check_requirements()
    print("\n".join(findings) or "pyproject.toml, environment.yml and constraints.txt agree.")
    raise SystemExit(bool(findings))


if __name__ == "__main__":
    main()
