"""Recipes: every wrong key, value, override, task and method is refused with the nearest valid name."""

import pytest
import yaml

from tasklora.errors import ConfigError, DataError, TaskLoraError
from tasklora.tasks import read_yaml
from tasklora.training import count_recipe_parameters, load_recipe, prepare
from tasklora.training.recipe import TrainingSection


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("modle={}", "unknown key 'modle'. Did you mean 'model'?"),
        ("model.poling=mean", "unknown key 'model.poling'. Did you mean 'pooling'?"),
        ("tasks.siute=glue", "unknown key 'tasks.siute'. Did you mean 'suite'?"),
        (
            "tasks.options.mood.loss_wieght=2",
            "unknown key 'tasks.options.mood.loss_wieght'. Did you mean 'loss_weight'?",
        ),
        ("training.epoch=2", "unknown key 'training.epoch'. Did you mean 'epochs'?"),
        ("training.mixing.strategi=equal", "unknown key 'training.mixing.strategi'. Did you mean 'strategy'?"),
        ("output.dir=x", "unknown key 'output.dir'."),
        ("training.lr=1", "Valid keys: epochs, max_steps, batch_size"),
    ],
)
def test_unknown_keys(project, override, says):
    with pytest.raises(ConfigError) as caught:
        project.load(override)
    assert says in str(caught.value)
    assert str(project.recipe) in str(caught.value)


@pytest.mark.parametrize(
    ("override", "key", "given"),
    [
        ("training.epochs=many", "training.epochs", "'many'"),
        ("training.epochs=0", "training.epochs", "0"),
        ("training.batch_size=0", "training.batch_size", "0"),
        ("training.batch_size=2.5", "training.batch_size", "2.5"),
        ("training.learning_rate=-1", "training.learning_rate", "-1"),
        ("training.scheduler=lineal", "training.scheduler", "'lineal'"),
        ("training.precision=float8", "training.precision", "'float8'"),
        ("training.evaluate_every=never", "training.evaluate_every", "'never'"),
        ("training.mixing={strategy: random}", "training.mixing.strategy", "'random'"),
        ("training.mixing={strategy: temperature, temperature: 0}", "training.mixing.temperature", "0"),
        ("model.pooling=max", "model.pooling", "'max'"),
        ("model.max_length=-1", "model.max_length", "-1"),
        ("model.head_dropout=1.0", "model.head_dropout", "1.0"),
        ("model.trust_remote_code=perhaps", "model.trust_remote_code", "'perhaps'"),
        ("tasks.limits={train: 0}", "tasks.limits.train", "0"),
        ("tasks.limits={trian: 5}", "tasks.limits.trian", "'trian'"),
        ("tasks.include=mood", "tasks.include", "'mood'"),
        ("tasks.options={mood: {loss_weight: 0}}", "tasks.options.mood.loss_weight", "0"),
        ("tasks.report_on=train", "tasks.report_on", "'train'"),
        ("tasks=glue", "tasks", "'glue'"),
    ],
)
def test_wrong_values(project, override, key, given):
    with pytest.raises(ConfigError) as caught:
        project.load(override)
    assert f"'{key}" in str(caught.value)
    assert f"(got {given})" in str(caught.value)


def test_capped_mixing_needs_its_cap(project):
    with pytest.raises(ConfigError, match="mixing strategy 'capped' needs `cap`"):
        project.load("training.mixing={strategy: capped}")


ALL = "{mood: 1, answer: 2, heat: 0.5}"


@pytest.mark.parametrize(
    ("mixing", "says"),
    [
        ("{strategy: weights}", "mixing strategy 'weights' needs `weights`"),
        ("{strategy: weights, weights: {}}", "mixing strategy 'weights' needs `weights`"),
        ("{strategy: weights, weights: {mood: 1}}", "training.mixing.weights has none for answer, heat: give every"),
        (f"{{strategy: weights, weights: {ALL[:-1]}, haet: 1}}}}", "names 'haet', .* Did you mean 'heat'"),
        ("{strategy: weights, weights: {mood: 0, answer: 1, heat: 1}}", "weights.mood.*greater than 0"),
        ("{strategy: weights, weights: {mood: -1, answer: 1, heat: 1}}", "weights.mood.*greater than 0"),
        ("{strategy: weights, weights: {mood: .inf, answer: 1, heat: 1}}", "weights.mood.*finite"),
        ("{strategy: weights, weights: {mood: .nan, answer: 1, heat: 1}}", "weights.mood"),
        (f"{{strategy: equal, weights: {ALL}}}", "`weights` is of strategy 'weights', but the strategy is 'equal'"),
        ("{strategy: equal, cap: 3}", "`cap` is of strategy 'capped', but the strategy is 'equal'"),
        ("{epoch_rows: 0}", "epoch_rows"),
        ("{schedule: {temperature: 5}}", "'training.mixing.schedule.strategy' is missing"),
        ("{schedule: {strategy: equal, shape: step}}", "`at`.*needed there"),
        ("{schedule: {strategy: equal, at: 0.5}}", "`at`.* the shape is 'annealed'"),
        ("{schedule: {strategy: equal, shape: cosine}}", "training.mixing.schedule.shape"),
        ("{schedule: {strategy: capped}}", "mixing strategy 'capped' needs `cap`"),
        ("{schedule: {strategy: equal, untill: 1}}", "unknown key 'training.mixing.schedule.untill'"),
        ("{schedule: {strategy: weights, weights: {mood: 1}}}", "training.mixing.schedule.weights has none for answer"),
    ],
)
def test_mixings_that_cannot_be(project, mixing, says):
    with pytest.raises(ConfigError, match=says):
        project.load(f"training.mixing={mixing}")


def test_weights_are_those_of_the_chosen_tasks(project):
    chosen = ("tasks.include=[heat, mood]", "training.mixing={strategy: weights, weights: {mood: 1, heat: 3}}")
    assert project.load(*chosen).training.mixing.weights == {"mood": 1, "heat": 3}
    with pytest.raises(ConfigError, match="weights has none for answer"):
        project.load(*chosen[1:])


@pytest.mark.parametrize(
    ("options", "grouped"),
    [
        ({}, True),
        ({"group_by_length": False}, False),
        ({"balancing": {"method": "mean"}}, False),
        ({"balancing": {"method": "mean"}, "group_by_length": True}, True),
        ({"packing": True}, False),
        ({"packing": True, "group_by_length": True}, True),
    ],
)
def test_rows_of_similar_length_share_batches_unless_steps_need_them_mixed(project, options, grouped):
    recipe = project.load()
    assert recipe.model_copy(update={"training": TrainingSection(**options)}).groups_by_length() is grouped


def test_a_missing_section_is_named(tmp_path):
    (tmp_path / "r.yaml").write_text("method: {r: 8}")
    with pytest.raises(ConfigError) as caught:
        load_recipe(tmp_path / "r.yaml")
    assert all(f"'{key}' is missing" in str(caught.value) for key in ("model", "tasks", "method.name"))


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("training.epochs", "'training.epochs' is no override; write section.key=value"),
        ("=3", "'=3' is no override"),
        ("training.epochs.more=1", "'training.epochs.more' leads into a value that is no section"),
        ("training.epochs=[1", "the value is not valid YAML"),
    ],
)
def test_wrong_overrides(project, override, says):
    with pytest.raises(ConfigError) as caught:
        project.load(override)
    assert says in str(caught.value)


def test_overrides_are_yaml(project):
    recipe = project.load("training.epochs=7", "tasks.limits={train: 5}", "tasks.include=[heat]", "method.r=2")
    assert (recipe.training.epochs, recipe.tasks.limits, list(recipe.task_specs())) == (7, {"train": 5}, ["heat"])
    assert recipe.method.options["r"] == 2


@pytest.mark.parametrize(
    ("content", "error", "says"),
    [
        (None, DataError, "no file"),
        ("", ConfigError, " is empty: write a mapping of keys to values"),
        ("# nothing but a comment\n", ConfigError, " is empty: write a mapping of keys to values"),
        ("- 1", ConfigError, "expected a mapping of keys to values"),
        ("model: {", ConfigError, "is not valid YAML"),
        (b"\xff\xfe\x00", ConfigError, "is not valid YAML"),
    ],
)
@pytest.mark.parametrize("overrides", [[], ["training.epochs=1"]])
def test_files_that_are_no_recipe(tmp_path, content, error, says, overrides):
    path = tmp_path / "r.yaml"
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(error) as caught:
        load_recipe(path, overrides)
    assert says in str(caught.value)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (
            "training:\n  epochs: 3\n  seed: 0\n  epochs: 4\n",
            "'training.epochs' is given twice, in lines 2 and 4",
        ),
        ("model: {name: a}\nmodel: {name: b}\n", "'model' is given twice, in lines 1 and 2"),
        ("tasks: {define: [{label: a, 'label': b}]}\n", "'tasks.define.label' is given twice, in line 1."),
    ],
)
def test_a_key_that_is_given_twice_is_refused(tmp_path, content, says):
    (tmp_path / "r.yaml").write_text(content)
    with pytest.raises(ConfigError, match=r"r\.yaml: ") as caught:
        load_recipe(tmp_path / "r.yaml")
    assert says in str(caught.value)


def test_a_key_that_is_given_twice_in_an_override_is_refused(project):
    with pytest.raises(ConfigError, match="'name' is given twice, in line 1"):
        project.load("method={name: lora, name: mtl_lora}")


def test_anchors_and_equal_keys_of_different_mappings_are_read(tmp_path):
    (tmp_path / "r.yaml").write_text("a: &it {x: 1, y: 2}\nb: *it\nc:\n  <<: *it\n  x: 3\n")
    assert read_yaml(tmp_path / "r.yaml") == {"a": {"x": 1, "y": 2}, "b": {"x": 1, "y": 2}, "c": {"x": 3, "y": 2}}


@pytest.mark.parametrize(
    ("override", "says"),
    [
        (
            "tasks.define={own: {kind: classification, streaming: {rows: many}}}",
            "'tasks.define.own.streaming.rows': Input should be a valid integer or 'unknown' (got 'many')",
        ),
        (
            "tasks.define={own: {kind: classification, streaming: {rows: 0}}}",
            "'tasks.define.own.streaming.rows': Input should be greater than 0 or 'unknown' (got 0)",
        ),
        ("training.evaluate_every=never", "'training.evaluate_every': Input should be 'epoch' or a valid integer"),
    ],
)
def test_of_a_number_or_a_word_both_are_said_once(project, override, says):
    with pytest.raises(ConfigError) as caught:
        project.load(override)
    assert says in str(caught.value)
    assert "constrained" not in str(caught.value)
    assert "literal[" not in str(caught.value)


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("tasks.include=[mood, heet]", "has no task 'heet'. Did you mean 'heat'?"),
        ("tasks.include=[mood, mood]", "task 'mood' is listed twice"),
        ("tasks.include=[]", "tasks.include names no task"),
        (
            "tasks.options={moot: {loss_weight: 2}}",
            "tasks.options names 'moot', which is no task of this recipe. Did you",
        ),
        (
            "tasks.options={heat: {class_weights: balanced}}",
            "class_weights apply to classification, multi_label, token",
        ),
        ("tasks.suite=glu", "unknown suite 'glu'. Did you mean 'glue'?"),
    ],
)
def test_wrong_tasks(project, override, says):
    with pytest.raises(ConfigError) as caught:
        project.load(override)
    assert says in str(caught.value)


@pytest.mark.parametrize(
    ("method", "says"),
    [
        ("{name: mtl_lorra}", "unknown method 'mtl_lorra'. Did you mean 'mtl_lora'?"),
        ("{name: loora}", "unknown method 'loora'. Did you mean 'lora'?"),
        ("{name: mtl_lora, temprature: 1}", "has no option 'temprature'. Did you mean 'temperature'?"),
        ("{name: per_task_lora, rank: 1}", "has no option 'rank'"),
        ("{name: lora, lora_alfa: 1}", "has no option 'lora_alfa'. Did you mean 'lora_alpha'?"),
        ("{name: mtl_lora, tasks: [a]}", "method.tasks"),
        ("{name: mtl_lora, r: 0}", "r must be a positive integer, got 0"),
        ("{name: mtl_lora, r: eight}", "r must be a positive integer, got 'eight'"),
        ("{name: mtl_lora, temperature: 0}", "temperature must be positive, got 0"),
        ("{name: mtl_lora, task_matrix: ful}", "task_matrix must be one of"),
        ("{name: lora, r: 0}", "r"),
        ("{name: mtl_lora, target_modules: [qwery]}", "qwery"),
        ("{name: lora, target_modules: [qwery]}", "qwery"),
    ],
)
@pytest.mark.parametrize("use", [prepare, count_recipe_parameters])
def test_wrong_methods(project, method, says, use):
    recipe = project.load(f"method={method}")
    with pytest.raises(TaskLoraError) as caught:
        use(recipe)
    assert says in str(caught.value)


def test_the_resolved_recipe_reads_as_the_same_recipe(project, tmp_path):
    recipe = project.load("tasks.options={answer: {class_weights: none, loss_weight: 3}}", "training.evaluate_every=5")
    (tmp_path / "resolved.yaml").write_text(recipe.to_yaml())
    assert load_recipe(tmp_path / "resolved.yaml") == recipe
    assert yaml.safe_load(recipe.to_yaml())["training"]["weight_decay"] == 0.0  # defaults are written out


def test_options_change_the_tasks(project):
    recipe = project.load(
        "tasks.options={answer: {class_weights: none, loss_weight: 3}, heat: {pair_encoding: separate}}"
    )
    assert recipe.task_specs()["answer"].class_weights == "none"
    assert recipe.loss_weights() == {"mood": 1.0, "answer": 3.0, "heat": 1.0}
    assert recipe.pair_encodings() == {"mood": "joint", "answer": "joint", "heat": "separate"}
