"""The page on job files says what the models say."""

from pathlib import Path

from irlops.contracts.job_docs import job_docs

PAGE = Path(__file__).parents[3] / "docs/jobs.md"


def test_the_page_is_the_one_that_the_models_write():
    assert PAGE.read_text() == job_docs(), "Run: python -m irlops.contracts.job_docs > docs/jobs.md"


def test_every_key_of_a_section_is_on_the_page():
    assert "| `branches_per_expert` |" in job_docs()
    assert "| `MLFLOW_TRACKING_URI` |" in job_docs()
