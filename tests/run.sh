#!/bin/sh
# SPDX-License-Identifier: GPL-3.0-or-later
# What `./slipway test` runs, in stages. A stage that fails does not keep the others of its group
# from being reported; pytest comes last, so that its closing line is the last word.
# Usage: ./slipway test [--quick | --vm | ARGUMENTS FOR pytest ...]
#   (nothing)  lint, unit and contract tests, then molecule and whole runs on throwaway hosts
#   --quick    lint, unit and contract tests
#   --vm       the tests that boot a virtual machine
set -u
cd "$(dirname -- "$0")/.." || exit 1
export ANSIBLE_CONFIG="$PWD/ansible.cfg"
# One place for molecule's state, so that what an interrupted run left is not taken for a host.
export MOLECULE_EPHEMERAL_DIRECTORY="$PWD/.slipway/molecule"

failed=''

# Run one stage under its name, tell how long it took, and remember whether it failed.
stage() {
    name=$1
    shift
    printf '\n== %s\n' "$name"
    began=$(date +%s)
    if "$@"; then outcome=passed; else outcome=FAILED failed="$failed, $name"; fi
    printf -- '-- %s: %s, %s s\n' "$name" "$outcome" "$(($(date +%s) - began))"
}

# Every shell script that is not sourced by others, found by its first line.
shell_scripts() {
    git ls-files --cached --others --exclude-standard |
        while read -r file; do
            [ ! -f "$file" ] || ! head -n 1 "$file" | grep -qE '^#!.*[ /](ba)?sh$' || echo "$file"
        done
}

lint() {
    stage 'ruff' ruff check --quiet .
    stage 'ruff format' ruff format --quiet --check .
    stage 'mypy' mypy --no-error-summary collections/ansible_collections/slipway/host/plugins tools tests
    stage 'yamllint' yamllint --strict .
    # shellcheck disable=SC2046 # the names of the project's files hold no spaces
    stage 'shellcheck' shellcheck $(shell_scripts)
    stage 'ansible-lint' ansible-lint --quiet
}

# The last stage of a run. What failed before it is told first: pytest has the last word.
closing_pytest() {
    [ -z "$failed" ] || printf '\nFAILED so far: %s\n' "${failed#, }"
    printf '\n== pytest %s\n' "$*"
    pytest "$@" && [ -z "$failed" ]
}

case "${1:-}" in
'') ;;
-h | --help) sed -n '5,8s/^# //p' "$0" && exit 0 ;;
--quick) lint && closing_pytest && exit 0 || exit 1 ;;
--vm) closing_pytest -m vm && exit 0 || exit 1 ;;
*) exec pytest "$@" ;;
esac

lint
stage 'unit and contract tests' pytest --quiet
# Hosts cost minutes: they are not made for what is known to be broken.
[ -z "$failed" ] || { printf '\nFAILED: %s\n' "${failed#, }"; exit 1; }
rm -rf "$MOLECULE_EPHEMERAL_DIRECTORY"
stage 'molecule' molecule test --all --report
closing_pytest -m 'host and not vm'
