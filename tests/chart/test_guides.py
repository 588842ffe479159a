"""The guides say what is true: names, files and values in them exist."""

import json
import re

import pytest
import yaml

from irlops.contracts.jobs import parse_job
from irlops.contracts.pipeline import parse_pipeline_spec
from irlops.contracts.pipeline_jobs import evaluation_document, training_document
from support.charts import CHARTS, REPOSITORY

GUIDES = sorted((REPOSITORY / "docs" / "guides").glob("*.md"))
every_guide = pytest.mark.parametrize("guide", GUIDES, ids=lambda path: path.stem)


def known(schema, path):
    """Whether a dotted path leads to a value of the chart."""
    for name in path.split("."):
        if name == "*":
            return True
        properties = schema.get("properties")
        if properties is None:
            return True
        if name not in properties:
            return False
        schema = properties[name]
    return True


@every_guide
def test_every_value_named_in_a_guide_is_one_of_the_charts(guide):
    schema = json.loads((CHARTS / "irlops" / "values.schema.json").read_text())
    sections = "|".join(set(schema["properties"]) - {"global", "pair"})
    named = re.findall(rf"`((?:{sections})\.[A-Za-z_.*]+)", guide.read_text())
    assert [path for path in named if not known(schema, path.rstrip("."))] == []


@every_guide
def test_every_pipeline_field_named_in_a_guide_is_one_of_the_crds(guide):
    crd = yaml.safe_load((CHARTS / "irlops-crds" / "templates" / "reasoningpipelines.yaml").read_text())
    spec = crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]
    named = re.findall(r"`spec\.([A-Za-z.*]+)", guide.read_text())
    assert [path for path in named if not known(spec, path.rstrip("."))] == []


@every_guide
def test_every_file_of_ours_named_in_a_guide_exists(guide):
    named = re.findall(
        r"(?<![\w/])((?:charts|docs|manifests|platform|jobs|serving)/[\w./-]+\.\w+|(?:charts|manifests)/[\w/-]+)",
        guide.read_text(),
    )
    assert [path for path in named if not (REPOSITORY / path).exists()] == []


def test_the_pipeline_of_the_kind_guide_becomes_valid_job_files():
    document = yaml.safe_load((REPOSITORY / "docs" / "guides" / "pipeline-trial.yaml").read_text())
    spec = parse_pipeline_spec(document["spec"], origin="pipeline-trial.yaml")
    documents = [training_document(spec, index, "tiny-1") for index in range(len(spec.stages))]
    jobs = [parse_job(each, origin="job file") for each in [*documents, evaluation_document(spec, "tiny-1")]]
    assert [job.kind for job in jobs] == [*(stage.kind for stage in spec.stages), "evaluate"]
