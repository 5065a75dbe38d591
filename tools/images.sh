#!/bin/sh
# SPDX-License-Identifier: GPL-3.0-or-later
# Manage the images of the catalogue.
# Usage: ./slipway images VERB [NAME ...] [ARGUMENTS FOR ansible-playbook ...]
#   lock    update the lock files of Python packages and report changed versions (lock --help)
#   list    compare the catalogue with the images on the hosts; show sizes (--markdown: as Markdown)
#   build   build images that are missing or outdated on one host, deliver them to the others, run
#           their smoke tests; site creates the commands of images
#   smoke   run the smoke tests of the images on the hosts
#   save    save images to one archive on each host, with a record (-e ml_images_archive=PATH)
#   load    load images from such an archive, after comparing it with its record
#   accept  test images that came by docker load or docker pull, and record their content
#   push    push images to a registry (-e ml_images_registry=HOST/PATH; run docker login first)
#   prune   remove undeclared Slipway images and old build cache
# Default for NAME: the images declared for each host (ml_images_present). Examples:
#   ./slipway images build pytorch --limit gpu01
#   ./slipway images save pytorch fastai -e ml_images_archive=/srv/images.tar
set -eu

usage() { sed -n 's/^# \{0,1\}//; 3,17p' "$0"; }

verb=${1:---help}
[ $# -eq 0 ] || shift
case "$verb" in
-h | --help) usage && exit 0 ;;
lock) exec python tools/lock_images.py "$@" ;;
esac
verbs='lock list build smoke save load accept push prune'
is_known=''
for name in $verbs; do [ "$name" != "$verb" ] || is_known=yes; done
# shellcheck disable=SC2086 # a word for each verb
[ -n "$is_known" ] || {
    echo "slipway: images: unknown verb: $verb; expected one of: $verbs." \
        "$(sh tools/nearest.sh "$verb" $verbs)./slipway images --help explains the verbs." >&2
    exit 1
}

names=''
while [ $# -gt 0 ]; do
    case "$1" in
    -h | --help) usage && exit 0 ;;
    --markdown) shift && set -- "$@" -e ml_images_show=markdown ;;
    -*) break ;;
    *) names="$names${names:+,}\"$1\"" && shift ;;
    esac
done
# An inventory may still use the old name ml_images_names: clear it, or the run would stop.
[ -z "$names" ] || set -- -e "{\"ml_images_present\": [$names], \"ml_images_names\": null}" "$@"
exec ansible-playbook "playbooks/images_$verb.yml" "$@"
