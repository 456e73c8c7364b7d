"""Typed data from YAML, without silence: an unknown key is an error that names the nearest valid one."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

import pydantic
import yaml

from tasklora.errors import ConfigError, DataError, did_you_mean


class Strict(pydantic.BaseModel):
    """A typed record that refuses unknown keys."""

    model_config = pydantic.ConfigDict(extra="forbid", validate_default=True, protected_namespaces=())


Model = TypeVar("Model", bound=Strict)


def parse(model: type[Model], data: Any, where: str) -> Model:
    """Return `data` as a `model`.

    Args:
        model: the typed record.
        data: what was read.
        where: what to call the source in an error message.

    Raises:
        ConfigError: listing every unknown key (with the nearest valid one) and every value of a wrong type.
    """
    if not isinstance(data, dict):
        raise ConfigError(f"{where}: expected a mapping of keys to values, got {type(data).__name__}.")
    try:
        return model.model_validate(data)
    except pydantic.ValidationError as error:
        problems = [_explain(model, problem) for problem in error.errors()]
        raise ConfigError(f"{where}: " + "; ".join(problems)) from None


def read_yaml(path: Path) -> Any:
    """Return the content of a YAML file (safe loading: plain data only).

    Raises:
        DataError: if the file is missing.
        ConfigError: if it is not YAML.
    """
    if not path.is_file():
        raise DataError(f"no file {path}. Give the path of a YAML file.")
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid YAML: {error}") from None


def _explain(model: type[pydantic.BaseModel], problem: Any) -> str:
    location = [str(part) for part in problem["loc"]]
    dotted = ".".join(location)
    if problem["type"] == "extra_forbidden":
        valid = list(_model_at(model, location[:-1]).model_fields)
        return f"unknown key '{dotted}'.{did_you_mean(location[-1], valid)} Valid keys: {', '.join(valid)}"
    if problem["type"] == "missing":
        return f"'{dotted}' is missing"
    return f"'{dotted}': {problem['msg'].removeprefix('Value error, ')} (got {_shortened(repr(problem['input']))})"


def _shortened(text: str, most: int = 200) -> str:
    return text if len(text) <= most else text[: most - 2] + " …"


def _model_at(model: type[pydantic.BaseModel], location: list[str]) -> type[pydantic.BaseModel]:
    """Return the record that `location` leads to, through optional fields and dictionaries of records."""
    for part in location:
        field = model.model_fields.get(part)
        if field is None:
            continue  # the key of a dictionary of records
        nested = _records_in(field.annotation)
        if nested:
            model = nested[0]
    return model


def _records_in(annotation: Any) -> list[type[pydantic.BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, pydantic.BaseModel):
        return [annotation]
    return [record for inner in getattr(annotation, "__args__", ()) for record in _records_in(inner)]
