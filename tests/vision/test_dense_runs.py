"""Runs on images that have all tasks: the loss of a step, resuming, what is decayed, scores, comparisons."""

import os
import shutil
import signal

import numpy as np
import pytest
import torch

from helpers_dense import DENSE_TASKS, IMAGES, dense_project  # noqa: F401
from helpers_runs import AtStep, assert_same_state, log_of
from tasklora.errors import CheckpointError, ConfigError, NonFiniteLossError, UnsupportedError
from tasklora.evaluation import (
    CellResults,
    RunResults,
    ScoredImages,
    SplitScores,
    check_comparable,
    read_predictions,
    write_image_statistics,
)
from tasklora.evaluation.dense import unit_score
from tasklora.tasks import read_safetensors
from tasklora.training import (
    InterruptedRun,
    RunDirectory,
    compare_methods,
    count_recipe_parameters,
    load_recipe,
    train_recipe,
)
from tasklora.training.contenders import contender
from tasklora.training.dense_data import Draw, ImageSampler
from tasklora.training.search import parse_grid
from tasklora.vision.losses import dense_loss, step_counts
from tasklora.vision.metrics import metric_values
from tasklora.vision.saved_model import load_dense_model
from tasklora.vision.spec import DenseTaskSpec

LAMBDAS = {"semseg": 1.0, "saliency": 5.0, "normals": 10.0, "edges": 50.0, "depth": 1.0}
DROPOUT = "method.lora_dropout=0.1"  # with stochastic depth: a resumed run must have the right random numbers too


@pytest.fixture(scope="module")
def whole(dense_project, tmp_path_factory):  # noqa: F811
    """Return an uninterrupted run of two epochs (4 steps) with its results."""
    path = tmp_path_factory.mktemp("dense") / "run"
    return path, train_recipe(dense_project.load(DROPOUT), path, score_untrained=True)[0]


def weights_of(directory):
    files = directory.glob("*.safetensors")
    return {f"{file.name}/{key}": value for file in files for key, value in read_safetensors(file).items()}


# --- recipes


def test_a_recipe_says_its_shape(dense_project):  # noqa: F811
    recipe = dense_project.load("model.image_size=[32, 64]", "tasks.options={depth: {loss_weight: 3}}")
    assert (recipe.shape, recipe.model.size, list(recipe.task_specs())) == ("dense", (32, 64), DENSE_TASKS)
    assert recipe.loss_weights() == {**LAMBDAS, "depth": 3.0}


def test_the_resolved_recipe_reads_as_the_same_recipe(dense_project, tmp_path):  # noqa: F811
    recipe = dense_project.load("training.augmentation=null", "training.workers=2", "tasks.include=[depth, edges]")
    (tmp_path / "resolved.yaml").write_text(recipe.to_yaml())
    assert load_recipe(tmp_path / "resolved.yaml") == recipe


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("model.image_siez=3", "unknown key 'model.image_siez'. Did you mean 'image_size'?"),
        ("training.augmentation.rotaton=3", "unknown key 'training.augmentation.rotaton'. Did you mean 'rotation'?"),
        ("training.mixing={}", "unknown key 'training.mixing'"),
        ("tasks.options={dept: {}}", "names 'dept', which is no task of this recipe. Did you mean 'depth'"),
        ("tasks.include=[deph]", "has no task 'deph'. Did you mean 'depth'?"),
        ("model.image_size=0", "'model.image_size"),
        ("model.decoder=segfromer", "'model.decoder'"),
        ("shape=dens", "unknown shape 'dens'. Did you mean 'dense'?"),
        ("shape=text", "has dense tasks (maps of images), the recipe is for rows of text. Put `shape: dense`"),
        ("tasks.suite=glue", "suite 'glue' has tasks on rows of text, the recipe says `shape: dense`"),
        ("tasks.suite=pascal_contxt", "unknown suite 'pascal_contxt'. Did you mean 'pascal_context'?"),
    ],
)
def test_wrong_recipes(dense_project, override, says):  # noqa: F811
    with pytest.raises(ConfigError) as caught:
        dense_project.load(override)
    assert says in str(caught.value)


def test_parameters_are_counted_without_weights(dense_project, whole, tmp_path):  # noqa: F811
    folder = shutil.copytree(dense_project.base, tmp_path / "base")
    (folder / "model.safetensors").unlink()
    counts = count_recipe_parameters(dense_project.load(f"model.name={folder}"))
    assert counts == whole[1].parameters
    assert min(counts.groups.values()) > 0  # shared, of single tasks, decoders, and what MTLoRA trains in full


# --- the loss of a step


def test_images_are_drawn_and_varied_by_seed_and_epoch_alone(dense_project, tmp_path):  # noqa: F811
    sampler = ImageSampler(8, seed=3)
    sampler.set_epoch(1)
    draws = list(sampler)
    assert list(sampler) == draws
    assert sorted(draw.image for draw in draws) == list(range(8))
    sampler.set_epoch(2)
    assert [draw.image for draw in sampler] != [draw.image for draw in draws]
    images = dense_project.trainer(tmp_path).train_dataset
    again, other = images[draws[0]], images[Draw(draws[0].image, 2, 0)]
    assert np.array_equal(images[draws[0]].image, again.image)
    assert not np.array_equal(other.image, again.image)


@pytest.fixture
def trainer_and_batches(dense_project, tmp_path):  # noqa: F811
    """Return a trainer, its decoders in evaluation mode (batch norms see a batch), and a batch whole and in halves."""
    trainer = dense_project.trainer(tmp_path, "training.gradient_accumulation_steps=2", "model.drop_path=0.0")
    samples = [trainer.train_dataset[draw] for draw in list(trainer._get_train_sampler())[:4]]
    samples[0].labels["normals"][:] = 255.0  # nothing of one task in one image
    batches = [trainer.data_collator(part) for part in (samples, samples[:2], samples[2:])]
    return trainer, batches[0], batches[1:]


def gradients(trainer, batches):
    taken, counts = trainer.get_batch_samples(iter(batches), len(batches), torch.device("cpu"))
    trainer.model.eval()
    trainer.model.zero_grad()
    loss = 0.0
    for batch in taken:
        part = trainer.compute_loss(trainer.model, batch, num_items_in_batch=counts)
        part.backward()
        loss += part.item()
    return loss, {name: p.grad.clone() for name, p in trainer.model.named_parameters() if p.grad is not None}


def test_a_batch_of_4_is_2_times_2_accumulated(trainer_and_batches):
    trainer, whole_batch, halves = trainer_and_batches
    loss, grads = gradients(trainer, [whole_batch])
    sums, counts = trainer._loss_sums.clone(), trainer._loss_counts.clone()
    trainer._loss_sums.zero_(), trainer._loss_counts.zero_()
    loss_of_halves, grads_of_halves = gradients(trainer, halves)
    assert loss_of_halves == pytest.approx(loss, rel=1e-5)
    assert grads_of_halves.keys() == grads.keys()
    for name, grad in grads.items():
        torch.testing.assert_close(grads_of_halves[name], grad, rtol=1e-3, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}")
    torch.testing.assert_close(trainer._loss_sums / trainer._loss_counts, sums / counts)  # what the log shows


def test_the_loss_of_a_step_is_the_weighted_sum(trainer_and_batches):
    trainer, batch, _ = trainer_and_batches
    loss, _ = gradients(trainer, [batch])
    with torch.no_grad():
        outputs = trainer.model(batch["pixel_values"])
    expected = {
        name: dense_loss(spec, outputs[name], batch["labels"][name], step_counts(spec, batch["labels"][name])).item()
        for name, spec in trainer.about.tasks.items()
    }
    assert loss == pytest.approx(sum(LAMBDAS[name] * value for name, value in expected.items()), rel=1e-5)
    assert trainer._loss_sums.tolist() == pytest.approx(list(expected.values()), rel=1e-5)


def test_norms_biases_and_position_tables_take_no_decay(dense_project, tmp_path):  # noqa: F811
    trainer = dense_project.trainer(tmp_path)
    decayed = set(trainer.get_decay_parameter_names(trainer.model))
    trained = {name: p for name, p in trainer.model.named_parameters() if p.requires_grad}
    for name, parameter in trained.items():
        is_table = "relative_position_bias" in name
        assert (name in decayed) == (parameter.dim() > 1 and not is_table), name
    assert any("relative_position_bias" in name for name in trained)
    assert any("task_updates" in name for name in decayed & trained.keys())


# --- a run


def test_a_run_says_what_a_run_on_text_says(whole):
    path, results = whole
    assert RunResults.read(path / "results.json") == results
    assert (results.tasks, results.training.rows_per_task) == (DENSE_TASKS, dict.fromkeys(DENSE_TASKS, IMAGES["train"]))
    scores = results.scores["validation"]
    assert {name: task.rows for name, task in scores.tasks.items()} == dict.fromkeys(DENSE_TASKS, IMAGES["validation"])
    assert scores.tasks["depth"].score == -scores.tasks["depth"].metrics["rmse"]
    assert results.untrained["validation"] != scores
    logged = [record for record in log_of(path) if "loss" in record]
    assert len(logged) == 4
    for record in logged:
        weighted = sum(LAMBDAS[name] * record[f"loss/{name}"] for name in DENSE_TASKS)
        assert record["loss"] == pytest.approx(weighted, rel=1e-4)


def test_the_average_takes_errors_on_the_scale_of_fractions(whole):
    tasks = whole[1].scores["validation"].tasks
    parts = [tasks[name].score for name in ("semseg", "saliency", "edges")]
    parts += [1 - tasks["normals"].metrics["mean_angle"] / 90, 1 / (1 + tasks["depth"].metrics["rmse"])]
    assert whole[1].scores["validation"].average == pytest.approx(np.mean(parts))
    spec = DenseTaskSpec(kind="normals", source={})
    assert unit_score(spec, np.array([0.0, -90.0])).tolist() == [1.0, 0.0]


def test_the_statistics_of_the_images_give_the_scores(whole):
    path, results = whole
    rows = read_predictions(path / "predictions.jsonl")
    _, about, _ = load_dense_model(path / "best")
    assert list(rows) == DENSE_TASKS
    for name, scored in rows.items():
        assert isinstance(scored, ScoredImages)
        assert scored.names == [f"validation-{number:06d}" for number in range(4)]
        values = metric_values(about.tasks[name], scored.statistics.sum(axis=0))
        expected = results.scores["validation"].tasks[name].metrics
        assert {metric: float(value) for metric, value in values.items()} == pytest.approx(expected, rel=1e-6)


def test_statistics_outlive_their_file_exactly(tmp_path):
    images = ScoredImages(["a", "b\u2028c"], ["0", "1"], np.array([[1.0, 1 / 3], [2e9, 0.1]]), np.array([0.5, np.nan]))
    write_image_statistics(tmp_path / "p.jsonl", {"t": images})
    read = read_predictions(tmp_path / "p.jsonl")["t"]
    assert (read.names, read.digests) == (images.names, images.digests)
    assert np.array_equal(read.statistics, images.statistics)
    assert np.array_equal(read.losses, images.losses, equal_nan=True)


# --- interrupts


def ctrl_c(**_):
    os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.parametrize("step", [1, 2])  # in the middle of an epoch, and at its end
def test_a_resumed_run_equals_an_uninterrupted_one(dense_project, whole, tmp_path, step):  # noqa: F811
    run = tmp_path / "run"
    with pytest.raises(InterruptedRun, match=f"interrupted at step {step}; a checkpoint is kept"):
        train_recipe(dense_project.load(DROPOUT), run, callbacks=[AtStep(step, ctrl_c)])
    assert RunDirectory(run).latest_checkpoint().name == f"checkpoint-{step}"
    results, _ = train_recipe(dense_project.load(), run, resume=True)
    for part in ("final", "best"):
        assert_same_state(weights_of(run / part), weights_of(whole[0] / part))
    assert results.scores == whole[1].scores


def test_worker_processes_change_nothing(dense_project, whole, tmp_path):  # noqa: F811
    train_recipe(dense_project.load(DROPOUT, "training.workers=1"), tmp_path / "run")
    assert_same_state(weights_of(tmp_path / "run" / "final"), weights_of(whole[0] / "final"))


def test_a_group_of_processes_is_refused(dense_project, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UnsupportedError, match="a run on images is made by one process, but the launcher started 2"):
        train_recipe(dense_project.load(), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_run_whose_images_changed_is_not_resumed(dense_project, tmp_path):  # noqa: F811
    run = tmp_path / "run"
    suite = tmp_path / "suite.yaml"
    shutil.copy(dense_project.suite, suite)
    with pytest.raises(InterruptedRun):
        train_recipe(dense_project.load(f"tasks.suite={suite}"), run, callbacks=[AtStep(1, ctrl_c)])
    suite.write_text(suite.read_text().replace("train: 8", "train: 9"))
    with pytest.raises(CheckpointError, match="the train rows of images are no longer those"):
        train_recipe(dense_project.load(), run, resume=True)


@pytest.mark.parametrize("step", [1, 2])
def test_a_loss_that_is_not_finite_names_its_task(dense_project, tmp_path, step):  # noqa: F811
    def spoil(model, **_):
        with torch.no_grad():
            for parameter in model.decoders.heads["normals"].parameters():
                parameter.fill_(float("nan"))

    with pytest.raises(NonFiniteLossError) as caught:  # in a step, and before a checkpoint is written
        train_recipe(dense_project.load(), tmp_path / "run", callbacks=[AtStep(step, spoil)])
    assert ("on rows of task(s) normals" if step == 1 else "after step 2: task 'normals'") in str(caught.value)
    assert list((tmp_path / "run").glob("checkpoints/*")) == []


def test_activation_checkpointing_changes_nothing(dense_project, whole, tmp_path):  # noqa: F811
    train_recipe(dense_project.load(DROPOUT, "training.gradient_checkpointing=true"), tmp_path / "run")
    mine, theirs = weights_of(tmp_path / "run" / "final"), weights_of(whole[0] / "final")
    for name, value in theirs.items():
        torch.testing.assert_close(mine[name], value, rtol=1e-4, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize(
    ("method", "precision", "tolerance"),
    [
        ("per_task_lora", "float32", 0.0),
        ("bitfit", "float32", 0.0),
        ("single_task", "float32", 0.0),
        ("mtlora_plus", "float32", 0.0),
        ("lora", "bfloat16", 0.1),
    ],  # fmt: skip,
)
def test_every_kind_of_method_trains_and_loads(dense_project, tmp_path, method, precision, tolerance):  # noqa: F811
    recipe = dense_project.load(
        f"method={{name: {method}}}", "training.max_steps=1", f"training.precision={precision}",
        "tasks.include=[normals, depth]",
    )  # fmt: skip
    results, prepared = train_recipe(recipe, tmp_path / "run")
    model, _, _ = load_dense_model(tmp_path / "run" / "best")
    pixels = torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        expected, found = prepared.model.eval()(pixels), model(pixels)
    for name in ("normals", "depth"):  # accelerate leaves autocast on in the model that was trained with it
        torch.testing.assert_close(found[name], expected[name], rtol=tolerance, atol=tolerance)
    assert results.parameters.trainable < results.parameters.total


# --- comparisons


def test_compare_two_methods_with_two_seeds(dense_project, tmp_path):  # noqa: F811
    recipe = dense_project.load("training.max_steps=1", "tasks.include=[semseg, depth]")
    arguments = (recipe, tmp_path / "out", ["mtlora", "decoders_only"], [0, 1])
    results = compare_methods(*arguments, baseline="decoders_only")
    ours, base = results.method("mtlora"), results.method("decoders_only")
    assert (ours.title, base.title, results.seeds) == ("MTLoRA", "decoders only", [0, 1])
    for name in ("semseg", "depth"):
        assert ours.differences[name].mean == pytest.approx(ours.tasks[name].mean - base.tasks[name].mean)
        assert ours.tasks[name].low <= ours.tasks[name].mean <= ours.tasks[name].high
    # depth is an error: less of it is a gain
    counted = [name for name in ("semseg", "depth") if name not in results.guarded]
    gains = [(ours.tasks[n].mean - base.tasks[n].mean) / abs(base.tasks[n].mean) for n in counted]
    assert ours.delta_m.mean == pytest.approx(100 * np.mean(gains))
    same, other = (RunDirectory(tmp_path / "out" / run).manifest()["training_rows"] for run in ours.runs)
    assert same == other  # a suite with a tune split of its own: every seed has the same images
    before = [(tmp_path / "out" / run / "results.json").stat().st_mtime_ns for run in ours.runs]
    assert compare_methods(*arguments, baseline="decoders_only").methods == results.methods
    assert before == [(tmp_path / "out" / run / "results.json").stat().st_mtime_ns for run in ours.runs]


@pytest.mark.parametrize(
    ("method", "says"),
    [
        ("lora_matched", "'lora_matched' is for recipes on text"),
        ("mtlra", "unknown method 'mtlra'. Did you mean 'mtlora'?"),
        ("mtl_lora", "unknown method 'mtl_lora'."),
    ],
)
def test_what_cannot_be_compared(dense_project, method, says):  # noqa: F811
    with pytest.raises(ConfigError) as caught:
        contender(dense_project.load(), method)
    assert says in str(caught.value)


@pytest.mark.parametrize("method", ["lora", "per_task_lora"])
def test_lora_is_compared_at_the_rank_and_scale_of_mtlora(dense_project, method):  # noqa: F811
    made = contender(dense_project.load("method.scale=3.0"), method)
    assert made.method.options == {"r": 4, "lora_alpha": 12.0}
    with pytest.raises(ConfigError, match="has one rank and α for all stages"):
        contender(dense_project.load("method.r=[2, 4]"), method)


def test_searches_know_the_keys_of_dense_recipes(dense_project):  # noqa: F811
    recipe = type(dense_project.load())
    assert parse_grid("model.drop_path=0.1,0.2", ["mtlora"], recipe).key == "model.drop_path"
    with pytest.raises(ConfigError, match="is over 'head_dropout', which cannot be searched"):
        parse_grid("head_dropout=0.1", ["mtlora"], recipe)
    with pytest.raises(ConfigError, match="which cannot be searched"):
        parse_grid("training.workers=1,2", ["mtlora"], recipe)


def images_of(statistics, digest="0"):
    count = len(statistics)
    return ScoredImages([f"i{n}" for n in range(count)], [digest] * count, np.array(statistics, float), np.zeros(count))


def test_images_are_resampled_as_sums(whole):
    spec = DenseTaskSpec(kind="depth", source={})
    scored = images_of([[10, 40.0, 1.0], [10, 90.0, 1.0]])
    counts = np.array([[1, 1], [2, 0], [0, 2]])
    expected = [-np.sqrt(130 / 20), -2.0, -3.0]
    assert scored.resampled(spec, counts).tolist() == pytest.approx(expected)


def test_runs_on_other_labels_are_not_compared(whole):
    results = whole[1]
    cells = [CellResults(results, {"depth": images_of([[1, 1, 1]], digest)}) for digest in "01"]
    check_comparable([cells[0], cells[0]])
    with pytest.raises(CheckpointError, match="were scored on different rows of depth"):
        check_comparable(cells)


def test_a_task_without_any_label_is_undefined_by_name():
    from tasklora.evaluation import scores_of_images

    specs = {name: DenseTaskSpec(kind=name, source={}) for name in ("depth", "normals")}
    nothing = ScoredImages(["a"], ["0"], np.zeros((1, 5)), np.array([np.nan]))
    scores = scores_of_images(specs, {"depth": images_of([[1, 4.0, 1.0]]), "normals": nothing})
    assert (scores.undefined, scores.tasks["normals"].loss, scores.average) == (["normals"], 0.0, pytest.approx(1 / 3))
    assert SplitScores.model_validate_json(scores.model_dump_json()) == scores
