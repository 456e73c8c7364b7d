"""Pretrains the small Swin that comes with tasklora, on rendered scenes: ``python tools/pretrain_scenes_swin.py OUT``.

The network is told of each whole picture what stands in it, and never where: 21 yes-or-no questions, seven of each,

    is there a solid of this kind?    are there two or more of it?    is one of them painted vividly (salient)?

asked of transformers' ``SwinForImageClassification`` with binary cross-entropy. It has seen no dense label. OUT becomes
a folder with ``config.json`` and ``model.safetensors`` (the encoder alone, float16), ``pretraining.json`` (command,
commit, seed, versions and the curve). Its scenes are none of the suite's: their seeds
begin at 4,000,000,000, behind those of all splits.

About half an hour on two cores with the defaults, which are what the shipped weights were made with.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from multiprocessing import Pool
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from sklearn.metrics import average_precision_score
from transformers import EvalPrediction, SwinConfig, SwinForImageClassification, Trainer, TrainingArguments, set_seed

from tasklora.evaluation import source_commit
from tasklora.vision.augment import collate
from tasklora.vision.sample import DenseSample
from tasklora.vision.scenes import SEMSEG_CLASSES, render_scene, scene_contents
from tasklora.vision.scenes.layout import draw_scene

SIZE = 128
FIRST_SEED = 4_000_000_000
KINDS = SEMSEG_CLASSES[1:]
LABELS = [*KINDS, *(f"two or more: {kind}" for kind in KINDS), *(f"vivid: {kind}" for kind in KINDS)]


def swin_config() -> SwinConfig:
    """Return the shape of the network: 3.1 M weights, 16 × 16 features at its finest."""
    return SwinConfig(
        image_size=SIZE,
        embed_dim=32,
        depths=[2, 2, 6, 2],
        num_heads=[1, 2, 4, 8],
        window_size=4,
        drop_path_rate=0.05,
        id2label=dict(enumerate(LABELS)),
        label2id={label: place for place, label in enumerate(LABELS)},
        problem_type="multi_label_classification",
    )


def contents(seed: int) -> np.ndarray:
    """Return the answers to the 21 questions about a scene, (21,) of 0 and 1."""
    counts = scene_contents(seed)
    vivid = np.zeros(len(KINDS), bool)
    vivid[[solid.shape.kind - 1 for solid in draw_scene(seed).solids if solid.salient]] = True
    return np.concatenate([counts >= 1, counts >= 2, vivid]).astype(np.float32)


def _rendered(seed: int) -> tuple[np.ndarray, np.ndarray]:
    return render_scene(seed, (SIZE, SIZE)).image, contents(seed)


class Pictures(torch.utils.data.Dataset[dict[str, Any]]):
    """Rendered pictures, kept in memory; every second time flipped if `flip`, which leaves what is in them."""

    def __init__(self, first: int, count: int, flip: bool) -> None:
        with Pool() as pool:
            made = pool.map(_rendered, range(first, first + count), chunksize=64)
        self.images = np.stack([image for image, _ in made])
        self.labels = np.stack([labels for _, labels in made])
        self.flip = flip

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, place: int) -> dict[str, Any]:
        image = self.images[place]
        if self.flip and torch.rand(()) < 0.5:
            image = image[:, ::-1]
        return {"image": image, "labels": self.labels[place]}


def batch_of(rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """Return the pixels and answers of some pictures, normalised as for dense tasks."""
    pixels = collate([DenseSample("", row["image"], {}) for row in rows], {})["pixel_values"]
    return {"pixel_values": pixels, "labels": torch.from_numpy(np.stack([row["labels"] for row in rows]))}


def mean_average_precision(found: EvalPrediction) -> dict[str, float]:
    """Return the average precision, averaged over each seven questions, and what guessing by frequency would give."""
    groups = {"kinds": slice(0, 7), "two_or_more": slice(7, 14), "vivid": slice(14, 21)}
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
    parser.add_argument("--scenes", type=int, default=40_000)
    parser.add_argument("--held-out", type=int, default=2_000)
    parser.add_argument("--epochs", type=float, default=4)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    if options.output.exists():
        sys.exit(f"error: {options.output} exists; name a new folder.")
    began = time.perf_counter()
    train = Pictures(FIRST_SEED, options.scenes, flip=True)
    held_out = Pictures(FIRST_SEED + 1_000_000_000, options.held_out, flip=False)
    rendering = time.perf_counter() - began
    set_seed(options.seed)
    model = SwinForImageClassification(swin_config())
    trainer = Trainer(
        model,
        TrainingArguments(
            output_dir=str(options.output),
            num_train_epochs=options.epochs,
            per_device_train_batch_size=options.batch_size,
            per_device_eval_batch_size=100,
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
    model: SwinForImageClassification,
    history: list[dict[str, Any]],
    last: dict[str, float],
    rendering: float,
    seconds: float,
) -> None:
    """Write the encoder in float16, and how it was made."""
    encoder = model.swin
    encoder.pooler = None  # dense tasks read the stages
    encoder.to(torch.float16).save_pretrained(options.output)
    seen = ("step", "loss", "eval_loss", "eval_kinds", "eval_two_or_more", "eval_vivid")
    about = {
        "command": "python tools/pretrain_scenes_swin.py OUT "
        + " ".join(f"--{name.replace('_', '-')} {value}" for name, value in vars(options).items() if name != "output"),
        "commit": source_commit(),
        "seed": options.seed,
        "task": "21 binary questions per picture: kinds present, twice or more, painted vividly; no dense label",
        "scenes": options.scenes,
        "held_out": options.held_out,
        "seconds": round(seconds),
        "seconds_of_rendering": round(rendering),
        "weights": sum(parameter.numel() for parameter in encoder.parameters()),
        "mean_average_precision": {
            name.removeprefix("eval_"): round(last[name], 4)
            for name in last
            if name.startswith(("eval_kinds", "eval_two", "eval_vivid"))
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
