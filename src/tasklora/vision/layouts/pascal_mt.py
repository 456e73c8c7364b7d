"""The PASCAL_MT folder: PASCAL-Context images with classes, human parts, saliency, surface normals and edges.

Layout::

    JPEGImages/NAME.jpg
    ImageSets/Context/{train,val}.txt
    semseg/VOC12/NAME.png, or else semseg/pascal-context/NAME.png     21 classes, 255 ignored
    human_parts/NAME.mat                                              PASCAL-Part annotations
    sal_distill/NAME.png                                              salient where v / 255 > 0.5
    normals_distill/NAME.png                                          n = 2 v / 255 − 1
    pascal-context/trainval/NAME.mat                                  LabelMap, 459 classes: normals and edges

Sources: Mottaghi et al., The Role of Context (CVPR 2014); Chen et al., Detect What You Can (CVPR 2014, PASCAL-Part);
Maninis et al., Attentive Single-Tasking of Multiple Tasks (CVPR 2019), who distilled saliency and normals.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from tasklora.errors import ConfigError, DataError, did_you_mean, first_line, listing
from tasklora.tasks import Split, Strict, parse
from tasklora.vision.layouts.base import FileLayout, ImageOptions, LabelReader, ignored_everywhere, read_names
from tasklora.vision.layouts.derived import boundaries
from tasklora.vision.layouts.files import class_map, label_size, read_ids, read_vectors, unit_normals
from tasklora.vision.spec import IGNORED, DenseKind, DenseSuite, DenseTaskSpec

PERSON = 15
"""PASCAL VOC's id of persons among its 20 kinds of object."""

_LEFT_AND_RIGHT = {"ear": 1, "eye": 1, "ebrow": 1, "uarm": 3, "larm": 4, "hand": 4, "uleg": 5, "lleg": 6, "foot": 6}
HUMAN_PARTS: dict[str, int] = {
    "hair": 1,
    "head": 1,
    "mouth": 1,
    "nose": 1,
    "neck": 2,
    "torso": 2,
    **{side + part: number for part, number in _LEFT_AND_RIGHT.items() for side in "lr"},
}
"""PASCAL-Part's names of a person's parts → head 1, torso 2, upper arms 3, lower arms and hands 4, upper legs 5,
lower legs and feet 6."""

# The teacher of the normals had seen only NYU's indoor classes. The 169 names that PASCAL-Context's 459 classes share
# with NYU's 894 ("unknown" left out), and `tvmonitor`, which NYU calls television and monitor, as ids of LabelMap.
NORMALS_CLASSES: tuple[int, ...] = (
    *(3, 4, 6, 9, 10, 11, 13, 15, 17, 18, 22, 23, 29, 30, 33, 34, 36, 37, 38, 39, 41, 43, 46, 49, 50, 51, 53, 55, 56),
    *(59, 61, 62, 65, 66, 68, 69, 72, 73, 78, 83, 84, 85, 87, 88, 95, 96, 101, 104, 105, 107, 111, 113, 115, 122, 124),
    *(135, 141, 142, 143, 146, 150, 154, 157, 158, 159, 165, 172, 174, 181, 183, 184, 191, 193, 195, 197, 199, 202),
    *(213, 215, 216, 219, 220, 223, 225, 228, 230, 232, 233, 238, 239, 242, 243, 246, 250, 251, 252, 255, 260, 261),
    *(263, 269, 272, 273, 275, 281, 283, 284, 285, 286, 287, 288, 290, 291, 292, 293, 295, 304, 307, 309, 310, 314),
    *(315, 319, 323, 329, 330, 331, 336, 342, 345, 349, 350, 351, 352, 355, 357, 368, 370, 371, 374, 379, 380, 383),
    *(384, 397, 401, 403, 405, 407, 408, 411, 412, 413, 414, 417, 419, 421, 423, 427, 429, 430, 432, 440, 441, 442),
    *(443, 444, 446, 454, 457),
)

Label = Literal["semseg", "human_parts", "saliency", "normals", "edges"]
_SPLITS: dict[Split, str] = {"train": "train", "validation": "val"}


class PascalSource(Strict):
    """Which of the folder's labels a task has."""

    label: Label


class PascalMT(FileLayout):
    """The layout ``pascal_mt``; see the module."""

    def __init__(self, suite: DenseSuite, specs: Mapping[str, DenseTaskSpec], root: Path | None) -> None:
        super().__init__(suite, specs, root)
        self.image_options = parse(ImageOptions, suite.options, f"suite {suite.reference}, options")
        folder = root or Path()
        self.images_folder = folder / "JPEGImages"
        self.splits_folder = folder / "ImageSets" / "Context"
        self.readers = {}
        for task, spec in specs.items():
            label = parse(PascalSource, spec.source, f"suite {suite.reference}, task '{task}', source").label
            self.readers[task] = _READERS[label](task, spec, folder)

    def image_path(self, name: str) -> Path:
        """Return the image's file, which need not be there."""
        return self.images_folder / f"{name}.jpg"

    def split_names(self, split: Split) -> list[str] | None:
        """Return the names of a split's images in order; there are train and validation."""
        if split not in _SPLITS:
            return None
        return read_names(self.splits_folder / f"{_SPLITS[split]}.txt", f"split '{split}'")


class _PascalReader(LabelReader):
    kind: ClassVar[DenseKind]

    def __init__(self, task: str, spec: DenseTaskSpec, root: Path) -> None:
        super().__init__(task, spec, [[root / folder for folder in group] for group in self.groups])
        _check_kind(task, spec, self.kind)

    groups: ClassVar[tuple[tuple[str, ...], ...]]


class SemsegReader(_PascalReader):
    """Classes of VOC 2012 where they are annotated by hand, else those taken from PASCAL-Context."""

    kind = "segmentation"
    groups = (("semseg/VOC12", "semseg/pascal-context"),)

    def files(self, name: str) -> list[Path]:
        """Return the file of the label."""
        voc, context = (folder / f"{name}.png" for folder in self.folders[0])
        return [context if context.is_file() and not voc.is_file() else voc]

    def read(self, name: str, size: tuple[int, int]) -> NDArray[np.uint8]:
        """Return class ids (H, W)."""
        path = self.files(name)[0]
        table = {**{i: i for i in range(self.spec.num_outputs)}, IGNORED: IGNORED}
        return class_map(read_ids(path, palette=True), table, path, self.task, self.spec)


class PartsReader(_PascalReader):
    """Parts of persons; where no person has any, all pixels are ignored."""

    kind = "segmentation"
    groups = (("human_parts",),)

    def __init__(self, task: str, spec: DenseTaskSpec, root: Path) -> None:
        super().__init__(task, spec, root)
        if spec.num_outputs != 7:
            raise ConfigError(f"task '{task}': human_parts has 7 classes (background and 6 parts), got {spec.labels}.")

    def files(self, name: str) -> list[Path]:
        """Return the file of the label."""
        return [self.folders[0][0] / f"{name}.mat"]

    def sizes(self, name: str) -> list[tuple[Path, tuple[int, int]]]:
        """Return nothing: the masks lie deep inside; they are checked when the label is read."""
        return []

    def read(self, name: str, size: tuple[int, int]) -> NDArray[np.uint8]:
        """Return class ids (H, W)."""
        path = self.files(name)[0]
        label: NDArray[np.uint8] | None = None
        for part, mask in person_parts(path):
            if part not in HUMAN_PARTS:
                raise DataError(
                    f"task '{self.task}': {path} has a person's part '{part}' that PASCAL-Part does not know."
                    f"{did_you_mean(part, HUMAN_PARTS)}"
                )
            if label is None:
                label = np.zeros(mask.shape, dtype=np.uint8)
            if mask.shape != label.shape:
                raise DataError(
                    f"task '{self.task}': {path} has masks of different shape: {mask.shape}, {label.shape}."
                )
            label[mask] = HUMAN_PARTS[part]
        return ignored_everywhere(size, IGNORED) if label is None or not label.any() else label


class SaliencyReader(_PascalReader):
    """Distilled saliency, cut at one half."""

    kind = "saliency"
    groups = (("sal_distill",),)

    def files(self, name: str) -> list[Path]:
        """Return the file of the label."""
        return [self.folders[0][0] / f"{name}.png"]

    def read(self, name: str, size: tuple[int, int]) -> NDArray[np.float32]:
        """Return 0 and 1, (H, W)."""
        return (read_ids(self.files(name)[0]) > 127.5).astype(np.float32)


class NormalsReader(_PascalReader):
    """Distilled normals, on the classes that their teacher had seen."""

    kind = "normals"
    groups = (("normals_distill",), ("pascal-context/trainval",))

    def files(self, name: str) -> list[Path]:
        """Return the file of the normals and that of the classes."""
        return [self.folders[0][0] / f"{name}.png", self.folders[1][0] / f"{name}.mat"]

    def sizes(self, name: str) -> list[tuple[Path, tuple[int, int]]]:
        """Return what the headers of both files tell."""
        normals, classes = self.files(name)
        return [(normals, label_size(normals)), label_map_size(classes)]

    def read(self, name: str, size: tuple[int, int]) -> NDArray[np.float32]:
        """Return unit vectors (3, H, W)."""
        path, classes = self.files(name)
        normals = unit_normals(read_vectors(path))
        seen = np.isin(read_label_map(classes), NORMALS_CLASSES)
        if seen.shape != normals.shape[1:]:
            raise DataError(f"task '{self.task}': {path} and {classes} are of different size.")
        normals[:, ~seen] = IGNORED
        return normals


class EdgesReader(_PascalReader):
    """Boundaries between PASCAL-Context's 459 classes."""

    kind = "edges"
    groups = (("pascal-context/trainval",),)

    def files(self, name: str) -> list[Path]:
        """Return the file of the classes."""
        return [self.folders[0][0] / f"{name}.mat"]

    def sizes(self, name: str) -> list[tuple[Path, tuple[int, int]]]:
        """Return what the header tells."""
        return [label_map_size(self.files(name)[0])]

    def read(self, name: str, size: tuple[int, int]) -> NDArray[np.float32]:
        """Return 0 and 1, (H, W)."""
        return boundaries(read_label_map(self.files(name)[0]))


_READERS: dict[Label, type[_PascalReader]] = {
    "semseg": SemsegReader,
    "human_parts": PartsReader,
    "saliency": SaliencyReader,
    "normals": NormalsReader,
    "edges": EdgesReader,
}


def _check_kind(task: str, spec: DenseTaskSpec, kind: DenseKind) -> None:
    if spec.kind != kind:
        raise ConfigError(f"task '{task}' is of kind {spec.kind}, but its source holds {kind}. Mend the suite.")


def person_parts(path: Path) -> list[tuple[str, NDArray[np.bool_]]]:
    """Return the parts of all persons of a PASCAL-Part file: name and mask (H, W), in the file's order.

    Such a file holds a struct ``anno`` with ``objects``, each with ``class_ind``, ``mask`` and ``parts`` (none, or an
    array), each with ``part_name`` and ``mask``.

    Raises:
        DataError: if it does not.
    """
    anno = _load_mat(path, "anno")
    try:
        parts = [
            (str(part["part_name"].item()), np.asarray(part["mask"]).astype(bool))
            for thing in anno["objects"].item().ravel()
            if int(thing["class_ind"].item()) == PERSON
            for part in thing["parts"].ravel()
        ]
    except (ValueError, IndexError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"{path} is not a PASCAL-Part annotation (anno.objects, each with class_ind and parts, each with part_name "
            f"and mask): {first_line(error)}."
        ) from None
    if any(mask.ndim != 2 for _, mask in parts):
        raise DataError(f"{path} has a part whose mask is no (height, width) array.")
    return parts


def read_label_map(path: Path) -> NDArray[np.int32]:
    """Return the class ids (H, W) of PASCAL-Context's file: its array ``LabelMap``, 1 … 459.

    Raises:
        DataError: if there is none.
    """
    array = _load_mat(path, "LabelMap")
    if array.ndim != 2 or array.dtype.kind not in "uif":
        raise DataError(
            f"{path}: LabelMap is an array of {array.dtype} of shape {array.shape}; (height, width) ids are."
        )
    return array.astype(np.int32)


def label_map_size(path: Path) -> tuple[Path, tuple[int, int]]:
    """Return the file and the (width, height) of its ``LabelMap``, from the headers.

    Raises:
        DataError: if there is none.
    """
    from scipy.io import whosmat

    found = _mat(path, lambda: {name: shape for name, shape, _ in whosmat(str(path))})
    _has(path, "LabelMap", found)
    return path, (found["LabelMap"][1], found["LabelMap"][0])


def _load_mat(path: Path, key: str) -> NDArray[Any]:
    from scipy.io import loadmat

    content = _mat(path, lambda: loadmat(str(path)))
    _has(path, key, content)
    array: NDArray[Any] = content[key]
    return array


def _mat(path: Path, load: Any) -> Any:
    try:
        return load()
    except NotImplementedError:
        raise DataError(
            f"{path} is a MATLAB 7.3 file (HDF5); the published ones are older. Save it with -v7."
        ) from None
    except Exception as error:  # scipy raises many kinds on damaged files, zlib's too; all mean the same
        raise DataError(f"{path} cannot be read as a MATLAB file: {first_line(error)}") from None


def _has(path: Path, key: str, content: Mapping[str, Any]) -> None:
    if key not in content:
        names = [name for name in content if not name.startswith("__")]
        raise DataError(f"{path} has no variable '{key}'; it has: {listing(names) or 'none'}.")
