"""Pretrains the small Swin that comes with tasklora, on rendered scenes: ``python tools/pretrain_scenes_swin.py OUT``.

It sees crops around single solids, as ImageNet's pictures show single things, and is told of each what it is, and never
where: 15 yes-or-no questions,

    is it of this kind? (7)    is it painted vividly (salient)? (1)    is a surface of this part to be seen? (7)

A linear layer on the mean of the last features answers them; the loss is binary cross-entropy. OUT becomes a folder
with ``config.json``, ``model.safetensors`` (the encoder, float16) and ``pretraining.json`` (command, commit, seed,
versions and the curve). The scenes are none of the suites': their seeds begin at 4,000,000,000, behind those of all
splits.

About twenty minutes on two cores with the defaults, which are what the shipped weights were made with.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import time
from multiprocessing import Pool
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
import transformers
from PIL import Image
from scipy import ndimage
from sklearn.metrics import average_precision_score
from torch import nn
from transformers import EvalPrediction, SwinConfig, SwinModel, Trainer, TrainingArguments, set_seed

from tasklora.evaluation import source_commit
from tasklora.vision.augment import collate
from tasklora.vision.sample import DenseSample
from tasklora.vision.scenes import PART_CLASSES, SEMSEG_CLASSES, render_scene
from tasklora.vision.swin.forward import stage_features

SCENE, CROP = 128, 64
"""Pixels of a scene and of what the network sees."""
SMALLEST = 16
"""Pixels of a solid's larger side, below which it is left out: nobody could tell what it is."""
MARGIN = (1.0, 1.5)
"""Smallest and largest side of a crop, in those of the solid."""
FIRST_SEED = 4_000_000_000
KINDS, PARTS = SEMSEG_CLASSES[1:], PART_CLASSES[1:]
LABELS = [*KINDS, "vivid", *PARTS]
Bytes = npt.NDArray[np.uint8]


def swin_config() -> SwinConfig:
    """Return the shape of the network: 3.1 M weights; of 128 pixels it makes 16 × 16 features at the finest."""
    return SwinConfig(
        image_size=SCENE,
        embed_dim=32,
        depths=[2, 2, 6, 2],
        num_heads=[1, 2, 4, 8],
        window_size=4,
        drop_path_rate=0.05,
        initializer_range=0.08,  # the usual 0.02 is for layers ten times as wide: here blocks would begin as nothing
    )


class Classifier(nn.Module):
    """A Swin and a linear layer on the mean of its last features; tasklora's own forward takes crops of any size."""

    def __init__(self) -> None:
        super().__init__()
        self.swin = SwinModel(swin_config(), add_pooling_layer=False)
        self.head = nn.Linear(self.swin.num_features, len(LABELS))

    def forward(self, pixel_values: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return the loss and the answers' logits (N, 15)."""
        last = stage_features(self.swin, pixel_values)[-1].shared
        logits = self.head(self.swin.layernorm(last).mean((1, 2)))
        return {"loss": nn.functional.binary_cross_entropy_with_logits(logits, labels), "logits": logits}


class Solid(NamedTuple):
    """A solid as it is seen in a scene.

    Attributes:
        middle: of its pixels' box, (y, x).
        side: the larger one of the box.
        answers: to the questions, (15,).
    """

    middle: tuple[float, float]
    side: int
    answers: npt.NDArray[np.float32]


def _rendered(seed: int) -> tuple[Bytes, list[Solid]]:
    """Return a scene's picture, and the solids that are seen in it as one piece."""
    scene = render_scene(seed, (SCENE, SCENE))
    semseg, parts, saliency = (scene.labels[name] for name in ("semseg", "parts", "saliency"))
    solids = []
    for kind in range(1, len(KINDS) + 1):
        pieces, _ = ndimage.label(semseg == kind)
        for number, (rows, columns) in enumerate(ndimage.find_objects(pieces), start=1):
            side = max(rows.stop - rows.start, columns.stop - columns.start)
            mine = pieces[rows, columns] == number
            if side < SMALLEST or mine.sum() < SMALLEST**2 / 4:
                continue
            seen = np.bincount(parts[rows, columns][mine], minlength=len(PARTS) + 1)[1:] > 0.05 * mine.sum()
            vivid = saliency[rows, columns][mine].mean() > 0.5
            answers = np.concatenate([np.arange(1, 8) == kind, [vivid], seen]).astype(np.float32)
            solids.append(Solid(((rows.start + rows.stop) / 2, (columns.start + columns.stop) / 2), side, answers))
    return scene.image, solids


class Crops(torch.utils.data.Dataset[dict[str, Any]]):
    """Crops around the solids of rendered scenes, which are kept in memory.

    Args:
        first: seed of the first scene.
        count: number of scenes.
        fixed: the same crop of a solid every time, for scoring; otherwise another one, every second one flipped.
    """

    def __init__(self, first: int, count: int, fixed: bool) -> None:
        with Pool() as pool:
            made = pool.map(_rendered, range(first, first + count), chunksize=64)
        self.scenes = [image for image, _ in made]
        self.solids = [(place, solid) for place, (_, solids) in enumerate(made) for solid in solids]
        self.fixed = fixed
        self.rng = np.random.default_rng(first)

    def __len__(self) -> int:
        return len(self.solids)

    def __getitem__(self, place: int) -> dict[str, Any]:
        rng = np.random.default_rng(place) if self.fixed else self.rng
        scene, solid = self.solids[place]
        side = min(solid.side * rng.uniform(*MARGIN), SCENE)
        room = 0.5 * max(side - solid.side, 0.1 * side)
        top, left = (float(np.clip(m - side / 2 + rng.uniform(-room, room), 0, SCENE - side)) for m in solid.middle)
        picture = Image.fromarray(self.scenes[scene]).resize(
            (CROP, CROP), Image.Resampling.BILINEAR, box=(left, top, left + side, top + side)
        )
        image = np.asarray(picture)
        return {"image": image if self.fixed or rng.random() < 0.5 else image[:, ::-1], "labels": solid.answers}


def batch_of(rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """Return the pixels and answers of some crops, normalised as for dense tasks."""
    pixels = collate([DenseSample("", row["image"], {}) for row in rows], {})["pixel_values"]
    return {"pixel_values": pixels, "labels": torch.from_numpy(np.stack([row["labels"] for row in rows]))}


def mean_average_precision(found: EvalPrediction) -> dict[str, float]:
    """Return average precisions, those of guessing by frequency, and how often the likeliest kind is right."""
    groups = {"kinds": slice(0, 7), "vivid": slice(7, 8), "parts": slice(8, 15)}
    precision = np.array(
        [
            average_precision_score(found.label_ids[:, place], found.predictions[:, place])
            for place in range(len(LABELS))
        ]
    )
    by_chance = found.label_ids.mean(0)
    scores = {name: float(precision[part].mean()) for name, part in groups.items()}
    kinds = slice(0, 7)
    scores["accuracy"] = float((found.predictions[:, kinds].argmax(1) == found.label_ids[:, kinds].argmax(1)).mean())
    return scores | {f"{name}_by_chance": float(by_chance[part].mean()) for name, part in groups.items()}


def main() -> None:
    """Render, train, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path)
    parser.add_argument("--scenes", type=int, default=12_000)
    parser.add_argument("--held-out", type=int, default=2_000)
    parser.add_argument("--epochs", type=float, default=4.5)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    if options.output.exists():
        sys.exit(f"error: {options.output} exists; name a new folder.")
    began = time.perf_counter()
    train = Crops(FIRST_SEED, options.scenes, fixed=False)
    held_out = Crops(FIRST_SEED + 1_000_000_000, options.held_out, fixed=True)
    rendering = time.perf_counter() - began
    set_seed(options.seed)
    model = Classifier()
    trainer = Trainer(
        model,
        TrainingArguments(
            output_dir=str(options.output),
            num_train_epochs=options.epochs,
            per_device_train_batch_size=options.batch_size,
            per_device_eval_batch_size=200,
            learning_rate=options.learning_rate,
            lr_scheduler_type="cosine",
            warmup_steps=0.05,
            weight_decay=0.05,
            max_grad_norm=1.0,
            seed=options.seed,
            logging_steps=50,
            eval_strategy="steps",
            eval_steps=250,
            save_strategy="no",
            remove_unused_columns=False,
            report_to=[],
            disable_tqdm=True,
        ),
        train_dataset=train,
        eval_dataset=held_out,
        data_collator=batch_of,
        compute_metrics=mean_average_precision,
    )
    trainer.train()
    last = trainer.evaluate()
    write(options, model, trainer.state.log_history, last, rendering, time.perf_counter() - began)


def write(
    options: argparse.Namespace,
    model: Classifier,
    history: list[dict[str, Any]],
    last: dict[str, float],
    rendering: float,
    seconds: float,
) -> None:
    """Write the encoder in float16, and how it was made."""
    encoder = model.swin
    encoder.to(torch.float16).save_pretrained(options.output)
    seen = ("step", "loss", "eval_loss", "eval_accuracy", "eval_kinds", "eval_vivid", "eval_parts")
    about = {
        "command": "python tools/pretrain_scenes_swin.py OUT "
        + " ".join(f"--{name.replace('_', '-')} {value}" for name, value in vars(options).items() if name != "output"),
        "commit": source_commit(),
        "seed": options.seed,
        "task": "15 binary questions per crop around a solid: its kind, its paint, its visible parts; never where",
        "questions": LABELS,
        "scenes": options.scenes,
        "held_out": options.held_out,
        "seconds": round(seconds),
        "seconds_of_rendering": round(rendering),
        "sha256": hashlib.sha256((options.output / "model.safetensors").read_bytes()).hexdigest(),
        "weights": sum(parameter.numel() for parameter in encoder.parameters()),
        "accuracy_of_kinds": round(last["eval_accuracy"], 4),
        "mean_average_precision": {
            name.removeprefix("eval_"): round(last[name], 4)
            for name in last
            if name.startswith(("eval_accuracy", "eval_kinds", "eval_vivid", "eval_parts"))
        },
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
        "curve": [
            {name.removeprefix("eval_") if name != "eval_loss" else name: entry[name] for name in seen if name in entry}
            for entry in history
            if "loss" in entry or "eval_loss" in entry
        ],
    }
    (options.output / "pretraining.json").write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
