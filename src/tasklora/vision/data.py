"""Images with dense labels, by split: found and checked when loaded, decoded when asked for."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import numpy as np
from torch.utils.data import Dataset as TorchDataset

from tasklora.errors import ConfigError, DataError, did_you_mean, listing
from tasklora.tasks import Split, parse, read_yaml
from tasklora.vision.layouts import LAYOUTS, Layout
from tasklora.vision.sample import DenseSample
from tasklora.vision.spec import DenseSuite, DenseTaskSpec

TUNE_FRACTION = 0.1
TUNE_MAX_IMAGES = 100
EVALUATION_SEED = 0


class DenseRows(TorchDataset[DenseSample]):
    """The images of one split, each with the labels of all tasks.

    Attributes:
        split: which split this is.
        specs: task → what it is.
        names: of the images, in order.
    """

    def __init__(self, split: Split, specs: Mapping[str, DenseTaskSpec], names: Sequence[str], layout: Layout) -> None:
        self.split = split
        self.specs = dict(specs)
        self.names = list(names)
        self._layout = layout

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> DenseSample:
        """Return an image and its labels at their original size.

        Raises:
            DataError: naming the file that cannot be used.
        """
        return self._layout.read(self.names[index])

    def __iter__(self) -> Iterator[DenseSample]:
        return (self[index] for index in range(len(self)))

    def fingerprint(self) -> str:
        """Return a short digest of the names and the sizes of all files, in order; no file is read."""
        digest = hashlib.sha256(self._layout.suite.reference.encode())
        for name in self.names:
            digest.update(self._layout.identity(name).encode() + b"\0")
        return digest.hexdigest()[:16]


@dataclass(frozen=True)
class DenseData:
    """The images of some splits: split → images."""

    specs: Mapping[str, DenseTaskSpec]
    splits: Mapping[Split, DenseRows]

    @property
    def names(self) -> list[str]:
        """Task names in the order of their ids."""
        return list(self.specs)

    def split(self, split: Split) -> DenseRows:
        """Return the images of a split.

        Raises:
            DataError: if it was not loaded.
        """
        if split not in self.splits:
            raise DataError(f"split '{split}' was not loaded; there are: {listing(self.splits)}.")
        return self.splits[split]


def shipped_dense_suites() -> dict[str, Path]:
    """Return the suites of dense tasks that come with the package: name → file."""
    folder = Path(str(resources.files("tasklora.vision"))) / "suites"
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def load_dense_suite(reference: str) -> DenseSuite:
    """Load a suite of dense tasks by ``name``, ``name@version`` or the path of a YAML file.

    What its layout does not know is an error here already, before any data are looked at.

    Raises:
        ConfigError: if there is no such suite, not in that version, or if it says something unknown.
        DataError: if there is no such file.
    """
    if reference.endswith((".yaml", ".yml")):
        path = Path(reference)
        return _checked(parse(DenseSuite, read_yaml(path), str(path)))
    name, _, version = reference.partition("@")
    suites = shipped_dense_suites()
    if name not in suites:
        raise ConfigError(
            f"unknown suite '{name}'.{did_you_mean(name, suites)} Suites of dense tasks: {', '.join(suites)}; "
            "or give the path of a suite's YAML file."
        )
    suite = parse(DenseSuite, read_yaml(suites[name]), f"suite {name}")
    if version and version != str(suite.version):
        raise ConfigError(f"suite {name} is at version {suite.version}, but '{reference}' was asked for.")
    return _checked(suite)


def _checked(suite: DenseSuite) -> DenseSuite:
    if not suite.tasks:
        raise ConfigError(f"suite {suite.reference} has no task.")
    LAYOUTS[suite.layout](suite, suite.tasks, None)
    return suite


def load_dense(
    suite: DenseSuite,
    specs: Mapping[str, DenseTaskSpec],
    splits: Iterable[Split],
    data_root: str | Path | None = None,
    limits: Mapping[Split, int] | None = None,
    seed: int = 0,
    skip_bad_images: bool = False,
) -> DenseData:
    """Find the images and labels of several splits and check that all are there and of one size.

    Where the data have no ``tune`` split, a seeded tenth of train (at most 100 images) is held out for it, whichever
    splits are asked for: ``train`` never holds an image of ``tune``. Nothing is written into the data folder.

    Args:
        suite: says how the data lie.
        specs: the tasks whose labels are wanted; labels of others need not be there.
        splits: which splits to load.
        data_root: the data folder; None for suites that make their images.
        limits: split → number of images. Those of train and tune are drawn by `seed`; those of validation and test are
            the same whatever the seed, so that runs of several seeds are scored on the same images.
        seed: of the hold-out and the draw.
        skip_bad_images: leave out images that cannot be used (damaged, greyscale, …) with a warning that lists them.
            All images are decoded once for that. Otherwise they are errors: what the header shows, here; damage behind
            it, when the image is read. What a limit has drawn is not drawn anew for images that are left out.

    Raises:
        ConfigError: if a data folder is missing or superfluous, or a limit is not positive.
        DataError: naming task, folder and file of what is missing or does not fit.
    """
    root = _data_folder(suite, data_root)
    layout = LAYOUTS[suite.layout](suite, specs, root)
    for split, limit in (limits or {}).items():
        if limit < 1:
            raise ConfigError(f"the limit of split '{split}' must be at least 1, got {limit}.")
    wanted = list(dict.fromkeys(splits))
    names = _split_names(layout, wanted, seed)
    _check_apart(names)
    drawn = {
        split: _draw(names[split], (limits or {}).get(split), seed if split in ("train", "tune") else EVALUATION_SEED)
        for split in wanted
    }
    if skip_bad_images:
        drawn = _without_bad(layout, drawn)
    for split, chosen in drawn.items():
        layout.check(chosen, split)
    return DenseData(dict(specs), {split: DenseRows(split, specs, chosen, layout) for split, chosen in drawn.items()})


def _data_folder(suite: DenseSuite, data_root: str | Path | None) -> Path | None:
    if suite.layout == "scenes":
        return None if data_root is None else Path(data_root)  # the layout refuses it
    if data_root is None:
        raise ConfigError(
            f"suite {suite.reference} reads its images from a folder: give it with tasks.data_root or --data-root."
        )
    root = Path(data_root)
    if not root.is_dir():
        raise DataError(
            f"no data folder {root}. Give the folder that holds suite {suite.reference}'s images with tasks.data_root "
            "or --data-root."
        )
    return root


def _split_names(layout: Layout, wanted: Sequence[Split], seed: int) -> dict[Split, list[str]]:
    names: dict[Split, list[str]] = {}
    for split in wanted:
        found = layout.split_names(split)
        if found is not None:
            names[split] = found
        elif split != "tune":
            raise DataError(
                f"suite {layout.suite.reference} has no split '{split}'"
                f"{'' if split == 'train' else '; use another, or name its images'}."
            )
    if ("train" in wanted or "tune" in wanted) and layout.split_names("tune") is None:
        train = names["train"] if "train" in names else layout.split_names("train")
        if train is None:
            raise DataError(f"suite {layout.suite.reference} has neither a split 'tune' nor 'train' to hold it out of.")
        if len(train) < 2:
            raise DataError("split 'train' has one image; 'tune' cannot be held out of it. Give both their images.")
        names["train"], names["tune"] = _hold_out(train, seed)
    return names


def _hold_out(train: Sequence[str], seed: int) -> tuple[list[str], list[str]]:
    order = np.random.default_rng(seed).permutation(len(train))
    held = max(1, min(TUNE_MAX_IMAGES, int(len(train) * TUNE_FRACTION)))
    return [train[i] for i in np.sort(order[held:])], [train[i] for i in np.sort(order[:held])]


def _check_apart(names: Mapping[Split, Sequence[str]]) -> None:
    """Raise if an image stands in two splits: it would be trained on and scored."""
    seen: dict[str, Split] = {}
    for split, chosen in names.items():
        both = [name for name in chosen if name in seen]
        if both:
            raise DataError(
                f"{len(both)} image(s) stand in '{seen[both[0]]}' and in '{split}': {listing(both, 5)}. "
                "Mend the splits: scores of images that were trained on say nothing."
            )
        seen |= dict.fromkeys(chosen, split)


def _draw(names: Sequence[str], limit: int | None, seed: int) -> list[str]:
    if limit is None or limit >= len(names):
        return list(names)
    return [names[i] for i in np.random.default_rng(seed).permutation(len(names))[:limit]]


def _without_bad(layout: Layout, drawn: Mapping[Split, Sequence[str]]) -> dict[Split, list[str]]:
    bad = {split: layout.bad_images(names) for split, names in drawn.items()}
    reasons = [f"{name} ({reason.partition('. ')[0]})" for found in bad.values() for name, reason in found.items()]
    if reasons:
        total = sum(map(len, drawn.values()))
        warnings.warn(
            f"{len(reasons)} of {total} images cannot be used and are left out: {listing(reasons, 100)}.", stacklevel=3
        )
    kept = {split: [name for name in names if name not in bad[split]] for split, names in drawn.items()}
    for split, names in kept.items():
        if not names:
            raise DataError(
                f"split '{split}': none of its {len(drawn[split])} images can be used. First: {reasons[0]}."
            )
    return kept
