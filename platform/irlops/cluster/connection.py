"""A connection to a cluster's API, and what its answers mean for the person who asked.

connect(kubeconfig, namespace) -> Connection        with explaining("create the job", connection): ...
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from irlops.errors import ConfigError, IrlopsError, PermanentError, UnavailableError

TIMEOUT_S = 30
SERVICE_ACCOUNT_NAMESPACE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")


@dataclass(frozen=True)
class Connection:
    """Where the API is and as whom we speak to it. The client's generated classes are typed too loosely to help.

    Made by ``connect``; consumed by everything in ``irlops.cluster``.
    Example: ``Connection(configuration=..., namespace="team-a", host="https://10.0.0.1:6443")``
    """

    configuration: Any
    """``kubernetes.client.Configuration``."""
    namespace: str
    host: str


def connect(kubeconfig: Path | None, namespace: str | None) -> Connection:
    """The cluster of a kubeconfig, or the one this process runs in.

    Args:
        kubeconfig: None takes KUBECONFIG or ~/.kube/config; inside a pod, its service account.
        namespace: None takes the kubeconfig's.

    Raises:
        ConfigError: no kubeconfig can be used.
    """
    import kubernetes
    from kubernetes.config.config_exception import ConfigException

    config: Any = kubernetes.config
    file = str(kubeconfig) if kubeconfig else None
    try:
        if file is None and SERVICE_ACCOUNT_NAMESPACE.exists():
            configuration: Any = kubernetes.client.Configuration()
            config.load_incluster_config(client_configuration=configuration)
            default = SERVICE_ACCOUNT_NAMESPACE.read_text().strip()
        else:
            configuration = config.new_client_from_config(file).configuration
            _, active = config.list_kube_config_contexts(file)
            default = active["context"].get("namespace", "default")
    except (ConfigException, OSError, ValueError, TypeError, KeyError) as error:
        raise ConfigError(
            f"The kubeconfig {kubeconfig or '(default place)'} can't be used ({error}). Set KUBECONFIG to one that "
            "works with `kubectl get ns`, or train here with --local."
        ) from error
    configuration.retries = False  # urllib3 would try a dead address for minutes
    return Connection(configuration, namespace or default, configuration.host)


@contextlib.contextmanager
def explaining(doing: str, connection: Connection) -> Iterator[None]:
    """Turn what the Kubernetes client raises into an error that says what to do.

    Args:
        doing: Completes "could not": ``create the PyTorchJob airl-tiny``.

    Raises:
        PermanentError: the API refused.
        UnavailableError: it did not answer, or asked to wait.
    """
    import urllib3
    from kubernetes.client.exceptions import ApiException

    try:
        yield
    except IrlopsError:
        raise
    except ApiException as error:
        raise _explained(error, doing, connection) from error
    except (urllib3.exceptions.HTTPError, OSError) as error:
        raise _silent(error, doing, connection) from error
    except RuntimeError as error:  # Kubeflow's SDK wraps what it met
        cause = error.__cause__ or error.__context__
        if isinstance(cause, ApiException):
            raise _explained(cause, doing, connection) from error
        if isinstance(cause, urllib3.exceptions.HTTPError | OSError):
            raise _silent(cause, doing, connection) from error
        raise


def _silent(error: Exception, doing: str, connection: Connection) -> UnavailableError:
    said = (str(getattr(error, "reason", "") or error).splitlines() or [type(error).__name__])[0][:200]
    return UnavailableError(
        f"Could not {doing}: the Kubernetes API at {connection.host} does not answer ({said}). Is the cluster up, and is "
        "KUBECONFIG the right one?"
    )


def _explained(error: Any, doing: str, connection: Connection) -> IrlopsError:
    said = message_of(error)
    if error.status == 429 or error.status >= 500:
        return UnavailableError(f"Could not {doing}: the Kubernetes API answered {error.status} ({said}). Try again.")
    step = {
        401: "Log in to the cluster again; `kubectl get ns` has to work.",
        403: f"Ask whoever runs the cluster for that right in {connection.namespace}, or name another --namespace.",
        404: f"Is {connection.namespace} the right namespace (--namespace), and is what it needs installed? `irlops doctor` says.",
        409: "Look at what is there with `irlops status`; delete it, or choose another name.",
        422: "Correct the manifest.",
    }.get(error.status, "`irlops doctor` says what the cluster lacks.")
    return PermanentError(f"Could not {doing}: the Kubernetes API answered {error.status} ({said}). {step}")


def message_of(error: Any) -> str:
    """The API's own words: the message of its Status object, or the HTTP reason."""
    try:
        return str(json.loads(error.body)["message"])[:500]
    except (TypeError, ValueError, KeyError):
        return str(error.reason or "no reason given")[:200]
