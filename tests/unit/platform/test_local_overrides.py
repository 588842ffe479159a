"""``--set``: another value for a key of the job file, checked before anything starts."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from irlops.cli.train import parse_settings
from irlops.contracts.training_manifest import TrainingManifest, read_training_manifest
from irlops.errors import ConfigError, ManifestError
from irlops.local.machine import parse_quantity
from irlops.local.overrides import check_job_file, with_overrides
from support.training_manifests import config_map, pytorchjob, worker, write_manifest

SFT = """
kind: sft
run_name: sft-tiny
data: {name: arithmetic}
model: {preset: tiny}
num_steps: 600
optimizer: {learning_rate: 0.004}
"""


def manifest_with(folder: Path, *documents, mount: str = "/etc/irlops", **volume) -> TrainingManifest:
    job = pytorchjob(
        workers=worker(
            env=[{"name": "IRLOPS_JOB_FILE", "value": "/etc/irlops/job.yaml"}],
            volumeMounts=[{"name": "job", "mountPath": mount}],
            pod={"volumes": [{"name": "job", "configMap": {"name": "job", **volume}}]},
        )
    )
    return read_training_manifest(write_manifest(folder, job, *documents))


def test_a_set_value_reaches_the_job_and_leaves_the_rest(tmp_path: Path):
    manifest = manifest_with(tmp_path, config_map("job", job_yaml=SFT))
    changed = with_overrides(manifest, {"num_steps": 20, "optimizer.schedule": "cosine", "checkpoints.every": 5})
    job = check_job_file(changed)
    assert (job.num_steps, job.optimizer.schedule, job.optimizer.learning_rate, job.checkpoints.every) == (
        20,
        "cosine",
        0.004,
        5,
    )
    assert check_job_file(manifest).num_steps == 600


def test_a_key_under_another_file_name_is_found(tmp_path: Path):
    manifest = manifest_with(tmp_path, config_map("job", sft_yaml=SFT), items=[{"key": "sft.yaml", "path": "job.yaml"}])
    assert check_job_file(with_overrides(manifest, {"seed": 7})).seed == 7


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        ({"num_stpes": 20}, r"job.yaml\) is not a valid job file: num_stpes: unknown key, did you mean num_steps\?"),
        ({"num_steps.more": 20}, "num_steps in the job file of .* is no section, so num_steps.more can't be set"),
        ({"num_steps": "many"}, r"num_steps: .*\(seen: 'many'\)"),
    ],
    ids=["unknown key", "no section", "wrong value"],
)
def test_a_setting_that_makes_no_sense_is_named(tmp_path: Path, overrides, told: str):
    manifest = manifest_with(tmp_path, config_map("job", job_yaml=SFT))
    with pytest.raises(ConfigError, match=told):
        check_job_file(with_overrides(manifest, overrides))


def test_a_missing_config_map_or_key_is_named(tmp_path: Path):
    with pytest.raises(
        ManifestError, match=r"mounts the ConfigMap 'job' as its job file, which is not in the file \(there: other\)"
    ):
        check_job_file(manifest_with(tmp_path, config_map("other", job_yaml=SFT)))
    with pytest.raises(ManifestError, match=r"no key 'job.yaml', to which IRLOPS_JOB_FILE points \(keys: jbo.yaml\)"):
        check_job_file(manifest_with(tmp_path, config_map("job", jbo_yaml=SFT)))


def test_a_manifest_without_a_job_file_takes_no_settings(tmp_path: Path):
    manifest = read_training_manifest(write_manifest(tmp_path, pytorchjob()))
    assert check_job_file(manifest) is None
    with pytest.raises(ConfigError, match="has no job file to set seed in"):
        with_overrides(manifest, {"seed": 7})


def test_settings_on_the_command_line_are_yaml():
    settings = ["seed=7", "data.num_train=null", "compare={untrained: null}", "row=a=b"]
    assert parse_settings(settings) == {"seed": 7, "data.num_train": None, "compare": {"untrained": None}, "row": "a=b"}


@pytest.mark.parametrize("setting", ["seed", "=7", "a..b=1", "seed=[1"])
def test_a_setting_that_is_none_is_refused(setting: str):
    with pytest.raises(ConfigError, match="--set"):
        parse_settings([setting])


def test_the_changed_job_file_is_what_the_cluster_would_get_as_well(tmp_path: Path):
    changed = with_overrides(manifest_with(tmp_path, config_map("job", job_yaml=SFT)), {"seed": 7})
    [document] = [one for one in changed.documents if one["kind"] == "ConfigMap"]
    assert yaml.safe_load(document["data"]["job.yaml"])["seed"] == 7


@pytest.mark.parametrize(
    ("text", "number"), [("2", 2.0), ("500m", 0.5), ("2Gi", 2 * 1024**3), ("1e3", 1000.0), ("1.5k", 1500.0)]
)
def test_quantities(text: str, number: float):
    assert parse_quantity(text) == number


@pytest.mark.parametrize("text", ["2GiB", "much", "", "Gi"])
def test_what_is_no_quantity_is_refused(text: str):
    with pytest.raises(ManifestError, match="is no quantity"):
        parse_quantity(text)
