# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Scripts and units that stand in for the kernel of a simulated GPU host."""

from __future__ import annotations

# The stand-ins' folder as the host sees it.
FOLDER = "/srv/stand-in"

# A kernel lists a loaded module in /sys/module and creates its device files. The stand-in's device
# files have the numbers of /dev/null, which a container may open.
MODPROBE = """\
#!/bin/sh
# Stand-in for the kernel of a simulated host: lists a module as loaded, and loads nothing.
echo "$0 $*" >>/run/stand-in.log
dep=/lib/modules/$(cat /proc/sys/kernel/osrelease)/modules.dep
smi=/usr/share/nvidia-stand-in/nvidia-smi.xml
show() {
    [ ! -d "/sys/module/$1" ] || return 0
    mkdir "/sys/module/$1"
    [ -z "$2" ] || echo "$2" >"/sys/module/$1/version"
}
# Create a device file. In a user namespace, as of emulated hosts, the kernel refuses mknod.
node() {
    [ ! -e "/dev/$1" ] || return 0
    mknod -m 666 "/dev/$1" c 1 3 2>/dev/null ||
        { : >"/dev/$1" && mount --bind /dev/null "/dev/$1"; }
}
# List the GPUs that are not assigned to virtual machines.
gpus() {
    for device in /sys/bus/pci/devices/*; do
        [ ! -L "$device/physfn" ] || continue
        case $(cat "$device/vendor" "$device/class")$(readlink "$device/driver") in
        *vfio-pci) ;;
        0x10de?0x030[02]00*) echo "$device" ;;
        esac
    done
}
# Create the device files of the GPUs and describe them in /proc, as the driver does.
add_gpus() {
    model=$(sed -n '/<product_name>/{s/<[^>]*>//g;s/^[[:space:]]*//p;q}' "$smi" 2>/dev/null)
    minor=0
    for device in $(gpus); do
        node "nvidia$minor"
        mkdir -p "/proc/driver/nvidia/gpus/${device##*/}"
        printf 'Model: \\t\\t %s\\nDevice Minor: \\t %s\\n' "$model" "$minor" \\
            >"/proc/driver/nvidia/gpus/${device##*/}/information"
        minor=$((minor + 1))
    done
}
for name; do
    case $name in
    -*) continue ;;
    nvidia*)
        stem=$(echo "${name#nvidia}" | tr _ -)
        file=$(sed -nE "s,^([^:]*/nvidia(-current)?(-open)?$stem\\.ko):.*,\\1,p" "$dep")
        [ -n "$file" ] || { echo "modprobe: FATAL: Module $name not found." >&2; exit 1; }
        version=$(modinfo -F version "${dep%/*}/$file")
        show nvidia "$version"
        show "$(echo "$name" | tr - _)" "$version"
        node nvidiactl
        node nvidia-uvm
        add_gpus
        ;;
    mlx5_ib | ib_umad) show "$name" '' ;;
    # Other modules are in the kernel of the real machine, or are not needed.
    *) ;;
    esac
done
"""
RMMOD = """\
#!/bin/sh
# Stand-in for the kernel of a simulated host, see modprobe.
echo "$0 $*" >>/run/stand-in.log
if [ -e /run/stand-in.stuck ]; then echo "rmmod: ERROR: Module $1 is in use" >&2; exit 1; fi
rm -r "/sys/module/$1"
[ "$1" != nvidia ] || rm -rf /proc/driver/nvidia
"""
UPDATE_INITRAMFS = """\
#!/bin/sh
# Stand-in on a simulated host.
echo "$0 $*" >>/run/stand-in.log
head --bytes=5M /dev/zero >"/boot/initrd.img-$(cat /proc/sys/kernel/osrelease)"
"""
# At each boot: set the kernel's release, find all GPUs again, and load the modules that
# modules-load.d names.
BOOT = f"""\
#!/bin/sh
mv {FOLDER}/pci/off/* /sys/bus/pci/devices/ 2>/dev/null
mount --bind {FOLDER}/osrelease /proc/sys/kernel/osrelease
mount -t tmpfs none /proc/driver
initrd="/boot/initrd.img-$(cat {FOLDER}/osrelease)"
modules="/lib/modules/$(cat {FOLDER}/osrelease)"
mkdir -p "$modules"
printf 'kernel/%s.ko\\n' mlx5_ib ib_umad >"$modules/modules.builtin"
test -s "$initrd" || head --bytes=5M /dev/zero >"$initrd"
rm -rf /sys/module/nvidia* /sys/module/ib_umad /sys/module/mlx5_ib
sed '/^#/d' /etc/modules-load.d/*.conf 2>/dev/null | xargs -rn1 /usr/local/sbin/modprobe || true
"""
BOOT_UNIT = f"""\
[Unit]
Description=The kernel of a simulated host (stand-in)
DefaultDependencies=no
Before=sysinit.target

[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/bin/sh {FOLDER}/boot

[Install]
WantedBy=sysinit.target
"""
SERVER_UNIT = f"""\
[Unit]
Description=The archives of a simulated host (stand-in)

[Service]
ExecStart=/usr/bin/python3 -m http.server --bind 127.0.0.1 --directory {FOLDER} 8765

[Install]
WantedBy=multi-user.target
"""
# Debian unstable's sudo omits /usr/local, where the stand-ins are.
SUDOERS = 'Defaults secure_path="/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"\n'
