# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What all tests share: the tests that need hardware say so where it is missing."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from xdist.scheduler import LoadFileScheduling

# Set, with the stand-in libcuda in LD_LIBRARY_PATH, the tests in tests/gpu run without a GPU.
STAND_IN_GPUS = "SLIPWAY_STAND_IN_GPUS"

# Runs of tests write no reports into the checkout.
os.environ.setdefault("SLIPWAY_REPORTS", os.devnull)

# Files of tests/host that share the host `converged`: a second process would create a second one.
SHARING_A_HOST = ("test_images.py", "test_replacement.py", "test_site.py")
# Files of tests/host that take longest, the longest first. The last file of a run should be a short
# one, because nothing runs beside it.
LONGEST = (
    *("test_site.py", "test_upgrade.py", "test_services.py", "test_gpu_hosts.py"),
    *("test_users.py", "test_aliases.py", "test_data.py", "test_delivery.py", "test_slurm.py"),
    *("test_front_door.py", "test_collection.py", "test_gpu_faults.py", "test_remove.py"),
    "test_removal.py",
)


# Files of unit and contract tests that take ten seconds and more, because they start Ansible, build
# something, or try thousands of examples. `./slipway test --quick` leaves them out.
SLOW = (
    *("test_aliases_properties.py", "test_builder.py", "test_bundle_tool.py", "test_catalogue.py"),
    *("test_chat.py", "test_collection.py", "test_commands.py", "test_cuda_check.py"),
    *("test_data_attacks.py", "test_data_worker.py", "test_doctor.py", "test_export_tool.py"),
    *("test_fleet_page.py", "test_gpu_proof.py", "test_holds.py", "test_images_info.py"),
    *("test_live.py", "test_lock_images.py", "test_locks_resolve.py", "test_no_hosts.py"),
    *("test_pages.py", "test_rolling.py"),
)


class HostScheduling(LoadFileScheduling):
    """Runs all tests of a file, and all files that share a host, in one process."""

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.partition("::")[0]
        return "converged" if Path(file).name in SHARING_A_HOST else file


# Optional, because pytest may run without the plugin that has this hook.
@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> HostScheduling | None:
    """Schedule with `--dist loadfile` as above."""
    return HostScheduling(config, log) if config.getvalue("dist") == "loadfile" else None


def pytest_itemcollected(item: pytest.Item) -> None:
    """Mark the tests of slow files."""
    if item.path.name in SLOW:
        item.add_marker("slow")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Sort the longest files to the front."""
    places = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path.name, len(places)))


def pytest_runtest_setup(item: pytest.Item) -> None:
    loaded = Path("/proc/driver/nvidia/version").exists()
    tried = STAND_IN_GPUS in os.environ and item.path.parent.name == "gpu"
    if item.get_closest_marker("gpu") and not loaded and not tried:
        pytest.skip("needs a real NVIDIA GPU; this machine has no NVIDIA driver loaded")
