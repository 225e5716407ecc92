"""Mail templates: a directory with `subject.txt`, `body.txt` and perhaps `body.html`, frozen by digest, then rendered.

Layouts and snippets that several mails share lie in the templates directory itself and are reached by `extends`,
`include` and `import`. Files that go with every mail lie in the template's `attachments` and `inline`. A mailing stores
all of it, so that editing a file changes nothing under way.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from hashlib import sha256
from pathlib import Path, PurePosixPath
from types import TracebackType

from css_inline import CSSInliner, InlineError
from jinja2 import (
    Environment,
    FunctionLoader,
    StrictUndefined,
    Template,
    TemplateSyntaxError,
    UndefinedError,
    meta,
    nodes,
    select_autoescape,
)

from maintd.errors import MaintdError, Problem, Problems, did_you_mean
from maintd.mail.content.enclosures import (
    ATTACHMENTS,
    INLINE,
    Enclosure,
    enclosures,
    is_enclosed,
    read_enclosures,
)
from maintd.mail.content.images import image_problems, with_content_ids
from maintd.mail.content.message import is_header_safe
from maintd.textfile import read_text

_FORMAT_VERSION = 1
_BLANKS = re.compile(r"[ \t\r\n\xa0]+")
_SUBJECT, _TEXT, _HTML = "subject.txt", "body.txt", "body.html"
# Nothing is ever fetched: what a mail looks like is decided by its template alone. At-rules, such as media queries,
# cannot be inlined and stay in their style element.
_INLINER = CSSInliner(load_remote_stylesheets=False, keep_at_rules=True)


class RenderFailed(MaintdError):
    """A mail cannot be made from its template and these fields. The message never shows what is in the fields."""

    def __init__(self, *, where: str, reason: str) -> None:
        self.where = where
        self.reason = reason
        super().__init__(f"{where}: {reason}")


@dataclass(frozen=True, kw_only=True)
class Bundle:
    """A template with everything it reaches and encloses.

    Attributes:
        name: Of its directory.
        files: By path relative to the templates directory: texts as they are, "digest/body.html", "_layout.html", and
            enclosures in base64, "digest/attachments/terms.pdf".
    """

    name: str
    files: Mapping[str, str]

    @property
    def texts(self) -> dict[str, str]:
        """The files that are templates."""
        return {path: text for path, text in self.files.items() if not is_enclosed(path, template=self.name)}

    @property
    def attachments(self) -> tuple[Enclosure, ...]:
        """The files that go with every mail."""
        return enclosures(self.files, template=self.name, folder=ATTACHMENTS)

    @property
    def inline(self) -> tuple[Enclosure, ...]:
        """The images that the HTML shows."""
        return enclosures(self.files, template=self.name, folder=INLINE)

    @property
    def digest(self) -> str:
        """The SHA-256, in hex, that two bundles share only if they make the same mails."""
        content = {"format": _FORMAT_VERSION, "name": self.name, "files": dict(self.files)}
        return sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


@dataclass(frozen=True, kw_only=True)
class Rendered:
    """What a template made of one recipient's fields: the subject is one line, the CSS is inlined."""

    subject: str
    text: str
    html: str | None


def read_bundle(directory: Path, name: str) -> Bundle:
    """Reads a template, everything it reaches, and what it encloses.

    Args:
        directory: The templates directory.
        name: Of the template's own directory in it.

    Raises:
        Problems: All of them: missing files, syntax errors, references that are not plain text or lead outside,
            enclosures that are too large, images that are shown and not there, or there and not shown.
    """
    reader = _Reader(directory, name)
    if reader.finds():
        for file in (_SUBJECT, _TEXT):
            reader.read(f"{name}/{file}", referrer=directory / name)
        if (directory / name / _HTML).exists():
            reader.read(f"{name}/{_HTML}", referrer=directory / name)
        reader.enclose()
    if reader.problems:
        raise Problems(reader.problems)
    return Bundle(name=name, files=reader.files)


class _Reader:
    """Follows references from file to file, and collects what is wrong with them."""

    def __init__(self, directory: Path, name: str) -> None:
        self.files: dict[str, str] = {}
        self.problems: list[Problem] = []
        self._directory = directory
        self._name = name
        self._environment = _environment({})

    def finds(self) -> bool:
        name = self._name
        if not _is_plain(name) or "/" in name or not (self._directory / name).is_dir():
            known = (file.parent.name for file in self._directory.glob(f"*/{_SUBJECT}"))
            self._report(self._directory, f'there is no template "{name}"', did_you_mean(name, known))
            return False
        return True

    def read(self, path: str, *, referrer: Path | str) -> None:
        if path in self.files:
            return
        text = self._text(path, referrer=referrer)
        self.files[path] = text or ""
        if text is not None:
            self._follow(path, text)

    def enclose(self) -> None:
        try:
            files = read_enclosures(self._directory, self._name, texts=self.files)
        except Problems as error:
            self.problems.extend(error.problems)
            return
        images = enclosures(files, template=self._name, folder=INLINE)
        html = _html_of(self.files)
        self.problems += image_problems(html, images, directory=self._directory, template=self._name)
        self.files |= files

    def _text(self, path: str, *, referrer: Path | str) -> str | None:
        file = self._directory / path
        if not _is_plain(path) or not file.resolve().is_relative_to(self._directory.resolve()):
            self._report(referrer, f'"{path}" is not a path inside of {self._directory}')
            return None
        if is_enclosed(path, template=self._name):
            self._report(referrer, f'"{path}" is enclosed with the mail and cannot be a part of its text')
            return None
        if not file.is_file():
            self._report(referrer, f'there is no file "{path}"', did_you_mean(path, self._known()))
            return None
        try:
            return read_text(file)
        except Problems as error:
            self.problems.extend(error.problems)
            return None

    def _known(self) -> Iterator[str]:
        files = (*self._directory.glob("*.*"), *self._directory.glob("*/*.*"))
        return (file.relative_to(self._directory).as_posix() for file in files)

    def _follow(self, path: str, text: str) -> None:
        file = self._directory / path
        try:
            tree = self._environment.parse(text, path)
            self._environment.compile(text, path)
        except TemplateSyntaxError as error:
            self._report(f"{file}:{error.lineno}", error.message or "syntax error")
            return
        for line, reference in _references(tree):
            if reference is None:
                cure = "write the path as plain text, and choose with {% if %}"
                self._report(f"{file}:{line}", "what it refers to depends on a variable", cure)
            else:
                self.read(reference, referrer=f"{file}:{line}")

    def _report(self, where: Path | str, what: str, cure: str = "") -> None:
        self.problems.append(Problem(where=str(where), what=what, cure=cure))


def _html_of(texts: Mapping[str, str]) -> dict[str, str]:
    """The texts that HTML can be made of: all but plain ones."""
    return {path: text for path, text in texts.items() if not path.endswith(".txt")}


def _is_plain(path: str) -> bool:
    """Whether a relative path is written in the one way that it can be: no `.`, no `..`, no doubled slash."""
    parts = PurePosixPath(path).parts
    return bool(parts) and "/".join(parts) == path and ".." not in parts


def _references(tree: nodes.Template) -> Iterator[tuple[int, str | None]]:
    """The line and the path of each reference to another file; None for a path that is not plain text."""
    for node in tree.find_all(nodes.Stmt):
        if isinstance(node, (nodes.Extends, nodes.Include, nodes.Import, nodes.FromImport)):
            written = node.template
            for choice in written.items if isinstance(written, (nodes.List, nodes.Tuple)) else [written]:
                path = choice.value if isinstance(choice, nodes.Const) else None
                yield node.lineno, path if isinstance(path, str) else None


def compile_bundle(bundle: Bundle) -> MailTemplate:
    """Compiles a bundle for many renderings.

    Raises:
        RenderFailed: It does not compile, which `read_bundle` would have told.
    """
    return MailTemplate(bundle)


class MailTemplate:
    """A compiled bundle.

    Attributes:
        variables: The fields that the audience must provide: all that the files use and do not set themselves.
    """

    def __init__(self, bundle: Bundle) -> None:
        self._files = bundle.texts
        images = bundle.inline
        html = {path: with_content_ids(text, images) for path, text in _html_of(self._files).items()}
        self._environment = _environment(self._files | html)
        try:
            compiled = {path: self._environment.get_template(path) for path in self._files}
            for template in compiled.values():
                # Jinja copies them for every rendering, and the ChainMap it keeps them in costs most of a small one.
                template.globals = dict(template.globals)
            self.variables = _variables(bundle, self._environment)
        except TemplateSyntaxError as error:
            where = f"{error.name}:{error.lineno}"
            raise RenderFailed(where=where, reason=error.message or "syntax error") from None
        self._subject = compiled[f"{bundle.name}/{_SUBJECT}"]
        self._text = compiled[f"{bundle.name}/{_TEXT}"]
        self._html = compiled.get(f"{bundle.name}/{_HTML}")

    def render(self, fields: Mapping[str, object]) -> Rendered:
        """Makes one recipient's mail.

        Raises:
            RenderFailed: A field is missing, an expression fails, or the subject is empty or not one clean line.
        """
        subject = _BLANKS.sub(" ", self._rendered(self._subject, fields)).strip(" ")
        if not subject or not is_header_safe(subject):
            reason = "the subject contains a control character" if subject else "the subject is empty"
            raise RenderFailed(where=str(self._subject.name), reason=reason)
        return Rendered(
            subject=subject, text=self._rendered(self._text, fields), html=self._rendered_html(fields)
        )

    def _rendered_html(self, fields: Mapping[str, object]) -> str | None:
        if self._html is None:
            return None
        html = self._rendered(self._html, fields)
        if "<style" not in html.lower():
            return html
        try:
            return _INLINER.inline(html)
        except InlineError:
            raise RenderFailed(where=str(self._html.name), reason="its CSS cannot be inlined") from None

    def _rendered(self, template: Template, fields: Mapping[str, object]) -> str:
        try:
            return template.render(fields)
        except Exception as error:  # noqa: BLE001 -- an expression of a template can raise anything
            # Without its cause: a traceback would show what is in the fields.
            raise self._failure(template, error) from None

    def _failure(self, template: Template, error: Exception) -> RenderFailed:
        path, line = _last_place(error.__traceback__, self._files) or (str(template.name), 1)
        source = "".join(self._files[path].splitlines()[line - 1 : line]).strip()
        return RenderFailed(where=f"{path}:{line}", reason=f"{_reason(error)}, in: {source}")


def _reason(error: Exception) -> str:
    """What went wrong, without the error's own text, which may quote a field."""
    if isinstance(error, UndefinedError):
        return "a field is undefined, or has no such attribute (NULL has none)"
    return str(error) if isinstance(error, _FilterFailed) else type(error).__name__


def _last_place(traceback: TracebackType | None, files: Mapping[str, str]) -> tuple[str, int] | None:
    """The innermost file and line of a template in a traceback, which Jinja rewrites to show those."""
    place = None
    while traceback is not None:
        if traceback.tb_frame.f_code.co_filename in files:
            place = traceback.tb_frame.f_code.co_filename, traceback.tb_lineno
        traceback = traceback.tb_next
    return place


def _environment(files: Mapping[str, str]) -> Environment:
    environment = Environment(
        loader=FunctionLoader(lambda path: (files[path], path, None) if path in files else None),
        autoescape=select_autoescape(("html",), disabled_extensions=(), default_for_string=False),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        auto_reload=False,
        cache_size=-1,
    )
    environment.filters["date"] = _date
    # A mail that is made twice must come out the same.
    del environment.filters["random"], environment.globals["lipsum"]
    return environment


class _FilterFailed(ValueError):
    """A filter of ours refuses its input; the message does not repeat it."""


def _date(value: object, format: str) -> str:
    """Writes an ISO 8601 date or time by a format of `strftime`."""
    try:
        return datetime.fromisoformat(str(value)).strftime(format)
    except ValueError:
        raise _FilterFailed("not a date in ISO 8601, such as 2026-11-23 or 2026-11-23T08:00") from None


def _variables(bundle: Bundle, environment: Environment) -> frozenset[str]:
    trees = {path: environment.parse(text, path) for path, text in bundle.texts.items()}
    entries = [path for file in (_SUBJECT, _TEXT, _HTML) if (path := f"{bundle.name}/{file}") in trees]
    return frozenset().union(*(_wanted(path, trees, above=frozenset()) for path in entries))


def _wanted(path: str, trees: Mapping[str, nodes.Template], *, above: frozenset[str]) -> frozenset[str]:
    """The variables that a file and all below it take from outside: what a file sets is known in those it includes."""
    tree = trees[path]
    here = {"loop"} | {name.name for name in tree.find_all(nodes.Name) if name.ctx != "load"}
    wanted = frozenset(meta.find_undeclared_variables(tree))
    for _, reference in _references(tree):
        if reference is not None and reference not in above:
            wanted |= _wanted(reference, trees, above=above | {path}) - here
    return wanted
