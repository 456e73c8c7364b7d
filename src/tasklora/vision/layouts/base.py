"""What a layout of a data folder does: say which images a split has, check them and their labels, and read them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tasklora.errors import DataError, did_you_mean, listing
from tasklora.tasks import Split, Strict
from tasklora.vision.layouts.files import label_size
from tasklora.vision.sample import DenseSample, Greyscale, Orientation, image_size, read_image
from tasklora.vision.spec import DenseSuite, DenseTaskSpec


class ImageOptions(Strict):
    """What a suite may say of its images; see :func:`tasklora.vision.sample.read_image`.

    Attributes:
        greyscale: ``refuse``, or ``repeat`` for three equal channels.
        orientation: ``refuse`` images with an EXIF orientation, or take pixels and labels as ``stored``.
    """

    greyscale: Greyscale = "refuse"
    orientation: Orientation = "refuse"


class Layout(ABC):
    """The images of a suite and the labels of some of its tasks.

    Args:
        suite: whose `options` and `source` keys it reads; unknown ones are an error. Nothing on the disk is touched.
        specs: the tasks whose labels are wanted; those of others need not be there.
        root: the data folder; None where there is none.
    """

    def __init__(self, suite: DenseSuite, specs: Mapping[str, DenseTaskSpec], root: Path | None) -> None:
        self.suite = suite
        self.specs = dict(specs)
        self.root = root

    @abstractmethod
    def split_names(self, split: Split) -> list[str] | None:
        """Return the names of a split's images in order, or None where the data have no such split."""

    @abstractmethod
    def check(self, names: Sequence[str], split: Split) -> None:
        """Raise DataError if an image or label of these names is missing, or if sizes differ."""

    @abstractmethod
    def bad_images(self, names: Sequence[str]) -> dict[str, str]:
        """Return the names whose images cannot be used → why; every image is decoded."""

    @abstractmethod
    def read(self, name: str) -> DenseSample:
        """Return an image and its labels."""

    @abstractmethod
    def identity(self, name: str) -> str:
        """Return what tells this image and its labels from others without reading them."""


class LabelReader(ABC):
    """How the labels of one task are found and read.

    Attributes:
        task: its name.
        spec: the task.
        folders: what must be there: groups of folders, of each of which one is enough.
    """

    def __init__(self, task: str, spec: DenseTaskSpec, folders: Sequence[Sequence[Path]]) -> None:
        self.task = task
        self.spec = spec
        self.folders = folders

    def prepare(self) -> None:  # noqa: B027 (most readers share nothing)
        """Read what all labels of the task share, once, before the first label."""

    @abstractmethod
    def files(self, name: str) -> list[Path]:
        """Return the files of an image's label; those that are not there included."""

    def sizes(self, name: str) -> Iterable[tuple[Path, tuple[int, int]]]:
        """Yield the label's files whose header tells (width, height)."""
        return ((path, label_size(path)) for path in self.files(name))

    @abstractmethod
    def read(self, name: str, size: tuple[int, int]) -> NDArray[Any]:
        """Return the label of an image of this (height, width)."""


class FileLayout(Layout):
    """A layout of files: an image per name, and labels from a reader per task.

    Subclasses set `image_options`, `readers` (task → reader) and `images_folder` in their constructor.
    """

    image_options: ImageOptions
    readers: dict[str, LabelReader]
    images_folder: Path

    @abstractmethod
    def image_path(self, name: str) -> Path:
        """Return the image's file, which need not be there."""

    def check(self, names: Sequence[str], split: Split) -> None:
        """Raise DataError if an image or label of these names is missing, or if sizes differ."""
        self._check_images(names, split)
        for reader in self.readers.values():
            self._check_labels(reader, names, split)
            reader.prepare()
        sizes = self._image_sizes(names, split)
        for reader in self.readers.values():
            _check_sizes(reader, sizes, split)

    def _check_images(self, names: Sequence[str], split: Split) -> None:
        if not self.images_folder.is_dir():
            raise DataError(
                f"no folder of images {self.images_folder}. {self._expected()}"
                + _siblings(self.images_folder.name, self.images_folder.parent)
            )
        missing = [name for name in names if not self.image_path(name).is_file()]
        if missing:
            suffixed = " Names stand without suffix." if "." in missing[0].rpartition("/")[2] else ""
            raise DataError(
                f"split '{split}': {len(missing)} of {len(names)} names have no image in {self.images_folder}: "
                f"{listing(missing, 5)}.{suffixed} Add the images, or take the names out of the split."
            )

    def _check_labels(self, reader: LabelReader, names: Sequence[str], split: Split) -> None:
        for group in reader.folders:
            if not any(folder.is_dir() for folder in group):
                raise DataError(
                    f"task '{reader.task}': no folder {' or '.join(map(str, group))}. {self._expected()}"
                    f"{_siblings(group[0].name, group[0].parent)} Only tasks that are asked for need labels: "
                    f"leave '{reader.task}' out of tasks.include if there are none."
                )
        missing = [path for name in names for path in reader.files(name) if not path.is_file()]
        if missing:
            raise DataError(
                f"task '{reader.task}', split '{split}': {len(missing)} label file(s) for {len(names)} images are "
                f"missing in {missing[0].parent}: {listing((path.name for path in missing), 5)}. Add them, take the "
                f"names out of the split, or leave '{reader.task}' out of tasks.include."
            )

    def _image_sizes(self, names: Sequence[str], split: Split) -> dict[str, tuple[Path, tuple[int, int]]]:
        options = self.image_options
        sizes, problems = {}, []
        for name in names:
            path = self.image_path(name)
            try:
                sizes[name] = (path, image_size(path, options.greyscale, options.orientation))
            except DataError as error:
                problems.append((name, str(error)))
        if problems:
            others = f" So are {len(problems) - 1} more: {listing((n for n, _ in problems[1:]), 10)}."
            raise DataError(f"split '{split}': {problems[0][1]}{others if len(problems) > 1 else ''}")
        return sizes

    def _expected(self) -> str:
        return f"Layout {self.suite.layout} expects it in the data folder {self.root}."

    def bad_images(self, names: Sequence[str]) -> dict[str, str]:
        """Return the names whose images cannot be used → why; every image is decoded."""
        bad = {}
        for name in names:
            path = self.image_path(name)
            try:
                if path.is_file():  # that one is missing, is another error
                    read_image(path, self.image_options.greyscale, self.image_options.orientation)
            except DataError as error:
                bad[name] = str(error)
        return bad

    def read(self, name: str) -> DenseSample:
        """Return an image and its labels.

        Raises:
            DataError: naming the file that cannot be used.
        """
        image = read_image(self.image_path(name), self.image_options.greyscale, self.image_options.orientation)
        labels = {}
        for task, reader in self.readers.items():
            label = reader.read(name, (image.shape[0], image.shape[1]))
            if label.shape[-2:] != image.shape[:2]:
                raise DataError(_different(task, reader.files(name)[0], label.shape[:-3:-1], image))
            labels[task] = label
        return DenseSample(name, image, labels)

    def identity(self, name: str) -> str:
        """Return the name and the sizes in bytes of the image and its label files."""
        paths = [self.image_path(name), *(path for reader in self.readers.values() for path in reader.files(name))]
        return " ".join([name, *(str(path.stat().st_size) for path in paths)])


def read_names(path: Path, what: str) -> list[str]:
    """Return the names in a text file, one per line; empty lines do not count.

    Args:
        path: the file.
        what: what an error message begins with.

    Raises:
        DataError: if the file is missing, empty, or holds a name twice or one that leads out of the data folder.
    """
    if not path.is_file():
        raise DataError(f"{what}: no file {path}. It lists the split's images, a name without suffix on each line.")
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (UnicodeDecodeError, OSError) as error:
        raise DataError(f"{what}: cannot read {path}: {error}") from None
    seen: dict[str, int] = {}
    for number, line in enumerate(lines, 1):
        name = line.strip()
        if not name:
            continue
        if leads_out(name):
            raise DataError(f"{what}: {path}, line {number}: '{name}' leads out of the data folder; refused.")
        if name in seen:
            raise DataError(f"{what}: {path} lists '{name}' twice, in lines {seen[name]} and {number}.")
        seen[name] = number
    if not seen:
        raise DataError(f"{what}: {path} lists no image.")
    return list(seen)


def leads_out(name: str) -> bool:
    """Return whether a relative name could lead out of its folder: absolute, with ``..``, a drive or a backslash."""
    path = PurePosixPath(name)
    return path.is_absolute() or ".." in path.parts or any(mark in name for mark in ("\\", ":", "\0"))


def ignored_everywhere(size: tuple[int, int], value: int) -> NDArray[np.uint8]:
    """Return a label (H, W) of ignored pixels."""
    return np.full(size, value, dtype=np.uint8)


def _check_sizes(reader: LabelReader, sizes: Mapping[str, tuple[Path, tuple[int, int]]], split: Split) -> None:
    wrong = [
        (name, path, size)
        for name, (_, expected) in sizes.items()
        for path, size in reader.sizes(name)
        if size != expected
    ]
    if wrong:
        name, path, size = wrong[0]
        image, expected = sizes[name]
        raise DataError(
            f"task '{reader.task}', split '{split}': label {path} is {size[0]} × {size[1]} (width × height), its image "
            f"{image} is {expected[0]} × {expected[1]}; {len(wrong)} of {len(sizes)} images have labels of another "
            "size. Give labels the size of their images (nearest neighbour for classes)."
        )


def _different(task: str, path: Path, size: Sequence[int], image: NDArray[np.uint8]) -> str:
    return (
        f"task '{task}': label {path} is {size[0]} × {size[1]} (width × height), its image is "
        f"{image.shape[1]} × {image.shape[0]}. Give labels the size of their images."
    )


def _siblings(name: str, parent: Path) -> str:
    """Return what stands in a folder where `name` was expected, the nearest name first."""
    if not parent.is_dir():
        return f" There is no folder {parent} either."
    there = sorted(path.name for path in parent.iterdir() if path.is_dir())
    return f"{did_you_mean(name, there)} Folders there: {listing(there) or 'none'}."
