"""Searches: what the user writes becomes values; every method gets the same number of trials."""

import pytest

from tasklora.errors import ConfigError
from tasklora.training.search import SHORT_NAMES, Grid, check_same_effort, parse_grid, trials_of

METHODS = ["lora", "heads_only"]


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("lr=3e-4,1e-3,0.01", (0.0003, 0.001, 0.01)),  # YAML 1.1 takes 3e-4 for a text
        ("lr=1e-3, 1e-2", (0.001, 0.01)),
        ("r=4,8", (4, 8)),
        ("epochs=1,2.5", (1, 2.5)),
        ("training.early_stopping_patience=2", (2,)),
        ("training.scheduler=linear,cosine", ("linear", "cosine")),
        ("training.group_by_length=true,false", (True, False)),
        ("method.task_matrix=full,diagonal", ("full", "diagonal")),
    ],
)
def test_values_are_read_as_what_they_are(text, values):
    grid = parse_grid(text, METHODS)
    assert grid.values == values
    assert [type(value) for value in grid.values] == [type(value) for value in values]
    assert grid.method is None


@pytest.mark.parametrize(("short", "full"), SHORT_NAMES.items())
def test_short_names(short, full):
    assert parse_grid(f"{short}=1,2", METHODS) == parse_grid(f"{full}=1,2", METHODS) == Grid(full, (1, 2))


def test_a_grid_for_one_method():
    assert parse_grid("heads_only:lr=0.1", METHODS) == Grid("training.learning_rate", (0.1,), "heads_only")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("lr", "'lr' is no search; write KEY=VALUE,VALUE,…, e.g. lr="),
        ("lr=", "'lr=' is no search"),
        ("lr= ,", "is no search"),
        ("lr=1,,2", "'lr=1,,2' is no search"),
        ("=1,2", "is over '', which cannot be searched"),
        ("lrr=1", "is over 'lrr', which cannot be searched. Did you mean 'lr'? Short names: lr, "),
        ("training.learning_rat=1", "Did you mean 'training.learning_rate'?"),
        ("training.seed=1,2", "is over 'training.seed', which cannot be searched"),
        ("method.name=lora", "is over 'method.name', which cannot be searched"),
        ("model.name=bert", "is over 'model.name', which cannot be searched"),
        ("model.revision=main", "is over 'model.revision', which cannot be searched"),  # another base, too
        ("model.trust_remote_code=true", "is over 'model.trust_remote_code', which cannot be searched"),
        ("tasks.suite=glue", "is over 'tasks.suite', which cannot be searched"),
        ("lr=1e-3,0.001", "names a value twice"),
        ("lr=nan", "cannot try the value 'nan'"),
        ("lr=-inf", "cannot try the value '-inf'"),
        (
            "head_only:lr=1",
            "is for 'head_only', which is not compared. Did you mean 'heads_only'? Compared: lora, heads",
        ),
        (":lr=1", "is for '', which is not compared"),
        ("method.target_modules=[query,key]", "cannot try the value '[query'"),
        ("method.target_modules=[query]", "cannot try the value '[query]'"),
        ("method.rank_pattern={query: 2}", "cannot try the value '{query: 2}'"),
    ],
)
def test_what_cannot_be_searched(text, says):
    with pytest.raises(ConfigError) as caught:
        parse_grid(text, METHODS)
    assert says in str(caught.value)


def test_without_a_grid_there_is_one_trial():
    assert trials_of("lora", []) == [{}]


def grids(*texts):
    return [parse_grid(text, METHODS) for text in texts]


def test_trials_are_the_product_of_the_grids():
    assert trials_of("lora", grids("lr=1,2", "epochs=3,4")) == [
        {"training.learning_rate": lr, "training.epochs": epochs} for lr in (1, 2) for epochs in (3, 4)
    ]


@pytest.mark.parametrize("order", [1, -1])
def test_a_methods_own_grid_replaces_the_common_one(order):
    given = grids("lr=1,2", "epochs=3", "heads_only:lr=5,6")[::order]
    assert [trial["training.learning_rate"] for trial in trials_of("heads_only", given)] == [5, 6]
    assert [trial["training.learning_rate"] for trial in trials_of("lora", given)] == [1, 2]
    assert {trial["training.epochs"] for trial in trials_of("heads_only", given)} == {3}


def test_unequal_effort_is_refused_by_name():
    given = grids("lr=1,2,3", "heads_only:lr=5,6")
    with pytest.raises(ConfigError, match=r"numbers of trials differ: lora 3, heads_only 2\. Give each method's own"):
        check_same_effort({method: trials_of(method, given) for method in METHODS})
    check_same_effort({method: trials_of(method, grids("lr=1,2", "heads_only:lr=5,6")) for method in METHODS})


def test_two_grids_over_the_same_key_are_refused():
    """Neither of them is dropped in silence, by a short name or in full."""
    for scope in ("", "lora:"):
        with pytest.raises(ConfigError, match=r"training\.learning_rate.*twice"):
            trials_of("lora", grids(f"{scope}lr=1,2", f"{scope}training.learning_rate=3,4"))
