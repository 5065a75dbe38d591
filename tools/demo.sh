#!/bin/sh
# SPDX-License-Identifier: GPL-3.0-or-later
# Create a throwaway host on this machine, then run site.yml on it.
# Usage: ./slipway demo [--create | --destroy | --gpu MODEL] [ARGUMENTS FOR ansible-playbook ...]
#   --create     only create the host and inventory/demo/hosts.yml
#   --destroy    remove everything that the demo created
#   --gpu MODEL  simulate a GPU host: devices, NVIDIA packages and nvidia-smi are stand-ins. Models:
#                t4, 8xh100, 8xb200, k80, ... (an unknown MODEL prints the complete list)
set -eu

case "${1:-}" in
--create) shift && exec ansible-playbook playbooks/demo.yml "$@" ;;
--destroy) shift && exec ansible-playbook playbooks/demo_destroy.yml "$@" ;;
--gpu)
    [ $# -ge 2 ] || { echo "demo: --gpu: no MODEL given; expected for example t4" >&2 && exit 1; }
    model=$2
    shift 2
    ansible-playbook playbooks/demo.yml -e "demo_gpu=$model" "$@"
    exec ansible-playbook site.yml -i inventory/demo "$@"
    ;;
-h | --help) sed -n 's/^# \{0,1\}//; 3,8p' "$0" && exit 0 ;;
esac
ansible-playbook playbooks/demo.yml "$@"
exec ansible-playbook site.yml -i inventory/demo "$@"
