"""Job files: `schedules/*.toml`, in which every table is a job, read whole and refused with every error at once."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, time, timedelta
from pathlib import Path
from typing import Any, Literal, Self, TypeVar, cast, get_args

from pydantic import BaseModel, Field, TypeAdapter, ValidationError, model_validator
from pydantic.fields import FieldInfo
from pydantic.json_schema import GenerateJsonSchema, models_json_schema
from pydantic_core import ErrorDetails

from maintd.errors import Problem, Problems, did_you_mean
from maintd.retry import Backoff
from maintd.scheduling.calendar import When
from maintd.spec import Duration, Spec

_LONGEST_WAIT = timedelta(hours=1)
_NAME = r"[a-z0-9][a-z0-9-]{0,62}"
_S = TypeVar("_S", bound=Spec)


class Retry(Spec):
    """How a failed run is tried again."""

    attempts: int = Field(default=3, ge=1, le=20)
    """How often a run is tried in all, the first time included."""
    wait: Duration = timedelta(seconds=30)
    """The wait before the second attempt. It doubles before each further one, up to an hour."""

    def backoff(self) -> Backoff:
        """The waits between attempts."""
        return Backoff(first=self.wait, longest=max(self.wait, _LONGEST_WAIT))


class JobHeader(Spec):
    """The keys that every job has, whatever its kind."""

    kind: str
    """What the job does."""
    description: str = ""
    """A sentence for people, shown wherever the job is."""
    enabled: bool = True
    """Whether the job runs when it is due. A disabled one can still be run by hand."""
    when: When | None = None
    """When the job is due. Without it the job runs by hand or as a step of a pipeline."""
    timeout: Duration = timedelta(hours=1)
    """The longest that one attempt may take before it is stopped and counts as failed."""
    retry: Retry = Retry()
    """How a failed run is tried again."""
    on_lost: Literal["retry", "park"] = "retry"
    """What happens to a run whose worker vanished, so that nobody knows how far it came: `"retry"` starts it again,
    `"park"` leaves it for a person to decide."""
    overlap: Literal["skip", "queue"] = "skip"
    """What happens when the job is due while its last run still goes on: `"skip"` leaves this time out, `"queue"` lets
    it wait for its turn. With `missed = "all"` only `"queue"` makes sense."""

    @model_validator(mode="after")
    def _catches_up_in_turn(self) -> Self:
        if self.when is not None and self.when.missed == "all" and self.overlap == "skip":
            raise ValueError(
                'when.missed = "all" needs overlap = "queue": else only the first of them would run'
            )
        return self


@dataclass(frozen=True, kw_only=True)
class Job:
    """A job as its file describes it.

    Attributes:
        name: The name of its table.
        header: The keys that every job has.
        spec: The keys of its kind.
        file: The name of the file it was read from, empty if it comes from the ledger; no part of what the job is.
    """

    name: str
    header: JobHeader
    spec: Spec
    file: str = field(default="", compare=False)


def read_jobs(directory: Path, *, kinds: Mapping[str, type[Spec]]) -> list[Job]:
    """Reads every `*.toml` of a directory, in the order of file names and tables.

    Args:
        directory: Where the files are; those in subdirectories and hidden ones are left alone.
        kinds: The model of each kind's own keys.

    Raises:
        Problems: Everything that is wrong with any of the files. No job at all is an error too, so that a wrong path
            never looks like the wish to remove everything.
    """
    _check_disjoint(kinds)
    problems: list[Problem] = []
    jobs: list[Job] = []
    file_of: dict[str, str] = {}
    for path in _job_files(directory):
        try:
            document = _document(path)
        except Problems as error:
            problems += error.problems
            continue
        for name, table in document.items():
            problems += _repeated(name, path.name, first_file=file_of.setdefault(name, path.name))
            try:
                jobs.append(_job(name, table, file=path.name, kinds=kinds))
            except Problems as error:
                problems += error.problems
    if not file_of and not problems:
        problems.append(Problem(where=str(directory), what="there is no job in any of its files"))
    if problems:
        raise Problems(problems)
    return jobs


def dump(job: Job) -> dict[str, Any]:
    """The form in which a job is stored and compared: JSON, shaped like its table in the file.

    Every key is written, defaults too, so that a default that changes later does not change a stored job.
    """
    parts = (job.header, job.spec)
    return {
        key: value for part in parts for key, value in part.model_dump(mode="json", by_alias=True).items()
    }


def load(name: str, stored: Mapping[str, Any], *, kinds: Mapping[str, type[Spec]]) -> Job:
    """The inverse of `dump`.

    Raises:
        Problems: It was stored by a version that knew other kinds or keys.
    """
    return _job(name, stored, file="", kinds=kinds)


def json_schema(kinds: Mapping[str, type[Spec]]) -> dict[str, Any]:
    """The JSON Schema (draft 2020-12) of a job file, with which editors complete and explain keys."""
    _check_disjoint(kinds)
    models: list[tuple[type[BaseModel], Literal["validation"]]] = [(JobHeader, "validation")]
    models += [(model, "validation") for model in kinds.values()]
    references, shared = models_json_schema(
        models, ref_template="#/$defs/{model}", schema_generator=_SchemaOfFiles
    )
    definitions: dict[str, Any] = shared["$defs"]

    def definition(model: type[BaseModel]) -> dict[str, Any]:
        schema: dict[str, Any] = definitions[references[model, "validation"]["$ref"].rpartition("/")[2]]
        return schema

    header = definition(JobHeader)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "maintd job file",
        "type": "object",
        "propertyNames": {"pattern": f"^{_NAME}$"},
        "additionalProperties": {
            "oneOf": [_job_schema(kind, header, definition(model)) for kind, model in sorted(kinds.items())]
        },
        "$defs": definitions,
    }


class _SchemaOfFiles(GenerateJsonSchema):
    """Writes the default of a duration as people write it, not as ISO 8601 does."""

    def encode_default(self, dft: Any) -> Any:
        if isinstance(dft, timedelta):
            return TypeAdapter(Duration).dump_python(dft, mode="json")
        return super().encode_default(dft)


def _job_schema(kind: str, header: Mapping[str, Any], spec: Mapping[str, Any]) -> dict[str, Any]:
    of_kind = {"kind": {**header["properties"]["kind"], "const": kind}}
    return {
        "title": kind,
        "description": spec.get("description", ""),
        "type": "object",
        "properties": header["properties"] | of_kind | spec.get("properties", {}),
        "required": ["kind", *spec.get("required", ())],
        "additionalProperties": False,
    }


def _check_disjoint(kinds: Mapping[str, type[Spec]]) -> None:
    for kind, model in kinds.items():
        if taken := _fields(JobHeader).keys() & _fields(model).keys():
            raise ValueError(f"{model.__name__} of kind {kind} redefines keys of every job: {sorted(taken)}")


def _job_files(directory: Path) -> list[Path]:
    if not directory.is_dir():
        raise Problems([Problem(where=str(directory), what="there is no such directory")])
    files = sorted(path for path in directory.glob("*.toml") if not path.name.startswith("."))
    if not files:
        raise Problems([Problem(where=str(directory), what="there is no *.toml file in this directory")])
    return files


def _document(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        problem = Problem(where=path.name, what=f"cannot be read: {error.strerror}")
    except UnicodeDecodeError as error:
        problem = Problem(where=path.name, what=f"is not UTF-8 text at byte {error.start}")
    except tomllib.TOMLDecodeError as error:
        place = re.search(r" \(at line (\d+), column \d+\)$", str(error))
        where = f"{path.name}:{place[1]}" if place else path.name
        message = str(error)[: place.start() if place else None]
        problem = Problem(where=where, what=f"is not valid TOML: {message}")
    raise Problems([problem])


def _repeated(name: str, file: str, *, first_file: str) -> list[Problem]:
    if file == first_file:
        return []
    return [Problem(where=f"{file}: [{name}]", what=f"there is a job of this name in {first_file} already")]


def _job(name: str, table: Any, *, file: str, kinds: Mapping[str, type[Spec]]) -> Job:
    where = f"{file}: [{name}]".removeprefix(": ")
    if not isinstance(table, Mapping):
        cure = f"a job is a table: [{name}]"
        raise Problems([Problem(where=where, what=f"must be a table, not {_given(table)}", cure=cure)])
    problems = [*_name_problems(name, where), *_kind_problems(table.get("kind"), where, kinds)]
    common = _fields(JobHeader).keys()
    # The kind was judged with a better sentence than the model has for it.
    head = {key: value for key, value in table.items() if key in common} | {"kind": str(table.get("kind"))}
    own = {key: value for key, value in table.items() if key not in common}
    header = _validated(JobHeader, head, where=where, problems=problems)
    spec = None
    if head["kind"] in kinds:
        spec = _validated(kinds[head["kind"]], own, where=where, problems=problems)
    if header is None or spec is None or problems:
        raise Problems(problems)
    return Job(name=name, header=header, spec=spec, file=file)


def _name_problems(name: str, where: str) -> list[Problem]:
    if re.fullmatch(_NAME, name):
        return []
    cure = "use up to 63 small letters, digits and hyphens, a letter or digit first"
    return [Problem(where=where, what="is not a name for a job", cure=cure)]


def _kind_problems(kind: Any, where: str, kinds: Collection[str]) -> list[Problem]:
    if isinstance(kind, str) and kind in kinds:
        return []
    what = "is missing" if kind is None else f"there is no kind {_quoted(kind)}"
    return [Problem(where=f"{where} kind", what=what, cure=did_you_mean(str(kind or ""), kinds))]


def _validated(
    model: type[_S], table: Mapping[str, Any], *, where: str, problems: list[Problem]
) -> _S | None:
    """Validates as JSON: strict about types, yet a list may fill a tuple and a text a date or a path."""
    try:
        return model.model_validate_json(json.dumps(table, default=_iso))
    except ValidationError as error:
        problems += _in_words(error, model, table, where)
        return None


def _iso(value: date | time) -> str:
    return value.isoformat()


# How pydantic's errors read in the words of a job file.

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


def _in_words(
    error: ValidationError, model: type[BaseModel], table: Mapping[str, Any], where: str
) -> list[Problem]:
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
    return f"must be {' or '.join(wanted)}, not {_given(details[0]['input'])}"


def _sentence(detail: ErrorDetails) -> str:
    values = {key: _written(value) for key, value in detail.get("ctx", {}).items()}
    sentence = _SENTENCES.get(detail["type"])
    return sentence.format(input=_quoted(detail["input"]), **values) if sentence else detail["msg"]


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
    near = did_you_mean(str(wrong), re.findall(r"'([^']*)'", listed))
    return near if near.startswith("did") else ""


def _keys_beside(loc: Sequence[str | int], model: type[BaseModel]) -> set[str]:
    keys = {key for near in _models_at(loc[:-1], model) for key in _fields(near)}
    return keys | _fields(JobHeader).keys() if len(loc) == 1 else keys


def _models_at(loc: Sequence[str | int], model: type[BaseModel]) -> list[type[BaseModel]]:
    """The models that may stand at a place: one, or the branches of a union that its tag does not decide."""
    models = [model]
    for key in map(str, loc):
        fields = [fields[key] for fields in map(_fields, models) if key in fields]
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


def _fields(model: type[BaseModel]) -> dict[str, FieldInfo]:
    return {info.alias or name: info for name, info in model.model_fields.items()}


def _given(value: Any) -> str:
    return next((words for kind, words in _GIVEN.items() if isinstance(value, kind)), "a date or time")


def _quoted(value: Any) -> str:
    if isinstance(value, str | int | float):
        return json.dumps(value[:60] if isinstance(value, str) else value, ensure_ascii=False)
    return _given(value)


def _written(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    return str(value).replace("'", '"')
