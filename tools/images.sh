#!/bin/sh
# SPDX-License-Identifier: GPL-3.0-or-later
# The catalogue's images.
# Usage: ./slipway images VERB [NAME ...] [ARGUMENTS FOR ansible-playbook ...]
#   lock    refresh the locks of Python packages and say what moved (see lock --help)
#   list    the catalogue against what the hosts hold, with sizes (--markdown: for a page)
#   build   build what differs on the hosts and prove it
#   smoke   run the smoke tests of images that the hosts hold
#   save    write images to one archive on each host (-e ml_images_archive=PATH)
#   load    read them from such an archive
#   push    push images to a registry (-e ml_images_registry=HOST/PATH; log in there first)
#   prune   remove images of Slipway that the hosts are not to hold, and old build cache
# Without NAME: the images that each host is to hold (ml_images_names). Examples:
#   ./slipway images build pytorch --limit gpu01
#   ./slipway images save pytorch fastai -e ml_images_archive=/srv/images.tar
set -eu

usage() { sed -n 's/^# \{0,1\}//; 3,15p' "$0"; }

verb=${1:---help}
[ $# -eq 0 ] || shift
case "$verb" in
-h | --help) usage && exit 0 ;;
lock) exec python tools/lock_images.py "$@" ;;
list | build | smoke | save | load | push | prune) ;;
*) usage >&2 && echo "images: unknown verb: $verb" >&2 && exit 1 ;;
esac

names=''
while [ $# -gt 0 ]; do
    case "$1" in
    -h | --help) usage && exit 0 ;;
    --markdown) shift && set -- "$@" -e ml_images_show=markdown ;;
    -*) break ;;
    *) names="$names${names:+,}\"$1\"" && shift ;;
    esac
done
[ -z "$names" ] || set -- -e "{\"ml_images_names\": [$names]}" "$@"
exec ansible-playbook "playbooks/images_$verb.yml" "$@"
