"""MTLoRA's update of one linear layer: its equations, its factors, and the fused way through the activation."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tasklora.errors import ConfigError
from tasklora.updates.streams import StreamUpdate, TaskFactors, add_to_streams
from tasklora.vision.swin import task_gelu as task_gelu_module
from tasklora.vision.swin.task_gelu import task_gelu

MODES = ["matrix", "matrixv2", "addition"]
IN, OUT = 6, 5


def filled(ranks: list[int], scales: list[float], mode: str = "matrix", dropout: float = 0.0) -> StreamUpdate:
    torch.manual_seed(0)
    update = StreamUpdate(IN, OUT, 3, 1.5, ranks, scales, dropout, mode).double()  # type: ignore[arg-type]
    for parameter in update.parameters():
        torch.nn.init.normal_(parameter)
    return update


def literal(update: StreamUpdate, frozen: Tensor, x: Tensor, inputs: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
    """Return the shared output and those of the tasks, one task after the other, as the paper writes them."""
    assert update.tasks is not None
    own = []
    for task, task_x in enumerate(inputs):
        down, up = update.tasks.lora_factors(task)
        own.append(frozen + task_x @ (up @ down).mT)
    if update.mode == "addition":
        assert update.norm is not None
        return frozen + update.norm(torch.stack(own).sum(0)), own
    assert update.shared is not None
    term = update.shared.scaling * x @ (update.shared.B @ update.shared.A).mT
    if update.mode == "matrixv2":
        own = [stream + term for stream in own]
    return frozen + term, own


@pytest.mark.parametrize("fork", [True, False])
@pytest.mark.parametrize("ranks", [[2, 2, 2], [1, 4, 2]])
@pytest.mark.parametrize("mode", MODES)
def test_streams_equal_the_equations_task_by_task(mode: str, ranks: list[int], fork: bool) -> None:
    update = filled(ranks, [0.5, 1.0, 2.0], mode)
    x, frozen = torch.randn(2, 7, IN).double(), torch.randn(2, 7, OUT).double()
    task_x = torch.randn(3, 2, 7, IN).double()
    shared, streams = update(frozen, x, None if fork else task_x)
    expected, of_tasks = literal(update, frozen, x, [x] * 3 if fork else list(task_x))
    torch.testing.assert_close(shared, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(streams, torch.stack(of_tasks), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("mode", ["matrix", "matrixv2"])
def test_a_new_update_changes_nothing(mode: str) -> None:
    update = StreamUpdate(IN, OUT, 3, 4.0, [2, 3], [4.0, 4.0], mode=mode)  # type: ignore[arg-type]
    x, frozen = torch.randn(4, IN), torch.randn(4, OUT)
    shared, streams = update(frozen, x)
    assert torch.equal(shared, frozen)
    assert torch.equal(streams, frozen.expand(2, -1, -1))


def test_unequal_ranks_give_what_equal_ones_with_zero_rows_give() -> None:
    uneven, even = TaskFactors(IN, OUT, [1, 3], [2.0, 2.0]), TaskFactors(IN, OUT, [3, 3], [2.0, 2.0])
    torch.nn.init.normal_(uneven.B)
    with torch.no_grad():
        for factor in ("A", "B"):
            even.get_parameter(factor).zero_()
            even.get_parameter(factor)[:1] = uneven.get_parameter(factor)[:1]
            even.get_parameter(factor)[3:] = uneven.get_parameter(factor)[1:]
    assert torch.equal(uneven.down(), even.down())
    assert torch.equal(uneven.up(), even.up())
    assert sum(p.numel() for p in uneven.parameters()) == 4 * (IN + OUT)  # what is padded is no parameter


def test_streams_that_fork_read_the_shared_inputs_dropout() -> None:
    update = filled([3, 3], [1.5, 1.5], dropout=0.5)
    assert update.shared is not None
    assert update.tasks is not None
    with torch.no_grad():  # every task does what the shared term does: then only the mask could tell them apart
        for task in range(2):
            update.tasks.A.split(update.tasks.ranks)[task].copy_(update.shared.A)
            update.tasks.B.split(update.tasks.ranks)[task].copy_(update.shared.B.mT)
    x = torch.randn(8, IN).double()
    frozen = torch.zeros(8, OUT).double()
    shared, streams = update.train()(frozen, x)
    torch.testing.assert_close(streams, shared.expand(2, -1, -1))
    assert not torch.allclose(shared, update.eval()(frozen, x)[0])
    of_own_inputs = update.train()(frozen, x, torch.stack([x, x]))[1]  # later inputs have no dropout
    torch.testing.assert_close(of_own_inputs, update.eval()(frozen, x)[1])


def test_a_layer_without_task_modules_is_plain_lora_in_every_mode() -> None:
    for mode in MODES:
        update = StreamUpdate(IN, OUT, 3, 4.0, mode=mode)  # type: ignore[arg-type]
        assert update.mode == "matrix"
        assert [name for name, _ in update.named_parameters()] == ["shared.A", "shared.B"]
        assert update(torch.zeros(2, OUT), torch.randn(2, IN))[1] is None


def test_dropped_streams_keep_their_input() -> None:
    x, frozen = torch.randn(2, 3, OUT), torch.randn(2, 3, OUT)  # two images of three tokens
    h, up = torch.randn(2, 6, 4), torch.randn(2, 4, OUT)
    keep = torch.tensor([[0.0, 2.0], [2.0, 0.0]]).view(2, 2, 1, 1)
    streams = add_to_streams(x, frozen, h, up, keep)
    added = (frozen + (h @ up).view(2, 2, 3, OUT)) * keep.view(2, 2, 1, 1)
    torch.testing.assert_close(streams, x + added)
    assert torch.equal(streams[0, 0], x[0])
    assert torch.equal(streams[1, 1], x[1])


@pytest.mark.parametrize("chunk_bytes", [1, 400, 1 << 20])
def test_the_fused_hidden_layer_equals_the_plain_one(chunk_bytes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(task_gelu_module, "CHUNK_BYTES", chunk_bytes)
    shapes = [(10, 8), (3, 10, 2), (3, 2, 8), (3, 4, 8)]  # P, h, U, D
    ours = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]
    plain = [tensor.detach().clone().requires_grad_() for tensor in ours]
    probe = torch.randn(3, 10, 4, dtype=torch.float64)
    fused = task_gelu(*ours)
    (fused * probe).sum().backward()
    frozen, h, up, down = plain
    expected = F.gelu(frozen + h @ up) @ down.mT
    (expected * probe).sum().backward()
    torch.testing.assert_close(fused, expected, rtol=1e-12, atol=1e-12)
    for tensor, other in zip(ours, plain, strict=True):
        torch.testing.assert_close(tensor.grad, other.grad, rtol=1e-11, atol=1e-11)


def test_an_unknown_mode_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"unknown mode 'matrix2'.*'matrixv2'"):
        StreamUpdate(IN, OUT, 3, 4.0, [2], [4.0], mode="matrix2")  # type: ignore[arg-type]
