"""Public names load through `datasets.load_dataset`: shown on a local data set, which takes the same path as a name."""

import json
from pathlib import Path

import pytest

from tasklora.errors import DataError
from tasklora.tasks import TaskSpec, load_tasks


@pytest.fixture
def published(tmp_path: Path) -> Path:
    folder = tmp_path / "published"
    folder.mkdir()
    for split, rows in {"train": 40, "validation": 10}.items():
        lines = [json.dumps({"sentence": f"{split} {index}", "label": index % 2}) for index in range(rows)]
        (folder / f"{split}.jsonl").write_text("\n".join(lines))
    return folder


def spec(hub: dict | None) -> TaskSpec:
    return TaskSpec(
        kind="classification",
        inputs=["sentence"],
        labels=["no", "yes"],
        metrics=["accuracy"],
        primary="accuracy",
        hub=hub,
    )


def test_splits_come_by_public_name_and_tune_is_held_out_of_train(published: Path) -> None:
    data = load_tasks({"task": spec({"path": str(published)})}, ["train", "tune", "validation"])
    rows = {split: [row["texts"][0] for row in data.splits["task"][split]] for split in ("train", "tune", "validation")}
    assert len(rows["train"]) == 36
    assert len(rows["tune"]) == 4
    assert sorted(rows["train"] + rows["tune"]) == sorted(f"train {index}" for index in range(40))
    assert rows["validation"] == [f"validation {index}" for index in range(10)]


def test_a_split_may_have_another_name_there(published: Path) -> None:
    data = load_tasks({"task": spec({"path": str(published), "splits": {"test": "validation"}})}, ["test"])
    assert len(data.splits["task"]["test"]) == 10


def test_a_name_that_cannot_be_loaded_says_so_and_offers_local_files(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"task 'task': cannot load .*nowhere.* --data-root"):
        load_tasks({"task": spec({"path": str(tmp_path / "nowhere")})}, ["train"])


def test_a_task_without_a_public_source_asks_for_files() -> None:
    with pytest.raises(DataError, match="no public source"):
        load_tasks({"task": spec(None)}, ["train"])
