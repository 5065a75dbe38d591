# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Stand-ins for NVIDIA's container toolkit."""

from __future__ import annotations

from collections.abc import Iterator

from lab.apt_repository import File, Package
from lab.nvidia_packages.programs import CDI_PATH, CDI_SERVICE, CTK, STAND_IN
from lab.nvidia_packages.versions import TOOLKIT_VERSIONS

# The real unit gets the kernel's release from systemd; the stand-in is written for the simulated
# kernel by the package's script.
ENABLE_CDI_REFRESH = f"""\
mkdir -p /etc/nvidia-container-runtime
touch /etc/nvidia-container-runtime/config.toml
kernel=$(cat /proc/sys/kernel/osrelease)
cat >/etc/systemd/system/nvidia-cdi-refresh.path <<END
{CDI_PATH.format(kernel="$kernel")}END
systemctl daemon-reload
systemctl enable --now --quiet nvidia-cdi-refresh.path
systemctl enable --now --quiet nvidia-cdi-refresh.service"""
DISABLE_CDI_REFRESH = """\
test "$1" = remove || exit 0
systemctl disable --now --quiet nvidia-cdi-refresh.path
systemctl disable --now --quiet nvidia-cdi-refresh.service
rm -f /etc/systemd/system/nvidia-cdi-refresh.path"""


def toolkit() -> Iterator[Package]:
    """Yield both versions of the container toolkit; NVIDIA's repository has all versions."""
    base, tools, library = (
        "nvidia-container-toolkit-base",
        "libnvidia-container-tools",
        "libnvidia-container1",
    )
    for version in (f"{version}-1" for version in TOOLKIT_VERSIONS):
        yield Package(library, version)
        yield Package(tools, version, {"Depends": f"{library} (>= {version})"})
        yield Package(
            base,
            version,
            {},
            {
                "/usr/bin/nvidia-ctk": File(CTK, 0o755),
                "/usr/bin/nvidia-cdi-hook": File(f"{STAND_IN}exit 0\n", 0o755),
                "/usr/bin/nvidia-container-runtime": File(f'{STAND_IN}exec runc "$@"\n', 0o755),
                "/lib/systemd/system/nvidia-cdi-refresh.service": File(CDI_SERVICE),
            },
            {"postinst": ENABLE_CDI_REFRESH, "prerm": DISABLE_CDI_REFRESH},
        )
        yield Package(
            "nvidia-container-toolkit",
            version,
            {"Depends": f"{base} (= {version}), {tools} (= {version})"},
            {"/usr/bin/nvidia-container-runtime-hook": File(f"{STAND_IN}exit 0\n", 0o755)},
        )
