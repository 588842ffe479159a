"""What is recorded holds no secret, and loses nothing that only sounds like one."""

from __future__ import annotations

import pytest
from pydantic import BaseModel, SecretStr

from irlops.registry.masking import MASK, mask_secrets


@pytest.mark.parametrize(
    "key",
    [
        "password",
        "hf_token",
        "token",
        "MLFLOW_TRACKING_TOKEN",
        "apiKey",
        "aws_secret_access_key",
        "dbPassword",
        "api_token",
    ],
)
def test_a_value_under_a_secret_name_is_masked(key: str) -> None:
    assert mask_secrets({"section": {key: "s3cr3t"}}) == {"section": {key: MASK}}


@pytest.mark.parametrize(
    ("key", "value"),
    [("eos_token", "</s>"), ("max_new_tokens", 128), ("micro_batch_tokens", 8), ("tokenizer", "x"), ("key", "v")],
)
def test_a_value_about_text_tokens_stays(key: str, value: object) -> None:
    assert mask_secrets({key: value}) == {key: value}


def test_the_password_of_an_address_is_masked_and_the_address_stays() -> None:
    assert mask_secrets("postgresql://me:pw@db:5432/x?a=1") == f"postgresql://me:{MASK}@db:5432/x?a=1"
    assert mask_secrets("http://mlflow:5000/path") == "http://mlflow:5000/path"


def test_known_kinds_of_tokens_are_masked_wherever_they_stand() -> None:
    assert mask_secrets(["--token=hf_" + "a1" * 15, "plain"]) == [f"--token={MASK}", "plain"]


def test_a_pydantic_secret_is_masked_whatever_its_name() -> None:
    class Settings(BaseModel):
        greeting: SecretStr
        seeds: tuple[int, ...] = (1, 2)

    assert mask_secrets(Settings(greeting=SecretStr("hush"))) == {"greeting": MASK, "seeds": [1, 2]}
