#!/bin/sh
# SPDX-License-Identifier: GPL-3.0-or-later
# Create a throwaway host on this machine, then run site.yml on it.
# Usage: ./slipway demo [--create] [--gpu MODEL] [ARGUMENTS FOR ansible-playbook ...]
#   --create     only create the host and inventory/demo/hosts.yml
#   --destroy    remove everything that the demo created
#   --gpu MODEL  simulate a GPU host: devices, NVIDIA packages and nvidia-smi are stand-ins. Models:
#                t4, 8xh100, 8xb200, k80, ... (an unknown MODEL prints the complete list)
set -eu

create_only=
gpu=
while [ $# -gt 0 ]; do
    case $1 in
    --create) create_only=yes ;;
    --destroy) shift && exec ansible-playbook playbooks/demo_destroy.yml "$@" ;;
    --gpu)
        [ $# -ge 2 ] || { echo "demo: --gpu: no MODEL given; expected for example t4" >&2 && exit 1; }
        gpu=$2
        shift
        ;;
    -h | --help) sed -n 's/^# \{0,1\}//; 3,8p' "$0" && exit 0 ;;
    *) break ;;
    esac
    shift
done
ansible-playbook playbooks/demo.yml ${gpu:+-e "demo_gpu=$gpu"} "$@"
[ -n "$create_only" ] || exec ansible-playbook site.yml -i inventory/demo "$@"
