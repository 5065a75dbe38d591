# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Programs and units in the stand-in packages."""

from __future__ import annotations

from lab.stand_in_cuda import LIBRARY

STAND_IN = "#!/bin/sh\n# Stand-in on a simulated host.\n"
RECORD = 'echo "$0 $*" >>/run/stand-in.log\n'
# A daemon that only runs.
DAEMON = f"{STAND_IN}{RECORD}sleep infinity &\n"
PERSISTENCED = """\
[Unit]
Description=NVIDIA Persistence Daemon (stand-in)
StopWhenUnneeded=true

[Service]
Type=forking
ExecStart=/usr/bin/nvidia-persistenced --user nvidia-persistenced --no-persistence-mode --verbose
"""
PERSISTENCED_ENABLED = """\
[Unit]
Description=NVIDIA Persistence Daemon (stand-in)

[Service]
Type=forking
ExecStart=/usr/bin/nvidia-persistenced --user nvpd

[Install]
WantedBy=multi-user.target
"""
# Like the real fabric manager, the stand-in does not start on an NVLink 5 baseboard without the
# packages that manage its switches.
FABRIC_START = f"""\
{STAND_IN}{RECORD}
if grep -qx 0x2901 /sys/bus/pci/devices/*/device; then
    test -d /sys/module/ib_umad || {{ echo "stand-in: ib_umad is not loaded" >&2; exit 1; }}
    test -x /opt/nvidia/nvlsm/sbin/nvlsm || {{ echo "stand-in: there is no nvlsm" >&2; exit 1; }}
fi
sleep infinity &
"""
FABRIC_UNIT = """\
[Unit]
Description=NVIDIA fabric manager service (stand-in)

[Service]
Type=forking
ExecStart=/usr/bin/nvidia-fabricmanager-start.sh

[Install]
WantedBy=multi-user.target
"""
CDI_SERVICE = """\
[Unit]
Description=Refresh NVIDIA CDI specification file (stand-in)
ConditionPathExists=|/usr/bin/nvidia-smi
ConditionPathExists=|/usr/sbin/nvidia-smi
ConditionPathExists=/usr/bin/nvidia-ctk

[Service]
Type=oneshot
Environment=NVIDIA_CTK_CDI_OUTPUT_FILE_PATH=/var/run/cdi/nvidia.yaml
ExecCondition=/bin/sh -c 'grep -qE "/(nvidia|nvidia-current)[.]ko" /lib/modules/$$(cat \
/proc/sys/kernel/osrelease)/modules.dep'
ExecStart=/usr/bin/nvidia-ctk cdi generate

[Install]
WantedBy=multi-user.target
"""
CDI_PATH = """\
[Unit]
Description=Trigger CDI refresh on NVIDIA driver install / uninstall events (stand-in)

[Path]
PathChanged=/lib/modules/{kernel}/modules.dep

[Install]
WantedBy=multi-user.target
"""
# Writes a CDI specification of the device files that the stand-in for modprobe created.
CTK = f"""\
{STAND_IN}{RECORD}
case "$*" in *"cdi generate") ;; *) exit 0 ;; esac
file=${{NVIDIA_CTK_CDI_OUTPUT_FILE_PATH:-/dev/stdout}}
mkdir -p "$(dirname "$file")"
{{
    printf 'cdiVersion: 0.5.0\\nkind: nvidia.com/gpu\\n'
    printf 'containerEdits:\\n  env: [SLIPWAY_STAND_IN=%s]\\n' "$(cat /sys/module/nvidia/version)"
    printf 'devices:\\n- name: all\\n  containerEdits:\\n    deviceNodes:\\n'
    for node in /dev/nvidia*; do printf '    - path: %s\\n' "$node"; done
    printf '    mounts:\\n'
    for mounted in /usr/bin/nvidia-smi "/usr/lib/$(uname -m)-linux-gnu/{LIBRARY}"; do
        printf '    - hostPath: %s\\n      containerPath: %s\\n' "$mounted" "$mounted"
        printf '      options: [ro, nosuid, nodev, bind]\\n'
    done
}} >"$file.new"
mv "$file.new" "$file"
"""
