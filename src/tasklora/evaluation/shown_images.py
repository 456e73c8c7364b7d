"""shown_images.npz: a few images of the scored split with their labels and what a run said of them, to be looked at.

The metrics of a dense run are sums; this is what can be seen. Which images these are depends on the split alone, so
that every method and seed keeps the same ones and no result has chosen them.
"""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from tasklora.errors import CheckpointError, DataError
from tasklora.evaluation.dense import ImageCollator, PlainImages
from tasklora.tasks import move_into_place
from tasklora.vision.data import DenseRows
from tasklora.vision.metrics import predictions
from tasklora.vision.model import DenseModel
from tasklora.vision.pictures import check_map
from tasklora.vision.spec import IGNORED, NO_DEPTH, DenseTaskSpec

SHOWN_FILE = "shown_images.npz"
SHOWN = 4
"""Images that a run keeps."""
SHOWN_VERSION = 1


@dataclass(frozen=True)
class ShownImage:
    """One image at the size that the network sees, with its maps.

    Attributes:
        name: the image's name.
        image: uint8 (H, W, 3).
        labels: task → its label. Classes, saliency and edges are uint8 (H, W), depth is float16 (H, W) in metres,
            normals are float16 (3, H, W); ignored pixels as in :class:`~tasklora.vision.sample.DenseSample`.
        predictions: task → what was said: classes uint8 (H, W), probabilities and metres float16 (H, W), unit vectors
            float16 (3, H, W).
    """

    name: str
    image: NDArray[np.uint8]
    labels: dict[str, NDArray[Any]]
    predictions: dict[str, NDArray[Any]]


def shown_places(images: int, count: int = SHOWN) -> list[int]:
    """Return which images of a split are shown: the middles of `count` equal parts of it, or all if there are fewer."""
    count = min(images, count)
    return [(2 * part + 1) * images // (2 * count) for part in range(count)]


def predict_shown(
    model: DenseModel, rows: DenseRows, size: tuple[int, int], places: Sequence[int] | None = None
) -> list[ShownImage]:
    """Return some images with what the model says of them, one forward for each.

    Args:
        model: the model; it is put into evaluation mode and back.
        rows: the images of the split.
        size: (height, width) that the network sees.
        places: which ones; those of :func:`shown_places` if left out.
    """
    specs = model.specs
    device = next(model.parameters()).device
    images, collator = PlainImages(rows, specs, size), ImageCollator(specs)
    shown = []
    was_training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            for place in shown_places(len(rows)) if places is None else places:
                sample = images[place]
                outputs = model(collator([sample])["pixel_values"].to(device))
                said = {name: predictions(spec, outputs[name])[0].cpu().numpy() for name, spec in specs.items()}
                shown.append(
                    ShownImage(
                        sample.name,
                        sample.image,
                        {name: _kept_label(spec, sample.labels[name]) for name, spec in specs.items()},
                        {name: _kept(spec, said[name]) for name, spec in specs.items()},
                    )
                )
    finally:
        model.train(was_training)
    return shown


def _kept_label(spec: DenseTaskSpec, label: NDArray[Any]) -> NDArray[Any]:
    """The label in few bytes; a pixel is ignored there if and only if it is here."""
    if spec.kind in ("saliency", "edges"):
        return label.astype(np.uint8)
    kept = _kept(spec, label)
    if spec.kind == "depth":  # less than float16 can say would become 0, which is ignored
        kept[(label != NO_DEPTH) & (kept == NO_DEPTH)] = np.finfo(np.float16).smallest_subnormal
    return kept


def _kept(spec: DenseTaskSpec, array: NDArray[Any]) -> NDArray[Any]:
    if spec.kind == "segmentation":
        return array.astype(np.uint8)
    most = float(np.finfo(np.float16).max)  # beyond it is infinity
    kept: NDArray[np.float16] = np.clip(array, -most, most).astype(np.float16)
    return kept


def write_shown_images(path: Path, shown: Sequence[ShownImage]) -> None:
    """Write the file, whole or not at all.

    Args:
        path: the file.
        shown: images of one size with the same tasks; one at least.
    """
    tasks = list(shown[0].labels)
    arrays: dict[str, Any] = {
        "version": np.array(SHOWN_VERSION),
        "names": np.array([one.name for one in shown]),
        "tasks": np.array(tasks),
        "images": np.stack([one.image for one in shown]),
    }
    for place, task in enumerate(tasks):  # by place: a name may hold what a file inside an archive cannot be called
        arrays[f"label_{place}"] = np.stack([one.labels[task] for one in shown])
        arrays[f"prediction_{place}"] = np.stack([one.predictions[task] for one in shown])
    scratch = path.with_name(f".{path.name}.partial")
    with scratch.open("wb") as file:
        np.savez_compressed(file, **arrays)
    move_into_place(scratch, path)


def read_shown_images(path: Path, specs: Mapping[str, DenseTaskSpec]) -> list[ShownImage]:
    """Read what :func:`write_shown_images` wrote.

    Args:
        path: the file.
        specs: the tasks of the run.

    Raises:
        CheckpointError: if the file is missing, damaged, of a newer version, or not of these tasks.
    """
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            version = int(arrays["version"])
            found = dict(arrays) if version == SHOWN_VERSION else {}
    except (OSError, ValueError, TypeError, AttributeError, KeyError, EOFError, NotImplementedError) as error:
        raise _unreadable(path, error) from None
    except (zipfile.BadZipFile, zlib.error, RuntimeError) as error:
        raise _unreadable(path, error) from None
    if version != SHOWN_VERSION:
        raise CheckpointError(
            f"{path} has version {version}, this tasklora reads version {SHOWN_VERSION}. Upgrade tasklora."
        )
    try:
        return _checked(found, specs)
    except (DataError, KeyError) as error:
        raise _unreadable(path, error) from None


def _checked(arrays: Mapping[str, NDArray[Any]], specs: Mapping[str, DenseTaskSpec]) -> list[ShownImage]:
    names, tasks, images = ([str(name) for name in arrays["names"]], arrays["tasks"].tolist(), arrays["images"])
    if tasks != list(specs):
        raise DataError(f"it is of the tasks {tasks}, the run of {list(specs)}.")
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] != 3 or not 0 < len(images) == len(names):
        raise DataError(f"it has {images.dtype} images of shape {images.shape} for {len(names)} names.")
    maps: dict[str, dict[str, NDArray[Any]]] = {"label": {}, "prediction": {}}
    for place, (task, spec) in enumerate(specs.items()):
        for what, of_tasks in maps.items():
            array = of_tasks[task] = arrays[f"{what}_{place}"]
            if len(array) != len(names) or array.shape[-2:] != images.shape[1:3]:
                raise DataError(
                    f"the {what}s of '{task}' have shape {array.shape}, the images have shape {images.shape}."
                )
            for one in array:
                check_map(spec, one)
        said = maps["prediction"][task]
        if spec.kind == "segmentation" and (said == IGNORED).any():
            raise DataError(f"a prediction of '{task}' holds {IGNORED}, which is no class.")
    return [
        ShownImage(
            name,
            images[place],
            {task: array[place] for task, array in maps["label"].items()},
            {task: array[place] for task, array in maps["prediction"].items()},
        )
        for place, name in enumerate(names)
    ]


def _unreadable(path: Path, error: Exception) -> CheckpointError:
    return CheckpointError(f"cannot read {path}: {error} Run that run again, or remove the file to report without it.")
