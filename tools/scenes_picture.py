"""Draws docs/figures/scenes-maps.png of a comparison: ``python tools/scenes_picture.py runs/scenes-comparison``.

Two of the images that its report shows, which no result chose: the labels, and what three methods say (first seed).
"""

from __future__ import annotations

import sys
from pathlib import Path

from PIL import Image

from tasklora.evaluation import SHOWN_FILE, ComparisonResults, read_shown_images
from tasklora.vision.pictures import Panel, depth_range_of, label_picture, sheet
from tasklora.vision.saved_model import read_dense_about

IMAGES = (1, 2)
METHODS = ("decoders_only", "lora", "mtlora")
TARGET = Path(__file__).resolve().parents[1] / "docs" / "figures" / "scenes-maps.png"


def main(comparison: Path) -> None:
    """Draw the sheet."""
    results = ComparisonResults.read(comparison / "results.json")
    methods = [results.method(name) for name in METHODS]
    runs = {method.title: comparison / method.runs[0] for method in methods}
    specs = read_dense_about(next(iter(runs.values())) / "best").tasks
    shown = {title: read_shown_images(run / SHOWN_FILE, specs) for title, run in runs.items()}
    rows = []
    for place in IMAGES:
        first = next(iter(shown.values()))[place]
        limits = {task: depth_range_of(first.labels[task]) for task, spec in specs.items() if spec.kind == "depth"}
        labels = [
            Panel(label_picture(spec, first.labels[task], limits.get(task)), f"{task}: label")
            for task, spec in specs.items()
        ]
        rows.append([Panel(Image.fromarray(first.image), "image"), *labels])
        for title, images in shown.items():
            said = images[place].predictions
            maps = [
                Panel(label_picture(spec, said[task], limits.get(task), predicted=True)) for task, spec in specs.items()
            ]
            rows.append([Panel(Image.new("RGB", first.image.shape[1::-1], "white"), title), *maps])
    sheet(rows).save(TARGET, optimize=True)
    print(f"written: {TARGET}")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(Path(sys.argv[1]))
