#!/bin/sh
# SPDX-License-Identifier: GPL-3.0-or-later
# Runs `pytest -m gpu` on a machine with a GPU and without a network, from a folder that
# tests/gpu/pack.sh made. Installs nothing outside a temporary folder. The reports go to the folder
# OUT, or to gpu-report beside the repository's files.
# Usage: sh tests/gpu/run_carried.sh FOLDER
set -eu

[ $# -eq 1 ] || { sed -n '3,6s/^# //p' "$0" >&2; exit 2; }
folder=$(CDPATH='' cd -- "$1" && pwd)
root=$(CDPATH='' cd -- "$(dirname -- "$0")/../.." && pwd)
out=${OUT:-$root/gpu-report}
mkdir -p "$out"
temporary=$(mktemp -d)
trap 'rm -rf "$temporary"' EXIT

# Images for containers often have the driver's programs here.
PATH="$PATH:/usr/local/nvidia/bin"

# Print the first Python for which the folder has wheels.
find_python() {
    for candidate in python3.13 python3.12 python3.11 python3.14 python3 \
        /usr/bin/python3 /opt/*/bin/python3 /opt/*/.venv/bin/python3 /usr/local/bin/python3; do
        version=$("$candidate" -c 'import sys; print("%d%d" % sys.version_info[:2])' 2>/dev/null) ||
            continue
        for wheel in "$folder"/wheels/pyyaml-*-"cp$version"-*.whl; do
            [ ! -f "$wheel" ] || { command -v "$candidate"; return; }
        done
    done
    return 1
}

check="$root/collections/ansible_collections/slipway/host/plugins/module_utils/gpu/cuda_check.py"
echo "run_carried.sh: CUDA check with $(python3 --version 2>&1), which needs nothing else"
python3 "$check" --all-pairs >"$out/cuda_check.json" || echo "run_carried.sh: the check failed"

python=$(find_python) || {
    echo "run_carried.sh: no Python here fits the wheels of $folder; pack others" >&2
    exit 1
}
echo "run_carried.sh: tests with $("$python" --version) ($python)"
"$python" -m venv --without-pip "$temporary/env"
set -- "$folder"/wheels/pip-*.whl
names=''
for wheel in "$folder"/wheels/*.whl; do
    name=$(basename "$wheel" | cut -d- -f1)
    case " $names " in *" $name "*) ;; *) names="$names $name" ;; esac
done
# shellcheck disable=SC2086 # a list of names
"$temporary/env/bin/python" "$1/pip" install --quiet --no-index --no-deps \
    --disable-pip-version-check --find-links "$folder/wheels" $names

cd "$root"
if [ -x "$folder/crun/crun" ]; then
    SLIPWAY_CRUN="$folder/crun/crun"
    export SLIPWAY_CRUN
fi
export ANSIBLE_CONFIG="$root/ansible.cfg" SLIPWAY_GPU_REPORT="$out/gpu" PYTHONDONTWRITEBYTECODE=1
status=0
"$temporary/env/bin/python" -m pytest -m gpu -ra tests/gpu tests/unit/test_gpu_info.py || status=$?
echo "run_carried.sh: reports in $out"
exit "$status"
