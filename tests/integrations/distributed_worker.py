"""What two processes do in `test_distributed.py`; started by torchrun, and in one process as the reference.

    torchrun --standalone --nproc-per-node 2 tests/integrations/distributed_worker.py WAY FOLDER

trains in the given way and writes FOLDER/METHOD-IDS.pt: losses per step, the adapter, what evaluation gave.
"""

from __future__ import annotations

import sys
import warnings
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from accelerate import Accelerator
from datasets import Dataset
from peft import PeftModel
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.nn.parallel import DistributedDataParallel
from transformers import Trainer, TrainingArguments

import tasklora
from helpers_models import LLAMA_TARGETS, adapt, config_of, tiny_llama
from tasklora.errors import UnsupportedError
from tasklora.tuner import METHODS
from tasklora.updates import LowRankUpdate

STEPS, ROWS, LENGTH = 3, 8, 6
# Tasks of each step's rows; the first half goes to one process. Step 0 has no rows of task 2, and each process has one
# task only; in step 2 all rows have the same task.
TASK_IDS = torch.tensor([[0] * 4 + [1] * 4, [0, 1, 2, 2, 2, 1, 0, 0], [2] * 8])


def model_of(method: str) -> PeftModel:
    return adapt(tiny_llama(), config_of(method, task_type="CAUSAL_LM", target_modules=LLAMA_TARGETS)).train()


def batch_of(step: int, ids: str) -> dict[str, Tensor]:
    """Return the rows of a step; with ids per "token" each row holds two tasks."""
    generator = torch.Generator().manual_seed(step)
    input_ids = torch.randint(3, 64, (ROWS, LENGTH), generator=generator)
    task_ids = TASK_IDS[step % STEPS]
    if ids == "token":
        task_ids = torch.stack([task_ids] * 4 + [task_ids.flip(0)] * 2, dim=1)
    return {"input_ids": input_ids, "labels": input_ids, "task_ids": task_ids}


def share_of(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the rows of this process; all of them where there is one process only."""
    rank, count = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    size = ROWS // count
    return {name: value[rank * size : (rank + 1) * size] for name, value in batch.items()}


def mean(loss: Tensor) -> float:
    """Return the mean over the processes."""
    loss = loss.detach().clone()
    if dist.is_initialized():
        dist.all_reduce(loss)
        loss /= dist.get_world_size()
    return float(loss)


def optimizer_of(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1, momentum=0.9)


def train(model: nn.Module, ids: str) -> dict[str, Any]:
    """Train a wrapped model in a plain loop."""
    optimizer = optimizer_of(model)
    losses = []
    for step in range(STEPS):
        loss = model(**share_of(batch_of(step, ids))).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(mean(loss))
    return {"losses": losses}


def evaluations(model: nn.Module, adapted: PeftModel) -> list[float]:
    """Return losses of one task before and after a step inside one `use_tasks`, which layers may keep tensors for."""
    batch = {name: value for name, value in share_of(batch_of(9, "row")).items() if name != "task_ids"}
    optimizer = optimizer_of(model)
    losses = []
    with tasklora.use_tasks(adapted, "rte"):
        for _ in range(2):
            with torch.no_grad():
                losses.append(mean(model(**batch).loss))
            kept = [key for key, _ in tasklora.context_of(adapted).current["default"]._cache]
            if dist.is_initialized():  # gathered parameters do not show that they have changed
                assert not any(isinstance(part, LowRankUpdate) for key in kept for part in key)
            model(**batch).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    return losses


def plain(method: str, ids: str, folder: Path) -> dict[str, Any]:
    model = model_of(method)
    result = train(model, ids)
    model.save_pretrained(folder)
    return {**result, "evaluations": evaluations(model, model)}


def ddp(method: str, ids: str, folder: Path) -> dict[str, Any]:
    model = model_of(method)
    wrapped = DistributedDataParallel(model)
    result = train(wrapped, ids)
    if dist.get_rank() == 0:
        model.save_pretrained(folder)
    return {**result, "evaluations": evaluations(wrapped, model)}


def fsdp2(method: str, ids: str, folder: Path, checkpointing: bool = False, **options: Any) -> dict[str, Any]:
    model = model_of(method)
    if checkpointing:
        model.gradient_checkpointing_enable()
    for block in model.get_base_model().model.layers:
        fully_shard(block, **options)
    fully_shard(model, **options)
    result = train(model, ids)
    sharded = {name for name, p in model.named_parameters() if type(p.data).__name__ == "DTensor"}
    assert sharded == {name for name, _ in model.named_parameters()}
    for action, call in {
        "saving": lambda: model.save_pretrained(folder),
        "exporting": lambda: tasklora.export_lora(model, "rte", folder),
        "merging": lambda: tasklora.merge_task(model, "rte"),
        "the auxiliary loss": lambda: tasklora.auxiliary_loss(model),
    }.items():
        try:
            call()
        except UnsupportedError as error:
            result[action] = str(error)
        assert not folder.exists()
    state = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
    if dist.get_rank() == 0:
        model.save_pretrained(folder, state_dict=state)
    return {**result, "evaluations": evaluations(model, model)}


def fsdp2_checkpointing(method: str, ids: str, folder: Path) -> dict[str, Any]:
    return fsdp2(method, ids, folder, checkpointing=True)


def fsdp2_bf16(method: str, ids: str, folder: Path) -> dict[str, Any]:
    return fsdp2(method, ids, folder, mp_policy=MixedPrecisionPolicy(param_dtype=torch.bfloat16))


def accelerate(method: str, ids: str, folder: Path) -> dict[str, Any]:
    accelerator = Accelerator(cpu=True)
    model = model_of(method)
    optimizer = optimizer_of(model)
    rows = [
        {name: value[row] for name, value in batch_of(step, ids).items()}
        for step in range(STEPS)
        for row in range(ROWS)
    ]
    size = ROWS // accelerator.num_processes
    model, optimizer, loader = accelerator.prepare(model, optimizer, torch.utils.data.DataLoader(rows, size))
    losses = []
    for batch in loader:
        loss = model(**batch).loss
        accelerator.backward(loss)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(accelerator.reduce(loss.detach(), "mean")))
    if accelerator.is_main_process:
        accelerator.unwrap_model(model).save_pretrained(folder)
    return {"losses": losses}


def trainer(method: str, ids: str, folder: Path) -> dict[str, Any]:
    model = model_of(method)
    batches = [batch_of(step, ids) for step in range(STEPS)]
    rows = {name: torch.cat([batch[name] for batch in batches]).tolist() for name in batches[0]}
    args = TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=ROWS // (dist.get_world_size() if dist.is_initialized() else 1),
        max_steps=STEPS,
        learning_rate=0.1,
        lr_scheduler_type="constant",
        optim="sgd",
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
        remove_unused_columns=False,
    )
    run = Trainer(model=model, args=args, train_dataset=Dataset.from_dict(rows))
    run.train()
    run.save_model(str(folder))
    return {"losses": [float(entry["loss"]) for entry in run.state.log_history if "loss" in entry]}


WAYS = {way.__name__: way for way in (plain, ddp, fsdp2, fsdp2_checkpointing, fsdp2_bf16, accelerate, trainer)}


ONE_OF_A_KIND = list({method.update_cls.kind: name for name, method in METHODS.items()}.values())


def combinations(way: str) -> list[tuple[str, str]]:
    """Return the methods and kinds of ids that a way is tried with: all methods by row, or one of a kind."""
    by_row = [(name, "row") for name in (METHODS if way in ("plain", "ddp", "fsdp2") else ONE_OF_A_KIND)]
    by_token = [(name, "token") for name in ONE_OF_A_KIND] if way in ("plain", "fsdp2") else []
    return by_row + by_token


def run_all(way: str, folder: Path) -> None:
    """Train in one way; only the main process writes."""
    for method, ids in combinations(way):
        torch.manual_seed(0)
        result = WAYS[way](method, ids, folder / f"{method}-{ids}")
        if not dist.is_initialized() or dist.get_rank() == 0:
            torch.save(result, folder / f"{method}-{ids}.pt")


if __name__ == "__main__":
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    dist.init_process_group("gloo")
    for name in sys.argv[1].split(","):
        (Path(sys.argv[2]) / name).mkdir(parents=True, exist_ok=True)
        run_all(name, Path(sys.argv[2]) / name)
    dist.destroy_process_group()
