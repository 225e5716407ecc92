"""What is wrong with a job file, in the words of someone who writes one: pydantic's errors translated."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast, get_args

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from maintd.errors import Problem, did_you_mean
from maintd.scheduling.job import JobHeader

_WANTED = {
    "string_type": "a text",
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
    "list_type": "a list",
    "tuple_type": "a list",
    "set_type": "a list",
    "frozen_set_type": "a list",
    "dict_type": "a table",
    "model_type": "a table",
    "model_attributes_type": "a table",
}
_GIVEN = {
    bool: "true or false",
    str: "a text",
    int: "a whole number",
    float: "a decimal number",
    list: "a list",
    dict: "a table",
}
_SENTENCES = {
    "missing": "is missing",
    "extra_forbidden": "there is no such key",
    "literal_error": "must be one of {expected}, not {input}",
    "enum": "must be one of {expected}, not {input}",
    "union_tag_invalid": 'must be one of {expected_tags}, not "{tag}"',
    "union_tag_not_found": "is missing",
    "greater_than": "must be more than {gt}",
    "greater_than_equal": "must be at least {ge}",
    "less_than": "must be less than {lt}",
    "less_than_equal": "must be at most {le}",
    "multiple_of": "must be a multiple of {multiple_of}",
    "finite_number": "must be a finite number",
    "string_too_short": "must have at least {min_length} characters",
    "string_too_long": "must have at most {max_length} characters",
    "string_pattern_mismatch": "must match the pattern {pattern}",
    "too_short": "must have at least {min_length} entries, not {actual_length}",
    "too_long": "must have at most {max_length} entries, not {actual_length}",
    "value_error": "{error}",
    "assertion_error": "{error}",
}
# Said only because another key was wrong already.
_ECHOES = {"default_factory_not_called"}


def in_words(
    error: ValidationError, model: type[BaseModel], table: Mapping[str, Any], where: str
) -> list[Problem]:
    """Every mistake in a table, by its key in the file.

    Args:
        error: What pydantic found.
        model: The model that the table was held against, for the names of keys.
        table: As read from the file.
        where: File and job.
    """
    by_path: dict[str, list[ErrorDetails]] = {}
    for detail in error.errors(include_url=False):
        if detail["type"] not in _ECHOES:
            by_path.setdefault(_path(detail, table), []).append(detail)
    return [
        Problem(where=f"{where} {path}".rstrip(), what=_what(details), cure=_cure(details[0], model))
        for path, details in by_path.items()
    ]


def _path(detail: ErrorDetails, table: Mapping[str, Any]) -> str:
    """The key as the file has it, without the names that pydantic gives to the branches of a union."""
    path, here = "", cast(Any, table)
    for key in detail["loc"]:
        if isinstance(here, list) and isinstance(key, int):
            path, here = f"{path}[{key}]", here[key]
        elif isinstance(here, Mapping) and key in here:
            path, here = f"{path}.{key}", here[key]
    if detail["type"] == "missing":
        path += f".{detail['loc'][-1]}"
    if detail["type"].startswith("union_tag"):
        path += "." + detail["ctx"]["discriminator"].strip("'")
    return path.removeprefix(".")


def _what(details: Sequence[ErrorDetails]) -> str:
    """One sentence for all that is wrong with a key: a union complains once for each of its branches."""
    for detail in details:
        if detail["type"] not in _WANTED:
            return _sentence(detail)
    wanted = dict.fromkeys(_WANTED[detail["type"]] for detail in details)
    return f"must be {' or '.join(wanted)}, not {given(details[0]['input'])}"


def _sentence(detail: ErrorDetails) -> str:
    values = {key: _written(value) for key, value in detail.get("ctx", {}).items()}
    sentence = _SENTENCES.get(detail["type"])
    return sentence.format(input=quoted(detail["input"]), **values) if sentence else detail["msg"]


def _cure(detail: ErrorDetails, model: type[BaseModel]) -> str:
    context = detail.get("ctx", {})
    match detail["type"]:
        case "extra_forbidden":
            return did_you_mean(str(detail["loc"][-1]), _keys_beside(detail["loc"], model))
        case "literal_error" | "enum":
            return _nearest(detail["input"], context["expected"])
        case "union_tag_invalid":
            return _nearest(context["tag"], context["expected_tags"])
    return ""


def _nearest(wrong: Any, listed: str) -> str:
    """The nearest of the choices that pydantic lists as `'a', 'b' or 'c'`; nothing if none is near."""
    return did_you_mean(str(wrong), re.findall(r"'([^']*)'", listed), listing=False)


def _keys_beside(loc: Sequence[str | int], model: type[BaseModel]) -> set[str]:
    keys = {key for near in _models_at(loc[:-1], model) for key in keys_of(near)}
    return keys | keys_of(JobHeader).keys() if len(loc) == 1 else keys


def _models_at(loc: Sequence[str | int], model: type[BaseModel]) -> list[type[BaseModel]]:
    """The models that may stand at a place: one, or the branches of a union that its tag does not decide."""
    models = [model]
    for key in map(str, loc):
        fields = [fields[key] for fields in map(keys_of, models) if key in fields]
        if fields:
            models = [inner for found in fields for inner in _models_in(found.annotation)]
        else:
            models = [branch for branch in models if _has_tag(branch, key)] or models
    return models


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in get_args(annotation):
        yield from _models_in(argument)


def _has_tag(model: type[BaseModel], tag: str) -> bool:
    return any(tag in get_args(info.annotation) for info in model.model_fields.values())


def keys_of(model: type[BaseModel]) -> dict[str, FieldInfo]:
    """The fields of a model by the keys that a file has for them."""
    return {info.alias or name: info for name, info in model.model_fields.items()}


def given(value: Any) -> str:
    """What kind of value that is, in words: "a text", "a list"."""
    return next((words for kind, words in _GIVEN.items() if isinstance(value, kind)), "a date or time")


def quoted(value: Any) -> str:
    """The value as the file would have it."""
    if isinstance(value, str | int | float):
        return json.dumps(value[:60] if isinstance(value, str) else value, ensure_ascii=False)
    return given(value)


def _written(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    return str(value).replace("'", '"')
