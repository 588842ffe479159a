"""docs/jobs.md from the job file's models: ``python -m irlops.contracts.job_docs > docs/jobs.md``."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast, get_args

import yaml
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from irlops.contracts.jobs import AirlJob, EvaluateJob, GrpoJob, JobBase, JobEnvironment, Section, SftJob

_HEAD = """# Job files

One YAML per run. On a cluster it is a ConfigMap that the PyTorchJob mounts; `irlops train` reads it from the manifest.
Unknown keys are errors. Every path is relative to the state directory (`IRLOPS_STATE_DIR`), so the same file runs in a
pod and on a laptop. This page is written by `python -m irlops.contracts.job_docs`; change the models, not the page.

Complete files stand in `manifests/training/`.
"""


def job_docs() -> str:
    """The page, as Markdown."""
    parts = [_HEAD, *_environment()]
    parts += ["## Every job\n", *_table(JobBase)]
    for job in (SftJob, AirlJob, GrpoJob, EvaluateJob):
        own = {name: field for name, field in job.model_fields.items() if name not in JobBase.model_fields}
        parts += [f"## `kind: {_kind(job)}`\n", *_table(job, own)]
    for section in _sections():
        parts += [f"### `{section.__name__}`\n", *_table(section)]
    return "\n".join(parts).rstrip() + "\n"


def _environment() -> Iterator[str]:
    yield "## Environment\n"
    yield "Addresses and secrets, never hyperparameters.\n"
    yield from _table(JobEnvironment, JobEnvironment.model_fields, "IRLOPS_")


def _kind(job: type[BaseModel]) -> str:
    return get_args(job.model_fields["kind"].annotation)[0]


def _sections() -> list[type[Section]]:
    found: dict[type[Section], None] = {}

    def visit(model: type[BaseModel]) -> None:
        for field in model.model_fields.values():
            for part in (field.annotation, *get_args(field.annotation)):
                if isinstance(part, type) and issubclass(part, Section) and part not in found:
                    found[part] = None
                    visit(part)

    for job in (SftJob, AirlJob, GrpoJob, EvaluateJob):
        visit(job)
    return list(found)


def _table(model: type[BaseModel], fields: dict[str, FieldInfo] | None = None, prefix: str = "") -> Iterator[str]:
    if not prefix and model.__doc__ and model.__doc__ is not Section.__doc__:
        yield _one_line(model.__doc__) + "\n"
    yield "| Key | Type | Default | Meaning |"
    yield "|---|---|---|---|"
    for name, field in (fields if fields is not None else model.model_fields).items():
        key = str(field.validation_alias or f"{prefix}{name.upper()}") if prefix else name
        yield f"| `{key}` | {_type(field)} | {_default(field)} | {_one_line(field.description or '')} |"
    yield ""


def _type(field: FieldInfo) -> str:
    name = getattr(field.annotation, "__name__", None) if isinstance(field.annotation, type) else str(field.annotation)
    name = re.sub(r"(typing|irlops\.contracts\.jobs|pathlib|pydantic\.types)\.", "", name or "")
    name = re.sub(r"Literal\[(.*?)\]", lambda found: found[1].replace("'", "`").replace(", ", " or "), name)
    bounds = [f"{sign} {getattr(one, key)}" for one in field.metadata for key, sign in _BOUNDS if hasattr(one, key)]
    name = re.sub(r"\b(\w+Config)\b", lambda found: f"[{found[1]}](#{found[1].lower()})", name.replace("|", "or"))
    return " ".join([name, *bounds])


_BOUNDS = (("ge", "≥"), ("gt", ">"), ("le", "≤"), ("lt", "<"))


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value: Any = field.get_default(call_default_factory=True)
    if isinstance(value, BaseModel):
        value = value.model_dump(exclude_defaults=True) or "defaults"
    if value is None:
        return ""
    if isinstance(value, Path):
        value = str(value)
    if isinstance(value, tuple):
        value = [*cast("tuple[Any, ...]", value)]
    return "`" + yaml.safe_dump(value, default_flow_style=True, width=1000).removesuffix("...\n").strip() + "`"


def _one_line(text: str) -> str:
    return re.sub(r"\s+", " ", text).strip().replace("``", "`").replace("|", "\\|")


if __name__ == "__main__":
    print(job_docs(), end="")
