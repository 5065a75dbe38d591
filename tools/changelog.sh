#!/bin/sh
# SPDX-License-Identifier: GPL-3.0-or-later
# Write CHANGELOG.md from the fragments in changelogs/fragments/, for the version in galaxy.yml.
# Usage: ./slipway run tools/changelog.sh
set -eu
cd "$(dirname -- "$0")/.."
version=$(sed -n 's/^version: //p' collections/ansible_collections/slipway/host/galaxy.yml)
antsibull-changelog lint
antsibull-changelog release --version "$version" --update-existing --refresh-fragments
# antsibull-changelog escapes every special character and writes <code>: make the file readable.
sed -i -e 's/<code>\|<\/code>/`/g' -e 's/\\\(.\)/\1/g' CHANGELOG.md
sed -i -e '1i # yamllint disable-file' changelogs/changelog.yaml
