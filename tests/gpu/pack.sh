#!/bin/sh
# SPDX-License-Identifier: GPL-3.0-or-later
# Makes the folder that a machine with a GPU and without a network needs to run `pytest -m gpu`:
# wheels for several versions of Python, and crun with its libraries.
# Usage: tests/gpu/pack.sh FOLDER [PYTHON_VERSION ...]      (default: 3.11 3.12 3.13 3.14)
# Then carry the repository and FOLDER to that machine, and run there:
#   sh tests/gpu/run_carried.sh FOLDER
set -eu

[ $# -gt 0 ] || { sed -n '3,7s/^# //p' "$0" >&2; exit 2; }
mkdir -p "$1"
folder=$(CDPATH='' cd -- "$1" && pwd)
shift
root=$(CDPATH='' cd -- "$(dirname -- "$0")/../.." && pwd)
"$root/slipway" setup
python="$root/.slipway/env/bin/python"
[ $# -gt 0 ] || set -- 3.11 3.12 3.13 3.14
machine=$(uname -m)

rm -rf "$folder/wheels" "$folder/crun"
mkdir -p "$folder/wheels" "$folder/crun/lib"
temporary=$(mktemp -d)
trap 'rm -rf "$temporary"' EXIT

for version; do
    "$python" "$root/tests/gpu/carried_requirements.py" "$version" >"$temporary/requirements.txt"
    # Wheels name the oldest C library that they run with; any of these is old enough.
    "$python" -m pip download --quiet --no-deps --require-hashes --only-binary=:all: \
        --python-version "$version" --implementation cp \
        --platform "manylinux_2_28_$machine" --platform "manylinux_2_17_$machine" \
        --platform "manylinux2014_$machine" --platform any \
        --dest "$folder/wheels" --requirement "$temporary/requirements.txt"
done

# crun is optional: without it, the test of crun is skipped with the reason.
packages='crun libyajl2 libcap2 libseccomp2 libsystemd0 libgcrypt20 libgpg-error0 liblzma5 libzstd1
liblz4-1'
# shellcheck disable=SC2086 # a list of names
if (cd "$temporary" && apt-get download -qq $packages >/dev/null 2>&1); then
    for package in "$temporary"/*.deb; do dpkg-deb --extract "$package" "$temporary/root"; done
    cp "$temporary/root/usr/bin/crun" "$folder/crun/crun.real"
    find "$temporary/root" -name '*.so.*' -exec cp -P {} "$folder/crun/lib/" \;
    cat >"$folder/crun/crun" <<'END'
#!/bin/sh
# The machine's own libraries come first, the carried ones replace those that are missing.
here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
machine=$(uname -m)-linux-gnu
LD_LIBRARY_PATH="/lib/$machine:/usr/lib/$machine:$here/lib"
export LD_LIBRARY_PATH
exec "$here/crun.real" "$@"
END
    chmod 755 "$folder/crun/crun"
else
    echo "pack.sh: apt-get cannot download crun; the folder has no container runtime" >&2
    rm -rf "$folder/crun"
fi
du -sh "$folder" | cut -f1
