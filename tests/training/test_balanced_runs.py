"""Whole runs with balancing: cut steps, resumption, logs, refusals, dense tasks, comparisons.

What a step computes is in test_balancing.py.
"""

import os
import signal
from types import SimpleNamespace

import pytest
import torch

from helpers_balancing import CLOSE, NEEDED, balanced, expect_same, plain, step
from helpers_dense import dense_project  # noqa: F401
from helpers_runs import TASKS, AtStep, assert_same_state, log_of, mostly_slow, randomise, use_method
from tasklora.errors import CheckpointError, ConfigError
from tasklora.evaluation import RunResults
from tasklora.tasks import read_safetensors
from tasklora.training import InterruptedRun, compare_methods, train_recipe
from tasklora.training.balancer import STATE_FILE, own_draws, shared_parameters
from tasklora.training.balancing import BALANCING_METHODS, BalancingSection
from tasklora.training.contenders import contender, title_of

aggregation = pytest.importorskip("torchjd.aggregation", reason="TorchJD (tasklora[balancing]) is not installed")
SMALL = ("training.epochs=1", "tasks.limits={train: 12}")
STATEFUL = mostly_slow(["uw", "dwa", "famo", "gradvac", "nash_mtl"], "uw", "gradvac")


def ctrl_c(**_):
    os.kill(os.getpid(), signal.SIGINT)


def weights_of(directory):
    files = directory.glob("*.safetensors")
    return {f"{file.name}/{key}": value for file in files for key, value in read_safetensors(file).items()}


def use_balancing(name, **options):
    return f"training.balancing={ {'method': name, **NEEDED.get(name, {}), **options} }".replace("'", "")


@pytest.mark.parametrize("name", mostly_slow(BALANCING_METHODS, "uw", "famo", "pcgrad", "cagrad", "nash_mtl", "upgrad"))
def test_every_method_trains(project, tmp_path, name):
    trainer = project.trainer(tmp_path, use_balancing(name), "training.max_steps=3", "training.evaluate_every=99")
    before = {n: p.detach().clone() for n, p in trainer.model.named_parameters()}
    trainer.train()
    moved = {n for n, p in trainer.model.named_parameters() if not torch.equal(p, before[n])}
    assert moved == {n for n, p in trainer.model.named_parameters() if p.requires_grad}
    logs = [record for record in trainer.state.log_history if "loss" in record]
    assert all(0 < record["loss"] < 3 for record in logs)
    assert all(record["grad_norm"] > 0 for record in logs)


@pytest.mark.parametrize("name", mostly_slow(["uw", "famo", "gradvac"], "famo"))
def test_batch_8_equals_batch_2_accumulated_4_times(project, tmp_path, name):
    train_recipe(project.load(*SMALL, use_balancing(name), "training.batch_size=8"), tmp_path / "eight")
    accumulated = ("training.batch_size=2", "training.gradient_accumulation_steps=4")
    train_recipe(project.load(*SMALL, use_balancing(name), *accumulated), tmp_path / "accumulated")
    one, other = (weights_of(tmp_path / run / "final") for run in ("eight", "accumulated"))
    assert one.keys() == other.keys()
    for key, value in one.items():
        torch.testing.assert_close(other[key], value, rtol=1e-4, atol=1e-4, msg=lambda m, k=key: f"{k}: {m}")
    one, other = ([r for r in log_of(tmp_path / run) if "loss" in r] for run in ("eight", "accumulated"))
    for mine, theirs in zip(one, other, strict=True):
        keys = ["loss", *(key for key in theirs if key.startswith(("weight/", "cosine/", "loss/")))]
        assert [mine[key] for key in keys] == pytest.approx([theirs[key] for key in keys], rel=1e-3, abs=1e-3)


@pytest.mark.parametrize("name", STATEFUL)
def test_a_resumed_run_equals_an_uninterrupted_one(project, tmp_path, name):
    options = {"period": 2} if name == "dwa" else {}
    recipe = project.load(
        use_balancing(name, **options), "training.epochs=2", "training.batch_size=8", "tasks.limits={train: 12}",
        "model.head_dropout=0.3", "training.evaluate_every=3",
    )  # fmt: skip
    train_recipe(recipe, tmp_path / "whole")
    with pytest.raises(InterruptedRun):
        train_recipe(recipe, tmp_path / "run", callbacks=[AtStep(5, ctrl_c)])
    state = torch.load(tmp_path / "run" / "checkpoints" / "checkpoint-5" / STATE_FILE, weights_only=True)
    assert state
    train_recipe(recipe, tmp_path / "run", resume=True)
    assert_same_state(weights_of(tmp_path / "run" / "final"), weights_of(tmp_path / "whole" / "final"))
    logs = [
        {
            r["step"]: {k: v for k, v in r.items() if k.startswith(("weight/", "cosine/"))}
            for r in log_of(tmp_path / run)
            if "loss" in r  # the summary at the end has the last step's number too
        }
        for run in ("run", "whole")
    ]
    assert logs[0] == logs[1]


def test_what_a_resumed_run_logs_lies_where_its_losses_do(project, tmp_path):
    """A checkpoint is read on the CPU; any other device will do here, also one without numbers."""
    trainer = project.trainer(tmp_path, use_balancing("uw"), "training.max_steps=1", "training.logging_steps=9")
    trainer.train()
    trainer._log_state.load(tmp_path / "checkpoints" / "checkpoint-1")
    arguments = SimpleNamespace(device=torch.device("meta"))
    trainer._log_state.on_train_begin(arguments, trainer.state, trainer.control)
    noted = torch.ones(len(TASKS), device="meta")
    trainer.balancer.note("weight", noted, noted.bool())
    assert {each.device for pair in trainer.balancer.means.values() for each in pair} == {noted.device}


def test_a_checkpoint_without_the_state_is_refused(project, tmp_path):
    recipe = project.load(*SMALL, use_balancing("uw"), "training.batch_size=8")
    with pytest.raises(InterruptedRun):
        train_recipe(recipe, tmp_path / "run", callbacks=[AtStep(2, ctrl_c)])
    (tmp_path / "run" / "checkpoints" / "checkpoint-2" / STATE_FILE).unlink()
    with pytest.raises(CheckpointError, match=rf"has no {STATE_FILE}, the state of the run's balancing"):
        train_recipe(recipe, tmp_path / "run", resume=True)


def test_learned_numbers_are_trained_without_weight_decay_at_their_own_rate(project, tmp_path):
    for options, rate in (({}, 0.02), ({"lr": 0.1}, 0.1)):
        trainer = project.trainer(tmp_path, use_balancing("uw", **options), "training.weight_decay=0.1")
        trainer.create_optimizer()
        group = trainer.optimizer.param_groups[-1]
        assert [p.shape for p in group["params"]] == [(3,)]
        assert (group["lr"], group["weight_decay"]) == (rate, 0.0)
    assert len(project.trainer(tmp_path, use_balancing("famo")).create_optimizer().param_groups) == 2


def test_what_is_logged(project, tmp_path):
    still = "training.learning_rate=1.0e-30"
    train_recipe(project.load(*SMALL, still, "training.group_by_length=false"), tmp_path / "plain")
    train_recipe(project.load(*SMALL, still, use_balancing("pcgrad")), tmp_path / "pcgrad")
    train_recipe(project.load(*SMALL, still, use_balancing("sum"), "training.logging_steps=2"), tmp_path / "sum")
    logs = {run: [r for r in log_of(tmp_path / run) if "loss" in r] for run in ("plain", "pcgrad", "sum")}
    # the loss stays the family's own, whatever is balanced
    assert [r["loss"] for r in logs["pcgrad"]] == pytest.approx([r["loss"] for r in logs["plain"]], rel=1e-5)
    assert not any("weight/" in key for record in logs["plain"] for key in record)
    for record in logs["sum"]:
        assert {key: value for key, value in record.items() if key.startswith("weight/")} == {
            f"weight/{task}": 1.0 for task in TASKS if f"loss/{task}" in record
        }
    for record in logs["pcgrad"]:
        present = {task for task in TASKS if f"loss/{task}" in record}
        for key in ("weight", "cosine"):
            assert {task for task in TASKS if f"{key}/{task}" in record} == present
        assert all(-1 <= record[f"cosine/{task}"] <= 1 and record[f"weight/{task}"] >= 1 for task in present)


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        ((use_balancing("pcgrad"), use_method("heads_only")), "pcgrad has nothing to balance"),
        ((use_balancing("uw"), use_method("per_task_lora")), "uw has nothing to balance"),
        ((use_balancing("uw"), "tasks.include=[mood]"), "'mood' is the only one"),
    ],
)
def test_what_cannot_be_balanced_is_refused_before_anything_is_written(project, tmp_path, overrides, said):
    with pytest.raises(ConfigError, match=said):
        train_recipe(project.load(*overrides), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("options", "end"), [({"period": None}, "an epoch (8 steps)"), ({"period": 10}, "10 steps")])
def test_dwa_is_refused_where_it_would_never_weigh(project, tmp_path, options, end):
    recipe = project.load(use_balancing("dwa", **options).replace("None", "null"), "training.epochs=2")
    with pytest.raises(ConfigError) as caught:
        train_recipe(recipe, tmp_path / "run")
    assert f"each {end}, and this run ends within them, at step 16" in str(caught.value)


@pytest.mark.parametrize("name", ["uw", "pcgrad"])
def test_activation_checkpointing_changes_nothing(project, tmp_path, name):
    common = (*SMALL, use_balancing(name), "training.max_steps=3")
    train_recipe(project.load(*common), tmp_path / "plain")
    train_recipe(project.load(*common, "training.gradient_checkpointing=true"), tmp_path / "recomputed")
    one, other = (weights_of(tmp_path / run / "final") for run in ("plain", "recomputed"))
    for key, value in one.items():
        torch.testing.assert_close(other[key], value, rtol=1e-6, atol=1e-6)


# --- dense tasks


@pytest.fixture(scope="module")
def dense(dense_project, tmp_path_factory):  # noqa: F811
    trainer = dense_project.trainer(tmp_path_factory.mktemp("dense"))
    randomise(trainer.model, scale=0.05)
    return trainer


@pytest.fixture(scope="module")
def images(dense):
    return next(iter(dense.get_train_dataloader()))


def dense_step(trainer, batches):
    torch.manual_seed(3)  # DropPath and dropout
    statistics = {n: b.clone() for n, b in trainer.model.named_buffers() if "running" in n}
    gradients = step(trainer, batches)
    found = {n: b.clone() for n, b in trainer.model.named_buffers() if "running" in n}
    trainer.model.load_state_dict(statistics, strict=False)
    return gradients, found


def cut(batch, start, stop):
    labels = {task: maps[start:stop] for task, maps in batch["labels"].items()}
    return {**batch, "pixel_values": batch["pixel_values"][start:stop], "labels": labels}


def test_the_sum_of_dense_losses_is_the_familys_loss(dense, images):
    expect_same(dense_step(balanced(dense, "sum"), [images])[0], dense_step(plain(dense), [images])[0])


@pytest.mark.parametrize("name", ["pcgrad", "mgda", "graddrop"])
def test_a_step_on_dense_tasks_is_torchjds(dense, images, name):
    counts = dense.get_batch_samples(iter([images]), 1, torch.device("cpu"))[1]
    names = shared_parameters(dense.model)
    rows, own = [], {}
    for task in range(5):  # each task by a forward of its own
        torch.manual_seed(3)
        dense.model.train()
        value = dense.task_losses(dense.model, images, counts, note=False).values[task]
        dense.model.zero_grad()
        value.backward()
        found = {n: p.grad for n, p in dense.model.named_parameters()}
        rows.append(torch.cat([torch.zeros_like(p).flatten() if found[n] is None else found[n].flatten() for n, p in names.items()]))  # fmt: skip # noqa: E501
        for n, gradient in found.items():
            if gradient is not None and n not in names:
                own[n] = own.get(n, 0) + gradient
    rule = {"pcgrad": aggregation.PCGrad, "mgda": aggregation.MGDA, "graddrop": aggregation.GradDrop}[name]()
    balancer = balanced(dense, name).balancer
    with own_draws(torch.device("cpu"), balancer.seed):
        parts = rule(torch.stack(rows)).split([p.numel() for p in names.values()])
    given, _ = dense_step(dense, [images])
    for (n, p), part in zip(names.items(), parts, strict=True):
        if n in given:
            torch.testing.assert_close(given[n], part.view_as(p), rtol=1e-4, atol=1e-5, msg=lambda m, n=n: f"{n}: {m}")
        else:
            assert not part.any()
    for n, gradient in own.items():
        torch.testing.assert_close(given[n], gradient, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["geometric_mean", "famo"])
def test_a_look_at_the_losses_leaves_batch_norms_as_they_are(dense, images, name):
    parts = [cut(images, 0, 2), cut(images, 2, 4)]
    trainer = balanced(dense, name)
    torch.manual_seed(3)
    _, once = dense_step(plain(dense), parts)
    trainer = balanced(dense, name)
    _, looked = dense_step(trainer, parts)
    trainer.balancer.after_update()
    assert once
    for buffer, value in once.items():
        torch.testing.assert_close(looked[buffer], value, **CLOSE)


def test_dense_runs_are_balanced(dense_project, tmp_path):  # noqa: F811
    for name in ("uw", "pcgrad"):
        recipe = dense_project.load(use_balancing(name), "training.max_steps=2", "training.gradient_checkpointing=true")
        train_recipe(recipe, tmp_path / name)
        record = next(r for r in log_of(tmp_path / name) if "loss" in r)
        assert {key for key in record if key.startswith("weight/")} == {
            f"weight/{task}" for task in ("semseg", "saliency", "normals", "edges", "depth")
        }


@pytest.mark.parametrize("method", ["single_task", "per_task_lora", "decoders_only"])
def test_dense_methods_that_share_nothing_are_refused(dense_project, tmp_path, method):  # noqa: F811
    recipe = dense_project.load(f"method={{name: {method}}}", use_balancing("pcgrad"))
    with pytest.raises(ConfigError, match="pcgrad has nothing to balance"):
        train_recipe(recipe, tmp_path / "run")


# --- comparisons


def test_a_variant_of_a_method_may_be_balanced(project):
    made = contender(project.load(), "mtl_lora[balancing.method=cagrad,balancing.c=0.4,r=2]")
    assert made.training.balancing == BalancingSection(method="cagrad", c=0.4)
    assert made.method.options["r"] == 2
    assert title_of("mtl_lora[balancing.method=cagrad,balancing.c=0.4]") == "MTL-LoRA, balancing cagrad, c 0.4"
    given = project.load("training.balancing={method: cagrad, c: 0.4}")
    assert contender(given, "lora[balancing.c=0.2]").training.balancing.options["c"] == 0.2
    assert contender(given, "lora[balancing.method=pcgrad]").training.balancing.options == {}
    with pytest.raises(ConfigError, match="Did you mean 'pcgrad'"):
        contender(given, "lora[balancing.method=pcgrat]")


def test_balanced_variants_are_compared(project, tmp_path):
    recipe = project.load("training.max_steps=2", "training.evaluate_every=2")
    methods = ["mtl_lora", "mtl_lora[balancing.method=pcgrad]"]
    results = compare_methods(recipe, tmp_path / "out", methods, [0])
    assert [method.title for method in results.methods] == ["MTL-LoRA", "MTL-LoRA, balancing pcgrad"]
    scores = [RunResults.read(tmp_path / "out" / m.runs[0] / "results.json").scores for m in results.methods]
    assert scores[0] != scores[1]


def test_a_comparison_refuses_what_cannot_be_balanced_before_it_begins(project, tmp_path):
    with pytest.raises(ConfigError, match="pcgrad has nothing to balance"):
        compare_methods(project.load(use_balancing("pcgrad")), tmp_path / "out", ["mtl_lora", "heads_only"], [0])
    assert not (tmp_path / "out").exists()
