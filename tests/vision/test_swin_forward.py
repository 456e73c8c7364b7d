"""Streams through a whole Swin: what they are without training, and what they may not do to each other."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from helpers_swin import TASKS, pixels, stage_updates, task_factors, tiny_mtlora, tiny_swin
from tasklora.errors import ConfigError
from tasklora.vision import StageFeatures, stage_features
from tasklora.vision.swin.windows import position_bias, window_and_shift

SIZES = [(64, 64), (96, 64), (75, 53), (100, 130)]  # the last ones are no multiples of patch, window or 2
FORMS = [
    pytest.param({}, id="matrix"),
    pytest.param({"mode": "matrixv2"}, id="matrixv2"),
    pytest.param({"plus": True}, id="plus"),
    pytest.param({"all_blocks": True}, id="all-blocks"),
    pytest.param({"task_r": {"semseg": 1, "normals": 3, "depth": [1, 2, 3]}}, id="ranks"),
]


def flat(features: list[StageFeatures]) -> list[Tensor]:
    return [part for stage in features for part in (stage.shared, stage.tasks) if part is not None]


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("options", FORMS)
def test_factors_of_zero_give_the_frozen_swin_on_every_stream(
    options: dict[str, object], size: tuple[int, int]
) -> None:
    x = pixels(*size)
    with torch.no_grad():
        # A fresh one: transformers' forward may change its own windows.
        expected = tiny_swin()(x, output_hidden_states=True).reshaped_hidden_states[1:]
        features = stage_features(tiny_mtlora(filled=False, **options), x)
    for stage, of_stage in zip(features, expected, strict=True):
        assert stage.tasks is not None
        torch.testing.assert_close(stage.shared.movedim(-1, 1), of_stage, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(stage.tasks, stage.shared.expand_as(stage.tasks), rtol=1e-4, atol=1e-5)


def test_addition_is_not_the_frozen_swin_at_factors_of_zero() -> None:
    # Its LayerNorm is added to the shared stream whatever the factors are, as published.
    x = pixels()
    with torch.no_grad():
        frozen, features = stage_features(tiny_swin(), x), stage_features(tiny_mtlora(filled=False, mode="addition"), x)
    assert not torch.allclose(features[0].shared, frozen[0].shared, atol=1e-2)


def test_the_shared_stream_is_what_the_adapted_models_own_forward_gives() -> None:
    model, x = tiny_mtlora(), pixels(96, 64)
    with torch.no_grad():
        output = model(x, output_hidden_states=True)
        features = stage_features(model, x)
    for stage, hidden in zip(features, output.reshaped_hidden_states[1:], strict=True):
        torch.testing.assert_close(stage.shared.movedim(-1, 1), hidden)


@pytest.mark.parametrize("options", [*FORMS, pytest.param({"mode": "addition"}, id="addition")])
def test_permuting_the_tasks_permutes_the_streams(options: dict[str, object]) -> None:
    order = [2, 0, 1]
    model, x = tiny_mtlora(**options), pixels()
    permuted = tiny_mtlora(filled=False, **{**options, "tasks": [TASKS[place] for place in order]})
    with torch.no_grad():
        for name, parameter in permuted.named_parameters():
            parameter.copy_(dict(model.named_parameters())[name].view_as(parameter)) if ".tasks." not in name else None
        for own, other in zip(task_factors(permuted), task_factors(model), strict=True):
            for factor in ("A", "B"):
                parts = other.get_parameter(factor).split(other.ranks)
                own.get_parameter(factor).copy_(torch.cat([parts[place] for place in order]))
        features, others = stage_features(model, x), stage_features(permuted, x)
    for stage, other_stage in zip(features, others, strict=True):
        assert stage.tasks is not None
        assert other_stage.tasks is not None
        torch.testing.assert_close(other_stage.shared, stage.shared, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(other_stage.tasks, stage.tasks[order], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("options", FORMS)
def test_a_stream_never_sees_another_tasks_factors(options: dict[str, object]) -> None:
    model, x = tiny_mtlora(**options), pixels()
    with torch.no_grad():
        before = stage_features(model, x)
        for factors in task_factors(model):
            for factor in ("A", "B"):
                factors.get_parameter(factor).split(factors.ranks)[1].add_(1.0)
        after = stage_features(model, x)
    for old, new in zip(before, after, strict=True):
        assert old.tasks is not None
        assert new.tasks is not None
        assert torch.equal(old.shared, new.shared)
        assert torch.equal(old.tasks[[0, 2]], new.tasks[[0, 2]])
        assert not torch.allclose(old.tasks[1], new.tasks[1])


def test_each_resolution_is_on_its_own() -> None:
    model, small, large = tiny_mtlora(), pixels(24, 40), pixels(96, 96)  # of small, every map is within a window
    with torch.no_grad():
        first = [flat(stage_features(model, x)) for x in (large, small)]
        again = [flat(stage_features(model, x)) for x in (small, large)]
    for old, new in zip(first, reversed(again), strict=True):
        assert all(torch.equal(a, b) for a, b in zip(old, new, strict=True))


def test_a_smaller_window_keeps_the_bias_of_each_offset() -> None:
    attention = tiny_swin().encoder.layers[0].blocks[0].attention
    table = attention.relative_position_bias.relative_position_bias_table  # ((2·4 − 1)², heads)
    bias = position_bias(attention, 3)
    assert bias.shape == (1, 9, 9)
    for query in range(9):
        for key in range(9):
            down, across = query // 3 - key // 3, query % 3 - key % 3
            assert bias[0, query, key] == table[(down + 3) * 7 + across + 3, 0]


def test_windows_are_cut_to_the_map_and_then_not_shifted() -> None:
    assert window_and_shift(7, True, 14, 21) == (7, 3)
    assert window_and_shift(7, False, 14, 21) == (7, 0)
    assert window_and_shift(7, True, 7, 21) == (7, 0)
    assert window_and_shift(7, True, 3, 21) == (3, 0)


@pytest.mark.parametrize("options", [*FORMS, pytest.param({"mode": "addition"}, id="addition")])
def test_every_factor_learns_but_those_that_no_stream_can_see(options: dict[str, object]) -> None:
    model = tiny_mtlora(**options)
    features = stage_features(model, pixels())
    sum((stage.tasks * torch.randn_like(stage.tasks)).sum() for stage in features).backward()  # type: ignore[union-attr, misc, operator]
    idle = [
        name
        for name, parameter in model.named_parameters()
        if parameter.requires_grad and (parameter.grad is None or not parameter.grad.any())
    ]
    # The last stage's shared output feeds nothing, as published; in "matrixv2" the tasks' outputs hold it.
    last = "encoder.layers.2.task_updates.default.blocks.1.fc2"
    expected = {
        "matrixv2": [],
        "addition": [f"{last}.norm.weight", f"{last}.norm.bias"],
    }.get(str(options.get("mode")), [f"{last}.shared.A", f"{last}.shared.B"])
    assert [name.removeprefix("base_model.model.") for name in idle] == expected


def test_checkpointing_changes_no_number() -> None:
    gradients, outputs = [], []
    for enabled in (False, True):
        model = tiny_mtlora(lora_dropout=0.2, swin=tiny_swin(drop_path_rate=0.3)).train()
        if enabled:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        torch.manual_seed(1)
        features = flat(stage_features(model, pixels()))
        sum(part.square().sum() for part in features).backward()  # type: ignore[union-attr]
        outputs.append(features)
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.requires_grad})
    assert all(torch.equal(a, b) for a, b in zip(*outputs, strict=True))
    assert gradients[0].keys() == gradients[1].keys()
    for name, grad in gradients[0].items():
        assert torch.equal(grad, gradients[1][name]), name


def test_autocast_comes_near() -> None:
    model, x = tiny_mtlora(), pixels()
    with torch.no_grad():
        exact = flat(stage_features(model, x))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = stage_features(model, x)
        sum(part.float().square().sum() for part in flat(rounded)).backward()  # type: ignore[union-attr]
    for ours, reference in zip(flat(rounded), exact, strict=True):
        assert float((ours.detach().float() - reference).abs().max() / reference.abs().max()) < 0.05
    gradients = [p.grad for p in model.parameters() if p.requires_grad and p.grad is not None]
    assert all(bool(torch.isfinite(grad).all()) for grad in gradients)


def test_drop_path_is_drawn_for_each_stream_and_image() -> None:
    model = tiny_mtlora(filled=False, swin=tiny_swin(drop_path_rate=0.9)).train()
    torch.manual_seed(0)
    with torch.no_grad():
        last = stage_features(model, pixels(images=6))[-1]
    assert last.tasks is not None
    streams = torch.cat([last.shared.unsqueeze(0), last.tasks])  # all equal but for what was dropped
    # Which task streams of an image differ from its shared one: not the same for all streams, nor for all images.
    differ = [[not torch.allclose(own[image], streams[0, image]) for own in streams[1:]] for image in range(6)]
    assert any(any(row) and not all(row) for row in differ)
    assert len({tuple(row) for row in differ}) > 1
    model.eval()
    with torch.no_grad():
        still = stage_features(model, pixels(images=6))[-1]
    assert still.tasks is not None
    torch.testing.assert_close(still.tasks, still.shared.expand_as(still.tasks), rtol=1e-4, atol=1e-5)


def test_a_task_rank_of_zero_leaves_one_shared_stream() -> None:
    features = stage_features(tiny_mtlora(task_r=0), pixels())
    assert all(stage.tasks is None for stage in features)
    assert features[0].maps().shape == (1, 2, 16, 8, 8)


def test_one_task_has_one_stream() -> None:
    features = stage_features(tiny_mtlora(tasks=["depth"]), pixels())
    assert features[0].maps().shape == (1, 2, 16, 8, 8)
    assert features[0].tasks is not None


def test_all_blocks_has_factors_in_all_of_them() -> None:
    for updates in stage_updates(tiny_mtlora(all_blocks=True)):
        assert all(updates.block(place).proj.tasks is not None for place in range(2))
    for updates in stage_updates(tiny_mtlora()):
        assert [updates.block(place).proj.tasks is not None for place in range(2)] == [False, True]


def test_a_model_without_a_swin_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"Linear holds no Swin transformer"):
        stage_features(torch.nn.Linear(2, 2), pixels())
