#!/bin/sh
# SPDX-License-Identifier: GPL-3.0-or-later
# Run the stages of `./slipway test`. pytest is the last stage, so that its summary line comes last.
# Usage: ./slipway test [--quick | --long | --molecule [SCENARIO ...] | --vm | PYTEST ARGUMENTS ...]
#   (nothing)   linters, unit and contract tests, then tests on throwaway hosts
#   --quick     linters, and the quick unit and contract tests
#   --long      as without an option, with more models, releases, moments of a kill, images and demos,
#               and with all molecule scenarios
#   --molecule  the named molecule scenarios, default all
#   --vm        tests in an emulated virtual machine; slow, so not part of the other runs
set -u
cd "$(dirname -- "$0")/.." || exit 1
export ANSIBLE_CONFIG="$PWD/ansible.cfg"
# Runs of tests write no reports into this folder.
export SLIPWAY_REPORTS=/dev/null

failed=''

# Run one stage, print its name and duration, and record a failure.
stage() {
    name=$1
    shift
    printf '\n== %s\n' "$name"
    began=$(date +%s)
    if "$@"; then outcome=passed; else outcome=FAILED failed="$failed, $name"; fi
    printf -- '-- %s: %s after %s s\n' "$name" "$outcome" "$(($(date +%s) - began))"
}

# List shell scripts by their first line, because not all of them have a suffix.
shell_scripts() {
    git ls-files --cached --others --exclude-standard |
        while read -r file; do
            [ ! -f "$file" ] || ! head -n 1 "$file" | grep -qE '^#!.*[ /](ba)?sh$' || echo "$file"
        done
}

# Run the linters. ansible-lint takes longest and uses one core: it goes on beside what follows.
lint() {
    lint_output=$(mktemp)
    ansible-lint -q >"$lint_output" 2>&1 &
    lint_process=$!
    stage 'ruff' ruff check --quiet .
    stage 'ruff format' ruff format --quiet --check .
    stage 'mypy' mypy --no-error-summary \
        collections/ansible_collections/slipway/host/plugins bench lab tools tests
    stage 'yamllint' yamllint --strict .
    # shellcheck disable=SC2046 # file names of the project contain no spaces
    stage 'shellcheck' shellcheck $(shell_scripts)
}

# Wait for ansible-lint and print its output.
# shellcheck disable=SC2329 # `stage` calls it
end_lint() {
    wait "$lint_process"
    status=$?
    cat "$lint_output"
    rm -f "$lint_output"
    return "$status"
}

# Run molecule with these arguments. Delete the state of an interrupted run first: molecule would
# assume that its hosts are running.
run_molecule() {
    export MOLECULE_EPHEMERAL_DIRECTORY="$PWD/.slipway/molecule"
    rm -rf "$MOLECULE_EPHEMERAL_DIRECTORY"
    molecule test --no-command-borders "$@"
}

# Run pytest as the last stage and exit. If a stage failed, print the failed stages on stderr.
closing_pytest() {
    printf '\n== %s\n' "$1"
    shift
    pytest "$@" || failed="$failed, pytest"
    [ -n "$failed" ] || exit 0
    printf '\nFAILED: %s\n' "${failed#, }" >&2
    exit 1
}

quick='not slow and not host and not vm and not gpu'
hosts='host and not vm and not long'
case "${1:-}" in
'') ;;
--long) hosts='host and not vm' ;;
-h | --help) sed -n '4,10s/^# //p' "$0" && exit 0 ;;
--quick)
    lint
    stage 'ansible-lint' end_lint
    closing_pytest 'quick unit and contract tests' -m "$quick" -n 2 --dist worksteal
    ;;
--vm) exec pytest -m vm ;;
--molecule)
    shift
    scenarios=''
    for scenario; do scenarios="$scenarios --scenario-name $scenario"; done
    # shellcheck disable=SC2086 # options and scenario names contain no spaces
    run_molecule ${scenarios:---all}
    exit
    ;;
*) exec pytest "$@" ;;
esac

lint
# Three processes for two cores, because some tests wait.
stage 'unit and contract tests' pytest -n 3 --dist worksteal
stage 'ansible-lint' end_lint
# Creating hosts takes minutes: stop here if a quick stage failed.
[ -z "$failed" ] || { printf '\nFAILED: %s\n' "${failed#, }" >&2; exit 1; }
# Three test files in parallel for two cores, because hosts often wait. tests/conftest.py groups and
# sorts the files.
closing_pytest 'tests on throwaway hosts' -m "$hosts" -n 3 --dist loadfile --no-loadscope-reorder
