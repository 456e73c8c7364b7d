"""Two processes (gloo, CPU) train what one process trains: DDP, FSDP2, accelerate, transformers' Trainer.

Each process has half of the rows, so tasks are absent from one of them or from both.
"""

import os
import subprocess
import sys
from pathlib import Path

import distributed_worker as worker
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file

from helpers_models import adapter_state, run, tiny_llama
from tasklora.tuner import METHODS

WAYS = ["ddp", "fsdp2", "fsdp2_checkpointing", "fsdp2_bf16", "accelerate", "trainer"]

pytestmark = pytest.mark.slow  # `make test-long` runs them

every_method = pytest.mark.parametrize("method", list(METHODS))
one_of_a_kind = pytest.mark.parametrize("method", worker.ONE_OF_A_KIND)


@pytest.fixture(scope="module")
def results(tmp_path_factory) -> Path:
    """Return a folder with what two processes made in each way, and one process in two ways."""
    folder = tmp_path_factory.mktemp("distributed")
    tests = str(Path(worker.__file__).parents[1])
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*torchrun, worker.__file__, ",".join(WAYS), str(folder)],
        env={**os.environ, "PYTHONPATH": tests, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    for way in ("plain", "trainer"):
        alone = folder / "alone" / way
        alone.mkdir(parents=True)
        worker.run_all(way, alone)
    return folder


def made_by(folder: Path, way: str, method: str, ids: str = "row"):
    """Return losses and so on, and the tensors of the saved adapter."""
    name = f"{method}-{ids}"
    return torch.load(folder / way / f"{name}.pt"), load_file(folder / way / name / "adapter_model.safetensors")


def expect_same(results: Path, way: str, method: str, ids: str = "row", alone: str = "alone/plain", rounding=2e-6):
    result, adapter = made_by(results, way, method, ids)
    expected, expected_adapter = made_by(results, alone, method, ids)
    assert len(result["losses"]) == worker.STEPS
    assert result["losses"] == pytest.approx(expected["losses"], abs=rounding)
    assert adapter.keys() == expected_adapter.keys()
    for name, value in expected_adapter.items():
        torch.testing.assert_close(adapter[name], value, rtol=0, atol=rounding, msg=name)
    if "evaluations" in result:
        assert result["evaluations"] == pytest.approx(expected["evaluations"], abs=rounding)


@every_method
def test_training_moves_the_adapter(results, method):
    """Else equality with one process would say nothing: it moves by far more than rounding."""
    _, adapter = made_by(results, "alone/plain", method)
    start = adapter_state(worker.model_of(method))
    moved = [(value - adapter[name.replace(".default", "")]).abs().max() for name, value in start.items()]
    assert max(moved) > 1e-3


@every_method
def test_ddp(results, method):
    """Without `find_unused_parameters`: tasks that are absent from a process have gradients, of zeros."""
    expect_same(results, "ddp", method)


@every_method
def test_fsdp2(results, method):
    """Every parameter is sharded, tables of per-task parameters by tasks."""
    expect_same(results, "fsdp2", method)


@one_of_a_kind
def test_fsdp2_with_ids_per_token(results, method):
    expect_same(results, "fsdp2", method, "token")


@one_of_a_kind
def test_fsdp2_with_gradient_checkpointing(results, method):
    expect_same(results, "fsdp2_checkpointing", method)


@one_of_a_kind
def test_fsdp2_in_bf16(results, method):
    result, _ = made_by(results, "fsdp2_bf16", method)
    expected, _ = made_by(results, "alone/plain", method)
    assert result["losses"] == pytest.approx(expected["losses"], rel=0.02)


@every_method
@pytest.mark.parametrize("action", ["saving", "exporting", "merging"])
def test_sharded_parameters_are_refused(results, method, action):
    """Before anything is written or changed; without the check torch's own errors are about storages and operators."""
    result, _ = made_by(results, "fsdp2", method)
    assert result[action].startswith(f"{action} needs whole parameters")
    assert "save_pretrained(…, state_dict=…)" in result["saving"]


def test_an_auxiliary_loss_of_sharded_parameters_is_refused(results):
    refused = [name for name in METHODS if "the auxiliary loss" in made_by(results, "fsdp2", name)[0]]
    assert refused == ["ta_lora"]  # the one method that has one


@every_method
def test_an_adapter_saved_under_fsdp2_loads_in_one_process(results, method):
    folders = [results / way / f"{method}-row" for way in ("fsdp2", "alone/plain")]
    outputs = [run(PeftModel.from_pretrained(tiny_llama(), folder), ["cola", "rte", "sst2"]) for folder in folders]
    torch.testing.assert_close(outputs[0], outputs[1], rtol=0, atol=1e-5)


@one_of_a_kind
def test_accelerate(results, method):
    expect_same(results, "accelerate", method)


@one_of_a_kind
def test_trainer_under_torchrun(results, method):
    expect_same(results, "trainer", method, alone="alone/trainer")
