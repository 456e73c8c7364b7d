"""Tiny data folders for tests, written as the published ones lie."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tasklora.tasks import parse
from tasklora.vision.spec import DenseSuite


def write_image(path: Path, size: tuple[int, int] = (4, 6), **saving: Any) -> np.ndarray:
    """Write an RGB image of (height, width); return its pixels where the format keeps them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(len(path.name)).integers(0, 256, (*size, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(path, **saving)
    return pixels


def write_png(path: Path, values: Any, dtype: Any = np.uint8, palette: bool = False) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(np.asarray(values, dtype=dtype))
    if palette:
        image = image.convert("P") if image.mode != "L" else Image.frombytes("P", image.size, image.tobytes())
        image.putpalette([i * 7 % 256 for i in range(768)])
    image.save(path)


def write_npy(path: Path, values: Any, dtype: Any = np.float32) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, np.asarray(values, dtype=dtype))


def write_lines(path: Path, *lines: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n")


def folder_suite(tasks: dict[str, Any], **options: Any) -> DenseSuite:
    """Return a suite of the layout `folders`."""
    content = {"name": "own", "version": 1, "shape": "dense", "layout": "folders", "options": options, "tasks": tasks}
    return parse(DenseSuite, content, "suite own")


def snapshot(folder: Path) -> dict[str, tuple[int, int]]:
    """Return every file's size and time of change."""
    return {str(p): (p.stat().st_size, p.stat().st_mtime_ns) for p in sorted(folder.rglob("*"))}
