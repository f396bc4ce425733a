#!/bin/sh
# Run a command on cgroup v2 on a machine that has v1: on_v2.sh COMMAND...
#
# v2 is mounted in place of v1 in a private mount namespace; runc takes it for the machine's. Processes still have their
# groups of v1 as well, and CRIU writes down those with all that lies below. So the command gets an empty group of its
# own in each hierarchy: what others make and remove beside it is none of its images then.
set -eu
name=kybernate-on-v2-$$
groups=$(awk '$3 == "cgroup" {print $2}' /proc/mounts)
clean_up() {
    for folder in $groups; do
        tries=50 # who was killed a moment ago holds it still
        until [ ! -d "$folder/$name" ] || rmdir "$folder/$name" 2>/dev/null; do
            tries=$((tries - 1))
            [ "$tries" -gt 0 ] || { echo "on_v2: held by what the command left behind: $folder/$name" >&2 && break; }
            sleep 0.2
        done
    done
}
trap clean_up EXIT
trap : INT TERM HUP # for the command alone; here it is cleaned up
for folder in $groups; do
    mkdir "$folder/$name"
    for file in cpuset.cpus cpuset.mems; do
        [ ! -e "$folder/$name/$file" ] || cat "$folder/$file" >"$folder/$name/$file"
    done
done
status=0
# shellcheck disable=SC2016 # the inner shells expand it
sh -euc '
    name=$1 groups=$2
    shift 2
    for folder in $groups; do echo $$ >"$folder/$name/cgroup.procs"; done
    exec unshare --mount --propagation private \
        sh -c "mount -t cgroup2 none /sys/fs/cgroup && exec \"\$@\"" sh "$@"
' sh "$name" "$groups" "$@" || status=$?
exit "$status"
