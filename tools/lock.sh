#!/bin/sh
# SPDX-License-Identifier: GPL-3.0-or-later
# Compile requirements.lock from pyproject.toml: packages with hashes for every supported Python.
# The lock contains no URLs, so that it works with any package index.
# Usage: ./slipway run tools/lock.sh [--upgrade]
set -eu
cd "$(dirname -- "$0")/.."
exec uv pip compile pyproject.toml --group dev --universal --python-version 3.11 \
    --generate-hashes --no-emit-index-url --no-header --quiet \
    --output-file requirements.lock "$@"
