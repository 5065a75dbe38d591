#!/bin/sh
# SPDX-License-Identifier: GPL-3.0-or-later
# Create a throwaway host on this machine, then run site.yml on it.
# Usage: ./slipway demo [--create | --destroy | --gpu MODEL] [ARGUMENTS FOR ansible-playbook ...]
#   --create     create the host and inventory/demo/hosts.yml only
#   --destroy    remove everything that the demo created, and nothing else
#   --gpu MODEL  simulate a GPU host: devices, NVIDIA packages and nvidia-smi are stand-ins;
#                an unknown MODEL prints the known ones (t4, 8xh100, 8xb200, k80, ...)
set -eu

case "${1:-}" in
--create) shift && exec ansible-playbook playbooks/demo.yml "$@" ;;
--destroy) shift && exec ansible-playbook playbooks/demo_destroy.yml "$@" ;;
--gpu)
    [ $# -ge 2 ] || { echo "demo: --gpu needs a MODEL" >&2 && exit 1; }
    model=$2
    shift 2
    ansible-playbook playbooks/demo.yml -e "demo_gpu=$model" "$@"
    exec ansible-playbook site.yml -i inventory/demo "$@"
    ;;
-h | --help) sed -n 's/^# \{0,1\}//; 3,8p' "$0" && exit 0 ;;
esac
ansible-playbook playbooks/demo.yml "$@"
exec ansible-playbook site.yml -i inventory/demo "$@"
