#!/bin/sh
# SPDX-License-Identifier: GPL-3.0-or-later
# The demo: a throwaway host on this machine, then site.yml on it.
# Usage: ./slipway demo [--create | --destroy] [ARGUMENTS FOR ansible-playbook ...]
#   --create   make the host and inventory/demo/hosts.yml, and stop there
#   --destroy  remove all that the demo made, and nothing else
set -eu

case "${1:-}" in
--create) shift && exec ansible-playbook playbooks/demo.yml "$@" ;;
--destroy) shift && exec ansible-playbook playbooks/demo_destroy.yml "$@" ;;
-h | --help) sed -n 's/^# \{0,1\}//; 3,6p' "$0" && exit 0 ;;
esac
ansible-playbook playbooks/demo.yml "$@"
exec ansible-playbook site.yml -i inventory/demo "$@"
