"""A replica's environment is what the training operator injects, with this machine's addresses in place of pod names."""

from __future__ import annotations

from pathlib import Path

import pytest

from irlops.contracts.training_manifest import read_training_manifest
from irlops.errors import ManifestError
from irlops.local.machine import Machine
from irlops.local.operator_environment import on_this_machine, operator_environment
from irlops.local.pods import Surroundings, plan_pods
from support.training_manifests import config_map, pytorchjob, worker, write_manifest

PORT = {"ports": [{"name": "pytorchjob-port", "containerPort": 29500}]}


def injected(folder: Path, job, kind: str = "Worker", index: int = 0) -> dict[str, str]:
    return operator_environment(read_training_manifest(write_manifest(folder, job)).job, kind, index)


def planned(folder: Path, *documents, num_cores: int = 4, gpus: tuple[str, ...] = (), uri: str | None = None, **caller):
    here = Surroundings(
        machine=Machine(num_cores, 8 * 2**30, gpus),
        state_dir=folder / "state",
        run_dir=folder / "run",
        port=40113,
        tracking_uri=uri,
        inherited={"PATH": "/usr/bin:/bin", **caller},
    )
    return plan_pods(read_training_manifest(write_manifest(folder, *documents)), here)


def test_workers_without_rendezvous_or_master_learn_their_number_only(tmp_path: Path):
    assert injected(tmp_path, pytorchjob(workers=worker(replicas=3))) == {
        "PYTHONUNBUFFERED": "1",
        "PET_NPROC_PER_NODE": "1",
        "PET_NNODES": "3",
    }


def test_with_a_master_a_worker_has_the_ranks_of_its_node(tmp_path: Path):
    job = pytorchjob(master=worker(**PORT), workers=worker(replicas=2), nprocPerNode="4")
    assert injected(tmp_path, job, index=1) == {
        "PYTHONUNBUFFERED": "1",
        "PET_NPROC_PER_NODE": "4",
        "PET_NNODES": "3",
        "MASTER_ADDR": "job-master-0",
        "PET_MASTER_ADDR": "job-master-0",
        "MASTER_PORT": "29500",
        "PET_MASTER_PORT": "29500",
        "WORLD_SIZE": "12",  # (1 master + 2 workers) x 4 processes
        "RANK": "2",  # the master is 0, worker 1 comes after worker 0
        "PET_NODE_RANK": "2",
    }
    assert injected(tmp_path, job, "Master")["RANK"] == "0"


def test_with_auto_the_operator_counts_one_process_per_pod(tmp_path: Path):
    job = pytorchjob(master=worker(), workers=worker(), nprocPerNode="auto")
    assert injected(tmp_path, job)["WORLD_SIZE"] == "2"
    assert injected(tmp_path, job)["MASTER_PORT"] == "23456"


def test_an_elastic_job_has_a_rendezvous_at_its_first_worker(tmp_path: Path):
    policy = {
        "minReplicas": 1,
        "maxReplicas": 3,
        "maxRestarts": 6,
        "rdzvId": "x",
        "rdzvConf": [{"key": "timeout", "value": "600"}, {"key": "read_timeout", "value": "60"}],
    }
    assert injected(tmp_path, pytorchjob(workers=worker(replicas=2, **PORT), elasticPolicy=policy), index=1) == {
        "PYTHONUNBUFFERED": "1",
        "PET_NPROC_PER_NODE": "1",
        "PET_RDZV_ENDPOINT": "job-worker-0:29500",
        "PET_RDZV_BACKEND": "c10d",
        "PET_NNODES": "1:3",
        "PET_MAX_RESTARTS": "6",
        "PET_RDZV_ID": "x",
        "PET_RDZV_CONF": "timeout=600,read_timeout=60",
    }


@pytest.mark.parametrize(
    ("policy", "nodes"),
    [({}, "2:2"), ({"minReplicas": 1}, "1:1"), ({"maxReplicas": 4}, "4:4"), ({"standalone": True}, "2:2")],
    ids=["none: the workers", "one bound fills in the other", "the other way round", "alone"],
)
def test_bounds_that_are_left_out(tmp_path: Path, policy, nodes: str):
    environment = injected(tmp_path, pytorchjob(workers=worker(replicas=2), elasticPolicy=policy))
    assert environment["PET_NNODES"] == nodes
    assert environment.get("PET_STANDALONE") == ("" if policy.get("standalone") else None)


def test_names_of_pods_become_addresses_of_this_machine():
    local = on_this_machine(
        {"PET_RDZV_ENDPOINT": "job-worker-0:29500", "PET_RDZV_CONF": "timeout=600"}, 40113, hosts_rendezvous=True
    )
    assert local["PET_RDZV_ENDPOINT"] == "127.0.0.1:40113"
    assert local["PET_RDZV_CONF"] == "timeout=600,is_host=1"
    assert local["PET_LOCAL_ADDR"] == "127.0.0.1"
    with_master = on_this_machine(
        {"MASTER_ADDR": "job-master-0", "MASTER_PORT": "23456"}, 40113, hosts_rendezvous=False
    )
    assert (with_master["MASTER_ADDR"], with_master["MASTER_PORT"]) == ("127.0.0.1", "40113")


def test_what_the_operator_injects_goes_before_what_the_manifest_says_and_that_before_what_the_caller_has_set(
    tmp_path: Path,
):
    env = [{"name": "PET_NNODES", "value": "7"}, {"name": "MINE", "value": "of the job"}]
    plan = planned(
        tmp_path, pytorchjob(workers=worker(env=env)), MINE="the caller's", OTHER="kept", PET_RDZV_ID="another job's"
    )
    environment = plan.pods[0].environment
    assert (environment["PET_NNODES"], environment["MINE"], environment["OTHER"]) == ("1", "of the job", "kept")
    assert "PET_RDZV_ID" not in environment


def test_processes_share_out_the_cores(tmp_path: Path):
    [first, second] = planned(tmp_path, pytorchjob(workers=worker(replicas=2)), num_cores=6).pods
    assert first.environment["OMP_NUM_THREADS"] == second.environment["OMP_NUM_THREADS"] == "3"  # 6 cores, 2 processes


def test_gpus_are_dealt_out_and_never_shared(tmp_path: Path):
    job = pytorchjob(workers=worker(replicas=2, resources={"limits": {"nvidia.com/gpu": 2}}))
    plan = planned(tmp_path, job, gpus=("0", "1", "2", "3"))
    assert [pod.environment["CUDA_VISIBLE_DEVICES"] for pod in plan.pods] == ["0,1", "2,3"]


def test_paths_of_mounts_become_folders_of_this_machine(tmp_path: Path):
    job = pytorchjob(
        workers=worker(
            command=["python", "train.py", "--state=/state/here", "/etc/job/job.yaml", "/elsewhere"],
            env=[{"name": "STATE", "value": "/state"}, {"name": "RUN", "value": "$(STATE)/run of $(NOBODY) for $$5"}],
            volumeMounts=[{"name": "state", "mountPath": "/state"}, {"name": "job", "mountPath": "/etc/job"}],
            pod={"volumes": [{"name": "state", "persistentVolumeClaim": {"claimName": "claim"}},
                             {"name": "job", "configMap": {"name": "job"}}]},
        )
    )  # fmt: skip
    [pod] = planned(tmp_path, job, config_map("job", job_yaml="kind: sft")).pods
    state = tmp_path / "state/claim"
    _, *arguments = pod.command
    assert arguments[:2] == ["train.py", f"--state={state}/here"]
    assert Path(arguments[2]).read_text() == "kind: sft"
    assert arguments[3] == "/elsewhere"
    assert pod.environment["STATE"] == str(state)
    assert pod.environment["RUN"] == f"{state}/run of $(NOBODY) for $5"


def test_every_pod_has_an_empty_folder_of_its_own_and_shares_the_claim(tmp_path: Path):
    pod = {"volumes": [{"name": "tmp", "emptyDir": {}}, {"name": "state", "persistentVolumeClaim": {"claimName": "c"}}]}
    mounts = [{"name": "tmp", "mountPath": "/tmp"}, {"name": "state", "mountPath": "/state", "subPath": "a"}]
    env = [{"name": "STATE", "value": "/state"}]
    [first, second] = planned(
        tmp_path, pytorchjob(workers=worker(replicas=2, pod=pod, volumeMounts=mounts, env=env))
    ).pods
    assert first.environment["STATE"] == second.environment["STATE"] == str(tmp_path / "state/c/a")
    assert first.environment["TMPDIR"] != second.environment["TMPDIR"]


def test_values_come_from_config_maps_secrets_and_the_pod_itself(tmp_path: Path):
    env = [
        {"name": "A", "valueFrom": {"configMapKeyRef": {"name": "settings", "key": "a"}}},
        {"name": "B", "valueFrom": {"secretKeyRef": {"name": "absent", "key": "b", "optional": True}}},
        {"name": "POD", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
    ]
    env_from = [{"configMapRef": {"name": "settings"}, "prefix": "ALL_"}]
    [pod] = planned(tmp_path, config_map("settings", a="1"), pytorchjob(workers=worker(env=env, envFrom=env_from))).pods
    assert (pod.environment["A"], pod.environment["ALL_a"], pod.environment["POD"]) == ("1", "1", "job-worker-0")
    assert "B" not in pod.environment


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"pod": {"volumes": [{"name": "v", "configMap": {"name": "nobody"}}]}},
         r"ConfigMap nobody, which is not in the file \(there: settings\)"),
        ({"pod": {"volumes": [{"name": "v", "secret": {"secretName": "nobody"}}]}}, "Secret nobody, which is not in the file"),
        ({"pod": {"volumes": [{"name": "v", "configMap": {"name": "settings", "items": [{"key": "b", "path": "b"}]}}]}},
         r"no key 'b' \(keys: a\)"),
        ({"pod": {"volumes": [{"name": "v", "nfs": {"server": "x", "path": "/"}}]}}, "is a nfs, which exists on a cluster only"),
        ({"volumeMounts": [{"name": "nobody", "mountPath": "/x"}]}, "mounts the volume 'nobody', which the pod does not have"),
        ({"env": [{"name": "A", "valueFrom": {"configMapKeyRef": {"name": "settings", "key": "b"}}}]}, r"no such key \(keys: a\)"),
        ({"env": [{"name": "A", "valueFrom": {"fieldRef": {"fieldPath": "spec.hostname"}}}]}, "spec.hostname, which can't be honoured"),
        ({"command": []}, "no command, so its image decides"),
        ({"command": ["no-such-program"]}, "'no-such-program' is not installed here"),
        ({"command": ["python"], "pod": {"initContainers": [{"name": "wait"}]}}, "more containers than 'pytorch'"),
        ({"resources": {"limits": {"nvidia.com/gpu": "1"}}}, "asks for 1 GPUs and this machine has 0"),
        ({"resources": {"limits": {"amd.com/gpu": "1"}}}, "asks for amd.com/gpu, which can't be honoured"),
        ({"restart_policy": "Always"}, "restartPolicy Always, so it never ends"),
        ({"readinessPorbe": {}}, "'readinessPorbe', which can't be honoured here"),
    ],
    ids=["config map", "secret", "key", "kind of volume", "mount", "key of a variable", "field", "no command", "program",
         "init container", "GPU", "other device", "never ends", "mistyped"],
)  # fmt: skip
def test_what_this_machine_cannot_do_is_named_and_refused(tmp_path: Path, fields, told: str):
    with pytest.raises(ManifestError, match=told):
        planned(tmp_path, config_map("settings", a="1"), pytorchjob(workers=worker(**fields)))


def test_what_is_done_otherwise_is_said_once_each(tmp_path: Path):
    pod = {"nodeSelector": {"gpu": "yes"}, "priorityClassName": "high", "securityContext": {"runAsUser": 5}}
    resources = {"requests": {"cpu": "3", "memory": "6Gi"}}
    job = pytorchjob(workers=worker(replicas=2, pod=pod, resources=resources), runPolicy={"suspend": True})
    notes = planned(tmp_path, job, num_cores=2).notes
    assert notes == (
        "queue: the job does not wait for one; it starts at once",
        "nodeSelector: every process runs on this machine",
        "priorityClassName: processes start at once",
        "securityContext: processes run as you, with your rights",
        "image: example.com/jobs:1 is not used; the installed irlops runs the same modules",
        "cpu: 6 cores wanted, 2 here; processes share them and take longer",  # 2 x 3
        "memory: 12 GiB wanted, 8 GiB here; lower micro_batch_tokens or rollouts.batch_size if the job is killed",
    )


def test_an_etcd_rendezvous_is_refused(tmp_path: Path):
    job = pytorchjob(workers=worker(), elasticPolicy={"rdzvBackend": "etcd"})
    with pytest.raises(ManifestError, match="needs an etcd server"):
        planned(tmp_path, job)


@pytest.mark.parametrize(
    ("written", "given", "recorded"),
    [
        ("http://irlops-mlflow:5000", None, None),
        ("http://irlops-mlflow.ns.svc:5000", "http://127.0.0.1:5000", "http://127.0.0.1:5000"),
        ("https://mlflow.example.com", None, "https://mlflow.example.com"),
    ],
    ids=["a cluster's, and none given", "the given one wins", "one that can be reached from here"],
)
def test_runs_are_recorded_where_this_machine_can_reach(tmp_path: Path, written, given, recorded):
    plan = planned(
        tmp_path, pytorchjob(workers=worker(env=[{"name": "MLFLOW_TRACKING_URI", "value": written}])), uri=given
    )
    assert plan.pods[0].environment.get("MLFLOW_TRACKING_URI") == recorded
    assert any("MLFLOW_TRACKING_URI" in note for note in plan.notes) == (recorded != written)
