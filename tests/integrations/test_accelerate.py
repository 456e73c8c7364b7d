"""A plain loop with accelerate: accumulation, checkpoints, and models unwrapped for saving."""

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState
from peft import PeftModel
from torch.utils.data import DataLoader

from helpers_models import LLAMA_TARGETS, adapt, adapter_state, config_of, run, tiny_llama, tokens
from tasklora.errors import TaskIdsError
from tasklora.tuner import METHODS

ROWS = 16

# One method of each kind; the others take minutes in all.
ONE_OF_A_KIND = {method.update_cls.kind: name for name, method in METHODS.items()}.values()
every_method_slowly = pytest.mark.parametrize(
    "method", [pytest.param(name, marks=[] if name in ONE_OF_A_KIND else pytest.mark.slow) for name in METHODS]
)


@pytest.fixture(autouse=True)
def _fresh_accelerators():
    """They share settings for the life of a process."""
    yield
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


def prepared(method: str, batch_size: int, steps: int, optimizer=torch.optim.SGD, **options):
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=steps)
    config = config_of(method, task_type="CAUSAL_LM", target_modules=LLAMA_TARGETS, **options)
    model = adapt(tiny_llama(), config).train()
    parameters = [p for p in model.parameters() if p.requires_grad]
    input_ids = tokens(ROWS)
    rows = [{"input_ids": row, "labels": row, "task_ids": index % 3} for index, row in enumerate(input_ids)]
    return accelerator, *accelerator.prepare(model, optimizer(parameters, lr=0.01), DataLoader(rows, batch_size))


def epoch(accelerator, model, optimizer, loader) -> list[float]:
    losses = []
    for batch in loader:
        with accelerator.accumulate(model):
            loss = model(**batch).loss
            accelerator.backward(loss)
            optimizer.step()
            optimizer.zero_grad()
        losses.append(loss.item())
    return losses


@every_method_slowly
def test_accumulation_equals_large_batches(method):
    states = []
    for size, steps in ((8, 1), (2, 4)):
        parts = prepared(method, size, steps)
        assert len(epoch(*parts)) == ROWS // size
        states.append(adapter_state(parts[1]))
    start = adapter_state(adapt(tiny_llama(), config_of(method, task_type="CAUSAL_LM", target_modules=LLAMA_TARGETS)))
    assert any(not torch.equal(states[0][name], value) for name, value in start.items())
    for name, value in states[0].items():
        torch.testing.assert_close(states[1][name], value, rtol=1e-5, atol=1e-6, msg=name)


@every_method_slowly
def test_a_checkpoint_goes_on_bit_for_bit(method, tmp_path):
    """Adapter, Adam's moments and dropout: the epoch after loading is the epoch after saving."""
    accelerator, model, optimizer, loader = prepared(method, 4, 2, torch.optim.AdamW, lora_dropout=0.3)
    epoch(accelerator, model, optimizer, loader)
    accelerator.save_state(str(tmp_path / "state"))
    losses = [epoch(accelerator, model, optimizer, loader)]
    states = [adapter_state(model)]
    accelerator.load_state(str(tmp_path / "state"))
    losses.append(epoch(accelerator, model, optimizer, loader))
    states.append(adapter_state(model))
    assert losses[0] == losses[1]
    for name, value in states[0].items():
        assert torch.equal(states[1][name], value), name


def test_an_unwrapped_model_is_saved_and_loaded(tmp_path):
    accelerator, model, *_ = prepared("mtl_lora", 4, 1)
    accelerator.unwrap_model(model).save_pretrained(tmp_path, save_function=accelerator.save)
    loaded = PeftModel.from_pretrained(tiny_llama(), tmp_path)
    ids = ["cola", "rte", "sst2"]
    assert torch.equal(run(loaded, ids), run(model.eval(), ids))


def test_a_batch_without_ids_is_an_error():
    accelerator, model, optimizer, loader = prepared("mtl_lora", 4, 1)
    without = [{name: value for name, value in batch.items() if name != "task_ids"} for batch in loader]
    with pytest.raises(TaskIdsError, match="was run without task ids"):
        epoch(accelerator, model, optimizer, without)
