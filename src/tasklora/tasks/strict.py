"""Typed data from YAML, without silence: an unknown key is an error that names the nearest valid one."""

from __future__ import annotations

import types
import typing
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
    if data is None:
        raise ConfigError(f"{where} is empty: write a mapping of keys to values.")
    if not isinstance(data, dict):
        raise ConfigError(f"{where}: expected a mapping of keys to values, got {type(data).__name__}.")
    try:
        return model.model_validate(data)
    except pydantic.ValidationError as error:
        problems = [_explain(model, problem) for problem in _together(model, error.errors())]
        raise ConfigError(f"{where}: " + "; ".join(problems)) from None


def read_yaml(path: Path) -> Any:
    """Return the content of a YAML file (safe loading: plain data only).

    Raises:
        DataError: if the file is missing.
        ConfigError: if it is not YAML, or a mapping has a key twice.
    """
    if not path.is_file():
        raise DataError(f"no file {path}. Give the path of a YAML file.")
    try:
        return load_yaml(path.read_text(encoding="utf-8"), str(path))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid YAML: {error}") from None


def load_yaml(text: str, where: str) -> Any:
    """Return what YAML says (safe loading: plain data only).

    Args:
        text: the YAML.
        where: what to call the source in an error message.

    Raises:
        ConfigError: if a mapping has a key twice, of which YAML readers silently take the last.
        yaml.YAMLError: if it is not YAML.
    """
    loader = yaml.SafeLoader(text)
    try:
        root = loader.get_single_node()
        if root is None:
            return None
        _check_keys(root, where, (), set())
        return loader.construct_document(root)
    finally:
        loader.dispose()


def _check_keys(node: yaml.Node, where: str, path: tuple[str, ...], seen: set[int]) -> None:
    """Raise ConfigError if a mapping in a tree of YAML has a key twice; `seen` are nodes that aliases name again."""
    if id(node) in seen:
        return
    seen.add(id(node))
    if isinstance(node, yaml.SequenceNode):
        for entry in node.value:
            _check_keys(entry, where, path, seen)
    if not isinstance(node, yaml.MappingNode):
        return
    lines: dict[tuple[str, str], int] = {}
    for key, value in node.value:
        name, line = str(key.value), key.start_mark.line + 1
        if (key.tag, name) in lines:
            first = lines[key.tag, name]
            raise ConfigError(
                f"{where}: '{'.'.join((*path, name))}' is given twice, in line"
                + (f" {line}" if line == first else f"s {first} and {line}")
                + ". Keep one."
            )
        lines[key.tag, name] = line
        _check_keys(value, where, (*path, name), seen)


def _together(model: type[pydantic.BaseModel], problems: list[Any]) -> list[Any]:
    """Return the problems, those with the alternatives of one value (a number, or a word) as one."""
    found: dict[tuple[Any, ...], Any] = {}
    for problem in problems:
        *path, last = problem["loc"] or ("",)
        if not path or not _is_choice(model, [str(part) for part in path]):
            found[(*path, last, problem["type"])] = problem
            continue
        key = (*path, "alternatives")
        said = problem["msg"].removeprefix("Value error, ").partition(", unable to")[0]
        if key in found:
            said = f"{found[key]['msg']} or {said.removeprefix('Input should be ')}"
        found[key] = {**problem, "loc": tuple(path), "msg": said}
    return list(found.values())


def _is_choice(model: type[pydantic.BaseModel], location: list[str]) -> bool:
    """Return whether the field at `location` takes one of several plain kinds of values."""
    field = _model_at(model, location[:-1]).model_fields.get(location[-1])
    if field is None or typing.get_origin(field.annotation) not in (typing.Union, types.UnionType):
        return False
    kinds = [kind for kind in typing.get_args(field.annotation) if kind is not type(None)]
    return len(kinds) > 1 and not _records_in(field.annotation)


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
