"""Files that are there whole or not at all, also after a kill or a power cut.

Each is written beside its place, flushed to the disk, and moved there; then the folder, which holds the name, is
flushed.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from safetensors import SafetensorError

from tasklora.errors import OutputError, TaskLoraError, first_line

LAST_FILE = "tasklora.json"
"""The file of a saved model that makes it complete; see :func:`written_whole`."""
PARTIAL = ".partial"
_REPLACED, _REMOVED = ".replaced", ".removed"
_OF_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO, errno.EACCES, errno.EPERM}
_TORCH_CANNOT_WRITE = ("PytorchStreamWriter", "inline_container.cc", "iostream error")


def write_text_whole(path: Path, text: str) -> None:
    """Write a text file beside its place, then move it there."""
    scratch = path.with_name(f".{path.name}{PARTIAL}")
    try:
        scratch.write_text(text, encoding="utf-8")
        move_into_place(scratch, path)
    except OSError as error:
        error.filename = str(path)  # what was asked for, not what stands in for it
        raise


def move_into_place(scratch: Path, place: Path) -> None:
    """Flush a file to the disk and give it its name; a file of that name is replaced."""
    flush(scratch)
    os.replace(scratch, place)
    flush(place.parent)


@contextlib.contextmanager
def written_whole(directory: str | Path) -> Iterator[Path]:
    """Yield a scratch folder whose files are moved into `directory` afterwards, ``tasklora.json`` last."""
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=directory.parent, prefix=f".{directory.name}-", suffix=PARTIAL) as scratch:
        yield Path(scratch)
        files = sorted(Path(scratch).iterdir(), key=lambda file: (file.name == LAST_FILE, file.name))
        for file in files:
            share_mode(file)
            flush(file)
        for file in files:
            if file.name == LAST_FILE:
                flush(directory)  # the others have their names before it has its own
            os.replace(file, directory / file.name)
        flush(directory)


def move_folder_into_place(scratch: Path, place: Path) -> None:
    """Flush a folder with all that is in it, and give it its name.

    A folder of that name steps aside first and is removed last; :func:`tidy` brings it back where a kill came between.
    """
    for path in scratch.rglob("*"):
        flush(path)
    flush(scratch)
    aside = place.with_name(f".{place.name}{_REPLACED}")
    if place.exists():
        remove_folder(aside)
        os.replace(place, aside)
    os.replace(scratch, place)
    flush(place.parent)
    remove_folder(aside)


def remove_folder(folder: Path) -> None:
    """Remove a folder; a kill leaves all of it or a hidden rest, never a part under its name."""
    if not folder.exists():
        return
    if not folder.name.startswith("."):
        hidden = folder.with_name(f".{folder.name}{_REMOVED}")
        shutil.rmtree(hidden, ignore_errors=True)
        os.replace(folder, hidden)
        folder = hidden
    shutil.rmtree(folder)


def tidy(folder: Path) -> None:
    """Remove what writes that were cut off have left in a folder; what had stepped aside for a new one comes back."""
    for path in folder.glob(f".*{_REPLACED}"):
        place = folder / path.name[1 : -len(_REPLACED)]
        if not place.exists():
            os.replace(path, place)
    for path in list(folder.glob(".*")):
        if not path.name.endswith((PARTIAL, _REPLACED, _REMOVED)):
            continue
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


def flush(path: Path) -> None:
    """Flush a file, or a folder's names, to the disk."""
    if os.name == "nt" and path.is_dir():
        return  # Windows opens no folders
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def share_mode(file: Path) -> None:
    """Give a file the permissions that the umask allows; safetensors writes for the owner only."""
    mask = os.umask(0)
    os.umask(mask)
    file.chmod(0o666 & ~mask)


@contextlib.contextmanager
def writing(what: str, where: Path) -> Iterator[None]:
    """Say of an error inside the block what could not be written, and where.

    Raises:
        OutputError: in place of what the libraries raise of a disk that is full, read-only or broken.
    """
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        if isinstance(error, TaskLoraError) or not is_of_disk(error):
            raise
        raise OutputError(f"cannot write {what} to {where}: {reason(error)}.") from error


def is_of_disk(error: BaseException) -> bool:
    """Return whether an error is of a disk that is full, read-only or broken; torch and safetensors have their own."""
    if isinstance(error, OSError):
        return error.errno in _OF_DISK
    return isinstance(error, SafetensorError) or any(part in str(error) for part in _TORCH_CANNOT_WRITE)


def reason(error: BaseException) -> str:
    """Return what an error says of itself, in a few words."""
    return getattr(error, "strerror", None) or first_line(error).rstrip(".")
