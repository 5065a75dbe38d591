#!/bin/sh
# SPDX-License-Identifier: GPL-3.0-or-later
# What `./slipway test` runs, in stages. pytest comes last, so that its closing line does too.
# Usage: ./slipway test [--quick | --molecule [SCENARIO ...] | --vm | ARGUMENTS FOR pytest ...]
#   (nothing)   lint, unit and contract tests, then molecule and whole runs on throwaway hosts
#   --quick     lint, unit and contract tests
#   --molecule  these scenarios, or all
#   --vm        the tests that boot a virtual machine; under emulation, so no other run has them
set -u
cd "$(dirname -- "$0")/.." || exit 1
export ANSIBLE_CONFIG="$PWD/ansible.cfg"

failed=''

# Run one stage under its name, tell how long it took, and remember whether it failed.
stage() {
    name=$1
    shift
    printf '\n== %s\n' "$name"
    began=$(date +%s)
    if "$@"; then outcome=passed; else outcome=FAILED failed="$failed, $name"; fi
    printf -- '-- %s: %s after %s s\n' "$name" "$outcome" "$(($(date +%s) - began))"
}

# Shell scripts are found by their first line, since not all have a suffix.
shell_scripts() {
    git ls-files --cached --others --exclude-standard |
        while read -r file; do
            [ ! -f "$file" ] || ! head -n 1 "$file" | grep -qE '^#!.*[ /](ba)?sh$' || echo "$file"
        done
}

lint() {
    stage 'ruff' ruff check --quiet .
    stage 'ruff format' ruff format --quiet --check .
    stage 'mypy' mypy --no-error-summary \
        collections/ansible_collections/slipway/host/plugins lab tools tests
    stage 'yamllint' yamllint --strict .
    # shellcheck disable=SC2046 # the project's file names hold no spaces
    stage 'shellcheck' shellcheck $(shell_scripts)
    stage 'ansible-lint' ansible-lint -q
}

# Run molecule with these arguments. What an interrupted run noted is forgotten first: it would be
# taken for hosts that are up.
run_molecule() {
    export MOLECULE_EPHEMERAL_DIRECTORY="$PWD/.slipway/molecule"
    rm -rf "$MOLECULE_EPHEMERAL_DIRECTORY"
    molecule test --no-command-borders "$@"
}

# The last stage: pytest, whose closing line is left the last one. What failed is told on stderr.
closing_pytest() {
    printf '\n== %s\n' "$1"
    shift
    pytest "$@" || failed="$failed, pytest"
    [ -n "$failed" ] || exit 0
    printf '\nFAILED: %s\n' "${failed#, }" >&2
    exit 1
}

case "${1:-}" in
'') ;;
-h | --help) sed -n '4,8s/^# //p' "$0" && exit 0 ;;
--quick) lint; closing_pytest 'unit and contract tests' ;;
--vm) exec pytest -m vm ;;
--molecule)
    shift
    scenarios=''
    for scenario; do scenarios="$scenarios --scenario-name $scenario"; done
    # shellcheck disable=SC2086 # options, and names without spaces
    run_molecule ${scenarios:---all}
    exit
    ;;
*) exec pytest "$@" ;;
esac

lint
stage 'unit and contract tests' pytest
# Hosts cost minutes: none is made for what is known to be broken.
[ -z "$failed" ] || { printf '\nFAILED: %s\n' "${failed#, }" >&2; exit 1; }
stage 'molecule' run_molecule --all
# Hosts are waited for more than they compute: two files at a time.
closing_pytest 'whole runs on throwaway hosts' -m 'host and not vm' -n 2 --dist loadfile
