"""The reading order is the dependency order: no import points forwards, and there are no cycles.

Every import statement counts: at the top of a file, inside a function, under `TYPE_CHECKING`. A name that is only
needed for a type is a dependency for the reader all the same. Two rules follow.

- A lesson's module, and the demo cells of a lesson that exports one, import modules of lower-numbered lessons only,
  directly or through plain modules. Lessons that export nothing may import anything.
- No cycle anywhere, through plain modules too.

A package's `__init__.py` runs before any of its modules does, so what it imports while loading counts for each of them.
What it lists under `TYPE_CHECKING` says where names live that it looks up on first use: each counts for who imports
that name. A module found by a string at run time (`importlib.import_module`) is a choice of the user's, not an import.
"""

import ast
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeGuard

from tools.export import export_lesson
from tools.lessons import ROOT, code, lessons, number

PACKAGE = "ftnb"
LOADING = " (while loading)"  # marks the node for what a package's __init__ imports when it is loaded

Graph = dict[str, set[str]]


def module_files(root: Path = ROOT) -> dict[str, Path]:
    """Dotted name of every module of the package, with its file."""
    files = {}
    for path in sorted((root / PACKAGE).rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        files[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return files


@dataclass(frozen=True)
class Imported:
    """One imported name: `import a.b` has no `name`, `from a import b` has module `a` and name `b`."""

    module: str
    name: str = ""


@dataclass(frozen=True)
class _File:
    module: str
    is_package: bool
    body: list[ast.stmt]

    def imports(self, kind: str = "all") -> list[Imported]:
        """What the file imports: "all"; "loading", outside functions and type checking; or "types" under the latter."""
        if kind == "types":
            nodes = _statements((n for block in self.body if _is_type_checking(block) for n in block.body), True)
        elif kind == "loading":
            nodes = _statements((n for n in self.body if not _is_type_checking(n)), False)
        else:
            nodes = _statements((n for n in self.body if not (self.is_package and _is_type_checking(n))), True)
        return [imported for node in nodes for imported in self._absolute(node)]

    def _absolute(self, node: ast.Import | ast.ImportFrom) -> list[Imported]:
        if isinstance(node, ast.Import):
            return [Imported(alias.name) for alias in node.names]
        base = node.module or ""
        if node.level:
            above = node.level - (1 if self.is_package else 0)
            parts = self.module.split(".")
            base = ".".join(filter(None, [*parts[: len(parts) - above], base]))
        return [Imported(base, alias.name) for alias in node.names]


def _is_type_checking(node: ast.AST) -> TypeGuard[ast.If]:
    return isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")


def _statements(nodes: Iterable[ast.AST], inside_functions: bool) -> Iterator[ast.Import | ast.ImportFrom]:
    for node in nodes:
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield node
        elif inside_functions or not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            yield from _statements(ast.iter_child_nodes(node), inside_functions)


def imports_of(source: str) -> list[Imported]:
    """Everything that a text imports, wherever in it."""
    return _File("", False, ast.parse(source).body).imports()


class ImportGraph:
    """Which modules of the package each module imports, with one node more for the loading of each package."""

    def __init__(self, root: Path = ROOT) -> None:
        self.files = {
            name: _File(name, path.name == "__init__.py", ast.parse(path.read_text(encoding="utf-8")).body)
            for name, path in module_files(root).items()
        }
        self._lazy = {
            name: {imported.name: imported for imported in file.imports("types")}
            for name, file in self.files.items()
            if file.is_package
        }
        self.edges: Graph = {}
        for name, file in self.files.items():
            own = {name, name + LOADING} if file.is_package else set()
            self.edges[name] = self.targets(file.imports()) - own
            if file.is_package:
                self.edges[name + LOADING] = self.targets(file.imports("loading")) - own

    def targets(self, imports: Iterable[Imported]) -> set[str]:
        """The nodes that these imports reach directly; what is not of the package or does not exist reaches none."""
        return {node for imported in imports for node in self._nodes(imported)}

    def _nodes(self, imported: Imported) -> Iterator[str]:
        module, name = imported.module, imported.name
        if name and f"{module}.{name}" in self.files:
            module = f"{module}.{name}"
        elif name in self._lazy.get(module, {}):
            yield module + LOADING
            yield from self._nodes(self._lazy[module][name])
            return
        elif name.startswith("__") and module in self._lazy:
            yield module + LOADING  # a package's own constant, such as its version
            return
        if module in self.files:
            yield module
            while "." in module:
                module = module.rpartition(".")[0]
                yield module + LOADING


def reachable(graph: Graph, start: Iterable[str]) -> dict[str, list[str]]:
    """Everything that `start` imports, directly or not, each with the path that leads there."""
    paths = {node: [node] for node in sorted(start)}
    queue = list(paths)
    while queue:
        node = queue.pop(0)
        for target in sorted(graph.get(node, ())):
            if target not in paths:
                paths[target] = [*paths[node], target]
                queue.append(target)
    return paths


def find_cycles(graph: Graph) -> list[list[str]]:
    """One cycle for each group of modules that import each other."""
    found: list[list[str]] = []
    covered: set[str] = set()
    for node in sorted(graph):
        if node in covered:
            continue
        paths = reachable(graph, graph[node])
        if node in paths:
            found.append([node, *paths[node]])
            covered |= {other for other in paths if node in reachable(graph, graph.get(other, ()))}
    return found


def _forwards(who: str, place: int, paths: dict[str, list[str]], homes: dict[str, tuple[int, str]]) -> list[str]:
    findings = []
    for target, path in paths.items():
        if target not in homes or homes[target][0] < place:
            continue
        if any(step in homes and homes[step][0] >= place for step in path[:-1]):
            continue  # only the first step forwards is news
        via = f" through {', '.join(path[:-1])}" if len(path) > 1 else ""
        what = "its own module" if homes[target][0] == place else f"{target} of the later lesson {homes[target][1]}"
        findings.append(f"{who} imports {what}{via}; imports point backwards in the reading order.")
    return findings


def check_imports(root: Path = ROOT) -> list[str]:
    """Imports that point forwards, cycles, and lessons that share a number."""
    imports = ImportGraph(root)
    graph = imports.edges
    findings = [f"import cycle: {' -> '.join(cycle)}" for cycle in find_cycles(graph)]
    homes: dict[str, tuple[int, str]] = {}
    places: dict[int, Path] = {}
    for lesson in lessons(root):
        if number(lesson) in places:
            findings.append(f"{places[number(lesson)].name} and {lesson.name} have the same number; give one another.")
        places[number(lesson)] = lesson
        module = export_lesson(lesson)
        if module:
            homes[f"{PACKAGE}.{module.name}"] = (number(lesson), lesson.name)
    for module_name, (place, lesson_name) in homes.items():
        if module_name in graph:
            findings += _forwards(module_name, place, reachable(graph, graph[module_name]), homes)
        direct = imports.targets(imports_of(code(root / "nbs" / lesson_name))) - graph.get(module_name, set())
        findings += _forwards(f"a demo cell of {lesson_name}", place, reachable(graph, direct), homes)
    return list(dict.fromkeys(findings))
