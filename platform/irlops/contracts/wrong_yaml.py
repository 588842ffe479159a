"""What is wrong with a YAML file, in words for whoever wrote it: where it breaks off, and which key was probably meant."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from typing import Any, get_args

import yaml
from pydantic import BaseModel

UNKNOWN_KEY = "extra_forbidden"
"""pydantic's type for a key that a model doesn't have."""

_MAX_LISTED = 12
"""A longer list of keys helps less than the page that describes them."""


def explain_yaml(error: yaml.YAMLError | UnicodeDecodeError) -> str:
    """``line 7, column 3: mapping values are not allowed here``, where PyYAML would draw arrows over several lines."""
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        mark = error.problem_mark
        return f"line {mark.line + 1}, column {mark.column + 1}: {error.problem or error.context}"
    return " ".join(str(error).split())


def explain_unknown_key(model: type[BaseModel], place: Sequence[str | int]) -> str:
    """``unknown key, did you mean batch_size?`` for the key at the end of ``place``, which ``model`` doesn't have."""
    *sections, wrong = place
    known = list(dict.fromkeys(_keys(_models_at(model, sections))))
    if close := difflib.get_close_matches(str(wrong), known, n=1):
        return f"unknown key, did you mean {close[0]}?"
    if 0 < len(known) <= _MAX_LISTED:
        return f"unknown key, known there are {', '.join(known)}"
    return "unknown key"


def _models_at(model: type[BaseModel], sections: Sequence[str | int]) -> list[type[BaseModel]]:
    models = [model]
    for section in sections:
        inner = [
            found
            for outer in models
            for name, field in outer.model_fields.items()
            if section in (field.alias or name, name)
            for found in _models_in(field.annotation)
        ]
        models = inner or models  # a list's index or a mapping's key leads no deeper
    return models


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in get_args(annotation):
        yield from _models_in(argument)


def _keys(models: Sequence[type[BaseModel]]) -> Iterator[str]:
    for model in models:
        for name, field in model.model_fields.items():
            yield field.alias or name
