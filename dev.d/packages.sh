# Packages of the distribution: only what is missing or too old, listed before it is installed, and no service started.
# shellcheck shell=sh

POLICY=/usr/sbin/policy-rc.d
LISTS_LOCK=/var/lib/apt/lists/lock
LISTS_SECONDS=5 # between two tries
POLICY_MARK='# kybernate: packages are being installed'
SETUP_LOCK=/run/kybernate-setup.lock

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
    release_orphan
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
# no way. What the own suite has may no longer fit beside a newer libc6 (libc6-dev): then the next suite's is taken, of
# that alone: each package from there may bring more of what it was built against (OpenSSL), and upgrade what is here.
install_chosen() {
    newer=$(newer_suites "$(own_suite)")
    for suite in - sid trixie; do
        packages=$(printf '%s\n' "$1" | sed -n "s/^$suite //p" | paste -sd ' ')
        [ -n "$packages" ] || continue
        from=$suite
        if [ "$suite" = - ] && ! fits - "$packages"; then
            add_newer
            sort_out "$packages"
            [ -z "$fitting" ] || apt_install - "$fitting"
            packages=$rest
            for from in $newer; do
                ! fits "$from" "$packages" || break
            done
        fi
        apt_install "$from" "$packages"
    done
}

# Which of the packages in $1 the own suite's fit: into `fitting`, the others into `rest`.
sort_out() {
    fitting='' rest=''
    for package in $1; do
        if fits - "$fitting $package"; then
            fitting="$fitting $package"
        else
            rest="$rest $package"
        fi
    done
}

fits() { apt_from "$1" --simulate "$2" >/dev/null 2>&1; }

# apt_from SUITE [--simulate] "PACKAGE ..."
apt_from() {
    target=$1 run=held
    shift
    [ "$1" != --simulate ] || run=as_root
    set -- -y --no-install-recommends "$@"
    [ "$target" = - ] || set -- "$@" --target-release "$target"
    # shellcheck disable=SC2048,SC2086 # packages are words
    apt $run install $*
}

# apt RUN WORD...: RUN is what it is run by.
apt() {
    run=$1
    shift
    "$run" env DEBIAN_FRONTEND=noninteractive apt-get -qq \
        -o DPkg::Lock::Timeout=300 -o Dpkg::Options::=--force-confold -o Dpkg::Use-Pty=0 "$@"
}

# Who reads the lists, as a machine does by itself once a day, is waited for: apt itself waits for dpkg's lock alone.
apt_update() {
    say "reads the package lists"
    tries=60
    until output=$(apt as_root update 2>&1); do
        case $output in
            *"Could not get lock $LISTS_LOCK"*) ;;
            *)
                printf '%s\n' "$output" >&2
                say "some lists could not be read; goes on with those that could"
                return
                ;;
        esac
        [ $tries != 60 ] || say "waits for another process that reads them"
        tries=$((tries - 1))
        [ $tries -gt 0 ] || die "the package lists are still locked: $output"
        sleep "$LISTS_SECONDS"
    done
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
    if [ -e "$POLICY" ] && ! grep -qsF "$POLICY_MARK" "$POLICY"; then
        say "$POLICY is there already and decides which services start"
    fi
    locked true || say "waits for another ./dev, which installs packages"
    quietly apt_from "$1" "$2" || die "the installation failed"
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

# invoke-rc.d asks policy-rc.d whether it may start a service; 101 is no. A policy that is there already is respected.
# Under the lock one with our mark is what a killed setup left. The lock is root's: nobody else can hold it.
held() {
    # shellcheck disable=SC2016 # the inner shell expands it
    as_root sh -euc '
        umask 077
        exec 9>>"$1"
        flock -w 1800 9 || { echo "another ./dev has installed packages for 30 minutes" >&2 && exit 1; }
        umask 022
        policy=$2 mark=$3
        shift 3
        ours() { grep -qsF "$mark" "$policy"; }
        release() { ! ours || rm -f -- "$policy"; }
        trap release EXIT
        trap "exit 130" INT
        trap "exit 143" TERM HUP
        if [ ! -e "$policy" ] || ours; then
            printf "#!/bin/sh\n%s\nexit 101\n" "$mark" >"$policy"
            chmod 755 "$policy"
        fi
        "$@" 9>&-
    ' sh "$SETUP_LOCK" "$POLICY" "$POLICY_MARK" "$@"
}

# What a killed setup left: no service would start on this machine any more.
release_orphan() {
    if grep -qsF "$POLICY_MARK" "$POLICY" && locked rm -f -- "$POLICY"; then
        say "removed $POLICY, which a killed setup left"
    fi
}

# Run a command as root while no other ./dev installs packages; it fails where one does.
locked() {
    # shellcheck disable=SC2016 # the inner shell expands it
    as_root sh -euc 'umask 077 && exec 9>>"$1" && shift && flock -n 9 && "$@"' sh "$SETUP_LOCK" "$@"
}
