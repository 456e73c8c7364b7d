"""Input of ``tasklora predict``, and what it says about each row."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tasklora.errors import ConfigError, DataError
from tasklora.evaluation import predict_rows
from tasklora.tasks import KINDS, BaseModel, SavedModel, TaskModel, TaskSpec
from tasklora.tasks.formats import FORMATS
from tasklora.tasks.kinds import WrongValueError, require_columns
from tasklora.tasks.ragged import is_missing
from tasklora.tasks.table_files import FILE_FORMATS, read_table

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


def read_inputs(
    spec: TaskSpec, task: str, texts: list[str], file: Path | None, keep: Sequence[str] = ()
) -> list[dict[str, Any]]:
    """Return rows ``{"texts": […]}`` from the command line's texts or a file; a file's with the columns of `keep`.

    On the command line: each text, or two by two for pairs; one question and its choices; one query and its documents;
    sentences, whose words are parted by spaces.

    Raises:
        DataError: if there is neither or both, an odd number of texts for a task on pairs, a column is missing, or the
            file cannot be read or has no rows.
    """
    if bool(texts) == (file is not None):
        raise DataError("give texts to predict, or --file FILE: one of the two.")
    kind = KINDS[spec.kind]
    if file is None:
        return [{"texts": row} for row in kind.from_arguments(spec, task, texts)]
    if not file.is_file():
        raise DataError(f"no file {file}.")
    if file.suffix == ".txt":
        if len(spec.inputs) != 1:
            raise DataError(f"task '{task}' reads pairs: give a .jsonl or .csv with columns {', '.join(spec.inputs)}.")
        rows = [{"texts": kind.from_line(line)} for line in _text_of(file).splitlines() if line.strip()]
    else:
        rows = _from_table(spec, file, keep)
    if not rows:
        raise DataError(f"{file} holds no rows.")
    return rows


def _text_of(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"cannot read {file}: it is not UTF-8 ({error.reason}).") from None


def _from_table(spec: TaskSpec, file: Path, keep: Sequence[str]) -> list[dict[str, Any]]:
    if file.suffix not in FILE_FORMATS:
        raise DataError(f"cannot read {file.name}: use one of .txt, {', '.join(FILE_FORMATS)}.")
    kind, table = KINDS[spec.kind], read_table(file)
    columns = kind.text_columns(spec)
    if spec.format is not None and not {*columns, *keep} <= set(table.column_names):
        table = FORMATS[spec.format](table, str(file))
    require_columns(table, [*columns, *keep], str(file))
    table = kind.arranged(spec, table, str(file), labelled=False)
    kept = {name: table[name][:] for name in keep}
    rows = []
    for index, values in enumerate(zip(*(table[column] for column in columns), strict=True)):
        try:
            row: dict[str, Any] = {"texts": kind.texts(spec, values)}
            rows.append({**row, "columns": {name: kept[name][index] for name in kept}} if keep else row)
        except WrongValueError as error:
            raise DataError(f"{file}, row {index}: {error}") from None
    return rows


def prediction_records(
    model: TaskModel, about: SavedModel, base: BaseModel, task: str, rows: list[dict[str, Any]]
) -> list[dict[str, Any]]:
    """Return, for each row, its texts and the prediction, with its probability where one answer is said."""
    prediction = predict_rows(model, task, rows, about.collator(base.tokenizer))
    spec = about.tasks[task]
    kind = KINDS[spec.kind]
    records = []
    for index, row in enumerate(rows):
        record = kind.input_record(spec, row["texts"])
        value = prediction.values[index]
        record["prediction"] = None if is_missing(value) else kind.answer(spec, row["texts"], value)
        if prediction.texts is not None and record["prediction"] != prediction.texts[index].strip():
            record["generated"] = prediction.texts[index]
        if prediction.probabilities is not None:
            probability = kind.confidence(prediction.probabilities[index])
            record["probability"] = None if math.isnan(probability) else round(probability, 4)
        records.append(record)
    return records
