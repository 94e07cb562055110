#!/bin/sh
# Runs on the host once the packages of `base` are unpacked; $1 is its root folder.
set -eu
root=$1
chroot "$root" useradd --create-home --shell /bin/bash --uid 1000 user
echo 'user ALL=(ALL) NOPASSWD:ALL' >"$root/etc/sudoers.d/user"
chmod 0440 "$root/etc/sudoers.d/user"
# Each capsule gets its own of these at its start.
: >"$root/etc/machine-id"
echo capsule >"$root/etc/hostname"
printf '127.0.0.1 localhost capsule\n::1 localhost\n' >"$root/etc/hosts"
# Each boot writes the host's name servers; these are of the machine that builds the image.
rm -f "$root/etc/resolv.conf"
rm -rf "$root"/var/lib/apt/lists/* "$root"/var/cache/apt/*.bin "$root"/var/log/*.log
