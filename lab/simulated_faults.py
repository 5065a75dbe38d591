# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Faults of the GPUs of a simulated host, and the stand-in for nvidia-smi that shows them.

Each fault is a file below :data:`FAULTS` with edits of one GPU's part of nvidia-smi's output. The
folder is empty after a boot. The kernel log is a file: throwaway hosts have none.
"""

from __future__ import annotations

from collections.abc import Mapping

from lab.simulated_kernel import FOLDER

FAULTS = "/run/stand-in-faults"
# GPUs that fell off the bus, until the next boot.
OFF = f"{FOLDER}/pci/off"
_BRAKE = "clocks_event_reason_hw_power_brake_slowdown"

# By name: the fields of a GPU, by their element, and the values that the fault sets.
FIELDS: Mapping[str, Mapping[str, tuple[str, str]]] = {
    "fabric": {"state": ("Completed", "In Progress"), "status": ("Success", "N/A")},
    "recovery": {"gpu_recovery_action": ("None", "GPU Reset")},
    "memory": {"dram_uncorrectable": ("0", "1")},
    "row-pending": {"remapped_row_pending": ("No", "Yes")},
    "row-failure": {"remapped_row_failure": ("No", "Yes")},
    "mig": {"pending_mig": ("Disabled", "Enabled")},
    "hot": {"clocks_event_reason_hw_thermal_slowdown": ("Not Active", "Active")},
    "power": {_BRAKE: ("Not Active", "Active")},
    "link": {"current_link_width": ("16x", "4x")},
}
# Faults that a reset of the GPU ends.
ENDED_BY_RESET = ("recovery", "memory", "row-pending", "mig")


def _edits(fault: str) -> str:
    """Return the edits of a fault for sed; the first element of a name counts."""
    return "\n".join(
        f"0,/<{name}>/s,<{name}>{old}<,<{name}>{new}<,"
        for name, (old, new) in FIELDS[fault].items()
    )


_CASES = "\n".join(
    f"    {name}) cat <<'EDITS' >\"$file\"\n{_edits(name)}\nEDITS\n        ;;" for name in FIELDS
)
# Print address and number of each GPU; a GPU off the bus keeps its number.
_GPUS = f"""\
gpus() {{
    number=0
    for address in $( (ls /sys/bus/pci/devices; ls {OFF} 2>/dev/null) | sort); do
        device=/sys/bus/pci/devices/$address
        [ -e "$device" ] || {{ number=$((number + 1)); continue; }}
        [ "$(cat "$device/vendor")" = 0x10de ] || continue
        case "$(cat "$device/class")" in 0x030[02]*) ;; *) continue ;; esac
        case "$(readlink "$device/driver")" in *vfio*) continue ;; esac
        echo "$address $number"
        number=$((number + 1))
    done
}}
"""
INJECT = f"""\
#!/bin/sh
# Stand-in on a simulated host: gives a GPU a fault. A boot ends all of them.
# Usage: stand-in-fault FAULT [ADDRESS]      FAULT is one of: {" ".join(FIELDS)} lost
#        stand-in-fault xid LINE [ADDRESS]   writes "NVRM: Xid (PCI:ADDRESS): LINE"
# Without the PCI ADDRESS, the first GPU gets the fault.
set -eu
{_GPUS}usage() {{ sed -n '2,5s/^# //p' "$0" >&2; exit 1; }}
[ $# -gt 0 ] || usage
fault=$1
shift
[ "$fault" != xid ] || {{ [ $# -gt 0 ] || usage; line=$1; shift; }}
first=$(grep -lx 0x10de /sys/bus/pci/devices/*/vendor | head -n 1)
first=${{first%/vendor}}
address=${{1:-${{first##*/}}}}
[ -e "/sys/bus/pci/devices/$address" ] || {{ echo "no PCI device $address" >&2; exit 1; }}
mkdir -p "{FAULTS}/$address"
file="{FAULTS}/$address/$fault.sed"
case $fault in
{_CASES}
    lost)
        number=$(gpus | sed -n "s/^$address //p")
        mkdir -p {OFF}
        mv "/sys/bus/pci/devices/$address" {OFF}/
        rm -f "/dev/nvidia$number"
        systemctl restart nvidia-cdi-refresh.service 2>/dev/null || true
        ;;
    xid) echo "4,0,0,-;NVRM: Xid (PCI:${{address%.0}}): $line" >>/dev/kmsg ;;
    *) usage ;;
esac
"""
# Lists the device files that it can open. As XML, prints the first GPU of a sample once for each
# GPU of the simulated PCI bus. Resets a GPU if no process holds it.
SMI = f"""\
#!/bin/sh
# Stand-in on a simulated host.
uuid() {{ echo "GPU-00000000-0000-0000-0000-00000000000$1"; }}
if [ "$*" = -L ]; then
    for node in /dev/nvidia[0-9]*; do
        (: <"$node") 2>/dev/null || {{ echo "Failed to initialize NVML: Unknown Error"; exit 255; }}
        number=${{node#/dev/nvidia}}
        echo "GPU $number: stand-in (UUID: $(uuid "$number"))"
    done
    exit
fi
test -e /sys/module/nvidia/version || {{ echo "stand-in: the driver is not loaded" >&2; exit 9; }}
{_GPUS}# Set number to that of the GPU with an address.
choose() {{
    number=$(gpus | sed -n "s/^$1 //p")
    [ -n "$number" ] || {{ echo "No devices were found"; exit 6; }}
    mkdir -p "{FAULTS}/$1"
}}
case "$1 ${{2:-}}" in
"-pm 0" | "-pm 1")
    choose "$4"
    if [ "$2" = 0 ]; then touch "{FAULTS}/$4/free"; else rm -f "{FAULTS}/$4/free"; fi
    echo "All done."
    exit
    ;;
"--gpu-reset -i")
    choose "$3"
    users=$(find /proc/[0-9]*/fd -lname "/dev/nvidia$number" 2>/dev/null)
    if [ ! -e "{FAULTS}/$3/free" ] || [ -n "$users" ]; then
        printf 'The following GPUs could not be reset:\\n  GPU %s: In use by another client\\n' "$3"
        exit 255
    fi
    for name in {" ".join(ENDED_BY_RESET)}; do rm -f "{FAULTS}/$3/$name.sed"; done
    [ ! -f /dev/kmsg ] || echo "4,0,0,-;NVRM: Xid (PCI:${{3%.0}}): 154, GPU recovery action" \\
        "changed from 0x1 (GPU Reset Required) to 0x0 (None)" >>/dev/kmsg
    echo "GPU $3 was successfully reset."
    exit
    ;;
esac
sample=/usr/share/nvidia-stand-in/nvidia-smi.xml
sed '/<gpu id=/,$d' "$sample"
gpus | while read -r address number; do
    edits=
    for file in "{FAULTS}/$address"/*.sed; do [ ! -e "$file" ] || edits="$edits -f $file"; done
    sed -n '/<gpu id=/,/<\\/gpu>/p' "$sample" | sed '/<\\/gpu>/q' |
        sed -e "s/<gpu id=\\"[^\\"]*\\"/<gpu id=\\"0000$address\\"/" \\
            -e "s/<uuid>[^<]*/<uuid>$(uuid "$number")/" $edits
done
echo '</nvidia_smi_log>'
"""
