"""What a disk holds after a power cut: a model of a file system in which only what was synced is certain.

The content of a file is certain up to its last sync, the names in a folder up to the sync of that folder; of what came
later, a prefix may have arrived, all of it, or nothing, and a file may end in zeros. That is what POSIX promises and no
more; ext4 or NTFS promise more, so whatever survives here survives there. The method is that of ALICE (Pillai et al.
2014, "All File Systems Are Not Created Equal") and CrashMonkey (Mohan et al. 2018): note operations once, then build
each state that a cut could leave and see whether the program recovers from it.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from random import Random


@dataclass(frozen=True)
class Operation:
    """One change: create, write, truncate, sync, mkdir, rename, unlink, rmdir, or nothing (one that failed).

    Attributes:
        path: relative to the watched folder; "." is that folder itself.
        other: the new path of a rename.
        begin: where a write begins, or the size a file is cut to.
        data: what is written.
    """

    kind: str
    path: str
    other: str | None = None
    begin: int = 0
    data: bytes = b""


@dataclass
class File:
    """A file's content now, and what of it is certain."""

    data: bytearray = field(default_factory=bytearray)
    certain: bytes = b""

    def after_cut(self, random: Random) -> bytes:
        """What a power cut leaves: what is certain, and perhaps some of the rest."""
        if self.data == self.certain:
            return self.certain
        now, fate = bytes(self.data), random.choice(("everything", "nothing", "torn", "zeros"))
        if fate in ("everything", "nothing"):
            return now if fate == "everything" else self.certain
        appended = now.startswith(self.certain)
        kept = random.randint(len(self.certain) if appended else 0, len(now))
        return now[:kept] + (bytes(len(now) - kept) if fate == "zeros" else self.certain[kept:])


@dataclass
class Folder:
    """A folder's names now, what of it is certain, and the changes since then in order."""

    names: dict[str, "File | Folder"] = field(default_factory=dict)
    certain: dict[str, "File | Folder"] = field(default_factory=dict)
    changes: list[tuple[str, str | None]] = field(default_factory=list)  # (name that goes, name that comes)
    nodes: list["File | Folder | None"] = field(default_factory=list)  # what stands under the name that comes

    def change(self, goes: str, comes: str | None, node: "File | Folder | None") -> None:
        """Remove a name and put another one in."""
        self.changes.append((goes, comes))
        self.nodes.append(node)
        _change(self.names, goes, comes, node)

    def sync(self) -> None:
        """Make all names certain."""
        self.certain = dict(self.names)
        self.changes.clear()
        self.nodes.clear()

    def after_cut(self, random: Random) -> dict[str, "File | Folder"]:
        """The names that a power cut leaves: the certain ones, and a prefix of the later changes."""
        names, count = dict(self.certain), len(self.changes)
        count = random.choice((0, count, random.randint(0, count)))
        for (goes, comes), node in zip(self.changes[:count], self.nodes, strict=False):
            _change(names, goes, comes, node)
        return names


def _change(names: dict[str, File | Folder], goes: str, comes: str | None, node: File | Folder | None) -> None:
    names.pop(goes, None)
    if comes is not None and node is not None:
        names[comes] = node


class Tree:
    """The files of a folder as a program sees them, with what a power cut could do to them."""

    def __init__(self) -> None:
        self.root = Folder()

    @staticmethod
    def read(path: Path) -> "Tree":
        """The files of a real folder, all of them certain."""
        tree = Tree()
        tree.root = _read(path)
        return tree

    def _parent(self, path: str) -> tuple[Folder, str]:
        *above, last = path.split(os.sep)
        node: File | Folder = self.root
        for name in above:
            assert isinstance(node, Folder)
            node = node.names[name]
        assert isinstance(node, Folder)
        return node, last

    def _node(self, path: str) -> File | Folder:
        if path == ".":
            return self.root
        folder, name = self._parent(path)
        return folder.names[name]

    def has(self, path: str) -> bool:
        """Whether there is something of that name."""
        try:
            self._node(path)
        except (KeyError, AssertionError):
            return False
        return True

    def content(self, path: str) -> bytes:
        """A file's content."""
        node = self._node(path)
        assert isinstance(node, File)
        return bytes(node.data)

    def apply(self, operation: Operation) -> None:
        """Do an operation."""
        kind, path = operation.kind, operation.path
        if kind in ("create", "mkdir"):
            folder, name = self._parent(path)
            folder.change(name, name, File() if kind == "create" else Folder())
        elif kind in ("unlink", "rmdir"):
            folder, name = self._parent(path)
            folder.change(name, None, None)
        elif kind == "rename":
            assert operation.other is not None
            (folder, name), (to, new) = self._parent(path), self._parent(operation.other)
            assert folder is to, "a move between folders: not in this model"
            folder.change(name, new, folder.names[name])
        elif kind != "nothing":
            node = self._node(path)
            if isinstance(node, Folder):
                node.sync()
            elif kind == "sync":
                node.certain = bytes(node.data)
            elif kind == "truncate":
                del node.data[operation.begin :]
            else:
                node.data[operation.begin : operation.begin + len(operation.data)] = operation.data

    def contents(self) -> dict[str, bytes | None]:
        """All files by path, and all folders with None."""
        return dict(_contents(self.root, ""))

    def after_cut(self, random: Random, target: Path) -> None:
        """Lay out in a new folder what a power cut leaves."""
        _lay_out(self.root, random, target)


def cut(first: Tree, operations: list[Operation], at: int, random: Random, target: Path) -> None:
    """Lay out what is left if the power goes during operation number `at`: of a write, a part may have been done.

    Args:
        first: the folder before the operations; it is changed.
    """
    for operation in operations[:at]:
        first.apply(operation)
    if at < len(operations) and (last := operations[at]).kind == "write":
        part = last.data[: random.randint(0, len(last.data))]
        first.apply(Operation("write", last.path, begin=last.begin, data=part))
    first.after_cut(random, target)


def _read(path: Path) -> Folder:
    folder = Folder()
    for inner in path.iterdir():
        data = b"" if inner.is_dir() else inner.read_bytes()
        folder.names[inner.name] = _read(inner) if inner.is_dir() else File(bytearray(data), data)
    folder.sync()
    return folder


def _contents(folder: Folder, prefix: str) -> Iterator[tuple[str, bytes | None]]:
    for name, node in folder.names.items():
        if isinstance(node, Folder):
            yield prefix + name, None
            yield from _contents(node, prefix + name + os.sep)
        else:
            yield prefix + name, bytes(node.data)


def _lay_out(folder: Folder, random: Random, target: Path) -> None:
    target.mkdir()
    for name, node in sorted(folder.after_cut(random).items()):
        if isinstance(node, Folder):
            _lay_out(node, random, target / name)
        else:
            (target / name).write_bytes(node.after_cut(random))
