"""Pretrains the small Swin that comes with tasklora, on rendered scenes: ``python tools/pretrain_scenes_swin.py OUT``.

It sees square crops of scenes, and is told of each what is in it, and never where: 21 yes-or-no questions, seven each,

    is there a solid of this kind?    one of this kind that is painted vividly (salient)?    a surface of this part?

where a thing is there if it takes up 3 % of the crop. A linear layer on the mean of the last features answers them;
the loss is binary cross-entropy. OUT becomes a folder with ``config.json``, ``model.safetensors`` (the encoder alone,
float16) and ``pretraining.json`` (command, commit, seed, versions and the curve). The scenes are none of the suites':
their seeds begin at 4,000,000,000, behind those of all splits.

About half an hour on two cores with the defaults, which are what the shipped weights were made with.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import time
from multiprocessing import Pool
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import transformers
from PIL import Image
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
CROPPED = (56, 96)
"""Smallest and largest side of a crop before it is resized."""
ENOUGH = 0.03
"""Share of a crop that makes a thing be there."""
FIRST_SEED = 4_000_000_000
KINDS, PARTS = SEMSEG_CLASSES[1:], PART_CLASSES[1:]
LABELS = [*KINDS, *(f"vivid {kind}" for kind in KINDS), *PARTS]
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
    )


class Classifier(nn.Module):
    """A Swin and a linear layer on the mean of its last features; tasklora's own forward takes crops of any size."""

    def __init__(self) -> None:
        super().__init__()
        self.swin = SwinModel(swin_config(), add_pooling_layer=False)
        self.head = nn.Linear(self.swin.num_features, len(LABELS))

    def forward(self, pixel_values: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return the loss and the answers' logits (N, 21)."""
        last = stage_features(self.swin, pixel_values)[-1].shared
        logits = self.head(self.swin.layernorm(last).mean((1, 2)))
        return {"loss": nn.functional.binary_cross_entropy_with_logits(logits, labels), "logits": logits}


def contents(semseg: Bytes, saliency: Bytes, parts: Bytes) -> npt.NDArray[np.float32]:
    """Return the answers to the 21 questions about label maps of one size, (21,) of 0 and 1."""
    counts = [
        np.bincount(semseg.ravel(), minlength=8)[1:],
        np.bincount(np.where(saliency == 1, semseg, 0).ravel(), minlength=8)[1:],
        np.bincount(parts.ravel(), minlength=8)[1:],
    ]
    return (np.concatenate(counts) >= ENOUGH * semseg.size).astype(np.float32)


def _rendered(seed: int) -> Bytes:
    """Return a scene's picture and three label maps: (H, W, 6)."""
    scene = render_scene(seed, (SCENE, SCENE))
    maps = [scene.labels[name].astype(np.uint8) for name in ("semseg", "saliency", "parts")]
    return np.dstack([scene.image, *maps])


class Crops(torch.utils.data.Dataset[dict[str, Any]]):
    """Random crops of rendered scenes, which are kept in memory.

    Args:
        first: seed of the first scene.
        count: number of scenes.
        fixed: the same crop of a scene every time, for scoring; otherwise another one, every second one flipped.
    """

    def __init__(self, first: int, count: int, fixed: bool) -> None:
        with Pool() as pool:
            self.scenes = np.stack(pool.map(_rendered, range(first, first + count), chunksize=64))
        self.fixed = fixed
        self.rng = np.random.default_rng(first)

    def __len__(self) -> int:
        return len(self.scenes)

    def __getitem__(self, place: int) -> dict[str, Any]:
        rng = np.random.default_rng(place) if self.fixed else self.rng
        side = int(rng.integers(CROPPED[0], CROPPED[1] + 1))
        top, left = rng.integers(0, SCENE - side + 1, 2)
        crop = self.scenes[place, top : top + side, left : left + side]
        if not self.fixed and rng.random() < 0.5:
            crop = crop[:, ::-1]
        picture = Image.fromarray(np.ascontiguousarray(crop[..., :3])).resize((CROP, CROP), Image.Resampling.BILINEAR)
        return {"image": np.asarray(picture), "labels": contents(crop[..., 3], crop[..., 4], crop[..., 5])}


def batch_of(rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """Return the pixels and answers of some crops, normalised as for dense tasks."""
    pixels = collate([DenseSample("", row["image"], {}) for row in rows], {})["pixel_values"]
    return {"pixel_values": pixels, "labels": torch.from_numpy(np.stack([row["labels"] for row in rows]))}


def mean_average_precision(found: EvalPrediction) -> dict[str, float]:
    """Return the average precision, averaged over each seven questions, and what guessing by frequency would give."""
    groups = {"kinds": slice(0, 7), "vivid_kinds": slice(7, 14), "parts": slice(14, 21)}
    precision = np.array(
        [
            average_precision_score(found.label_ids[:, place], found.predictions[:, place])
            for place in range(len(LABELS))
        ]
    )
    by_chance = found.label_ids.mean(0)
    scores = {name: float(precision[part].mean()) for name, part in groups.items()}
    return scores | {f"{name}_by_chance": float(by_chance[part].mean()) for name, part in groups.items()}


def main() -> None:
    """Render, train, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path)
    parser.add_argument("--scenes", type=int, default=16_000)
    parser.add_argument("--held-out", type=int, default=2_000)
    parser.add_argument("--epochs", type=float, default=16)
    parser.add_argument("--batch-size", type=int, default=128)
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
    seen = ("step", "loss", "eval_loss", "eval_kinds", "eval_vivid_kinds", "eval_parts")
    about = {
        "command": "python tools/pretrain_scenes_swin.py OUT "
        + " ".join(f"--{name.replace('_', '-')} {value}" for name, value in vars(options).items() if name != "output"),
        "commit": source_commit(),
        "seed": options.seed,
        "task": "21 binary questions per crop: kinds, vivid kinds and parts that are in it; never where",
        "questions": LABELS,
        "scenes": options.scenes,
        "held_out": options.held_out,
        "seconds": round(seconds),
        "seconds_of_rendering": round(rendering),
        "sha256": hashlib.sha256((options.output / "model.safetensors").read_bytes()).hexdigest(),
        "weights": sum(parameter.numel() for parameter in encoder.parameters()),
        "mean_average_precision": {
            name.removeprefix("eval_"): round(last[name], 4)
            for name in last
            if name.startswith(("eval_kinds", "eval_vivid", "eval_parts"))
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
