"""What a platform team's admission policies would ask of every pod and every Role, over all renders."""

from importlib.resources import files

import pytest

from support.charts import CASES, containers, find, pod_templates, render

every_case = pytest.mark.parametrize("values", CASES.values(), ids=CASES.keys())


@every_case
def test_every_container_satisfies_pod_security_restricted(values):
    for name, pod in pod_templates(render(values)):
        for container in containers(pod):
            context = container["securityContext"]
            assert context["allowPrivilegeEscalation"] is False, name
            assert context["capabilities"] == {"drop": ["ALL"]}, name
            assert context["runAsNonRoot"] is True, name
            assert context["seccompProfile"] == {"type": "RuntimeDefault"}, name
            assert context["readOnlyRootFilesystem"] is True, name
            assert context.get("runAsUser", 1) != 0, name


@every_case
def test_no_pod_mounts_or_shares_anything_of_its_node(values):
    allowed = {"configMap", "secret", "emptyDir", "persistentVolumeClaim"}
    for name, pod in pod_templates(render(values)):
        assert not {"hostNetwork", "hostPID", "hostIPC"} & pod["spec"].keys(), name
        assert all(set(volume) - {"name"} <= allowed for volume in pod["spec"].get("volumes", [])), name
        assert all("hostPort" not in port for c in containers(pod) for port in c.get("ports", [])), name


@every_case
def test_every_container_says_what_it_needs_and_what_it_may_take(values):
    for name, pod in pod_templates(render(values)):
        for container in containers(pod):
            assert {"cpu", "memory"} <= container["resources"]["requests"].keys(), name
            assert {"cpu", "memory"} <= container["resources"]["limits"].keys(), name


@every_case
def test_every_image_is_pinned(values):
    for name, pod in pod_templates(render(values)):
        for image in (container["image"] for container in containers(pod)):
            tag = image.rsplit("/", 1)[-1].partition(":")[2]
            assert "@sha256:" in image or (tag and "latest" not in tag), f"{name}: {image}"


@every_case
def test_no_role_has_a_wildcard_or_reads_secrets_or_reaches_beyond_its_namespace(values):
    for each in render(values):
        assert each["kind"] not in ("ClusterRole", "ClusterRoleBinding")
        for rule in each.get("rules", []) if each["kind"] == "Role" else []:
            assert "*" not in [*rule["apiGroups"], *rule["resources"], *rule["verbs"]]
            assert not {"secrets", "pods/exec", "roles", "rolebindings", "serviceaccounts"} & set(rule["resources"])


@every_case
def test_only_the_operator_gets_a_token(values):
    objects = render(values)
    tokens = {
        name
        for name, pod in pod_templates(objects)
        if pod["spec"].get("automountServiceAccountToken", name.startswith("ServingRuntime") is False)
    }
    assert tokens <= {"Deployment/irlops-operator"}
    assert all(each["automountServiceAccountToken"] is False for each in objects if each["kind"] == "ServiceAccount")


def test_the_operator_renews_one_lease_and_no_other():
    rules = find(render(), "Role", "irlops-operator")["rules"]
    leases = [rule for rule in rules if rule["resources"] == ["leases"]]
    assert [rule["verbs"] for rule in leases if "resourceNames" not in rule] == [["create"]]
    assert [rule["resourceNames"] for rule in leases if "resourceNames" in rule] == [["irlops-operator"]]


@every_case
def test_every_long_running_pod_is_probed_and_can_write_only_to_its_volumes(values):
    for name, pod in pod_templates(render(values)):
        if name.startswith("Pod/"):
            continue
        for container in containers(pod):
            assert {"startupProbe", "livenessProbe", "readinessProbe"} <= container.keys(), name
            assert "/tmp" in [mount["mountPath"] for mount in container["volumeMounts"]], name


@every_case
def test_no_secret_stands_in_a_config_map_or_in_plain_environment(values):
    for each in render(values):
        if each["kind"] == "ConfigMap":
            assert not [key for key in each.get("data", {}) if "PASSWORD" in key or "TOKEN" in key]
    for name, pod in pod_templates(render(values)):
        for variable in (v for c in containers(pod) for v in c.get("env", [])):
            assert "value" not in variable or "PASSWORD" not in variable["name"], name


@every_case
def test_mlflow_is_never_exposed_and_never_without_authentication(values):
    objects = render(values)
    for each in (each for each in objects if each["metadata"]["name"] == "irlops-mlflow"):
        if each["kind"] == "Service":
            assert each["spec"]["type"] == "ClusterIP"
        if each["kind"] == "Deployment":
            container = each["spec"]["template"]["spec"]["containers"][0]
            assert "--app-name basic-auth" in container["args"][0]
            assert "MLFLOW_AUTH_ADMIN_PASSWORD" in [variable["name"] for variable in container["env"]]
    exposed = [each for each in objects if each["kind"] in ("Ingress", "HTTPRoute")]
    assert all("mlflow" not in str(each["spec"]) for each in exposed)


def lets_in(exposed, path):
    """Whether an Ingress or HTTPRoute sends requests for ``path`` to its backend."""
    if exposed["kind"] == "Ingress":
        rules = [(each["pathType"], each["path"]) for each in exposed["spec"]["rules"][0]["http"]["paths"]]
    else:
        rules = [(each["path"]["type"], each["path"]["value"]) for each in exposed["spec"]["rules"][0]["matches"]]
    return any(path == value or (kind != "Exact" and path.startswith(value + "/")) for kind, value in rules)


@pytest.mark.parametrize("kind", ["Ingress", "HTTPRoute"])
def test_a_route_lets_in_the_api_and_the_playground_and_nothing_that_asks_for_no_key(kind):
    route = {
        "kind": kind,
        "hosts": ["a.example.com"],
        "parentRefs": [{"name": "public"}] if kind == "HTTPRoute" else [],
    }
    [exposed] = [each for each in render({"gateway": {"route": route}}) if each["kind"] == kind]
    pages = files("irlops_serving") / "playground" / "static"
    files_of_pages = [f"/assets/{file.name}" for file in (pages / "assets").iterdir()] + [
        "/favicon.svg",
        "/licenses.txt",
    ]
    for path in (
        "/",
        "/v1/chat/completions",
        "/v1/models/policy",
        "/docs",
        "/openapi.json",
        "/healthz",
        *files_of_pages,
    ):
        assert lets_in(exposed, path), path
    for path in ("/metrics", "/readyz", "/metrics/"):
        assert not lets_in(exposed, path), path
    assert len(exposed["spec"]["rules"][0].get("matches", [])) <= 8


def selects(selector, labels):
    return selector.items() <= labels.items()


def test_two_releases_in_one_namespace_never_select_each_others_pods():
    blue, green = render(release="blue"), render(release="green")
    pods = [pod["metadata"]["labels"] for _, pod in pod_templates(blue)]
    selectors = [
        each["spec"]["selector"]["matchLabels"]
        for each in green
        if each["kind"] in ("Deployment", "PodDisruptionBudget")
    ]
    selectors += [each["spec"]["selector"] for each in green if each["kind"] == "Service"]
    selectors += [
        each["spec"]["podSelector"].get("matchLabels", {}) for each in green if each["kind"] == "NetworkPolicy"
    ]
    assert len(selectors) > 8
    assert not [selector for selector in selectors for labels in pods if selects(selector, labels)]
    assert not {each["metadata"]["name"] for each in blue} & {each["metadata"]["name"] for each in green}


def test_each_selector_of_a_release_finds_a_pod_of_it():
    objects = render()
    pods = [pod["metadata"]["labels"] for _, pod in pod_templates(objects)]
    for each in (each for each in objects if each["kind"] == "Service"):
        assert [labels for labels in pods if selects(each["spec"]["selector"], labels)], each["metadata"]["name"]


def test_two_releases_in_one_namespace_share_one_lease():
    leases = {
        find(render(release=name), "ConfigMap", f"{name}-irlops-operator")["data"]["IRLOPS_OPERATOR_LEASE_NAME"]
        for name in ("blue", "green")
    }
    assert leases == {"irlops-operator"}
