"""The layout ``folders``, for one's own data: a folder of images, a folder per label, and lists or rules of splits.

What a suite's `options` and its tasks' `source` may say, is in the classes below and, for people, in
``docs/dense-data.md``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pydantic

from tasklora.errors import ConfigError, DataError, did_you_mean, listing
from tasklora.tasks import Split, Strict, parse
from tasklora.vision.layouts.base import FileLayout, ImageOptions, leads_out, read_names
from tasklora.vision.layouts.sources import SOURCES, FolderReader
from tasklora.vision.spec import DenseSuite, DenseTaskSpec

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")


class SplitRule(Strict):
    """Which images make a split: exactly one of these.

    Positions count the images in the order of their names, numbers in names by value, from 0.

    Attributes:
        first: that many from the beginning.
        last: that many from the end.
        blocks: ranges [start, stop) of positions.
        file: a text file in the data folder, a name without suffix per line.
        rest: all images in no other split.
    """

    first: int | None = pydantic.Field(None, ge=1)
    last: int | None = pydantic.Field(None, ge=1)
    blocks: list[tuple[int, int]] | None = pydantic.Field(None, min_length=1)
    file: str | None = None
    rest: bool = False

    @pydantic.model_validator(mode="after")
    def _check(self) -> SplitRule:
        given = [name for name in type(self).model_fields if getattr(self, name) not in (None, False)]
        if len(given) != 1:
            raise ValueError(f"a split says exactly one of {', '.join(type(self).model_fields)}; got {given or 'none'}")
        for start, stop in self.blocks or []:
            if not 0 <= start < stop:
                raise ValueError(f"a block is [start, stop] with 0 <= start < stop, got [{start}, {stop}]")
        if self.file is not None and leads_out(self.file):
            raise ValueError(f"file '{self.file}' leads out of the data folder")
        return self


class FolderOptions(ImageOptions):
    """What a suite says of its images.

    Attributes:
        images: the folder of images.
        splits: split → rule; None reads ``splits/SPLIT.txt`` for every split that has such a file.
    """

    images: str = "images"
    splits: dict[Split, SplitRule] | None = None

    @pydantic.model_validator(mode="after")
    def _check(self) -> FolderOptions:
        if not self.images or leads_out(self.images):
            raise ValueError(f"images must name a folder in the data folder, got '{self.images}'")
        rests = [split for split, rule in (self.splits or {}).items() if rule.rest]
        if len(rests) > 1:
            raise ValueError(f"only one split can have the rest, got {rests}")
        return self


class Folders(FileLayout):
    """The layout ``folders``; see the module."""

    def __init__(self, suite: DenseSuite, specs: Mapping[str, DenseTaskSpec], root: Path | None) -> None:
        super().__init__(suite, specs, root)
        self.options = parse(FolderOptions, suite.options, f"suite {suite.reference}, options")
        self.image_options = self.options
        self.folder = root or Path()
        self.images_folder = self.folder / self.options.images
        self.readers = {
            task: folder_reader(task, spec, self.folder, f"suite {suite.reference}, task '{task}', source")
            for task, spec in specs.items()
        }
        self._images: dict[str, Path] | None = None

    @property
    def images(self) -> dict[str, Path]:
        """Name → file of all images, in the order of their names.

        Raises:
            DataError: if there is no such folder, no image in it, or two images of one name.
        """
        if self._images is None:
            if not self.images_folder.is_dir():
                there = [path.name for path in self.folder.iterdir() if path.is_dir()] if self.folder.is_dir() else []
                raise DataError(
                    f"no folder of images {self.images_folder}.{did_you_mean(self.options.images, there)} Folders in "
                    f"{self.folder}: {listing(sorted(there)) or 'none'}. Give the data folder with tasks.data_root, "
                    "the images' name in it with the suite's options.images."
                )
            self._images = _images_in(self.images_folder)
        return self._images

    def image_path(self, name: str) -> Path:
        """Return the image's file, which need not be there."""
        return self.images.get(name, self.images_folder / f"{name}{IMAGE_SUFFIXES[0]}")

    def split_names(self, split: Split) -> list[str] | None:
        """Return the names of a split's images in order, or None where the data have no such split."""
        if self.options.splits is not None:
            return self._ruled(split)
        path = self.folder / "splits" / f"{split}.txt"
        if not path.is_file() and split == "tune":
            return None  # held out of train
        if not path.is_file():
            raise DataError(
                f"split '{split}': no file {path}. It lists the split's images, a name without suffix on each line; or "
                "give rules in the suite's options.splits."
            )
        return read_names(path, f"split '{split}'")

    def _ruled(self, split: Split) -> list[str] | None:
        rules = self.options.splits or {}
        if split not in rules:
            return None
        if not rules[split].rest:
            return self._chosen(split, rules[split])
        taken = {name for other, rule in rules.items() if not rule.rest for name in self._chosen(other, rule)}
        rest = [name for name in self.images if name not in taken]
        if not rest:
            raise DataError(f"split '{split}' has the rest of {len(self.images)} images, but nothing is left.")
        return rest

    def _chosen(self, split: Split, rule: SplitRule) -> list[str]:
        names = list(self.images)
        if rule.file is not None:
            return read_names(self.folder / rule.file, f"split '{split}'")
        needed = rule.first or rule.last or max(stop for _, stop in rule.blocks or [])
        if needed > len(names):
            raise DataError(
                f"split '{split}': options.splits counts to {needed}, but there are {len(names)} images in "
                f"{self.images_folder}."
            )
        if rule.first:
            return names[: rule.first]
        if rule.last:
            return names[-rule.last :]
        return [name for start, stop in rule.blocks or [] for name in names[start:stop]]


def folder_reader(task: str, spec: DenseTaskSpec, root: Path, where: str) -> FolderReader[Any]:
    """Return the reader of a task's labels, as its `source` says.

    Args:
        task: its name, which is its folder's too unless the source names another.
        spec: the task.
        root: the data folder.
        where: what to call the source in an error message.

    Raises:
        ConfigError: on a source that does not fit the task's kind, or keys that it does not know.
    """
    derive = spec.source.get("derive")
    ways = [way for kind, way in SOURCES if kind == spec.kind]
    if derive not in ways:
        known = [way for way in ways if way]
        kinds = [kind for kind, way in SOURCES if way == derive]
        raise ConfigError(
            f"{where}: {spec.kind} cannot be derived by '{derive}'.{did_you_mean(str(derive), known)} "
            + (f"It is for {listing(kinds)}. " if kinds else "")
            + (f"Known for {spec.kind}: {listing(known)}." if known else f"Labels of {spec.kind} are read from files.")
        )
    source_cls, reader_cls = SOURCES[spec.kind, derive]
    source = parse(source_cls, spec.source, where)
    return reader_cls(task, spec, root, source, where)


def _images_in(folder: Path) -> dict[str, Path]:
    """Return name → file, in the order of the names; a name is the path in the folder without suffix."""
    found: dict[str, Path] = {}
    for path in folder.rglob("*"):
        if path.suffix.lower() not in IMAGE_SUFFIXES or path.name.startswith(".") or not path.is_file():
            continue
        name = path.relative_to(folder).with_suffix("").as_posix()
        if name in found:
            raise DataError(f"two images are named '{name}': {found[name]} and {path}. Rename or remove one.")
        found[name] = path
    if not found:
        raise DataError(f"no image in {folder} (looked for {', '.join('*' + suffix for suffix in IMAGE_SUFFIXES)}).")
    return {name: found[name] for name in sorted(found, key=_by_number)}


def _by_number(name: str) -> list[tuple[int, str]]:
    """Return a key that sorts frame-9 before frame-10."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"([0-9]+)", name)]
