#!/bin/sh
# SPDX-License-Identifier: GPL-3.0-or-later
# Create throwaway hosts on this machine, then run site.yml on them.
# Usage: ./slipway demo [--create] [--hosts N] [--gpu MODEL] [--cluster] [--architecture NAME]
#                       [ARGUMENTS FOR ansible-playbook ...]
#   --create     only create the hosts and inventory/demo/hosts.yml
#   --destroy    remove everything that the demo created
#   --hosts N    create N hosts: demo-1 to demo-N; the demo's other hosts are removed. Default: the
#                hosts that the demo has, or one
#   --gpu MODEL  simulate GPU hosts: devices, NVIDIA packages and nvidia-smi are stand-ins. Models:
#                t4, 8xh100, 8xb200, k80, ... (an unknown MODEL prints the complete list)
#   --cluster    a Slurm cluster: demo-1 is the controller without GPUs, the other hosts run jobs.
#                Default: three hosts, and two simulated GPUs on each host that runs jobs
#   --architecture NAME
#                amd64 or arm64. An x86 machine emulates arm64 hosts, on which no container runs.
#                Default: the architecture of this machine
#   --bundle FILE [--signer KEY.pub]
#                use no network: docs/bundle.md
set -eu

create_only=
gpu=
count=
cluster=
architecture=
while [ $# -gt 0 ]; do
    case $1 in
    --create) create_only=yes ;;
    --cluster) cluster=yes ;;
    --destroy) shift && exec ansible-playbook playbooks/demo_destroy.yml "$@" ;;
    --gpu)
        [ $# -ge 2 ] || { echo "demo: --gpu: no MODEL given; expected for example t4" >&2 && exit 1; }
        gpu=$2
        shift
        ;;
    --architecture)
        [ $# -ge 2 ] || { echo "demo: --architecture: expected amd64 or arm64" >&2 && exit 1; }
        architecture=$2
        shift
        ;;
    --hosts)
        case ${2:-} in
        [1-9] | [1-9][0-9]) count=$2 ;;
        *) echo "demo: --hosts ${2:-}: expected a number from 1 to 99" >&2 && exit 1 ;;
        esac
        shift
        ;;
    -h | --help) sed -n 's/^# \{0,1\}//; 3,18p' "$0" && exit 0 ;;
    *) break ;;
    esac
    shift
done
if [ -n "$cluster" ]; then
    gpu=${gpu:-2xh100} count=${count:-3}
    [ "$count" -gt 1 ] || { echo "demo: --cluster --hosts 1: expected at least 2 hosts" >&2 && exit 1; }
fi
ansible-playbook playbooks/demo.yml ${cluster:+-e demo_cluster=true} ${gpu:+-e "demo_gpu=$gpu"} \
    ${count:+-e "demo_hosts=$count"} ${architecture:+-e "demo_architecture=$architecture"} "$@"
[ -n "$create_only" ] || exec ansible-playbook site.yml -i inventory/demo "$@"
