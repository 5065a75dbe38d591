# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Write Docker's daemon.json on a host: merge, validate with dockerd, replace in one step.

Standard library only, for hosts.
"""

from __future__ import annotations

import os
import shlex
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ansible_collections.slipway.host.plugins.module_utils.docker import (
    daemon_json_previous,
    restart_consent,
)
from ansible_collections.slipway.host.plugins.module_utils.docker.daemon_json import (
    DaemonJsonError,
    Merge,
    plan_merge,
)
from ansible_collections.slipway.host.plugins.module_utils.docker.daemon_json_record import (
    OwnedKey,
    read_record,
    update_record,
)
from ansible_collections.slipway.host.plugins.module_utils.docker.daemon_json_text import (
    decode,
    mask_credentials,
    parse,
    render,
)
from ansible_collections.slipway.host.plugins.module_utils.docker.dockerd_flags import (
    find_conflicts,
    list_environment_files,
    read_unit_flags,
)
from ansible_collections.slipway.host.plugins.module_utils.state import apply_files, paths

if TYPE_CHECKING:
    from ansible.module_utils.basic import AnsibleModule

VALIDATE = "dockerd --validate --config-file %s"


class DaemonJsonFile:
    """daemon.json on this host, with the parameters of the module ``daemon_json``."""

    def __init__(self, module: AnsibleModule) -> None:
        self.module = module
        self.params: dict[str, Any] = module.params
        # Renaming a file onto a link would replace the link.
        self.target = Path(os.path.realpath(self.params["path"]))
        if self.params["mode"] is None:
            self.params["mode"] = f"{self.safe_mode():04o}"
        self.notes: list[str] = []
        # Parent folders that others could write.
        self.secured: list[str] = []
        self.result: dict[str, Any] = {"changed": False, "path": str(self.target)}

    def run(self) -> dict[str, Any]:
        """Merge the settings into the file, in check mode only report it; return the result."""
        self.secured = self.secure_parents()
        text = self.read()
        record_text, record = self.read_record()
        merge = plan_merge(
            text,
            self.params["settings"],
            self.params["absent"],
            record,
            str(self.target),
            self.params["defaults"],
        )
        if not merge.plain:
            self.notes.append(
                f"{self.target} is empty or starts with a byte order mark. Engines before 23.0 "
                "do not start with such a file. It is written as plain JSON."
            )
        self.check_unit_conflicts(merge)
        new_record = update_record(record_text, self.params["path"], merge.record)
        if merge.changed and merge.restart_required and self.is_active():
            if waiting := self.find_waiting(merge):
                self.repair_attributes(text, record_text)
                return self.describe(merge, waiting)
            self.keep_previous(text, record_text)
        if merge.changed:
            self.replace_content(text, merge, new_record)
        else:
            self.repair_attributes(text, new_record)
        return self.describe(merge)

    def describe(self, merge: Merge, waiting: str = "") -> dict[str, Any]:
        """Return the result of the module; WAITING says why the file was not changed."""
        sentences = [waiting] if waiting else []
        return self.result | {
            "settings": parse(mask_credentials(render(merge.after))),
            "differences": merge.differences,
            "restart_required": merge.restart_required and not waiting,
            "reload_required": merge.reload_required and not waiting,
            "notes": self.notes,
            "changed": self.result["changed"] or bool(self.secured),
            **restart_consent.waiting_result(self.module, sentences),
        }

    def is_active(self) -> bool:
        """Whether the unit of the daemon runs."""
        systemctl = self.module.get_bin_path("systemctl")
        if not self.params["unit"] or systemctl is None:
            return False
        command = [systemctl, "is-active", "--quiet", self.params["unit"]]
        return bool(self.module.run_command(command)[0] == 0)

    def find_waiting(self, merge: Merge) -> str:
        """Return why the change waits, empty if the daemon may be restarted for it now.

        Fail on content with which the daemon did not start before.
        """
        policy = self.params["restart"]
        content = render(merge.after)
        if policy != restart_consent.ALWAYS and daemon_json_previous.is_rejected(
            self.previous, content
        ):
            self.module.fail_json(
                msg=f"{self.params['unit']} did not start with the new content of {self.target} in "
                f"an earlier run: {'; '.join(merge.differences)}. Correct the settings, or set "
                f"{restart_consent.OPTION} to {restart_consent.ALWAYS} to try again. The file was "
                "not changed."
            )
        obstacle = restart_consent.ask_obstacle(policy, merge.keeps_containers)
        if not obstacle:
            return ""
        return f"change of {self.target} (restarts {self.params['unit']}) waits: {obstacle}."

    def keep_previous(self, text: str | None, record: str) -> None:
        """Keep the present content until the daemon started with the new one."""
        if not self.module.check_mode:
            target, record_path = str(self.target), self.params["record"]
            daemon_json_previous.keep(self.previous, target, text, record_path, record)

    @property
    def previous(self) -> str:
        """Path of the file that keeps the previous content."""
        return f"{self.params['record']}.previous"

    def secure_parents(self) -> list[str]:
        """Make root the only writer of the parents of file and record; return the changed ones."""
        if os.geteuid() != 0:
            return []  # The file belongs to a rootless engine.
        guarded = (self.params["path"], str(self.target), self.params["record"])
        try:
            changed = apply_files.secure_parents(*guarded, check=self.module.check_mode)
            if self.params["path"] != str(self.target):
                self._refuse_foreign_target()
        except paths.UnsafePathError as error:
            raise DaemonJsonError(str(error)) from None
        return changed

    def _refuse_foreign_target(self) -> None:
        with paths.opened_parent(self.params["path"]) as (folder, name):
            is_trusted = folder.trusted
            link = folder.lstat(name)
        with paths.opened_parent(str(self.target)) as (target_folder, _name):
            is_trusted = is_trusted and target_folder.trusted
        if link is not None and paths.type_of(link) == paths.LINK and not is_trusted:
            found = paths.describe(link, str(self.target))
            expected = "a file, or a link to a file that only root can replace"
            raise paths.UnsafePathError(self.params["path"], found, expected)

    def safe_mode(self) -> int:
        """Return the mode of the file, limited to 0644."""
        mode = self.target.stat().st_mode if self.target.is_file() else 0o644
        return mode & 0o644 | 0o600

    def read(self) -> str | None:
        """Return the file's text, None if the file is missing."""
        try:
            return decode(self.target.read_bytes(), str(self.target))
        except FileNotFoundError:
            return None

    def read_record(self) -> tuple[str, tuple[OwnedKey, ...]]:
        """Return the record's text and its entries; an invalid record counts as a missing one."""
        path = Path(self.params["record"])
        try:
            text = decode(path.read_bytes(), "the record")
            return text, read_record(text, self.params["path"])
        except FileNotFoundError:
            pass
        except DaemonJsonError as error:
            self.notes.append(
                f"The record {path} is invalid ({error}) and is started again. Keys that were set "
                "before now count as the user's own."
            )
        return "", ()

    def check_unit_conflicts(self, merge: Merge) -> None:
        """Fail if the unit also sets a key of the file; only warn if the file is unchanged."""
        for key, flag in find_conflicts(merge.after, self.read_unit_flags()):
            message = (
                f"{key} is set twice: in {self.target} and by {flag} on dockerd's command line in "
                f"{self.params['unit']}; expected once, because Docker does not start with both. "
                f"Remove {key} from {self.target} or from the settings, or remove {flag} from the "
                f"unit (systemctl edit {self.params['unit']}: an empty ExecStart=, then one "
                f"without {flag})."
            )
            if merge.changed:
                raise DaemonJsonError(message)
            self.module.warn(message)

    def read_unit_flags(self) -> dict[str, str]:
        """Return the keys that dockerd's command line sets, with their flags."""
        systemctl = self.module.get_bin_path("systemctl")
        if not self.params["unit"] or systemctl is None:
            return {}
        properties = "--property=ExecStart,Environment,EnvironmentFiles"
        rc, unit, _error = self.module.run_command(
            [systemctl, "show", properties, self.params["unit"]]
        )
        if rc != 0:
            return {}
        files = [Path(name) for name in list_environment_files(unit)]
        texts = [file.read_text("utf-8", "replace") for file in files if file.is_file()]
        return read_unit_flags(unit, texts)

    def replace_content(self, text: str | None, merge: Merge, record: str) -> None:
        """Replace the file's content, or in check mode only validate the new content."""
        content = render(merge.after)
        self.result["changed"] = True
        if self.module._diff:
            self.result["diff"] = {
                "before_header": str(self.target),
                "before": mask_credentials(text or ""),
                "after_header": str(self.target),
                "after": mask_credentials(content),
            }
        if self.module.check_mode:
            with tempfile.NamedTemporaryFile("w", encoding="utf-8") as file:
                file.write(content)
                file.flush()
                self.validate(file.name)
            return

        def prepare(file: Path) -> None:
            self.set_attributes(file)
            self.validate(str(file))
            if self.params["backup"] and text is not None:
                self.result["backup_file"] = self.module.backup_local(str(self.target))
            # The record is written before the file: if the run ends between the two, the record has
            # values that are not in the file, which is harmless. In the other order, the project's
            # own values would count as the user's.
            self.write_record(record)

        replace_file(self.target, content, prepare)

    def repair_attributes(self, text: str | None, record: str) -> None:
        """Repair the mode and the owner of a file whose content is correct."""
        if text is not None:
            attributes: dict[str, Any] = {}
            self.result["changed"] = self.set_attributes(self.target, attributes)
            if self.module._diff and attributes:
                self.result["diff"] = attributes
        if self.record_differs(record):
            self.result["changed"] = True
            if not self.module.check_mode:
                self.write_record(record)

    def set_attributes(self, file: Path, diff: dict[str, Any] | None = None) -> bool:
        """Set mode and owner; return whether they differed."""
        arguments = self.module.load_file_common_arguments(self.params, path=str(file))
        return bool(
            self.module.set_fs_attributes_if_different(arguments, False, diff, expand=False)
        )

    def validate(self, file: str) -> None:
        """Validate a file by dockerd; fail if dockerd rejects it, add a note without validation."""
        command: str = self.params["validate"]
        if not command:
            return
        try:
            program, *arguments = shlex.split(command)
        except ValueError as error:
            self.module.fail_json(
                msg=f"validate: {command!r}: {error}; expected a command. Correct it."
            )
        if "%s" not in command:
            self.module.fail_json(
                msg=f"validate: {command!r}; expected %s instead of the path of the file. Add %s."
            )
        executable = self.module.get_bin_path(program)
        if executable is None:
            if command != VALIDATE:
                self.module.fail_json(
                    msg=f"validate: program {program} not found on this host. Install {program}."
                )
            self.notes.append("Not validated: this host has no dockerd yet.")
            return
        rc, out, err = self.module.run_command(
            [executable, *(argument.replace("%s", file) for argument in arguments)],
            expand_user_and_vars=False,
        )
        if rc == 0:
            return
        if "unknown flag: --validate" in err:
            self.notes.append(
                "Not validated: this host's dockerd is older than 23.0 and cannot validate."
            )
            return
        message = mask_credentials((err or out).strip().replace(file, str(self.target)))
        self.module.fail_json(
            msg=f"{program} rejected the new content of {self.target}: {message}. Correct the "
            "settings or the file. The file was not changed.",
            rc=rc,
        )

    def record_differs(self, text: str) -> bool:
        """Return whether the record has another text, or attributes that open it to others."""
        path = Path(self.params["record"])
        try:
            info = path.lstat()
            present = path.read_bytes()
        except FileNotFoundError:
            return bool(text)
        closed = (0o100600, os.geteuid(), os.getegid())
        return present != text.encode() or (info.st_mode, info.st_uid, info.st_gid) != closed

    def write_record(self, text: str) -> None:
        """Write the record if it differs; remove it if its new text is empty."""
        path = Path(self.params["record"])
        if not text:
            path.unlink(missing_ok=True)
        elif self.record_differs(text):
            replace_file(path, text)


def replace_file(path: Path, text: str, prepare: Callable[[Path], None] | None = None) -> None:
    """Replace a file in one step that survives a power cut; its mode is 0600 at first.

    ``prepare`` is called with the complete new file before it replaces the old one.  If it raises,
    the old file stays.
    """
    with paths.opened_parent(str(path), make=True) as (folder, name):
        # A path of the opened folder, which is valid even if the folder is renamed. The program
        # that validates the file uses it too.
        opened_folder = f"/proc/{os.getpid()}/fd/{folder.descriptor}"
        descriptor, temporary = tempfile.mkstemp(prefix=f".{name}.", dir=opened_folder)
        new = Path(temporary)
        try:
            with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
                stream.write(text)
                stream.flush()
                os.fsync(stream.fileno())
            if prepare is not None:
                prepare(new)
            os.rename(new.name, name, src_dir_fd=folder.descriptor, dst_dir_fd=folder.descriptor)
        finally:
            folder.remove(new.name)
        os.fsync(folder.descriptor)
