"""What ``tasklora predict`` does with a run on images: a picture of each task's map, at the image's own size."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from rich.console import Console

from tasklora.cli.lists import names_of
from tasklora.cli.loading import load_saved, saved_directory
from tasklora.errors import ConfigError, DataError, OutputError, listing
from tasklora.vision.augment import augmented, collate
from tasklora.vision.metrics import predictions
from tasklora.vision.model import DenseModel
from tasklora.vision.pictures import depth_range_of, label_picture
from tasklora.vision.sample import DenseSample, read_image
from tasklora.vision.saved_model import read_dense_about
from tasklora.vision.spec import DenseTaskSpec

RAW_KINDS = ("depth", "normals")


def check_options(of_text: Mapping[str, Any], out: Path | None) -> None:
    """Refuse options that are for a run on text, and a missing folder.

    Raises:
        ConfigError: naming them.
    """
    given = [name for name, value in of_text.items() if value is not None]
    if given:
        raise ConfigError(
            f"{', '.join(given)}: for runs on text. This run predicts maps of images: tasklora predict RUN IMAGE … "
            "--out DIR."
        )
    if out is None:
        raise ConfigError("say where the maps go: --out DIR. This run predicts maps of images.")


def predict_images(
    run: Path, files: list[str], task: str, out: Path, *, raw: bool, overwrite: bool, console: Console
) -> None:
    """Write each task's map of each image into a folder: IMAGE.TASK.png, and IMAGE.TASK.npy if asked for.

    Everything is checked before the first file is written; the files of an image appear all at once.

    Args:
        run: the run directory, or the saved model's.
        files: the images.
        task: names of tasks, separated by commas; empty for all.
        out: the folder; it is made.
        raw: write depth and normals as numbers too.
        overwrite: replace files that are there.
        console: where to say what was done.

    Raises:
        DataError: on no images, or one that is missing, damaged or not RGB.
        UnknownTaskError: on an unknown task.
        ConfigError: if two images would have files of the same name, or nothing has numbers to write.
        OutputError: if a file is there already, or the folder cannot be made.
    """
    about = read_dense_about(saved_directory(run))
    names = list(dict.fromkeys(names_of(task))) or list(about.tasks)
    specs = {name: about.spec_of(name) for name in names}
    if raw and not any(spec.kind in RAW_KINDS for spec in specs.values()):
        raise ConfigError(f"--raw is for depth and normals; chosen: {listing(specs)}.")
    paths = _checked_images(files)
    targets = {path: _targets(path, specs, out, raw) for path in paths}
    _check_free(out, [target for of_image in targets.values() for target in of_image], overwrite)
    for path in paths:
        _read(path)  # before anything is written: damage shows only when an image is decoded
    with console.status("loading"):
        model, _, _ = load_saved(run)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"cannot make {out}: {error.strerror or error}. Choose another --out.") from None
    for path in paths:
        with console.status(f"predicting {path.name}"):
            maps = _maps(model, path, about.image_size, specs)
            with tempfile.TemporaryDirectory(dir=out, prefix=".predicting-") as scratch:
                for name, array in maps.items():
                    _write(Path(scratch), path.stem, name, specs[name], array, raw)
                for target in targets[path]:
                    os.replace(Path(scratch) / target.name, target)
        for name, array in maps.items():
            if specs[name].kind == "depth":
                low, high = depth_range_of(array)
                console.print(
                    f"{path.name}: {name} from {low:.2f} m (first colour) to {high:.2f} m (last colour)",
                    highlight=False,
                )
    count = sum(len(of_image) for of_image in targets.values())
    console.print(f"{count} files of {len(paths)} image(s) and {len(specs)} task(s) written to [bold]{out}[/bold]")


def _checked_images(files: list[str]) -> list[Path]:
    if not files:
        raise DataError("give images to predict: tasklora predict RUN IMAGE … --out DIR.")
    by_stem: dict[str, Path] = {}
    for path in map(Path, files):
        if not path.is_file():
            raise DataError(f"no image {path}. This run predicts maps of images: give their files.")
        other = by_stem.setdefault(path.stem, path)
        if other is not path and other == path:
            raise ConfigError(f"{path} is given twice: name it once.")
        if other is not path:
            raise ConfigError(f"{other} and {path} would both be written as {path.stem}.TASK.png: predict them apart.")
    return list(by_stem.values())


def _targets(path: Path, specs: Mapping[str, DenseTaskSpec], out: Path, raw: bool) -> list[Path]:
    targets = []
    for name, spec in specs.items():
        targets.append(out / f"{path.stem}.{name}.png")
        if raw and spec.kind in RAW_KINDS:
            targets.append(out / f"{path.stem}.{name}.npy")
    return targets


def _check_free(out: Path, targets: list[Path], overwrite: bool) -> None:
    if out.exists() and not out.is_dir():
        raise OutputError(f"{out} is a file, not a folder. Choose another --out.")
    there = [target.name for target in targets if target.is_dir() or (target.exists() and not overwrite)]
    if there:
        raise OutputError(
            f"{out} holds {listing(there, 4)} already. Choose another --out, or replace files with --overwrite."
        )


def _read(path: Path) -> NDArray[np.uint8]:
    """Return an image as the user sees it: upright, where the file says how it was held."""
    from PIL import Image, ImageOps

    try:
        read_image(path, orientation="stored")
    except DataError as error:
        advice = re.compile(r", or leave out such images .*?(?=\.$)|, say `greyscale: repeat` in the suite's options")
        raise DataError(advice.sub("", str(error))) from None  # what is left out is advice on data sets
    with Image.open(path) as image:
        return np.asarray(ImageOps.exif_transpose(image), dtype=np.uint8)


@torch.inference_mode()
def _maps(
    model: DenseModel, path: Path, size: tuple[int, int], specs: Mapping[str, DenseTaskSpec]
) -> dict[str, NDArray[Any]]:
    """Return each task's map of an image at the image's own size."""
    image = _read(path)
    sample = augmented(DenseSample(path.name, image, {}), size, None, np.random.default_rng(0), {})
    device = next(model.parameters()).device
    outputs = model(collate([sample], {})["pixel_values"].to(device))
    found = {}
    for name, spec in specs.items():
        # Logits, vectors and metres are interpolated, not what they say: borders stay as sharp as the network has them.
        full = F.interpolate(outputs[name].float(), image.shape[:2], mode="bilinear", align_corners=False)
        found[name] = predictions(spec, full)[0].cpu().numpy()
    return found


def _write(folder: Path, stem: str, name: str, spec: DenseTaskSpec, array: NDArray[Any], raw: bool) -> None:
    limits = depth_range_of(array) if spec.kind == "depth" else None
    label_picture(spec, array, limits).save(folder / f"{stem}.{name}.png")
    if raw and spec.kind in RAW_KINDS:
        np.save(folder / f"{stem}.{name}.npy", array)
