"""Inference: batches of mixed tasks, packed rows with a task per token, generation.

$ python benchmarks/inference.py --size short
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from harness import Report, Spread, main
from models import ALPHA, Contender, R, Setting, base_model, contender, randomise, task_names
from torch import Tensor

METHODS = ("mtl_lora", "per_task_lora")  # a core and a bank update
MIXED_TASKS = 32  # in every adapter, and as many LoRA adapters in PEFT's
PACKED_TASKS = 8
# Size → (mixed-task batches of 32 rows, packed rows, (generation, new tokens), rounds).
SIZES = {
    "tiny": (
        [Setting("llama-64", "fp32", 32, 4)],
        [Setting("llama-64", "fp32", 4, 16)],
        [(Setting("llama-64", "fp32", 16, 4), 4)],
        3,
    ),
    "short": (
        [Setting("minilm", "fp32", 32, 16), Setting("llama-256", "fp32", 32, 16)],
        [Setting("minilm", "fp32", 8, 64), Setting("llama-1024", "fp32", 2, 64)],
        [(Setting("llama-1024", "fp32", 16, 16), 8)],
        9,
    ),
    "full": (
        [
            Setting("minilm", "fp32", 32, 64),
            Setting("llama-256", "fp32", 32, 64),
            Setting("llama-1024", "fp32", 32, 16),
        ],
        [
            Setting("minilm", "fp32", 8, 128),
            Setting("llama-1024", "fp32", 2, 256),
        ],
        [(Setting("llama-1024", "fp32", 16, 32), 32), (Setting("llama-2048", "fp32", 16, 32), 32)],
        9,
    ),
    "gpu": (
        [Setting(model, dtype, 32, 256) for model in ("minilm", "llama-1024") for dtype in ("fp32", "bf16")],
        [Setting(model, dtype, 16, 512) for model in ("minilm", "llama-1024") for dtype in ("fp32", "bf16")],
        [(Setting("llama-1024", "bf16", 16, 128), 64)],
        50,
    ),
}


def measure(report: Report) -> None:
    """Measure all three."""
    mixed, packed, generations, rounds = SIZES[report.size]
    for setting in mixed:
        measure_mixed(report, setting, rounds)
    for setting in packed:
        measure_packed(report, setting, rounds)
    for setting, new_tokens in generations:
        measure_generation(report, setting, new_tokens, rounds)


def without_gradients(run: Callable[[], object]) -> Callable[[], None]:
    """Return `run` in inference mode."""

    def call() -> None:
        with torch.inference_mode():
            run()

    return call


def peft_adapters(setting: Setting, device: str) -> torch.nn.Module:
    """Return PEFT's own way: a LoRA adapter per task, told apart with ``adapter_names=``."""
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=R, lora_alpha=ALPHA, target_modules="all-linear")
    first, *others = task_names(MIXED_TASKS)
    model = get_peft_model(base_model(setting.model, setting.dtype, device), config, adapter_name=first)
    for name in others:
        model.add_adapter(name, config)
    model.set_adapter(first)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("lora_" in name)  # so that those of every adapter get random values
    randomise(model)
    return model.eval()


def merged_model(setting: Setting, device: str) -> torch.nn.Module:
    """Return the plain model that one task was merged into."""
    import tasklora

    made = contender("mtl_lora", setting.model, setting.dtype, device, MIXED_TASKS, training=False)
    return tasklora.merge_task(made.model, "task3")


def measure_mixed(report: Report, setting: Setting, rounds: int) -> None:
    """Measure a batch whose rows are of 1, 4, 16 or 32 tasks; rows of one task do not stand together."""
    device = report.device
    input_ids = setting.input_ids(device)
    base = base_model(setting.model, setting.dtype, device).eval()
    merged = merged_model(setting, device)
    peft = peft_adapters(setting, device)
    made = {
        name: contender(name, setting.model, setting.dtype, device, MIXED_TASKS, training=False) for name in METHODS
    }
    one_task = torch.tensor(3, device=device)  # one id for all rows: the cheapest way to say it
    plain = {"base": partial(base, input_ids), "merged": partial(merged, input_ids)}
    plain |= {f"{name} one task": partial(each.call, input_ids, one_task) for name, each in made.items()}
    for count in (1, 4, 16, 32):
        where = f"{setting}, {count} tasks"
        ids = torch.arange(setting.rows, device=device) % count
        variants = {name: partial(each.call, input_ids, ids) for name, each in made.items()}
        adapter_names = [f"task{index}" for index in ids.tolist()]
        variants["peft_mixed"] = partial(peft, input_ids=input_ids, adapter_names=adapter_names)
        report.time(where, {name: without_gradients(run) for name, run in (plain | variants).items()}, rounds)
        for name in METHODS:
            report.ratio(where, "forward", "peft_mixed", name)
            report.ratio(where, "forward", name, f"{name} one task")
            report.ratio(where, "forward", name, "base")
    report.ratio(where, "forward", "merged", "base")


def packed_ids(setting: Setting, device: str) -> Tensor:
    """Return a task per token: each row is cut into segments of 4 to 24 tokens (fewer at its end)."""
    generator = torch.Generator().manual_seed(3)
    ids = torch.empty(setting.rows, setting.length, dtype=torch.long)
    for row in ids:
        begin = 0
        while begin < setting.length:
            length = int(torch.randint(4, 25, (), generator=generator))
            row[begin : begin + length] = int(torch.randint(PACKED_TASKS, (), generator=generator))
            begin += length
    return ids.to(device)


def measure_packed(report: Report, setting: Setting, rounds: int) -> None:
    """Measure a task per token beside a task per row, forward and training step."""
    device = report.device
    input_ids, where = setting.input_ids(device), f"{setting}, packed"
    ids = {
        "per token": packed_ids(setting, device),
        "per row": torch.arange(setting.rows, device=device) % PACKED_TASKS,
    }
    for training, what in ((False, "forward"), (True, "step")):
        made: dict[str, Contender] = {
            name: contender(name, setting.model, setting.dtype, device, PACKED_TASKS, training=training)
            for name in METHODS
        }
        variants = {}
        for name, each in made.items():
            for how, tasks in ids.items():
                run = partial(each.step if training else each.call, input_ids, tasks)
                variants[f"{name} {how}"] = run if training else without_gradients(run)
        report.time(f"{where}, {what}", variants, rounds)
        for name in METHODS:
            report.ratio(f"{where}, {what}", what, f"{name} per token", f"{name} per row")


def measure_generation(report: Report, setting: Setting, new_tokens: int, rounds: int) -> None:
    """Measure greedy generation of a fixed number of tokens, every row of another task."""
    from peft import LoraConfig, get_peft_model

    import tasklora

    device, where = report.device, f"{setting}, {new_tokens} new tokens"
    input_ids = setting.input_ids(device)
    task_ids = torch.arange(setting.rows, device=device) % PACKED_TASKS
    configs = {
        "mtl_lora": tasklora.MTLLoraConfig(tasks=task_names(PACKED_TASKS), target_modules="all-linear"),
        "per_task_lora": tasklora.PerTaskLoraConfig(tasks=task_names(PACKED_TASKS), target_modules="all-linear"),
        "peft_lora": LoraConfig(r=R, lora_alpha=ALPHA, target_modules="all-linear"),
    }
    models = {"base": base_model(setting.model, setting.dtype, device, with_head=True)}
    for name, config in configs.items():
        models[name] = get_peft_model(base_model(setting.model, setting.dtype, device, with_head=True), config)
        randomise(models[name])
    variants = {}
    for name, model in models.items():
        options = {"task_ids": task_ids} if name in METHODS else {}
        generate = partial(
            model.eval().generate,
            input_ids=input_ids,
            attention_mask=torch.ones_like(input_ids),
            min_new_tokens=new_tokens,
            max_new_tokens=new_tokens,
            do_sample=False,
            pad_token_id=0,
            **options,
        )
        variants[name] = without_gradients(generate)
    times = report.time(where, variants, rounds, warmup=1)
    for name in configs:
        report.ratio(where, "generation", name, "base")
    for name in models:
        speeds = [setting.rows * new_tokens / seconds for seconds in times[name]]
        report.number(where, f"generation: {name}", Spread.of(speeds), "tokens/s")


if __name__ == "__main__":
    main("inference", measure, __doc__)
