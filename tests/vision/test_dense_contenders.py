"""What dense comparisons are made of beside adapters: single-task models, MTLoRA+, and variants of a method."""

import pytest
import torch

from helpers_dense import dense_project  # noqa: F401
from tasklora.cli.lists import names_of
from tasklora.errors import ConfigError
from tasklora.evaluation import RunResults
from tasklora.training import compare_methods, train_recipe
from tasklora.training.contenders import contender, title_of
from tasklora.training.dense_workload import prepare_dense
from tasklora.vision.layouts.scenes import _Memory
from tasklora.vision.saved_model import load_dense_model
from tasklora.vision.scenes import render_scene

TASKS = ["semseg", "normals", "depth"]
CHOSEN = f"tasks.include=[{', '.join(TASKS)}]"


def model_of(project, method):
    return prepare_dense(contender(project.load(CHOSEN, "model.drop_path=0"), method)).model


# --- single-task models


def test_single_task_models_share_nothing(dense_project):  # noqa: F811
    model = model_of(dense_project, "single_task")
    pixels = torch.randn(2, 3, 64, 64)
    for place, name in enumerate(TASKS):
        model.zero_grad()
        model(pixels)[name].square().sum().backward()
        reached = {key for key, p in model.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
        assert reached
        mine = (f"encoder.{place}.", f"decoders.heads.{name}.")
        assert {key for key in reached if not key.startswith(mine)} == set()
    assert all(not p.requires_grad for key, p in model.named_parameters() if key.endswith("layernorm.weight"))


def test_single_task_models_begin_as_the_multi_task_model(dense_project):  # noqa: F811
    single, multi = (model_of(dense_project, name).eval() for name in ("single_task", "full_fine_tuning"))
    pixels = torch.randn(2, 3, 64, 64)
    for name, expected in multi(pixels).items():
        torch.testing.assert_close(single(pixels)[name], expected)
    trained = {
        kind: sum(p.numel() for p in model.encoder.parameters() if p.requires_grad)
        for kind, model in (("single", single), ("multi", multi))
    }
    assert trained["single"] == len(TASKS) * trained["multi"]


def test_a_single_task_model_trains_as_one_that_has_only_its_task(dense_project, tmp_path):  # noqa: F811
    """Nothing is drawn while training here, and no gradient is long enough to be clipped."""
    plain = ["model.drop_path=0", "training.max_steps=2", "training.max_grad_norm=1e6", "training.augmentation=null"]
    found = {}
    for method, tasks in (("single_task", "depth, normals"), ("full_fine_tuning", "depth")):
        recipe = contender(dense_project.load(*plain, f"tasks.include=[{tasks}]"), method)
        directory = tmp_path / method
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(torch.nn.Dropout, "forward", lambda self, x: x)
            _, prepared = train_recipe(recipe, directory)
        model = load_dense_model(directory / "final")[0]
        found[method] = model(torch.ones(1, 3, 64, 64))["depth"]
        assert prepared.about.encoder == ("separate" if method == "single_task" else "full")
    torch.testing.assert_close(found["single_task"], found["full_fine_tuning"], rtol=1e-4, atol=1e-5)


def test_single_task_models_recompute_activations(dense_project, tmp_path):  # noqa: F811
    recipe = contender(
        dense_project.load(CHOSEN, "training.max_steps=1", "training.gradient_checkpointing=true"), "single_task"
    )
    results, prepared = train_recipe(recipe, tmp_path / "run")
    assert results.training.steps == 1
    assert all(stage.gradient_checkpointing for stage in prepared.model.encoder[1].encoder.layers[0].blocks)


# --- MTLoRA+


def test_mtlora_plus_is_mtlora_with_low_rank_patch_merging(dense_project):  # noqa: F811
    by_name, by_option = (
        {key: p.shape for key, p in model_of(dense_project, method).named_parameters() if p.requires_grad}
        for method in ("mtlora_plus", "mtlora[plus=true]")
    )
    assert by_name == by_option
    plain = {key for key, p in model_of(dense_project, "mtlora").named_parameters() if p.requires_grad}
    assert any("reduction" in key for key in plain)
    assert by_name.keys() != plain
    with pytest.raises(ConfigError, match="method 'mtlora_plus' has no option 'plus'"):
        model_of(dense_project, "mtlora_plus[plus=false]")


# --- variants


def test_a_variant_is_a_method_with_options_of_its_own(dense_project):  # noqa: F811
    recipe = dense_project.load("method.scale=3.0")
    made = contender(recipe, "mtlora[task_r=8, mode=addition]")
    assert made.method.name == "mtlora"
    assert made.method.options == {**recipe.method.options, "task_r": 8, "mode": "addition"}
    assert contender(recipe, "lora[r=2]").method.options == {"r": 2, "lora_alpha": 12.0}
    assert title_of("mtlora[task_r=8,mode=addition]", "dense") == "MTLoRA, task_r 8, mode addition"
    assert names_of("lora, mtlora[task_r=8,r=2],bitfit") == ["lora", "mtlora[task_r=8,r=2]", "bitfit"]


@pytest.mark.parametrize(
    "name", ["mtlora[", "mtlora]", "mtlora[]", "mtlora[r]", "mtlora[r=]", "mtlora[r=1,r=2]", "mtlora[r=1]x", "[r=1]"]
)
def test_what_is_no_variant(dense_project, name):  # noqa: F811
    with pytest.raises(ConfigError, match="is no variant of a method; write METHOD"):
        contender(dense_project.load(), name)


@pytest.mark.parametrize(
    ("methods", "search", "says"),
    [
        (["mtlora[rank=2]"], [], "method 'mtlora' has no option 'rank'"),
        (["mtlroa[r=2]"], [], "unknown method 'mtlroa'"),
        (["mtlora", "mtlora[r=2]"], ["r=2,4"], "has a fixed value of method.r, which cannot be searched too"),
        (["mtlora", "mtlora[r=2]"], ["mtlora[r=2]:lr=1e-3,1e-2"], "the numbers of trials differ"),
    ],
)
def test_wrong_variants_are_said_before_anything_is_run(dense_project, tmp_path, methods, search, says):  # noqa: F811
    with pytest.raises(ConfigError) as caught:
        compare_methods(dense_project.load(), tmp_path / "out", methods, [0], search=search)
    assert says in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_variants_are_compared(dense_project, tmp_path):  # noqa: F811
    recipe = dense_project.load("training.max_steps=1", "tasks.include=[depth]")
    methods = ["mtlora", "mtlora[task_r=1]", "mtlora[r=4]"]
    results = compare_methods(recipe, tmp_path / "out", methods, [0], baseline="mtlora")
    assert [method.name for method in results.methods] == methods
    main, fewer, same = results.methods
    assert fewer.parameters.groups["per_task"] * 2 == main.parameters.groups["per_task"]
    assert same.runs == main.runs  # the same recipe is one cell, whatever it is called
    assert same.difference.mean == 0
    for method in results.methods:
        assert method.step_seconds == [RunResults.read(tmp_path / "out" / run / "results.json").training.step_seconds
                                       for run in method.runs]  # fmt: skip
        assert 0 < method.step_seconds[0] <= method.seconds[0]


# --- scenes are rendered once


def test_scenes_are_kept_until_the_memory_is_full():
    wanted = ("depth", "semseg")
    whole = render_scene(5, (16, 16))
    one = whole.image.nbytes + sum(whole.labels[name].nbytes for name in wanted)
    memory = _Memory(2 * one)
    scenes = [memory.scene(seed, (16, 16), wanted) for seed in (5, 6, 7)]
    again = [memory.scene(seed, (16, 16), wanted) for seed in (5, 6, 7)]
    assert [a is b for a, b in zip(scenes, again, strict=True)] == [True, True, False]
    for a, b in zip(scenes, again, strict=True):
        assert (a.image == b.image).all()
        assert sorted(a.labels) == sorted(wanted)
    assert memory.scene(5, (24, 16), wanted).image.shape == (24, 16, 3)
    assert sorted(memory.scene(5, (16, 16), ("depth",)).labels) == ["depth"]
    with pytest.raises(ValueError, match="read-only"):
        scenes[0].image[:] = 0
