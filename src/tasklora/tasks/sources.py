"""Where rows come from: files of a folder, or the Hugging Face hub by public name."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from tasklora.errors import DataError, did_you_mean, first_line
from tasklora.tasks.spec import Split, TaskSpec

if TYPE_CHECKING:
    import datasets

FILE_FORMATS = {".jsonl": "json", ".json": "json", ".csv": "csv", ".parquet": "parquet"}


def read_table(path: Path, where: str = "") -> datasets.Dataset:
    """Return the rows of a file whose suffix is in :data:`FILE_FORMATS`.

    Args:
        path: the file.
        where: what an error message begins with.

    Raises:
        DataError: if the file cannot be read.
    """
    from datasets import Dataset
    from datasets.exceptions import DatasetGenerationError

    readers = {"json": Dataset.from_json, "csv": Dataset.from_csv, "parquet": Dataset.from_parquet}
    try:
        return readers[FILE_FORMATS[path.suffix]](str(path))
    except StopIteration:  # what datasets says to a file without content
        raise DataError(f"{where}cannot read {path}: it is empty.") from None
    except (DatasetGenerationError, ValueError, OSError) as error:
        raise DataError(f"{where}cannot read {path}: {first_line(error.__cause__ or error)}") from None


class LocalRows:
    """Files ``SPLIT.jsonl`` (or .json, .csv, .parquet) in a task's folder."""

    def __init__(self, name: str, folder: Path) -> None:
        self.folder = folder
        self.name = name
        if not folder.is_dir():
            siblings = [p.name for p in folder.parent.iterdir() if p.is_dir()] if folder.parent.is_dir() else []
            raise DataError(
                f"task '{name}': no folder {folder}.{did_you_mean(name, siblings)} "
                "Expected DATA_ROOT/TASK/{train,tune,validation}.jsonl."
            )

    def _file(self, split: Split) -> Path | None:
        return next((p for suffix in FILE_FORMATS if (p := self.folder / f"{split}{suffix}").is_file()), None)

    def has(self, split: Split) -> bool:
        """Return whether the split has a file."""
        return self._file(split) is not None

    def load(self, split: Split) -> datasets.Dataset:
        """Return the rows of a split."""
        path = self._file(split)
        if path is None:
            raise DataError(
                f"task '{self.name}': no file for split '{split}' in {self.folder} "
                f"(looked for {', '.join(split + suffix for suffix in FILE_FORMATS)})."
            )
        return read_table(path, f"task '{self.name}': ")


class HubRows:
    """A data set on the Hugging Face hub, by its public name."""

    def __init__(self, name: str, spec: TaskSpec) -> None:
        if spec.hub is None:
            raise DataError(f"task '{name}' has no public source: give its files with --data-root DIR.")
        self.hub = spec.hub
        self.name = name

    def has(self, split: Split) -> bool:
        """Return whether the data set names the split; `tune` never stands on the hub unless the suite says so."""
        return split in self.hub.splits or split != "tune"

    def load(self, split: Split) -> datasets.Dataset:
        """Return the rows of a split."""
        from datasets import load_dataset

        hub = self.hub
        try:
            return load_dataset(hub.path, hub.config, split=hub.splits.get(split, split), revision=hub.revision)
        except Exception as error:  # the hub raises many kinds; all mean that the rows are not to be had
            raise DataError(
                f"task '{self.name}': cannot load '{hub.path}' ({hub.config or 'default'}, {split}) from the hub: "
                f"{first_line(error)} Give local files with --data-root DIR instead."
            ) from error
