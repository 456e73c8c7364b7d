"""``tasklora init``: from a stranger's files to a recipe that trains untouched, or to a question."""

import json
import os
import random
from pathlib import Path

import pytest
import yaml
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value

from helpers_runs import log_of, tiny_row, write_rows
from helpers_text import save_decoder
from tasklora.errors import DataError
from tasklora.tasks import packaged_minilm
from tasklora.tasks.guessing import find_tasks
from tasklora.training import load_recipe, train_recipe

REPOSITORY = Path(__file__).resolve().parents[2]
DATA = Path(os.environ.get("TASKLORA_DATA", REPOSITORY.parent / "shared" / "data"))
real_data = pytest.mark.skipif(
    not DATA.is_dir() or packaged_minilm() is None,
    reason=f"no data folder {DATA} (name one with TASKLORA_DATA), or the extra 'demo' is not installed",
)


def mood_rows(count=60, seed=0):
    generator = random.Random(seed)
    rows = [tiny_row("mood", generator) for _ in range(count)]
    return [{"id": place, **row, "label": ["bad", "good"][row["label"]]} for place, row in enumerate(rows)]


@pytest.fixture
def reviews():
    Dataset.from_list(mood_rows()).to_csv("reviews.csv")
    return Path("reviews.csv")


def assert_refused(said, *says):
    assert said.code == 2
    assert said.err.startswith("error ")
    assert said.err.count("\n") == 1
    for part in says:
        assert part in said.err
    assert not Path("recipe.yaml").exists()


def test_a_csv_becomes_a_recipe_that_trains_untouched(cli, project, reviews):
    said = cli("init", reviews, "--model", project.base, "--output", "mine.yaml")
    assert said.code == 0, said.err
    *_, written, following = said.out.strip().splitlines()
    assert written == "written: mine.yaml, with the reasons; a first run makes 6 steps of 32 rows"
    assert following == "next: tasklora train mine.yaml"
    assert "not used" in said.out
    recipe = load_recipe("mine.yaml")
    spec = recipe.task_specs()["reviews"]
    assert (spec.inputs, spec.label, spec.labels) == (["text"], "label", ["bad", "good"])
    results, _ = train_recipe(recipe, "run")
    assert results.training.steps == 6  # as it said
    assert [record["step"] for record in log_of(Path("run")) if "loss" in record] == [1, 2, 3, 4, 5, 6]
    assert results.suite == "own tasks"


def test_the_recipe_says_why(cli, reviews):
    assert cli("init", reviews).code == 0
    text = Path("recipe.yaml").read_text()
    for line in (
        "# Written by `tasklora init reviews.csv`. ",
        "#   tasklora train recipe.yaml",
        "  name: sentence-transformers/all-MiniLM-L6-v2  # ",
        "      kind: classification  # 'label' holds 2 different words",
        "      inputs: [text]  # the only column of texts (about ",
        "      label: label  # by its name",
        "      # 12 rows are held out of train for validation, the same for every seed; 4 more choose the best step",
        "      files: reviews.csv",
        "      # not used: id (ids)",
    ):
        assert line in text
    assert max(map(len, text.splitlines())) <= 112


def test_several_files_are_several_tasks(cli, project):
    for name, seed in (("reviews", 0), ("my own-tweets!", 1)):
        Dataset.from_list(mood_rows(seed=seed)).to_csv(f"{name}.csv")
    Path("folder").mkdir()
    Dataset.from_list(mood_rows(seed=2)).to_json("folder/reviews.jsonl")
    said = cli("init", "reviews.csv", "my own-tweets!.csv", "folder/reviews.jsonl", "--model", project.base)
    assert said.code == 0, said.err
    assert list(load_recipe("recipe.yaml").task_specs()) == ["reviews", "my_own_tweets", "reviews_2"]


def test_split_files_and_folders_of_tasks(cli, project):
    for task in ("first", "second"):
        for split, rows in (("train", 40), ("dev", 12), ("test", 10)):
            write_rows(Path("data", task, f"{split}.jsonl"), mood_rows(rows))
    Path("data", "README.md").write_text("about")
    write_rows(Path("data", "third-train.jsonl"), mood_rows(40))
    write_rows(Path("data", "third-valid.jsonl"), mood_rows(8))
    said = cli("init", "data", "--model", project.base)
    assert said.code == 0, said.err
    assert "passed over, no tables: data/README.md" in said.out
    define = yaml.safe_load(Path("recipe.yaml").read_text())["tasks"]["define"]
    assert define["third"]["files"] == {"train": "data/third-train.jsonl", "validation": "data/third-valid.jsonl"}
    assert define["first"]["files"] == {
        "train": "data/first/train.jsonl",
        "validation": "data/first/dev.jsonl",
        "test": "data/first/test.jsonl",
    }
    results, _ = train_recipe(load_recipe("recipe.yaml", ["training.max_steps=2"]), "run")
    assert [results.scores["validation"].tasks[name].rows for name in results.tasks] == [8, 12, 12]


def test_a_folder_that_datasets_saved_with_unlabelled_test_rows(cli, project):
    features = Features({"text": Value("string"), "label": ClassLabel(names=["bad", "good"])})

    def split(labels):
        texts = [row["text"] for row in mood_rows(len(labels))]
        return Dataset.from_dict({"text": texts, "label": labels}, features=features)

    DatasetDict(train=split([0, 1] * 20), validation=split([0, 1] * 5), test=split([-1] * 6)).save_to_disk("saved")
    said = cli("init", "saved", "--model", project.base)
    assert said.code == 0, said.err
    assert "      # test is left out: its rows have no labels\n" in Path("recipe.yaml").read_text()
    define = yaml.safe_load(Path("recipe.yaml").read_text())["tasks"]["define"]["saved"]
    assert define["files"] == {"train": "saved/train", "validation": "saved/validation"}
    assert define["labels"] == ["bad", "good"]
    train_recipe(load_recipe("recipe.yaml", ["training.max_steps=2"]), "run")


def test_a_public_name(cli, project, tmp_path):
    for split, rows in (("train", 40), ("validation", 10)):
        write_rows(Path("published", f"{split}.jsonl"), mood_rows(rows))
    said = cli("init", f"hub:{tmp_path / 'published'}", "--model", project.base)
    assert said.code == 0, said.err
    recipe = load_recipe("recipe.yaml", ["training.max_steps=2"])
    assert recipe.task_specs()["published"].hub.path == str(tmp_path / "published")
    train_recipe(recipe, "run")
    Path("published", "validation.jsonl").unlink()
    Path("recipe.yaml").unlink()
    assert_refused(cli("init", f"hub:{tmp_path / 'published'}"), "no labelled split for validation", "save_to_disk")
    assert_refused(
        cli("init", "hub:nobody/nothing"), "hub:nobody/nothing: cannot load it from the hub", "Look the name"
    )


def rows_of_kind(kind, count=60):
    """Return rows whose words the tiny model knows, as people keep them for a kind of task."""
    generator = random.Random(kind)
    texts = [tiny_row("mood", generator)["text"] for _ in range(count)]
    if kind == "multi_label":
        return [{"text": text, "tags": ["a|b", "b", "a|c", "c"][place % 4]} for place, text in enumerate(texts)]
    if kind == "multiple_choice":
        choices = [texts[place : place + 3] for place in range(count - 3)]
        return [
            {"question": text, "choices": c, "label": len(text) % 3} for text, c in zip(texts, choices, strict=False)
        ]
    if kind == "token_classification":
        words = [text.split() for text in texts]
        return [{"tokens": row, "ner_tags": ["B-X" if len(word) > 3 else "O" for word in row]} for row in words]
    assert kind == "ranking"
    return [
        {
            "query": f"a {'bcdefghijk'[place % 10]} {'lmn'[place % 3]} film",
            "document": text,
            "relevance": place % 4 // 2,
        }
        for place, text in enumerate(texts * 3)
    ]


@pytest.mark.parametrize("kind", ["multi_label", "multiple_choice", "token_classification", "ranking"])
def test_every_kind_trains_on_what_was_guessed(cli, project, kind):
    write_rows(Path("mine.jsonl"), rows_of_kind(kind))
    said = cli("init", "mine.jsonl", "--model", project.base)
    assert said.code == 0, said.err
    recipe = load_recipe("recipe.yaml", ["training.max_steps=2"])
    assert recipe.task_specs()["mine"].kind == kind
    results, _ = train_recipe(recipe, "run")
    if kind == "ranking":  # no query is in two parts
        assert results.scores["validation"].tasks["mine"].rows == 6
        assert results.training.rows_per_task == {"mine": 22}


@pytest.fixture
def written(tmp_path):
    """Instructions with a response each, one of which is far longer than the others, and a task of classes."""
    generator = random.Random(0)
    rows = [
        {"instruction": tiny_row("mood", generator)["text"], "response": " ".join("the a is it"[: 3 + i % 6] * 2)}
        for i in range(50)
    ]
    rows = [{**row, "response": f"{row['response']} {place}"} for place, row in enumerate(rows)]
    rows[17]["response"] = "was is it good " * 20 + "17"
    write_rows(Path("notes.jsonl"), rows)
    write_rows(
        Path("mood.jsonl"), [{**row, "label": "bad" if i % 12 else "good"} for i, row in enumerate(mood_rows(144))]
    )
    return save_decoder(tmp_path / "decoder")


def test_texts_to_write_make_a_recipe_for_a_decoder_that_trains_untouched(cli, written):
    said = cli("init", "notes.jsonl", "mood.jsonl", "--model", written)
    assert said.code == 0, said.err
    text = Path("recipe.yaml").read_text()
    assert "  view: text_to_text  # texts to write: notes; every task is asked and answered in text" in text
    assert '        prompt: "instruction: {instruction}\\nAnswer:"\n' in text
    assert "class_weights" not in text + said.out  # a head's, which a decoder has none of
    recipe = load_recipe("recipe.yaml")
    assert {name: spec.kind for name, spec in recipe.task_specs().items()} == {
        "notes": "generation",
        "mood": "classification",
    }
    assert recipe.model.max_length == 256  # the longest response alone has 302 bytes, of which a token has 2.5 or more
    results, _ = train_recipe(recipe, "run")
    assert f"a first run makes {results.training.steps} steps of 16 rows" in said.out
    assert results.scores["validation"].tasks["notes"].primary == "rouge_l"


def test_a_decoder_is_the_default_where_texts_are_to_be_written(cli, written):
    assert cli("init", "notes.jsonl").code == 0
    assert load_recipe("recipe.yaml").model.name == "HuggingFaceTB/SmolLM2-135M"
    assert cli("init", "mood.jsonl", "--output", "mood.yaml").code == 0
    assert load_recipe("mood.yaml").model.name == "sentence-transformers/all-MiniLM-L6-v2"


def test_a_view_can_be_asked_for(cli, written):
    said = cli("init", "mood.jsonl", "--view", "text_to_text", "--model", written)
    assert said.code == 0, said.err
    recipe = load_recipe("recipe.yaml", ["training.max_steps=1"])
    assert "  view: text_to_text  # every task is asked and answered in text" in Path("recipe.yaml").read_text()
    assert recipe.text_to_text().templates["mood"].prompt == "text: {text}\nOptions: {options}\nAnswer:"
    train_recipe(recipe, "run")
    Path("recipe.yaml").unlink()
    assert_refused(cli("init", "mood.jsonl", "--view", "text"), "--view: unknown view 'text'", "heads, text_to_text")
    assert_refused(
        cli("init", "notes.jsonl", "--view", "heads"), "--view heads: notes has texts to write, which no head can"
    )
    write_rows(Path("tags.jsonl"), rows_of_kind("multi_label"))
    assert_refused(cli("init", "notes.jsonl", "tags.jsonl"), "notes has texts to write", "tags (multi_label)", "apart")
    assert_refused(
        cli("init", "tags.jsonl", "--model", written), "a decoder answers in text, and tags (multi_label) has no"
    )
    assert_refused(cli("init", "mood.jsonl", "--model", "./decodr"), "there is no such folder. Did you mean 'decoder'?")
    said = cli("init", "mood.jsonl", "--output", "mood.jsonl", "--overwrite")
    assert_refused(said, "--output mood.jsonl is to be a recipe: give it a name that ends in .yaml")
    assert Path("mood.jsonl").read_text().startswith("{")


def test_a_decoder_sees_any_tasks_as_text_and_no_longer_than_it_can_read(cli, written):
    rows = [json.loads(line) for line in Path("notes.jsonl").read_text().splitlines()]
    rows[3]["response"] = "it is good " * 150 + "3"
    write_rows(Path("long.jsonl"), rows)
    said = cli("init", "mood.jsonl", "--model", written)
    assert said.code == 0, said.err
    assert load_recipe("recipe.yaml").model.view == "text_to_text"
    assert cli("init", "long.jsonl", "--model", written, "--overwrite").code == 0
    recipe = load_recipe("recipe.yaml", ["training.max_steps=1"])
    assert recipe.model.max_length + recipe.model.max_new_tokens == 512  # the positions that it has
    assert "or fewer, which may be too many for the model's 512" in " ".join(
        Path("recipe.yaml").read_text().split("# ")
    )
    train_recipe(recipe, "run")


def test_an_instruction_may_have_no_input(cli, written):
    rows = [json.loads(line) for line in Path("notes.jsonl").read_text().splitlines()]
    given = [f"so it is {place}" if place % 3 else None for place in range(len(rows))]
    Dataset.from_list([{**row, "input": text} for row, text in zip(rows, given, strict=True)]).to_csv("alpaca.csv")
    said = cli("init", "alpaca.csv", "--model", written)
    assert said.code == 0, said.err
    recipe = load_recipe("recipe.yaml", ["training.max_steps=2"])
    assert recipe.task_specs()["alpaca"].inputs == ["instruction", "input"]
    train_recipe(recipe, "run")


def test_what_the_user_says_goes_before_guesses(cli, project):
    rows = [{**row, "other": row["text"][::-1], "stars": place % 5 + 1} for place, row in enumerate(mood_rows())]
    for name in ("one", "two"):
        write_rows(Path(f"{name}.jsonl"), rows)
    options = [
        "--label",
        "one:stars",
        "--kind",
        "one:classification",
        "--inputs",
        "two:text,other",
        "--label",
        "two:label",
    ]
    said = cli("init", "one.jsonl", "two.jsonl", "--inputs", "one:text", "--method", "lora", *options)
    assert said.code == 0, said.err
    recipe = load_recipe("recipe.yaml")
    one, two = recipe.task_specs().values()
    assert (one.kind, one.labels, one.inputs) == ("classification", list("12345"), ["text"])
    assert two.inputs == ["text", "other"]
    assert recipe.method.name == "lora"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["rewiews.csv"], "no file rewiews.csv. Did you mean 'reviews.csv'?"),
        (["empty"], "empty holds no table: no file .jsonl, .json, .csv, .tsv, .parquet"),
        (["notes.txt"], "notes.txt is no table that can be read: use one of .jsonl"),
        (["hub:"], "'hub:' names no data set"),
        (["reviews.csv", "--label", "lable"], "--label: reviews.csv has no column 'lable'. Did you mean 'label'?"),
        (["reviews.csv", "--method", "mtl_lorra"], "unknown method 'mtl_lorra'. Did you mean 'mtl_lora'?"),
        (["reviews.csv", "--kind", "sorting"], "--kind: unknown kind 'sorting'"),
        (
            ["reviews.csv", "--label", "label", "--label", "id"],
            "--label is given twice for task 'reviews': label and id",
        ),
        (["reviews.csv", "tweets.csv", "--label", "label"], "say which task it is for, as in --label reviews:label"),
        (["reviews.csv", "tweets.csv", "--label", "twets:label"], "Did you mean 'tweets'? Tasks: reviews, tweets"),
        (["reviews.csv", "--output", "taken.yaml"], "taken.yaml exists already. Choose another --output, or replace"),
        (["reviews.csv", "--output", "no/recipe.yaml"], "no folder no to write recipe.yaml into"),
        (["a-dev.csv", "a-val.csv"], "a-dev.csv and a-val.csv are both the split 'validation' of one task"),
        (["a-dev.csv", "a-test.csv"], "no rows to train on, only validation, test"),
        (["headless.csv"], "the first line looks like a row, not like column names ('0')"),
        (["two-rows.csv"], "2 rows to train on, too few"),
        (["one-row.csv"], "1 row to train on, too few"),
        (["rows.json"], "cannot read rows.json: it holds one object with the keys data, not a list of rows"),
        (["infinite"], "infinite/validation.jsonl: column 'label' is infinite in 1 of 9 rows, first in row 8"),
        (["unlike"], "column 'label' holds texts in train, whole numbers in validation"),
    ],
)
def test_what_cannot_be_done_is_said_and_nothing_is_written(cli, reviews, arguments, says):
    Path("empty").mkdir()
    Path("notes.txt").write_text("x")
    Path("taken.yaml").write_text("mine")
    for name in ("tweets", "a-dev", "a-val", "a-test"):
        Path(f"{name}.csv").write_bytes(reviews.read_bytes())
    Path("headless.csv").write_text("what a film,0\n" + "it was so dull,1\nnever again a book,0\n" * 20)
    Path("two-rows.csv").write_text("text,label\na b c,0\nd e f,1\n")
    Path("one-row.csv").write_text("text,label\na b c,0\n")
    Path("rows.json").write_text(json.dumps({"data": mood_rows()}))
    for split, count in (("train", 60), ("validation", 9)):
        rows = [{**row, "label": place / 7} for place, row in enumerate(mood_rows(count))]
        if split == "validation":
            rows[8]["label"] = float("inf")
        write_rows(Path(f"infinite/{split}.jsonl"), rows)
    write_rows(Path("unlike/train.jsonl"), mood_rows())
    write_rows(Path("unlike/validation.jsonl"), [{**row, "label": 1} for row in mood_rows(9)])
    assert_refused(cli("init", *arguments), says)
    assert Path("taken.yaml").read_text() == "mine"


def test_a_recipe_that_cannot_be_written_is_called_by_its_own_name(cli, reviews):
    place = f"{'long' * 62}.yaml"
    said = cli("init", reviews, "--output", place)
    assert_refused(said, f"cannot write {place}: ", "Choose another --output")
    assert "partial" not in said.err


def test_classes_that_look_alike_are_noted(cli):
    rows = [{**row, "label": ["yes", "Yes ", "n/a"][place % 3]} for place, row in enumerate(mood_rows())]
    write_rows(Path("mine.jsonl"), rows)
    assert cli("init", "mine.jsonl").code == 0
    assert "# the classes 'Yes ' and 'yes' look alike: if they are one" in Path("recipe.yaml").read_text()
    assert "# the class 'n/a' looks like a missing value" in Path("recipe.yaml").read_text()


def test_one_row_is_no_rows(cli):
    write_rows(Path("mine.jsonl"), mood_rows(6))
    assert cli("init", "mine.jsonl").code == 0
    held = "1 row is held out of train for validation, the same for every seed; 1 more chooses the best step"
    assert held in Path("recipe.yaml").read_text()


def test_overwriting_is_asked_for(cli, reviews):
    Path("recipe.yaml").write_text("old")
    assert cli("init", reviews, "--overwrite").code == 0
    assert Path("recipe.yaml").read_text().startswith("# Written by")


def test_names_that_a_head_or_yaml_cannot_have(cli, reviews):
    for name in ("values", "train.v2", "ünï", "--", "2024", "no"):
        Path(f"{name}.csv").write_bytes(reviews.read_bytes())
    files = ["values.csv", "train.v2.csv", "ünï.csv", "./--.csv", "2024.csv", "no.csv"]
    assert list(find_tasks(files)[0]) == ["values_task", "v2", "ünï", "task", "2024", "no"]
    assert cli("init", *files).code == 0
    assert list(load_recipe("recipe.yaml").task_specs()) == ["values_task", "v2", "ünï", "task", "2024", "no"]
    with pytest.raises(DataError):
        find_tasks(["nowhere"])


def test_a_large_table_is_limited_at_first_and_labels_are_counted_in_full(cli, project):
    rows = 30_000
    texts = [f"row {row} {'good' if row % 2 else 'bad'}" for row in range(rows)]
    labels = ["good" if row % 2 else "bad" for row in range(rows - 1)] + ["odd"]
    Dataset.from_dict({"text": texts, "label": labels}).to_csv("large.csv")
    said = cli("init", "large.csv", "--model", project.base)
    assert said.code == 0, said.err
    recipe = load_recipe("recipe.yaml")
    assert recipe.task_specs()["large"].labels == ["bad", "good", "odd"]
    assert recipe.tasks.limits == {"train": 3000, "tune": 300, "validation": 500}
    assert "a first run makes 282 steps of 32 rows" in said.out


@real_data
@pytest.mark.parametrize("folder", [pytest.param("glue", marks=pytest.mark.slow), "product_matching"])
def test_real_folders_train_on_what_was_guessed(cli, folder):
    said = cli("init", DATA / folder)
    assert said.code == 0, said.err
    limits = "tasks.limits={train: 16, tune: 8, validation: 8}"
    recipe = load_recipe("recipe.yaml", ["training.max_steps=2", "model.max_length=16", limits])
    specs = recipe.task_specs()
    if folder == "glue":
        assert {name: (spec.kind, spec.num_outputs) for name, spec in specs.items()} == {
            "cola": ("classification", 2),
            "mnli": ("classification", 3),
            "mrpc": ("classification", 2),
            "qnli": ("classification", 2),
            "qqp": ("classification", 2),
            "rte": ("classification", 2),
            "sst2": ("classification", 2),
            "stsb": ("regression", 1),
            "trec": ("classification", 6),
        }
        assert specs["stsb"].range == (0, 5)
        assert specs["trec"].class_weights == "none"  # of 300 rows, the rarest class may have none
        assert [name for name, spec in specs.items() if not spec.is_pair] == ["cola", "sst2", "trec"]
    else:
        assert {spec.primary for spec in specs.values()} == {"f1"}
        assert {tuple(spec.inputs) for spec in specs.values()} == {("left", "right")}
    results, _ = train_recipe(recipe, "run")
    assert json.loads(Path("run/results.json").read_text())["tasks"] == results.tasks == list(specs)
