"""The training step of MTL-LoRA in the package adapters 1.3.0, beside PEFT's LoRA on the same layers.

Run by training_step.py with the Python of .venv-adapters; prints one line of JSON:

$ .venv-adapters/bin/python benchmarks/adapters_peer.py MODEL DTYPE ROWS LENGTH TASKS ROUNDS THREADS DEVICE

As its documentation says: one adapter per task, ``share_parameters`` for A and the B_i, ``MultiTask`` composition, and
``task_ids`` with the batch, which is a mixed one: each layer sorts its rows by task and runs task by task.
"""

from __future__ import annotations

import json
import sys
from functools import partial
from importlib import metadata

import torch
from harness import interleaved, peak_bytes
from models import (
    ADAPTERS_TARGETS,
    ALPHA,
    UP_PROJECTIONS,
    Contender,
    R,
    Setting,
    base_model,
    contender,
    let_inputs_require_grad,
    randomise,
    task_names,
)


def adapters_contender(model: str, dtype: str, device: str, tasks: int) -> Contender:
    """Return a model adapted by the package."""
    import adapters
    from adapters import MTLLoRAConfig
    from adapters.composition import MultiTask

    base = base_model(model, dtype, device)
    let_inputs_require_grad(base)
    adapters.init(base)
    names = task_names(tasks)
    config = MTLLoRAConfig(
        r=R,
        alpha=ALPHA,
        n_up_projection=UP_PROJECTIONS,
        weights_sharpness=0.5,
        attn_matrices=["q", "k", "v"],
        selfattn_lora=True,
        intermediate_lora=True,
        output_lora=True,
    )
    for name in names:
        base.add_adapter(name, config=config)
    base.share_parameters(adapter_names=names)
    base.active_adapters = MultiTask(*names)
    base.train_adapter(MultiTask(*names))
    base.train()
    base.to(device)
    randomise(base)
    return Contender(base, lambda input_ids, task_ids: base(input_ids=input_ids, task_ids=task_ids).last_hidden_state)


def main() -> None:
    """Measure and print."""
    model, dtype, rows, length, tasks, rounds, threads, device = sys.argv[1:]
    torch.set_num_threads(int(threads))
    setting = Setting(model, dtype, int(rows), int(length))
    contenders = {
        "adapters": adapters_contender(model, dtype, device, int(tasks)),
        "peft_lora": contender("peft_lora", model, dtype, device, int(tasks), ADAPTERS_TARGETS),
    }
    batch = setting.input_ids(device), torch.arange(setting.rows, device=device) % int(tasks)
    steps = {name: partial(made.step, *batch) for name, made in contenders.items()}
    found = {
        "times": interleaved(steps, int(rounds), warmup=2, device=device),
        "peak_bytes": {name: peak_bytes(step, device).peak for name, step in steps.items()},
        "trainable": {name: sum(p.numel() for p in made.parameters) for name, made in contenders.items()},
        "versions": {name: metadata.version(name) for name in ("torch", "transformers", "adapters", "peft")},
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
