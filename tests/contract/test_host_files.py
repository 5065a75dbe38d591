# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Files on hosts are reached by ``state.paths``; each call that is not is listed with its reason.

Root must not follow a path that others can change. A new call of the file system fails this test:
use ``state.paths``, or list the file below with the reason why nobody but root, or nobody but the
user who runs the program, can change the paths that it uses.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.contract.tree import PLUGINS, ROLES, role_tasks

PRIMITIVE = tuple(f"module_utils/state/{name}.py" for name in ("folder", "paths", "user_rights"))
# What runs on the controller, with the rights and on the files of the person who calls it.
CONTROLLER = (
    *("action/", "callback/", "lookup/", "plugin_utils/", "doc_fragments/", "module_utils/roles/"),
    *(
        f"module_utils/images/{name}.py"
        for name in (
            "assembly catalogue checks context declaration index job locks reading released "
            "requirements strict_yaml".split()
        )
    ),
)
# The role ml_data has rules of its own, see tests/unit/test_data_worker.py.
DATA = "module_utils/data/"
# The program `ml` runs with the rights of whoever calls it.
CALLERS_OWN = "files of the caller, with the caller's rights"
# Why each file may call what it calls.
REASONS: dict[str, tuple[str, str]] = {
    "module_utils/apt/bundle_source.py": (
        "works in a new temporary folder of root that others can only read",
        ".chmod .mkdir .write_bytes .write_text tempfile.TemporaryDirectory",
    ),
    "modules/bundle_packages.py": (
        "works in a new folder of root that others can only read; reads apt's folder",
        ".chmod .glob .iterdir .mkdir .open .read_text .rglob .touch .unlink .write_bytes "
        ".write_text shutil.copyfile",
    ),
    "module_utils/apt/run.py": (
        "reads /proc and apt's folders, which only root can write",
        ".read_bytes",
    ),
    "module_utils/images/archive.py": (
        "reads and writes files that state.paths opened",
        "open",
    ),
    "module_utils/images/builder.py": (
        "works in /var/lib/slipway, which only root can write",
        ".mkdir .read_text .touch .unlink .write_text shutil.rmtree",
    ),
    "module_utils/images/commands.py": ("works in /var/lib/slipway, only for root", ".mkdir"),
    "module_utils/images/fetching.py": (
        "reads its own job, whose secrets it removes, and procfs",
        ".read_text shutil.rmtree",
    ),
    "module_utils/images/own_registry.py": ("reads its own job and its source", ".open .read_text"),
    "module_utils/state/facts.py": ("lists a folder in /etc/docker", "os.listdir"),
    "module_utils/images/offering.py": ("removes the secrets of its own job", "shutil.rmtree"),
    "module_utils/images/registry.py": (
        "works in folders that only root can enter, and in /var/lib/slipway",
        ".glob .mkdir .open .read_text .rename .touch .unlink .write_text os.fchmod os.open "
        "shutil.rmtree",
    ),
    "module_utils/gpu/detection.py": ("reads sysfs and procfs", ".iterdir .read_bytes .readlink"),
    "module_utils/gpu/health_facts.py": ("reads the kernel log", "os.open"),
    "module_utils/gpu/cuda_bundle.py": ("writes a new temporary file", ".write_bytes"),
    "module_utils/gpu/cuda_check.py": ("reads sysfs", ".iterdir .read_text"),
    "module_utils/gpu/cuda_driver.py": ("reads procfs", ".read_text"),
    "module_utils/gpu/cuda_run.py": ("reads its own standard streams", ".open"),
    "module_utils/gpu/proof.py": (
        "reads programs in the folders of root's PATH, writes a new temporary file",
        ".iterdir .open tempfile.NamedTemporaryFile",
    ),
    "module_utils/host/status.py": (
        "writes to /run/slipway and /var/lib/slipway, which only root can write",
        ".mkdir .replace .unlink .write_text",
    ),
    "module_utils/images/activity.py": ("reads procfs", ".read_text"),
    "module_utils/host/job.py": (
        "works in /var/lib/slipway, which only root can write",
        ".mkdir .open .read_bytes .read_text .rename .write_text",
    ),
    "module_utils/slurm/config.py": ("reads its source on the controller", ".read_text"),
    "module_utils/ml/doctor.py": (
        "reads sysfs, procfs, system folders and CDI specifications with the rights of the caller",
        ".iterdir .read_text os.readlink",
    ),
    "module_utils/ml/accounts.py": (
        CALLERS_OWN,
        ".iterdir .mkdir .replace .rmdir .unlink .write_text",
    ),
    "module_utils/ml/api.py": (CALLERS_OWN, ".read_text"),
    "module_utils/ml/chat.py": ("opens addresses, reads procfs", ".open .read_text"),
    "module_utils/ml/commands.py": (CALLERS_OWN, "tempfile.TemporaryDirectory"),
    "module_utils/ml/containers.py": (
        "reads records in /var/lib/slipway, which only root can write",
        ".read_text",
    ),
    "module_utils/ml/display.py": (CALLERS_OWN, ".chmod .read_bytes .touch .write_bytes"),
    "module_utils/ml/engine.py": (
        "reads the engine's folders of CDI files and tar archives",
        ".iterdir .open .read_text",
    ),
    "module_utils/ml/guard.py": ("opens /dev/null", "os.open"),
    "module_utils/ml/images.py": (
        "files of the caller; a new name where others can write",
        ".replace .unlink os.open tempfile.TemporaryFile",
    ),
    "module_utils/ml/jobs.py": ("reads procfs", ".glob .read_text"),
    "module_utils/ml/main.py": ("opens /dev/null and the standard streams", "open os.open"),
    "module_utils/ml/own_services.py": (
        "reads /etc/slipway with the rights of the caller",
        ".glob .read_text",
    ),
    "module_utils/ml/settings.py": (
        "reads /etc/slipway, and the caller's own files",
        ".read_text os.open",
    ),
    "module_utils/ml/start.py": (CALLERS_OWN, ".mkdir .touch"),
    "module_utils/ml/token.py": (CALLERS_OWN, ".hardlink_to .mkdir .read_text .unlink os.open"),
    "module_utils/apt/package_set.py": (
        "works in /var/lib/slipway and a new folder of its own",
        ".chmod .glob .mkdir .rename .unlink os.link shutil.copy shutil.rmtree "
        "tempfile.TemporaryDirectory",
    ),
    "module_utils/host/reboot_record.py": (
        "works in /var/lib/slipway, which only root can write",
        ".unlink",
    ),
    "module_utils/host/installed_files.py": (
        "reads the settings of dpkg, which only root can write",
        ".glob .read_text",
    ),
    "module_utils/state/engine_access.py": ("reads the ACL of the engine's socket", "os.getxattr"),
    "module_utils/host/sessions.py": ("reads procfs", ".glob .read_text"),
    "module_utils/images/record.py": ("locks a file within an opened folder", "os.open"),
    "module_utils/images/smoke.py": (
        "reads the engine's folders of CDI files, which only root can write",
        ".glob .read_text",
    ),
    "module_utils/host/verify.py": (
        "reads secrets in /etc/slipway, which only root can write",
        ".open .read_text",
    ),
    "module_utils/docker/daemon_json_file.py": (
        "writes within a folder that state.paths opened",
        ".read_bytes .read_text .set_fs_attributes_if_different .unlink os.rename "
        "tempfile.NamedTemporaryFile tempfile.mkstemp",
    ),
    "module_utils/docker/daemon_json_previous.py": (
        "works in /etc/docker and /var/lib/slipway, which only root can write",
        ".read_bytes .unlink",
    ),
    "module_utils/state/disturbance.py": ("reads procfs", "os.listdir os.readlink"),
    "module_utils/state/listeners.py": ("reads procfs", "open os.readlink"),
    "module_utils/state/apply_files.py": (
        "sets an ACL on a folder that state.paths opened",
        "os.getxattr os.setxattr",
    ),
    "module_utils/state/files.py": ("reads an ACL of a trusted path", "os.getxattr"),
    "module_utils/state/links.py": ("reads links in an opened or trusted folder", "os.readlink"),
    "module_utils/state/reading.py": (
        "reads system files by path, declared paths by state.paths",
        "open os.listdir os.open os.readlink",
    ),
    "module_utils/state/service_files.py": (
        "opens a folder only to ask whether its user may write to it",
        "os.open",
    ),
    "module_utils/state/trees.py": (
        "reads files within an opened tree",
        ".open open os.open os.readlink",
    ),
    "modules/links.py": ("reads a link in a folder that state.paths opened", "os.readlink"),
    "modules/nvidia_module.py": ("reads sysfs, procfs and /lib/modules", ".read_text"),
    "modules/rootless_docker.py": (
        "removes files of systemd in /var/lib",
        ".unlink",
    ),
}
# Modules of Ansible that reach files by path as root, and the tasks that may use them.
FILE_MODULES = frozenset(
    "acl archive assemble authorized_key blockinfile copy cron fetch file find get_url git "
    "known_hosts lineinfile mount patch replace slurp stat synchronize tempfile template "
    "unarchive xattr".split()
)
TASKS = {
    "remove.yml: Delete the purge script to keep images and volumes": (
        "removes a file in folders that only root can write"
    ),
}
# Functions of these modules, by name; all of shutil and tempfile.
OS = frozenset(
    "open chmod chown fchown fchmod lchown rename replace link symlink unlink remove removedirs "
    "rmdir mkdir makedirs mknod mkfifo truncate utime setxattr removexattr listdir scandir walk "
    "readlink getxattr renames".split()
)
# Methods of pathlib.Path, and of others with these names.
METHODS = frozenset(
    "write_text write_bytes read_text read_bytes touch mkdir chmod lchmod unlink symlink_to "
    "hardlink_to open rmdir glob rglob iterdir readlink atomic_move set_mode_if_different "
    "set_owner_if_different set_group_if_different set_fs_attributes_if_different".split()
)
# Those of `shutil` that reach no file.
HARMLESS = frozenset({"which", "disk_usage", "get_terminal_size"})


def calls(source: str) -> Iterator[str]:
    """Yield the calls in a Python file that reach the file system by a path."""
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call):
            continue
        function = node.func
        if isinstance(function, ast.Name) and function.id == "open":
            yield "open"
        elif isinstance(function, ast.Attribute):
            owner = function.value.id if isinstance(function.value, ast.Name) else ""
            name = function.attr
            if owner == "os" and name in OS:
                yield f"os.{name}"
            elif owner in ("shutil", "tempfile") and name not in HARMLESS:
                yield f"{owner}.{name}"
            elif owner != "os" and (name in METHODS or _renames(node)):
                yield f".{name}"


def _renames(node: ast.Call) -> bool:
    """Whether this is ``path.rename(x)`` or ``path.replace(x)``: a string's has two values."""
    assert isinstance(node.func, ast.Attribute)
    name = node.func.attr
    return name == "rename" or (name == "replace" and len(node.args) + len(node.keywords) == 1)


def product_files() -> dict[str, Path]:
    """Return the files of the collection that run on hosts, by name."""
    files = {str(file.relative_to(PLUGINS)): file for file in sorted(PLUGINS.rglob("*.py"))}
    left_out = (*PRIMITIVE, DATA, *CONTROLLER)
    return {name: file for name, file in files.items() if not name.startswith(left_out)}


@pytest.mark.parametrize("name", product_files())
def test_files_on_hosts_are_reached_by_the_one_primitive(name: str) -> None:
    found = sorted(set(calls(product_files()[name].read_text(encoding="utf-8"))))
    _reason, listed = REASONS.get(name, ("", ""))
    assert found == listed.split(), (
        f"{name} calls {', '.join(found)}: use state.paths, or list the calls in "
        f"{Path(__file__).name} with the reason why only root can change the paths"
    )


def test_tasks_of_roles_leave_files_to_modules_of_ours() -> None:
    found = {
        str(task)
        for role in ROLES
        for task in role_tasks(role)
        if task.action.rpartition(".")[2] in FILE_MODULES and "slipway" not in task.action
    }
    assert found == set(TASKS)


def test_each_listed_file_is_there() -> None:
    assert set(REASONS) <= set(product_files())


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("os.open(path, 0)", ["os.open"]),
        ("open(path)", ["open"]),
        ("path.open()", [".open"]),
        ("Path(a).write_text('x')", [".write_text"]),
        ("path.replace(other)", [".replace"]),
        ("text.replace('a', 'b')", []),
        ("shutil.rmtree(x)", ["shutil.rmtree"]),
        ("shutil.which(x)", []),
        ("module.atomic_move(a, b)", [".atomic_move"]),
    ],
)
def test_calls_are_found(source: str, found: list[str]) -> None:
    assert list(calls(source)) == found
