"""A watched folder: every write, flush, sync, rename and removal in it is noted, and may be made to fail.

Files are opened through Python's own classes with a raw file at the bottom that notes what goes to the system; the
functions of `os` that change a folder are replaced while the watch lasts. What is written by other code (safetensors is
Rust) is noticed when the file is next opened, synced or moved. At the end the folder is compared with what was noted:
`escaped()` must be empty, or something went past the watch.
"""

import builtins
import contextlib
import io
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

from tests.chaos.power import Operation, Tree

Fault = Callable[[int, Operation], OSError | None]


class Watched(io.FileIO):
    """A file whose writes are noted before they happen."""

    def __init__(self, disk: "Disk", path: str, mode: str) -> None:
        name, there = disk.name(path), os.path.exists(path)
        assert name is not None
        disk.adopt(name)
        if not there and "r" not in mode:
            disk.note(Operation("create", name))
        elif there and "w" in mode:
            disk.note(Operation("truncate", name))
        super().__init__(path, mode)
        self._disk, self._at = disk, name
        self._error: OSError | None = None
        disk.opened[self.fileno()] = name

    def write(self, data: Any) -> int:
        """Write, and note where and what; a fault lets half of it through."""
        data = bytes(data)
        begin = os.fstat(self.fileno()).st_size if "a" in self.mode else self.tell()
        error = (
            self._disk.error(Operation("write", self._at, begin=begin, data=data)) if not self._error else self._error
        )
        self._error = None
        if (
            error is not None and len(data) > 1
        ):  # as a system does it: some fits, and the rest is refused when asked for
            data, self._error = data[: len(data) // 2], error
        elif error is not None:
            raise error
        self._disk.tree.apply(Operation("write", self._at, begin=begin, data=data))
        return super().write(data)

    def truncate(self, size: int | None = None) -> int:
        """Cut, and note it."""
        size = self.tell() if size is None else size
        self._disk.note(Operation("truncate", self._at, begin=size))
        return super().truncate(size)


class Disk:
    """A folder under watch.

    Args:
        root: the folder; what it holds at the beginning counts as safely on the disk.
        fault: is asked before each operation and may give an error to raise instead.
        clock: what to note beside each operation, for example the number of completed steps.

    Attributes:
        operations: what happened, in order.
        times: what the clock said at each.
        tree: what the folder holds now, and what of it a power cut could not take away.
    """

    def __init__(self, root: Path, fault: Fault | None = None, clock: Callable[[], int] = lambda: 0) -> None:
        self.root, self.fault, self.clock = os.path.abspath(root), fault, clock
        self.operations: list[Operation] = []
        self.times: list[int] = []
        self.tree = Tree.read(root)
        self.first = Tree.read(root)
        self.opened: dict[int, str] = {}

    def name(self, path: Any) -> str | None:
        """A path relative to the root; None if it is not below it."""
        if isinstance(path, int):
            return None
        full = os.path.abspath(os.fsdecode(path))
        return os.path.relpath(full, self.root) if (full + os.sep).startswith(self.root + os.sep) else None

    def note(self, operation: Operation) -> None:
        """Note an operation, or raise the error that the fault gives."""
        if (error := self.error(operation)) is not None:
            raise error
        self.tree.apply(operation)

    def error(self, operation: Operation) -> OSError | None:
        """Write an operation down; return the error that the fault gives, and nothing has happened then."""
        error = self.fault(len(self.operations), operation) if self.fault else None
        self.operations.append(operation if error is None else Operation("nothing", operation.path))
        self.times.append(self.clock())
        return error

    def adopt(self, name: str) -> None:
        """Note what other code has written into a file, or into the files of a folder."""
        path = Path(self.root, name)
        if path.is_dir():
            if not self.tree.has(name):
                self._silently(Operation("mkdir", name))
            for inner in sorted(path.iterdir()):
                self.adopt(os.path.join(name, inner.name))
        elif path.exists() and (not self.tree.has(name) or self.tree.content(name) != (now := path.read_bytes())):
            now = path.read_bytes()
            self._silently(Operation("truncate" if self.tree.has(name) else "create", name))
            for begin in range(0, len(now), 4096):
                self._silently(Operation("write", name, begin=begin, data=now[begin : begin + 4096]))

    def _silently(self, operation: Operation) -> None:
        self.operations.append(operation)
        self.times.append(self.clock())
        self.tree.apply(operation)

    def escaped(self) -> list[str]:
        """Names whose content is not what was noted: what went past the watch."""
        real, noted = Tree.read(Path(self.root)).contents(), self.tree.contents()
        return sorted(name for name in real.keys() | noted.keys() if real.get(name) != noted.get(name))

    @contextlib.contextmanager
    def watch(self) -> Iterator["Disk"]:
        """Watch what this process does, in all of its threads."""
        saved_before = _saving_functions()
        with contextlib.ExitStack() as stack:
            for module, name, new in (
                (builtins, "open", self._open(builtins.open)),
                (io, "open", self._open(io.open)),
                (os, "open", self._os_open(os.open)),
                (os, "fsync", self._fsync(os.fsync)),
                *((os, one, self._changing("rename", getattr(os, one))) for one in ("rename", "replace")),
                *((os, one, self._changing("unlink", getattr(os, one))) for one in ("unlink", "remove")),
                (os, "mkdir", self._changing("mkdir", os.mkdir)),
                (os, "rmdir", self._changing("rmdir", os.rmdir)),
                (os, "truncate", self._changing("truncate", os.truncate)),
                (shutil, "_use_fd_functions", False),  # so that names are whole paths
                (shutil, "_USE_CP_SENDFILE", False),
                *((module, name, self._saving(function)) for module, name, function in saved_before),
            ):
                stack.enter_context(mock.patch.object(module, name, new))
            yield self

    def _open(self, real: Callable[..., Any]) -> Callable[..., Any]:
        def opening(file: Any, mode: str = "r", buffering: int = -1, *rest: Any, **options: Any) -> Any:
            if self.name(file) is None or not set(mode) & set("wax+"):
                return real(file, mode, buffering, *rest, **options)
            raw = Watched(self, os.fsdecode(file), mode.replace("b", "").replace("t", ""))
            buffered = io.BufferedRandom(raw) if "+" in mode else io.BufferedWriter(raw)
            if "b" in mode:
                return raw if buffering == 0 else buffered
            names = ("encoding", "errors", "newline")
            options = {**dict(zip(names, rest, strict=False)), **options}
            return io.TextIOWrapper(buffered, **{name: options.get(name) for name in names})

        return opening

    def _os_open(self, real: Callable[..., int]) -> Callable[..., int]:
        def opening(path: Any, flags: int, *rest: Any, **options: Any) -> int:
            name = self.name(path) if options.get("dir_fd") is None else None
            if name is not None and flags & os.O_CREAT and not os.path.exists(path):
                self.note(Operation("create", name))
            descriptor = real(path, flags, *rest, **options)
            if name is not None:
                self.opened[descriptor] = name
            return descriptor

        return opening

    def _fsync(self, real: Callable[[int], None]) -> Callable[[int], None]:
        def syncing(descriptor: int) -> None:
            name = self.opened.get(descriptor)
            if name is None:
                real(descriptor)
                return
            if not Path(self.root, name).is_dir():
                self.adopt(name)
            self.note(Operation("sync", name))  # the real one would only cost time

        return syncing

    def _changing(self, kind: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def changing(path: Any, *rest: Any, **options: Any) -> Any:
            if (name := self.name(path)) is None:
                return real(path, *rest, **options)
            other = self.name(rest[0] if rest else options["dst"]) if kind == "rename" else None
            self.adopt(name) if os.path.exists(path) else None
            possible = os.path.exists(path) != (kind == "mkdir") and not (kind == "rmdir" and os.listdir(path))
            if possible:
                begin = rest[0] if kind == "truncate" else 0
                self.note(Operation(kind, name, other=other, begin=begin))
            return real(path, *rest, **options)

        return changing

    def _saving(self, real: Callable[..., Any]) -> Callable[..., Any]:
        """A function that writes a file without Python: one operation, and a fault leaves half of the file."""

        def saving(tensors: Any, path: Any, *rest: Any, **options: Any) -> Any:
            if (name := self.name(path)) is None:
                return real(tensors, path, *rest, **options)
            error = self.fault(len(self.operations), Operation("write", name)) if self.fault else None
            result = real(tensors, path, *rest, **options)
            if error is not None:
                os.truncate(path, os.path.getsize(path) // 2)
            self.adopt(name)
            if error is not None:
                raise error
            return result

        return saving


def _saving_functions() -> list[tuple[Any, str, Callable[..., Any]]]:
    """Where the name `save_file` of safetensors stands in modules of ours, so that it can be replaced."""
    import ftnb.snapshots
    import tests.chaos.toy

    return [(module, "save_file", module.save_file) for module in (ftnb.snapshots, tests.chaos.toy)]
