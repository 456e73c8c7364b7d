"""Training on rows of real lengths: padded batches, batches of similar lengths, packed rows.

$ python benchmarks/packing.py --size short

The lengths are those of the tasks of glue and commonsense (row_lengths.json, which row_lengths.py counts), the same
number of rows from every task, truncated as in training. Every variant runs forward and backward over the same rows in
batches of as many rows, so that a ratio of times is one of rows and of real tokens a second:

padded                  rows in random order, each batch padded to its longest row
length-grouped          rows sorted by length over 8 batches, as `training.group_by_length` has them
buckets                 rows in random order; those of similar length in a batch go through the encoder together
length-grouped, buckets both, which is what tasklora trains encoders with on a CPU
packed                  rows in random order, packed into sequences as long as the longest row of the batch
length-grouped, packed  rows sorted by length over 8 batches, and packed

An encoder's packed rows are kept apart by a mask, a decoder's by position ids alone.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TypeAlias

import torch
from harness import Report, main
from models import VOCABULARY, contender
from torch import Tensor, nn

from tasklora.tasks.model import length_groups
from tasklora.tasks.packing import Packing, pack_rows

PERCENTILES: dict[str, dict[str, list[int]]] = json.loads(
    Path(__file__).with_name("row_lengths.json").read_text(encoding="utf-8")
)["percentiles"]
GROUPED_BATCHES = 8  # as in training: rows are sorted by length within this many batches
# Size → (models with their batch sizes and longest rows, batches, rounds).
SIZES = {
    "tiny": ([("llama-64", 4, 16)], 2, 3),
    "short": ([("minilm", 16, 128)], 4, 3),
    "full": ([("minilm", 16, 128), ("llama-256", 16, 128)], 8, 5),
    "gpu": ([("minilm", 64, 128), ("llama-1024", 32, 256)], 8, 30),
}
Batch: TypeAlias = tuple[Tensor, Tensor, Tensor]  # tokens and mask (R, L), tasks (R,)


def drawn_rows(suite: str, count: int, longest: int) -> tuple[Tensor, Tensor]:
    """Return lengths and tasks of `count` rows in random order, as many of each task."""
    generator = torch.Generator().manual_seed(1)
    tasks = torch.arange(count) % len(PERCENTILES[suite])
    table = torch.tensor(list(PERCENTILES[suite].values())).clamp(max=longest)  # (T, 101)
    lengths = table[tasks, torch.randint(table.shape[1], (count,), generator=generator)]
    order = torch.randperm(count, generator=generator)
    return lengths[order], tasks[order]


def batches_of(order: Tensor, lengths: Tensor, tasks: Tensor, size: int, device: str) -> list[Batch]:
    """Return the rows in batches of `size`, each padded to its longest row."""
    input_ids = torch.randint(5, VOCABULARY, (len(lengths), int(lengths.max())), generator=torch.Generator())
    made = []
    for rows in order.split(size):
        mask = (torch.arange(int(lengths[rows].max())) < lengths[rows].unsqueeze(1)).long()
        made.append((input_ids[rows, : mask.shape[1]].to(device), mask.to(device), tasks[rows].to(device)))
    return made


def hidden_padded(model: nn.Module, batch: Batch) -> Tensor:
    """Return the token vectors of a batch, zero at padding."""
    input_ids, mask, tasks = batch
    hidden = model(input_ids=input_ids, attention_mask=mask, task_ids=tasks).last_hidden_state
    return hidden * mask.unsqueeze(-1)


def hidden_in_buckets(model: nn.Module, batch: Batch) -> list[Tensor]:
    """Return the token vectors of a batch whose rows of similar length go through the model together."""
    input_ids, mask, tasks = batch
    lengths = mask.sum(dim=1)
    cut = [(rows, int(lengths[rows].max())) for rows in length_groups(lengths)]
    return [hidden_padded(model, (input_ids[rows, :end], mask[rows, :end], tasks[rows])) for rows, end in cut]


def hidden_packed(model: nn.Module, batch: Batch, causal: bool) -> Tensor:
    """Return the token vectors of a batch that goes through the model packed."""
    input_ids, mask, tasks = batch
    packing: Packing = pack_rows(mask)
    options: dict[str, Tensor] = {} if causal else {"attention_mask": packing.attention_mask(torch.float32)}
    packed = {"input_ids": packing.pack(input_ids), "task_ids": packing.pack_tasks(tasks)}
    hidden = model(**packed, position_ids=packing.position_ids, use_cache=False, **options).last_hidden_state
    return packing.unpack(hidden)


def step(compute: Callable[[Batch], Tensor | list[Tensor]], batches: list[Batch]) -> float:
    """Run forward and backward over the batches and return the sum of cubes, the same for every variant."""
    total = 0.0
    for batch in batches:
        hidden = compute(batch)
        loss = torch.stack([part.pow(3).sum() for part in ([hidden] if isinstance(hidden, Tensor) else hidden)]).sum()
        loss.backward()
        total += float(loss.detach())
    return total


def variants(model: nn.Module, causal: bool, shuffled: list[Batch], grouped: list[Batch]) -> Mapping[str, Callable]:
    """Return the variants; see the module."""
    padded, buckets = partial(hidden_padded, model), partial(hidden_in_buckets, model)
    packed = partial(hidden_packed, model, causal=causal)
    return {
        "padded": partial(step, padded, shuffled),
        "length-grouped": partial(step, padded, grouped),
        "buckets": partial(step, buckets, shuffled),
        "length-grouped, buckets": partial(step, buckets, grouped),
        "packed": partial(step, packed, shuffled),
        "length-grouped, packed": partial(step, packed, grouped),
    }


def measure(report: Report) -> None:
    """Compare the variants' losses, time them, and count the tokens that each of them computes."""
    models, batches, rounds = SIZES[report.size]
    for name, size, longest in models:
        for suite in PERCENTILES:
            lengths, tasks = drawn_rows(suite, size * batches, longest)
            parts = torch.arange(len(lengths)).split(size * GROUPED_BATCHES)
            sorted_rows = torch.cat([part[lengths[part].argsort()] for part in parts])
            shuffled = batches_of(torch.arange(len(lengths)), lengths, tasks, size, report.device)
            grouped = batches_of(sorted_rows, lengths, tasks, size, report.device)
            model = contender("mtl_lora", name, "fp32", report.device, len(PERCENTILES[suite])).model
            runs = variants(model, name != "minilm", shuffled, grouped)
            setting = f"{name} fp32, {suite}, {batches} × {size} rows"
            sums = {variant: run() for variant, run in runs.items()}
            worst = max(abs(found / sums["padded"] - 1) for found in sums.values())
            report.number(setting, "largest difference of losses, relative", worst, "")
            times = report.time(setting, runs, rounds, warmup=0)
            for variant in list(runs)[1:]:
                report.ratio(setting, "real tokens a second, times padded's", "padded", variant)
            real = int(lengths.sum())
            report.number(setting, "padded tokens / real tokens", tokens(shuffled) / real)
            report.number(setting, "padded tokens / real tokens: length-grouped", tokens(grouped) / real)
            packed = sum(pack_rows(mask).source.numel() for _, mask, _ in shuffled)
            report.number(setting, "packed tokens / real tokens", packed / real)
            for variant in ("padded", "length-grouped, buckets", "packed"):
                seconds = sorted(times[variant])[rounds // 2]
                report.number(setting, f"real tokens a second: {variant}", real / seconds, "tokens/s")


def tokens(batches: list[Batch]) -> int:
    """Return how many tokens, padding included, batches have."""
    return sum(mask.numel() for _, mask, _ in batches)


if __name__ == "__main__":
    main("packing", measure, __doc__)
