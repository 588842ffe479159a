#!/bin/sh
# Resolves the locks of the three images again, at the versions of cpu.txt where it has them (the ones that the tests run
# with). torch stays out of the CPU locks: its CPU builds lie on PyTorch's own index, with hashes of their own.
#   sh requirements/lock-images.sh [path of uv]
set -eu
cd "$(dirname "$0")/.."
compile() { # lock, extra, further options
    lock=$1 extra=$2
    shift 2
    "${uv}" pip compile pyproject.toml --python-version 3.11 --generate-hashes --no-header --no-annotate --quiet \
        --extra "$extra" --constraint requirements/cpu.txt -o "requirements/image-$lock.txt" "$@"
}
uv=${1:-.venv/bin/uv}
compile platform platform --universal --override requirements/overrides.txt
compile serving-cpu serving --universal --override requirements/overrides.txt --no-emit-package torch
compile jobs-cpu jobs --universal --override requirements/overrides.txt --no-emit-package torch
compile jobs-cuda jobs --python-platform x86_64-manylinux_2_28
