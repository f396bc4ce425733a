# Packages of the distribution: only what is missing or too old, listed before it is installed, and no service started.
# shellcheck shell=sh

POLICY=/usr/sbin/policy-rc.d
POLICY_MARK='# kybernate: packages are being installed by process'

# A line for each thing that is missing or too old: package, lowest version (or -), of the sets in "$@".
missing() {
    for set in "$@"; do
        "missing_$set"
    done
}

need() { # need PACKAGE VERSION TEST...: the test says whether it is there
    package=$1 version=$2
    shift 2
    "$@" >/dev/null 2>&1 || echo "$package $version"
}

program() { at_least "$(version_of "$1")" "$2"; }

installed() { [ "$(dpkg-query -W -f '${db:Status-Status}' "$1" 2>/dev/null)" = installed ]; }

cni_plugins() { [ -x /usr/lib/cni/bridge ] || [ -x /opt/cni/bin/bridge ]; }

missing_python() {
    need ca-certificates - test -s /etc/ssl/certs/ca-certificates.crt
    need python3 3.11 program /usr/bin/python3 3.11
    need python3-venv - /usr/bin/python3 -c 'import ensurepip, venv'
}

# What runs containers and lets them sleep. The last ones are what the images of demo and tests are made of.
missing_node() {
    need criu 4.2 program criu 4.2
    need runc 1.1.12 program runc 1.1.12
    need containerd 1.7 program containerd 1.7
    need containernetworking-plugins - cni_plugins
    need iptables - has iptables
    need iproute2 - has ip
    need procps - has ps
    need util-linux - has nsenter
    need mount - has mount
    need busybox-static - installed busybox-static
    need libstdc++6 - installed libstdc++6
}

# A small library that tests preload is compiled from C. A virtual machine is made of Debian's packages, with QEMU in a
# tree of its own, and entered by ssh.
missing_tests() {
    need gcc - has gcc
    need libc6-dev - test -e /usr/include/stdio.h
    need mmdebstrap - has mmdebstrap
    need e2fsprogs - has mkfs.ext4
    need openssh-client - has ssh
}

# The peer that benchmarks measure against is built from its source; curl is what they compare with, and call by.
missing_bench() {
    need curl - has curl
    need golang-go 1.24~ go_toolchain
}

go_toolchain() {
    at_least "$(PATH=$PATH:/usr/local/go/bin go version | grep -Eo '[0-9]+(\.[0-9]+)+' | head -n 1)" 1.24
}

# See to the sets in "$@" (python, node, tests, bench).
setup_packages() {
    wanted=$(missing "$@")
    if [ -z "$wanted" ]; then
        say "packages: nothing to install"
        return
    fi
    has apt-get || die "missing: $(echo "$wanted" | tr '\n' ';') and this machine has no apt-get; install them by hand"
    say "missing or too old: $(echo "$wanted" | sed 's/ -$//; s/~$//; s/ \([0-9]\)/ >= \1/' | paste -sd, | sed 's/,/, /g')"
    apt_update
    if ! choice=$(choose "$wanted"); then
        add_newer
        choice=$(choose "$wanted") || die "no package archive of this machine has it new enough: $choice"
    fi
    install_chosen "$choice"
    wanted=$(missing "$@")
    [ -z "$wanted" ] || die "still missing or too old after the installation: $wanted"
}

# For each needed package a line with the first suite that has it new enough (- is the machine's own) and its name.
# Where there is none it fails, and the lines name only what no suite has.
choose() {
    chosen='' without=''
    while read -r package version; do
        candidate=$(apt-cache policy "$package" | awk '$1 == "Candidate:" && $2 != "(none)" { print $2 }')
        if [ "$version" = - ] || at_least "${candidate#*:}" "$version"; then
            chosen="$chosen- $package\n"
        elif suite=$(in_newer "$package" "$version"); then
            chosen="$chosen$suite $package\n"
        else
            without="$without$package "
        fi
    done <<END
$1
END
    printf '%b' "${without:-$chosen}"
    [ -z "$without" ]
}

in_newer() {
    for suite in $(newer_suites "$(own_suite)"); do
        found=$(apt-cache madison "$1" | awk -F ' *[|] *' -v suite=" $suite/main " 'index($3, suite) { print $2; exit }')
        if at_least "${found#*:}" "$2"; then
            echo "$suite"
            return
        fi
    done
    return 1
}

# The machine's own suite first, then the newest: what that brings (libc6) serves the ones between. In one go apt finds
# no way. What the own suite has may no longer fit beside a newer libc6 (libc6-dev): then the next suite's is taken.
install_chosen() {
    newer=$(newer_suites "$(own_suite)")
    for suite in - sid trixie; do
        packages=$(printf '%s\n' "$1" | sed -n "s/^$suite //p" | paste -sd ' ')
        [ -n "$packages" ] || continue
        from=$suite
        if [ "$suite" = - ] && ! fits - "$packages"; then
            add_newer
            for from in $newer; do
                ! fits "$from" "$packages" || break
            done
        fi
        apt_install "$from" "$packages"
    done
}

fits() { apt_from "$1" --simulate "$2" >/dev/null 2>&1; }

# apt_from SUITE [--simulate] "PACKAGE ..."
apt_from() {
    target=$1
    shift
    set -- -y --no-install-recommends "$@"
    [ "$target" = - ] || set -- "$@" --target-release "$target"
    # shellcheck disable=SC2048,SC2086 # packages are words
    apt install $*
}

apt() {
    as_root env DEBIAN_FRONTEND=noninteractive apt-get -qq \
        -o DPkg::Lock::Timeout=300 -o Dpkg::Options::=--force-confold -o Dpkg::Use-Pty=0 "$@"
}

apt_update() {
    say "reads the package lists"
    quietly apt update || say "some lists could not be read; goes on with those that could"
}

# apt_install SUITE "PACKAGE ...": list what changes, then install.
apt_install() {
    plan=$(apt_from "$1" --simulate "$2" 2>&1) || die "apt cannot install $2: $plan"
    show_plan "$plan"
    removed=$(removals "$plan")
    if [ -n "$removed" ] && [ "${KYBERNATE_MAY_REMOVE:-}" != yes ]; then
        die "this would remove $removed, so it was not done; KYBERNATE_MAY_REMOVE=yes ./dev setup allows it"
    fi
    fresh=
    for package in containerd etcd-server; do
        installed "$package" || fresh="$fresh $package"
    done
    (
        trap release_services EXIT
        trap 'exit 130' INT
        trap 'exit 143' TERM HUP
        hold_services
        quietly apt_from "$1" "$2"
    ) || die "the installation failed"
    for package in $fresh; do
        leave_off "$package" "${package%-server}"
    done
}

# leave_off PACKAGE SERVICE: what came with a package just now does not start at boot either.
leave_off() {
    if installed "$1" && has systemctl; then
        say "leaves the service $2 off, at boot too"
        quietly as_root systemctl disable "$2.service" || say "systemctl could not switch it off at boot"
    fi
}

# What a plan takes away for good and somebody asked for. A library that comes back as NAMEt64 (Debian's change to 64-bit
# times) does not count, nor does one that came along with another package and that nothing which stays needs.
removals() {
    printf '%s\n' "$1" | awk '
        $1 == "Inst" { added[$2] = 1 }
        $1 == "Remv" { removed[$2] = 1 }
        END { for (name in removed) if (!((name "t64") in added)) print name }' |
        while read -r package; do
            apt-mark showmanual "$package" 2>/dev/null
        done | paste -sd ' '
}

show_plan() {
    printf '%s\n' "$1" | awk '
        $1 == "Inst" && $3 ~ /^\[/ {
            upgraded = upgraded "\n         " $2 " " substr($3, 2, length($3) - 2) " -> " substr($4, 2)
        }
        $1 == "Inst" && $3 ~ /^\(/ { added = added " " $2 }
        $1 == "Remv" { removed = removed " " $2 }
        END {
            if (added) print "dev: installs:" added
            if (upgraded) print "dev: upgrades:" upgraded
            if (removed) print "dev: removes:" removed
        }'
}

# invoke-rc.d asks policy-rc.d whether it may start a service; 101 is no. A policy that is there already is respected;
# one that a killed setup left is taken over.
hold_services() {
    if [ -e "$POLICY" ] && ! ours; then
        say "$POLICY is there already and decides which services start"
        return
    fi
    printf '#!/bin/sh\n%s %s\nexit 101\n' "$POLICY_MARK" $$ | as_root tee "$POLICY" >/dev/null
    as_root chmod 755 "$POLICY"
}

release_services() {
    if grep -qs "$POLICY_MARK $$\$" "$POLICY"; then
        as_root rm -f -- "$POLICY"
    fi
}

# Whether the policy is of this setup, or of one that is no longer alive.
ours() {
    owner=$(sed -n "s/^$POLICY_MARK //p" "$POLICY")
    [ -n "$owner" ] && { [ "$owner" = $$ ] || [ ! -d "/proc/$owner" ]; }
}
