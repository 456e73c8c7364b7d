"""What a task of the layout ``folders`` may say of its labels, and how they are read: one record and reader per way."""

from __future__ import annotations

import json
from abc import abstractmethod
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar

import numpy as np
import pydantic
from numpy.typing import NDArray

from tasklora.errors import ConfigError, DataError, listing
from tasklora.tasks import Strict
from tasklora.vision.layouts.base import LabelReader, leads_out
from tasklora.vision.layouts.derived import Intrinsics, boundaries, depth_edges, foreground, normals_from_depth
from tasklora.vision.layouts.files import (
    LABEL_SUFFIXES,
    class_map,
    metres,
    read_ids,
    read_numbers,
    read_vectors,
    unit_normals,
)
from tasklora.vision.spec import IGNORED, DenseKind, DenseTaskSpec


class Source(Strict):
    """What every source may say.

    Attributes:
        folder: where the label files lie in the data folder; the task's name if left out.
    """

    folder: str = ""

    @pydantic.model_validator(mode="after")
    def _check_folder(self) -> Source:
        if leads_out(self.folder):
            raise ValueError(f"folder '{self.folder}' leads out of the data folder")
        return self


class IdSource(Source):
    """Files of integer ids.

    Attributes:
        ignored: ids of pixels without a label.
        palette: whether PNGs with a palette are maps of ids.
    """

    ignored: list[int] = []
    palette: bool = False


class ClassSource(IdSource):
    """Class ids. Those of the file are the task's, unless there is a map.

    Attributes:
        ignored: as above; 255 unless the source says otherwise.
        map: class name → ids in the file.
    """

    ignored: list[int] = [IGNORED]
    map: dict[str, list[int]] | None = None


class MaskSource(IdSource):
    """Masks of edges or of what is salient: 0 and 1, or as these say; exactly one of them.

    Attributes:
        positive: ids that count as 1.
        threshold: values above it count as 1.
    """

    positive: list[int] | None = None
    threshold: float | None = None

    @pydantic.model_validator(mode="after")
    def _check(self) -> MaskSource:
        if self.positive is not None and self.threshold is not None:
            raise ValueError("say `positive` or `threshold`, not both")
        return self


class BoundarySource(IdSource):
    """Edges between the classes of a file of ids."""

    derive: Literal["boundaries"]


class ForegroundSource(IdSource):
    """Salient is what is not background.

    Attributes:
        background: ids of the background.
    """

    derive: Literal["foreground"]
    background: list[int] = pydantic.Field(min_length=1)


class NormalSource(Source):
    """Unit vectors: RGB PNGs with n = 2 v / 255 − 1, or arrays of floats (H, W, 3); a zero vector is ignored.

    Attributes:
        flip: axes that the files have the other way round (ours: x to the right, y up, z towards the viewer).
    """

    flip: list[Literal["x", "y", "z"]] = []


class DepthSource(Source):
    """Depth: PNGs of 8 or 16 bits, or arrays; 0 and what is not finite is unknown.

    Attributes:
        scale: metres per unit.
        invalid: further values that say that nothing was measured.
    """

    scale: float = pydantic.Field(gt=0)
    invalid: list[float] = []


class CameraFile(Strict):
    """Where a JSON file in the data folder has the 3 × 3 matrix of intrinsics."""

    file: str
    key: str


class CameraNumbers(Strict):
    """Intrinsics in pixels."""

    fx: float = pydantic.Field(gt=0)
    fy: float = pydantic.Field(gt=0)
    cx: float
    cy: float


class DepthNormalSource(DepthSource):
    """Normals of the planes that fit depth around each pixel.

    Attributes:
        camera: intrinsics of images of the labels' size, or the JSON file that has them.
        step: distance of the 5 × 5 neighbours that take part, pixels.
    """

    derive: Literal["normals_from_depth"]
    camera: CameraNumbers | None = None
    camera_file: CameraFile | None = None
    step: int = pydantic.Field(2, ge=1, le=16)

    @pydantic.model_validator(mode="after")
    def _check_camera(self) -> DepthNormalSource:
        if (self.camera is None) == (self.camera_file is None):
            raise ValueError("say `camera: {fx, fy, cx, cy}` or `camera_file: {file, key}`, one of them")
        if self.camera_file is not None and leads_out(self.camera_file.file):
            raise ValueError(f"camera_file '{self.camera_file.file}' leads out of the data folder")
        return self


class DepthEdgeSource(DepthSource):
    """Contours of what stands before something else.

    Attributes:
        jump: smallest relative step in depth.
        gap: widest hole that a contour may border on and still be seen, pixels.
    """

    derive: Literal["depth_edges"]
    jump: float = pydantic.Field(gt=0, lt=1)
    gap: int = pydantic.Field(0, ge=0)


AnySource = TypeVar("AnySource", bound=Source)


class FolderReader(LabelReader, Generic[AnySource]):
    """Reads ``FOLDER/NAME.png`` or ``.npy`` as a source says."""

    def __init__(self, task: str, spec: DenseTaskSpec, root: Path, source: AnySource, where: str) -> None:
        super().__init__(task, spec, [[root / (source.folder or task)]])
        self.source = source
        self.root = root
        self.where = where
        self.configure()

    def configure(self) -> None:
        """Check the source against the task.

        Raises:
            ConfigError: if they do not fit.
        """

    def files(self, name: str) -> list[Path]:
        """Return the file of the label; the PNG where there is none.

        Raises:
            DataError: if there are two.
        """
        candidates = [self.folders[0][0] / f"{name}{suffix}" for suffix in LABEL_SUFFIXES]
        found = [path for path in candidates if path.is_file()]
        if len(found) > 1:
            raise DataError(f"task '{self.task}': '{name}' has two labels, {found[0]} and {found[1].name}. Remove one.")
        return found or candidates[:1]

    def read(self, name: str, size: tuple[int, int]) -> NDArray[Any]:
        """Return the label of an image of this (height, width)."""
        return self.label(self.files(name)[0])

    @abstractmethod
    def label(self, path: Path) -> NDArray[Any]:
        """Return the label that a file holds."""

    def _ids(self, path: Path) -> tuple[NDArray[np.int32], NDArray[np.bool_]]:
        """Return ids (H, W) and where they are ignored."""
        assert isinstance(self.source, IdSource)
        ids = read_ids(path, palette=self.source.palette)
        return ids, np.isin(ids, self.source.ignored)

    def _depth(self, path: Path) -> NDArray[np.float32]:
        assert isinstance(self.source, DepthSource)
        return metres(read_numbers(path), self.source.scale, self.source.invalid, path)


class ClassReader(FolderReader[ClassSource]):
    """Segmentation."""

    def configure(self) -> None:
        """Make the table from ids in the files to classes."""
        names = self.spec.labels or []
        mapping = self.source.map
        if mapping is None:
            self.table = {number: number for number in range(len(names)) if number not in self.source.ignored}
        else:
            if strange := [name for name in mapping if name not in names]:
                raise ConfigError(
                    f"{self.where}: map names {listing(strange)}, which the task has not: {listing(names)}."
                )
            if empty := [name for name in names if not mapping.get(name)]:
                raise ConfigError(f"{self.where}: map gives no id to {listing(empty)}.")
            ids = [number for numbers in mapping.values() for number in numbers] + self.source.ignored
            if twice := sorted({str(number) for number in ids if ids.count(number) > 1}):
                raise ConfigError(f"{self.where}: map and ignored have {listing(twice)} more than once.")
            self.table = {number: names.index(name) for name, numbers in mapping.items() for number in numbers}
        self.table |= dict.fromkeys(self.source.ignored, IGNORED)
        if negative := [str(number) for number in self.table if number < 0]:
            raise ConfigError(f"{self.where}: ids cannot be below 0, got {listing(negative)}.")

    def label(self, path: Path) -> NDArray[np.uint8]:
        """Return class ids (H, W)."""
        return class_map(read_ids(path, palette=self.source.palette), self.table, path, self.task, self.spec)


class MaskReader(FolderReader[MaskSource]):
    """Saliency and edges."""

    def label(self, path: Path) -> NDArray[np.float32]:
        """Return 0, 1 and 255, (H, W)."""
        if self.source.threshold is not None:
            values = read_numbers(path)
            ignored = np.isin(values, self.source.ignored)
            label = (values > self.source.threshold).astype(np.float32)
        else:
            ids, ignored = self._ids(path)
            positive = [1] if self.source.positive is None else self.source.positive
            label = np.isin(ids, positive).astype(np.float32)
            if strange := np.unique(ids[~ignored & (label == 0) & (ids != 0)]).tolist():
                raise DataError(
                    f"task '{self.task}': {path} holds {listing(map(str, strange), 5)} besides 0 and "
                    f"{listing(map(str, positive), 5)}. Say in the task's source what they mean: `positive: [255]`, "
                    "`ignored: [255]` or `threshold: 127`."
                )
        label[ignored] = IGNORED
        return label


class BoundaryReader(FolderReader[BoundarySource]):
    """Edges between classes."""

    def label(self, path: Path) -> NDArray[np.float32]:
        """Return 0, 1 and 255, (H, W)."""
        return boundaries(*self._ids(path))


class ForegroundReader(FolderReader[ForegroundSource]):
    """What is not background."""

    def label(self, path: Path) -> NDArray[np.float32]:
        """Return 0, 1 and 255, (H, W)."""
        ids, ignored = self._ids(path)
        return foreground(ids, self.source.background, ignored)


class NormalReader(FolderReader[NormalSource]):
    """Normals from files."""

    def label(self, path: Path) -> NDArray[np.float32]:
        """Return unit vectors (3, H, W)."""
        return unit_normals(read_vectors(path), self.source.flip)


class DepthReader(FolderReader[DepthSource]):
    """Depth."""

    def label(self, path: Path) -> NDArray[np.float32]:
        """Return metres (H, W)."""
        return self._depth(path)


class DepthNormalReader(FolderReader[DepthNormalSource]):
    """Normals from depth."""

    camera: Intrinsics | None = None

    def prepare(self) -> None:
        """Read the intrinsics."""
        if self.source.camera is not None:
            self.camera = Intrinsics(**self.source.camera.model_dump())
        elif self.source.camera_file is not None:
            self.camera = read_intrinsics(self.root / self.source.camera_file.file, self.source.camera_file.key)

    def label(self, path: Path) -> NDArray[np.float32]:
        """Return unit vectors (3, H, W)."""
        if self.camera is None:
            self.prepare()
        assert self.camera is not None
        return normals_from_depth(self._depth(path), self.camera, self.source.step)


class DepthEdgeReader(FolderReader[DepthEdgeSource]):
    """Edges from depth."""

    def label(self, path: Path) -> NDArray[np.float32]:
        """Return 0, 1 and 255, (H, W)."""
        return depth_edges(self._depth(path), self.source.jump, self.source.gap)


def read_intrinsics(path: Path, key: str) -> Intrinsics:
    """Return the intrinsics that a JSON file has as a 3 × 3 matrix [[fx, 0, cx], [0, fy, cy], [0, 0, 1]] under `key`.

    Raises:
        DataError: if it has not.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"cannot read the camera file {path}: {error}") from None
    if not isinstance(content, dict) or key not in content:
        raise DataError(f"camera file {path} has no '{key}'; it has: {listing(content) if content else 'nothing'}.")
    try:
        matrix = np.array(content[key], dtype=np.float64)
    except (TypeError, ValueError):
        matrix = np.zeros(0)
    if matrix.shape != (3, 3) or (matrix[[0, 1, 2, 2], [1, 0, 0, 1]] != 0).any() or not (np.diag(matrix) > 0).all():
        raise DataError(f"camera file {path}: '{key}' is not a matrix [[fx, 0, cx], [0, fy, cy], [0, 0, 1]].")
    return Intrinsics(fx=matrix[0, 0], fy=matrix[1, 1], cx=matrix[0, 2], cy=matrix[1, 2])


SOURCES: dict[tuple[DenseKind, str | None], tuple[type[Source], type[FolderReader[Any]]]] = {
    ("segmentation", None): (ClassSource, ClassReader),
    ("saliency", None): (MaskSource, MaskReader),
    ("saliency", "foreground"): (ForegroundSource, ForegroundReader),
    ("edges", None): (MaskSource, MaskReader),
    ("edges", "boundaries"): (BoundarySource, BoundaryReader),
    ("edges", "depth_edges"): (DepthEdgeSource, DepthEdgeReader),
    ("normals", None): (NormalSource, NormalReader),
    ("normals", "normals_from_depth"): (DepthNormalSource, DepthNormalReader),
    ("depth", None): (DepthSource, DepthReader),
}
"""Kind and way of derivation (None: as it stands in the files) → what the source may say, and its reader."""
