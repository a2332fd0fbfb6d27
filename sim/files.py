"""Files that appear whole or not at all, and locks between processes."""

import fcntl
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(path: str | os.PathLike) -> Iterator[Path]:
    """A new file beside `path` to write, that becomes `path` at the end of the block; an exception leaves neither it nor a
    changed `path`. Its folder is made where it is missing."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    temporary = Path(name)
    try:
        os.close(handle)
        yield temporary
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write(path: str | os.PathLike, content: str | bytes) -> Path:
    """Writes a file, whole or not at all; text in UTF-8."""
    with replacing(path) as temporary:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)
    return Path(path)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


@contextmanager
def locked(path: str | os.PathLike, what: str | None = None) -> Iterator[None]:
    """Holds the lock file `path`, which no other process holds meanwhile; it stays, empty. Says on standard error that another
    process is waited for, which does `what`."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if what:
                print(f"seriatim: waiting for another process, which is {what} ...", file=sys.stderr, flush=True)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextmanager
def filling(folder: Path) -> Iterator[Path]:
    """A new folder beside `folder` to fill, that becomes `folder` at the end of the block. What processes that were killed
    left beside it is removed. The caller holds `lock_of(folder)`."""
    _sweep(folder)
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        yield temporary
        os.replace(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def lock_of(folder: Path) -> Path:
    """The lock of a folder that several processes may want to fill."""
    return folder.with_name(f"{folder.name}.lock")


def _sweep(mine: Path) -> None:
    """Removes temporary folders beside `mine` whose makers are gone: nobody holds the lock, or it is that of `mine`."""
    for temporary in mine.parent.glob(".*.*/"):
        folder = mine.with_name(temporary.name[1:].rpartition(".")[0])
        with open(lock_of(folder), "w") as file:
            try:
                if folder != mine:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue
            shutil.rmtree(temporary, ignore_errors=True)
