"""Job files: `schedules/*.toml`, in which every table is a job, read whole and refused with every error at once."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Collection, Mapping
from datetime import date, time, timedelta
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, TypeAdapter, ValidationError
from pydantic.json_schema import GenerateJsonSchema, models_json_schema

from maintd.errors import Problem, Problems, did_you_mean
from maintd.scheduling.job import Job, JobHeader
from maintd.scheduling.wording import given, in_words, keys_of, quoted
from maintd.spec import Duration, Spec
from maintd.textfile import read_text

_NAME = r"[a-z0-9][a-z0-9-]{0,62}"
_S = TypeVar("_S", bound=Spec)


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
        if taken := keys_of(JobHeader).keys() & keys_of(model).keys():
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
        return tomllib.loads(read_text(path))
    except tomllib.TOMLDecodeError as error:
        place = re.search(r" \(at line (\d+), column \d+\)$", str(error))
        where = f"{path.name}:{place[1]}" if place else path.name
        message = str(error)[: place.start() if place else None]
        raise Problems([Problem(where=where, what=f"is not valid TOML: {message}")]) from None


def _repeated(name: str, file: str, *, first_file: str) -> list[Problem]:
    if file == first_file:
        return []
    return [Problem(where=f"{file}: [{name}]", what=f"there is a job of this name in {first_file} already")]


def _job(name: str, table: Any, *, file: str, kinds: Mapping[str, type[Spec]]) -> Job:
    where = f"{file}: [{name}]".removeprefix(": ")
    if not isinstance(table, Mapping):
        cure = f"a job is a table: [{name}]"
        raise Problems([Problem(where=where, what=f"must be a table, not {given(table)}", cure=cure)])
    if table and all(isinstance(value, Mapping) for value in table.values()):
        inner = next(iter(table))
        raise Problems(
            [
                Problem(
                    where=where,
                    what="holds tables only",
                    cure=f"a dot nests: write [{name}-{inner}] for a job",
                )
            ]
        )
    problems = [*_name_problems(name, where), *_kind_problems(table.get("kind"), where, kinds)]
    common = keys_of(JobHeader)
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
    what = "is missing" if kind is None else f"there is no kind {quoted(kind)}"
    return [Problem(where=f"{where} kind", what=what, cure=did_you_mean(str(kind or ""), kinds))]


def _validated(
    model: type[_S], table: Mapping[str, Any], *, where: str, problems: list[Problem]
) -> _S | None:
    """Validates as JSON: strict about types, yet a list may fill a tuple and a text a date or a path."""
    try:
        return model.model_validate_json(json.dumps(table, default=_iso))
    except ValidationError as error:
        problems += in_words(error, model, table, where)
        return None


def _iso(value: date | time) -> str:
    return value.isoformat()
