"""Task ids and names at the boundary: what is accepted, what is refused with which error, and rows that multiply."""

import pytest
import torch

from tasklora.errors import TaskIdsError, UnknownTaskError
from tasklora.updates import TaskContext, TaskNames, with_row_factors

NAMES = TaskNames(["cola", "rte", "sst2"], needs_ids=True)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("rte", torch.tensor(1)),
        (2, torch.tensor(2)),
        (["sst2", "cola"], torch.tensor([2, 0])),
        ([0, 1, 2], torch.tensor([0, 1, 2])),
        (("rte", 2), torch.tensor([1, 2])),
        (torch.tensor([1, 0]), torch.tensor([1, 0])),
        (torch.tensor([1, 0], dtype=torch.int32), torch.tensor([1, 0])),
        (torch.tensor([[1, 0], [2, 2]]), torch.tensor([[1, 0], [2, 2]])),
        (torch.tensor(2), torch.tensor(2)),
    ],
    ids=str,
)
def test_accepted(given, expected):
    assignment = NAMES.assign(given)
    assert torch.equal(assignment.ids, expected)
    assert assignment.ids.dtype == torch.long
    assert assignment.rows == (None if expected.dim() == 0 else expected.shape[0])
    assert assignment.per_token == (expected.dim() == 2)


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        (torch.tensor([0, 3]), TaskIdsError, r"0 … 2 .*got values from 0 to 3"),
        (torch.tensor([0, -1]), TaskIdsError, r"got values from -1 to 0"),
        (torch.tensor([0.0, 1.0]), TaskIdsError, r"integer tensor, got dtype torch.float32.*\.long\(\)"),
        (torch.tensor([True, False]), TaskIdsError, r"integer tensor, got dtype torch.bool"),
        (torch.zeros(2, 3, 4, dtype=torch.long), TaskIdsError, r"got \(2, 3, 4\): 3 dimensions"),
        ("rtee", UnknownTaskError, r"unknown task 'rtee'. Did you mean 'rte'\? This adapter has: cola, rte, sst2"),
        (["cola", "mnli"], UnknownTaskError, r"unknown task 'mnli'"),
        (3, UnknownTaskError, r"task id 3 is out of range: this adapter has 3 tasks"),
        (-1, UnknownTaskError, r"task id -1 is out of range"),
        ([0.5], TaskIdsError, r"a task is a name or an integer id, got 0.5 \(float\)"),
        (1.0, TaskIdsError, r"a LongTensor, a task name or a list of names, got float"),
        ({"cola": 1}, TaskIdsError, r"got dict"),
    ],
    ids=str,
)
def test_refused(given, error, message):
    with pytest.raises(error, match=message) as raised:
        NAMES.assign(given)
    assert type(raised.value) is error


def test_ids_and_weights_exclude_each_other():
    with pytest.raises(TaskIdsError, match="either task_ids or task_weights, not both"):
        NAMES.assign("rte", torch.ones(3))
    with pytest.raises(TaskIdsError, match="not none"):
        NAMES.assign()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (torch.ones(2), r"shape \(3,\) or \(rows, 3\), got \(2,\)"),
        (torch.ones(2, 3, 3), r"got \(2, 3, 3\)"),
        (torch.ones(3, dtype=torch.long), "float tensor"),
        ([0.5, 0.5, 0.0], "float tensor"),
    ],
    ids=str,
)
def test_refused_weights(given, message):
    with pytest.raises(TaskIdsError, match=message):
        NAMES.assign(task_weights=given)


@pytest.mark.parametrize(
    ("given", "shape", "message"),
    [
        (torch.tensor([0, 1]), (3, 4), r"input has 3 rows \(shape \(3, 4\)\) but task_ids describe 2"),
        (torch.tensor([0, 1]), (4, 4), "input has 4 rows"),  # twice as many: never guessed
        (torch.zeros(2, 5, dtype=torch.long), (2, 6, 4), r"shape \(2, 5\).*this layer got \(2, 6, 4\)"),
        (torch.zeros(2, 5, dtype=torch.long), (2, 4), r"this layer got \(2, 4\)"),
        (torch.zeros(2, 5, dtype=torch.long), (3, 5, 4), "input has 3 rows"),
    ],
)
def test_layer_input_that_does_not_fit(given, shape, message):
    with pytest.raises(TaskIdsError, match=message):
        NAMES.assign(given).for_input(torch.zeros(shape))


def test_declared_repetition_of_rows():
    """Beams repeat each row in place (a b → a a b b), never the whole batch (a b → a b a b)."""
    assignments = with_row_factors({"default": NAMES.assign([2, 0])}, (1, 3))
    assert assignments["default"].for_input(torch.zeros(2, 4)).ids.tolist() == [2, 0]
    assert assignments["default"].for_input(torch.zeros(6, 4)).ids.tolist() == [2, 2, 2, 0, 0, 0]
    with pytest.raises(TaskIdsError):
        assignments["default"].for_input(torch.zeros(4, 4))


def test_mixtures_are_repeated_with_their_rows():
    mixtures = torch.tensor([[1.0, 0, 0], [0, 0.5, 0.5]])
    repeated = with_row_factors({"default": NAMES.assign(task_weights=mixtures)}, (1, 2))["default"]
    assert torch.equal(repeated.for_input(torch.zeros(4, 4)).weights, mixtures[[0, 0, 1, 1]])


def test_context_is_empty_outside_and_nests_inside():
    context = TaskContext()
    context.tasks["default"] = NAMES
    outer, inner = context.assign(["default"], "rte"), context.assign(["default"], "sst2")
    with context.use(outer):
        with context.use(inner):
            assert context.current is inner
        assert context.current is outer
    assert context.current == {}


def test_context_is_restored_after_an_error():
    context = TaskContext()
    context.tasks["default"] = NAMES
    with pytest.raises(RuntimeError, match="inside"), context.use(context.assign(["default"], 0)):
        raise RuntimeError("inside")
    assert context.current == {}


def test_one_task_needs_no_ids():
    context = TaskContext()
    context.tasks["default"] = TaskNames(["only"], needs_ids=True)
    assert context.lookup("default", torch.zeros(2, 4)).ids.item() == 0


def test_missing_ids_say_how_to_pass_them():
    context = TaskContext()
    context.tasks["default"] = NAMES
    with pytest.raises(TaskIdsError, match=r"3 tasks \(cola, rte, sst2\).*task_ids=.*use_tasks"):
        context.lookup("default", torch.zeros(2, 4))


def test_methods_without_task_ids_need_none():
    context = TaskContext()
    context.tasks["default"] = TaskNames([], needs_ids=False)
    assert context.lookup("default", torch.zeros(2, 4)) is None
    assert context.assign(["default"], "anything") == {}
