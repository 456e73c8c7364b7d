"""Input of ``tasklora predict``, and what it says about each row."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tasklora.errors import ConfigError, DataError, did_you_mean, listing
from tasklora.evaluation import predict_rows
from tasklora.tasks import BaseModel, MultiTaskModel, SavedModel, TaskSpec
from tasklora.tasks.sources import FILE_FORMATS, read_table

IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".gif", ".ppm"}


def check_is_text(texts: list[str], out: Path | None, raw: bool) -> None:
    """Refuse what is for a run on images: its options, or files of images for texts.

    Raises:
        ConfigError: naming the option.
        DataError: naming an image.
    """
    given = [name for name, is_given in (("--out", out is not None), ("--raw", raw)) if is_given]
    if given:
        raise ConfigError(f"{', '.join(given)}: for runs on images, whose predictions are maps. This run reads texts.")
    images = [text for text in texts if Path(text).suffix.lower() in IMAGE_SUFFIXES and Path(text).is_file()]
    if images:
        raise DataError(f"{images[0]} is an image, but this run reads texts. Give texts, or a run on images.")


def read_inputs(spec: TaskSpec, task: str, texts: list[str], file: Path | None) -> list[dict[str, Any]]:
    """Return rows ``{"texts": […]}`` from the command line's texts or a file.

    Raises:
        DataError: if there is neither or both, an odd number of texts for a task on pairs, a column is missing, or the
            file cannot be read or has no rows.
    """
    if bool(texts) == (file is not None):
        raise DataError("give texts to predict, or --file FILE: one of the two.")
    size = len(spec.inputs)
    if file is None:
        if len(texts) % size:
            raise DataError(f"task '{task}' reads pairs ({', '.join(spec.inputs)}): give two texts for each row.")
        return [{"texts": texts[start : start + size]} for start in range(0, len(texts), size)]
    if not file.is_file():
        raise DataError(f"no file {file}.")
    if file.suffix == ".txt":
        if size != 1:
            raise DataError(f"task '{task}' reads pairs: give a .jsonl or .csv with columns {', '.join(spec.inputs)}.")
        rows = [{"texts": [line]} for line in _text_of(file).splitlines() if line.strip()]
    else:
        rows = _from_table(spec, file)
    if not rows:
        raise DataError(f"{file} holds no rows.")
    return rows


def _text_of(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"cannot read {file}: it is not UTF-8 ({error.reason}).") from None


def _from_table(spec: TaskSpec, file: Path) -> list[dict[str, Any]]:
    if file.suffix not in FILE_FORMATS:
        raise DataError(f"cannot read {file.name}: use one of .txt, {', '.join(FILE_FORMATS)}.")
    table = read_table(file)
    for column in spec.inputs:
        if column not in table.column_names:
            raise DataError(
                f"{file}: no column '{column}'.{did_you_mean(column, table.column_names)} "
                f"It has: {listing(table.column_names)}."
            )
    rows = [{"texts": [row[column] for column in spec.inputs]} for row in table]
    for index, row in enumerate(rows):
        if not all(isinstance(text, str) for text in row["texts"]):
            raise DataError(f"{file}, row {index}: an input is no text: {row['texts']!r}.")
    return rows


def prediction_records(
    model: MultiTaskModel, about: SavedModel, base: BaseModel, task: str, rows: list[dict[str, Any]]
) -> list[dict[str, Any]]:
    """Return, for each row, its texts and the prediction (with its probability, for classes)."""
    prediction = predict_rows(model, task, rows, about.collator(base.tokenizer))
    spec = about.tasks[task]
    records = []
    for index, row in enumerate(rows):
        record: dict[str, Any] = dict(zip(spec.inputs, row["texts"], strict=True))
        value = prediction.values[index]
        if prediction.probabilities is None:
            record["prediction"] = round(float(value), 4)
        else:
            record["prediction"] = (spec.labels or [])[int(value)]
            record["probability"] = round(float(prediction.probabilities[index].max()), 4)
        records.append(record)
    return records
