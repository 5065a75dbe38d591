# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Old names of options and of their values, accepted for one minor version (decision 0035).

An option of ``meta/argument_specs.yml``, at the top or nested, declares its old names with
Ansible's own key ``aliases``. Everything after this file knows only the new names.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

Vars = dict[str, Any]

# The first version that does not accept the old names below and in the argument specs.
ACCEPTED_UNTIL = "0.3"

# Values that were renamed: by the name under which the old value is accepted, old and new value.
RENAMED_VALUES: Mapping[str, Mapping[str, str]] = {
    "nvidia_driver_version_gone": {"fail": "none"},
}


@dataclass
class Findings:
    """Sentences about the names that an inventory uses: warnings, and errors that stop the run."""

    warnings: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)

    def warn(self, old: str, new: str, kind: str = "name") -> None:
        """Add a warning; it names no host and no file, so that a run displays it once."""
        self.warnings.append(
            f"{old} is now named {new}. The old {kind} is accepted until version {ACCEPTED_UNTIL}."
        )

    def fail(self, where: str, old: str, new: str) -> None:
        """Add the error that both names of an option are set."""
        self.errors.append(
            f"{where}{old} and {new} are both set; expected only {new}. Remove {old}"
        )


def old_names(option: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the old names that an option declares."""
    return tuple(option.get("aliases") or ())


def new_names(options: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """Return the new name of each option by every name that is accepted for it."""
    by_old_name = {old: name for name, option in options.items() for old in old_names(option)}
    return {**by_old_name, **{name: name for name in options}}


def find_set_name(
    name: str,
    option: Mapping[str, Any],
    variables: Mapping[str, Any],
    defaults: Mapping[str, Any],
    findings: Findings,
) -> str | None:
    """Return the name by which VARIABLES set an option: its own, an old one, or None.

    An old name without a value counts as not set. Inside a role, VARIABLES contain the role's
    DEFAULTS; then a new name with the default value counts as not set.
    """
    is_set = name in variables
    for old in old_names(option):
        if variables.get(old) is None:
            continue
        inside_role = all(default in variables for default in defaults)
        if is_set and not (inside_role and variables[name] == defaults.get(name)):
            findings.fail("", old, name)
            return name
        return old
    return name if is_set else None


def to_new_name(
    name: str, set_name: str, option: Mapping[str, Any], value: Any, findings: Findings
) -> Any:
    """Return the VALUE that an inventory sets under SET_NAME, with new names and values only."""
    new_value = RENAMED_VALUES.get(set_name, {}).get(value) if isinstance(value, str) else None
    if new_value is not None:
        findings.warn(f"{set_name}: {value}", f"{name}: {new_value}", "value")
        return new_value
    if set_name != name:
        findings.warn(set_name, name)
    return rename_keys(option, value, name, findings)


def rename_keys(option: Mapping[str, Any], value: Any, path: str, findings: Findings) -> Any:
    """Return a VALUE with new names for the old keys of the mappings and lists in it."""
    nested = option.get("options")
    if not nested:
        return value
    if isinstance(value, (list, tuple)):
        return [rename_keys(option, entry, f"{path}[]", findings) for entry in value]
    if not isinstance(value, Mapping):
        return value
    keys = new_names(nested)
    renamed: Vars = {}
    for key, entry in value.items():
        new: Any = keys.get(key, key)
        if new != key:
            if new in value:
                findings.fail(f"{path}: ", key, new)
                continue
            findings.warn(f"{path}.{key}", new)
        renamed[new] = rename_keys(nested.get(new, {}), entry, f"{path}.{new}", findings)
    return renamed
