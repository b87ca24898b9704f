#!/bin/sh
# Make the new mount and UTS namespaces that this runs in those of one machine, then run COMMAND.
#
#     isolate.sh NAME FOLDER KEEP COMMAND...
#
# FOLDER holds what the machine has of its own, FOLDER/../etc what all machines have alike. Its home
# is seen at FOLDER/../home, one path on every machine, as for one user with a home on each.
# KEEP: folders, separated by colons, that stay in sight wherever they lie.
set -eu
name=$1 folder=$2 keep=$3
shift 3

# hide PLACE MOUNT-ARGUMENTS...: mount over PLACE, but for what is to be kept below it.
hide() {
    place=$1
    shift
    mount --rbind "$place" "$folder/hidden"
    mount "$@" "$place"
    IFS=:
    for path in $keep; do
        case $path in
        "$place"/*)
            mkdir -p "$path"
            mount --rbind "$folder/hidden${path#"$place"}" "$path"
            ;;
        esac
    done
    unset IFS
    umount --lazy "$folder/hidden"
}

echo "$name" > /proc/sys/kernel/hostname
for file in "${folder%/*}"/etc/*; do
    if [ -e "/etc/${file##*/}" ]; then  # resolv.conf may be a link into what is hidden
        mount --bind "$file" "/etc/${file##*/}"
    fi
done
mount --bind "$folder/home" "${folder%/*}/home"
hide /tmp --bind "$folder/tmp"
hide /dev/shm -t tmpfs tmpfs
hide /run -t tmpfs tmpfs
mkdir /run/sshd
: > /run/utmp

exec "$@"
