"""API keys: a YAML file of hashes, and the command that makes an entry.

    python -m irlops_serving.gateway.keys --name team-a --models reranked,policy --expires 2027-06-30T00:00:00Z

prints the key once (it can't be read back from its hash) and the entry to add under ``keys:``.
Keys carry 256 random bits, so a plain SHA-256 is enough: slow hashes protect passwords that people choose.
"""

from __future__ import annotations

import argparse
import hashlib
import secrets
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Literal

import yaml
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from irlops.contracts.wrong_yaml import explain_yaml
from irlops.errors import ConfigError

KEY_PREFIX = "irl-"
ServedModel = Literal["policy", "reranked", "critic"]


class KeyEntry(BaseModel):
    """One key in the file."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9._@-]{1,64}$")]
    """Budgets, metrics and logs go by it."""
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    expires: AwareDatetime | None = None
    """With a time zone; never when absent."""
    models: frozenset[ServedModel] | None = None
    requests_per_minute: Annotated[int, Field(ge=1)] | None = None
    tokens_per_minute: Annotated[int, Field(ge=1)] | None = None


class KeyFile(BaseModel):
    """The whole file."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    keys: tuple[KeyEntry, ...]


def hash_key(key: str) -> str:
    """SHA-256 of the key, in lower-case hex."""
    return hashlib.sha256(key.encode()).hexdigest()


def read_key_file(path: Path) -> dict[str, KeyEntry]:
    """Entries by hash.

    Raises:
        ConfigError: not there, not YAML, an unknown field, or one hash twice.
    """
    try:
        entries = KeyFile.model_validate(yaml.safe_load(path.read_text())).keys
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"The key file {path} can't be read: {error}. Mount the Secret or correct auth.keys_file."
        ) from error
    except yaml.YAMLError as error:
        raise ConfigError(f"The key file {path} is not YAML: {explain_yaml(error)}.") from error
    except ValidationError as error:
        faults = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors(include_input=False))
        raise ConfigError(f"The key file {path} is wrong: {faults}.") from error
    except ValueError as error:  # a day that no month has
        raise ConfigError(f"The key file {path} is wrong: {error}.") from error
    by_hash = {entry.sha256: entry for entry in entries}
    if len(by_hash) != len(entries):
        raise ConfigError(f"The key file {path} has one sha256 under two names. Make a key for each.")
    return by_hash


def make_key(name: str, models: list[str] | None = None, expires: str | None = None) -> tuple[str, KeyEntry]:
    """A new key and its entry."""
    key = KEY_PREFIX + secrets.token_urlsafe(32)
    when = TypeAdapter(AwareDatetime | None).validate_python(expires)
    entry = KeyEntry.model_validate({"name": name, "sha256": hash_key(key), "expires": when, "models": models})
    return key, entry


def main(arguments: list[str] | None = None) -> int:
    """Print a new key to the terminal and its entry to standard output."""
    parser = argparse.ArgumentParser(prog="python -m irlops_serving.gateway.keys", description="Make an API key.")
    parser.add_argument("--name", required=True, help="who it is for; budgets and logs go by it")
    parser.add_argument("--models", help="comma-separated: policy, reranked, critic (default: all)")
    parser.add_argument("--expires", help="ISO time with a zone, such as 2027-06-30T00:00:00Z (default: never)")
    options = parser.parse_args(arguments)
    try:
        key, entry = make_key(options.name, options.models.split(",") if options.models else None, options.expires)
    except ValidationError as error:
        parser.error("; ".join(f"{'.'.join(map(str, e['loc'])) or 'expires'}: {e['msg']}" for e in error.errors()))
    if entry.expires is not None and entry.expires < datetime.now(UTC):
        parser.error(f"--expires {options.expires} has passed")
    print(f"The key, shown only now: {key}", file=sys.stderr)
    fields = {name: value for name, value in entry.model_dump(mode="json").items() if value is not None}
    print(yaml.safe_dump({"keys": [fields]}, sort_keys=False).removeprefix("keys:\n"), end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
