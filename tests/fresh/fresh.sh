#!/bin/sh
# Try the repository as a stranger would: in a fresh Debian tree, from a fresh clone.
#
#     tests/fresh/fresh.sh bookworm|trixie [COMMAND]
#
# Makes a minimal tree of that Debian release with mmdebstrap, clones this checkout's HEAD into it, and runs COMMAND
# there (in the clone, by `sh -c`; as it comes: demo and test, each twice). The archive is the one that this machine's
# apt is configured for. The tree has process ids, mounts, IPC and a /run of its own; kernel, cgroups and network are
# this machine's.
#
#     FRESH_DIR   where the trees lie (/var/tmp/kybernate-fresh)
#     FRESH_KEEP  yes: a tree that is there is used again with a new clone, and stays
set -eu

REPO=$(CDPATH='' cd -- "$(dirname -- "$0")/../.." && pwd)
PATH=$PATH:/usr/sbin:/sbin
suite=${1:?"usage: tests/fresh/fresh.sh bookworm|trixie [COMMAND]"}
command=${2:-'./dev demo && ./dev test && ./dev demo && ./dev test'}
base=${FRESH_DIR:-/var/tmp/kybernate-fresh}
tree=$base/$suite
inside=/root/kybernate

. "$REPO/dev.d/common.sh"
. "$REPO/dev.d/archive.sh"

[ "$(id -u)" -eq 0 ] || die "a fresh tree needs root"
has mmdebstrap || die "mmdebstrap is not installed"

# mmdebstrap reads one-line entries as well as deb822; the latter keeps a key that is written out in Signed-By.
make_tree() {
    entry=$(archive_entry "$(own_suite)" "$suite")
    [ -n "$entry" ] || die "no Debian archive is configured in /etc/apt"
    say "makes a fresh $suite in $tree"
    printf '%s\n' "$entry" | mmdebstrap --quiet --variant=apt "$suite" "$tree" -
}

# What this machine needs to use its package archives, the tree needs too: resolver, certificates, apt's proxies and
# checks, pip's configuration.
lend_network() {
    for file in /etc/resolv.conf /etc/hosts /etc/pip.conf; do
        [ ! -e "$file" ] || cp -L "$file" "$tree$file"
    done
    mkdir -p "$tree/usr/local/share/ca-certificates"
    find /usr/local/share/ca-certificates -name '*.crt' -exec cp -L {} "$tree/usr/local/share/ca-certificates/" \;
    apt-config dump | grep -i '^Acquire::\(Check-\|[a-z]*::\(Proxy\|CaInfo\|Verify\)\)' >"$tree/etc/apt/apt.conf.d/90fresh" || true
}

clone() {
    rm -rf "$tree$inside"
    git clone --quiet --no-hardlinks "$REPO" "$tree$inside"
}

# As pid 1 of the tree's own process ids: everything in it ends when the command does. The tree becomes the root of the
# mount namespace, not a mere chroot: in one, CRIU refuses (`The root task has another root than mntns`). Packages and
# wheels that were downloaded for one tree serve the next, and so does Kubernetes, which the first one builds.
enter() {
    # shellcheck disable=SC2016 # the inner shell expands it
    unshare --mount --pid --fork --kill-child --ipc --uts --propagation private \
        sh -euc '
            tree=$1 cache=$2
            shift 2
            mount --bind "$tree" "$tree"
            mount -t proc proc "$tree/proc"
            mount --rbind /sys "$tree/sys"
            mount --rbind /dev "$tree/dev"
            mount -t tmpfs -o mode=755,nosuid,nodev,noexec tmpfs "$tree/run" # as Debian mounts them
            mount -t tmpfs -o mode=1777,nosuid,nodev tmpfs "$tree/tmp"
            mkdir -p "$tree/run/lock" "$cache/apt/partial" "$cache/pip" "$tree/root/.cache/pip"
            mount --bind "$cache/apt" "$tree/var/cache/apt/archives"
            mount --bind "$cache/pip" "$tree/root/.cache/pip"
            mkdir -p "$cache/kubernetes" "$tree/root/.cache/kybernate/kubernetes"
            mount --bind "$cache/kubernetes" "$tree/root/.cache/kybernate/kubernetes"
            mkdir -p "$tree/run/machine"
            cd "$tree"
            pivot_root . run/machine
            chroot /run/machine umount -l /
            cd /
            rmdir /run/machine
            exec "$@"
        ' sh "$tree" "$base/cache" \
        env -i HOME=/root USER=root LANG=C.UTF-8 PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
        ${http_proxy:+"http_proxy=$http_proxy"} ${https_proxy:+"https_proxy=$https_proxy"} \
        ${no_proxy:+"no_proxy=$no_proxy"} ${CI:+"CI=$CI"} \
        sh -c "cd $inside && $command" </dev/null
}

mkdir -p "$base"
exec 9>"$tree.lock"
flock -n 9 || die "another run is using $tree; wait for it, or set FRESH_DIR"
if [ "${FRESH_KEEP:-}" != yes ]; then
    rm -rf "$tree"
    trap 'rm -rf "$tree"' EXIT
    trap 'exit 130' INT
    trap 'exit 143' TERM HUP
fi
[ -d "$tree/etc" ] || make_tree
lend_network
clone
enter
