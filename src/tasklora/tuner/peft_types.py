"""Registration with PEFT: the only place that extends PEFT's own tables.

PEFT refuses method names that are no member of its ``PeftType`` enum, and transformers' ``load_adapter`` needs a real
member (plain strings have no ``.value``), so members are added to the enum here.
"""

from __future__ import annotations

import enum
from typing import Any

from peft.utils.peft_types import PeftType, register_peft_method

PREFIX = "task_updates"
"""Name of the layers' attribute that holds the updates; must not contain ``lora_``, which PEFT takes for LoRA's own."""

_METHODS: dict[type, tuple[str, bool]] = {}


def _enum_member(cls: Any, name: str) -> Any:
    """Return the member `name` of the string enum `cls`, adding it if it is not there."""
    if name in cls.__members__:
        return cls[name]
    member = str.__new__(cls, name)
    member._name_ = name
    member._value_ = name
    enum.Enum.__init__(member)
    cls._member_map_[name] = member
    cls._member_names_.append(name)
    cls._value2member_map_[name] = member
    return member


def register_method(name: str, config_cls: type, tuner_cls: type, uses_task_ids: bool) -> None:
    """Make a method known to PEFT: its ``PeftType``, config class, tuner and prefix."""
    _enum_member(PeftType, name.upper())
    _METHODS[config_cls] = (name.upper(), uses_task_ids)
    register_peft_method(name=name, config_cls=config_cls, model_cls=tuner_cls, prefix=PREFIX)


def peft_type_of(config_cls: type) -> Any:
    """Return the ``PeftType`` member of a registered config class."""
    if config_cls not in _METHODS:
        raise TypeError(
            f"{config_cls.__name__} is not a registered method; use one of {[c.__name__ for c in _METHODS]}."
        )
    return PeftType[_METHODS[config_cls][0]]


def uses_task_ids(config_cls: type) -> bool:
    """Return whether the method of a registered config class uses task ids."""
    return _METHODS[config_cls][1]
