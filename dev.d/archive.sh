# Newer suites of the archive that this machine already uses.
#
# Debian 12 and 13 carry a CRIU that does not work on today's kernels (below 4.2), Debian 12 a containerd below 1.7.
# Newer Debian suites have them. Where those are comes from the machine's own configuration (a mirror stays the mirror,
# its key stays its key), and they are pinned so low that nothing is ever taken from them but by name.
# shellcheck shell=sh

SOURCES=/etc/apt/sources.list.d/kybernate-newer.sources
PREFERENCES=/etc/apt/preferences.d/kybernate-newer
PPA=/etc/apt/kybernate-ppa # says that the PPA is of ours
ARCHIVE_MARK='# Written by ./dev setup of kybernate; ./dev clean --all removes it.'

os_release() { sed -n "s/^$1=//p" /etc/os-release | tr -d '"'; }

# The Debian release that apt is configured for: the one of os-release, or (where base-files came from a newer suite)
# the oldest known one that is configured.
own_suite() {
    for suite in "$(os_release VERSION_CODENAME)" bookworm trixie; do
        if [ -n "$suite" ] && [ -n "$(archive_entry "$suite" x)" ]; then
            echo "$suite"
            return
        fi
    done
}

newer_suites() {
    case $1 in
        bookworm) echo trixie sid ;;
        trixie) echo sid ;;
    esac
}

# The configured entry for suite $1 and component main, as a deb822 paragraph for the suites $2: the first whose archive
# apt knows for Debian's, for a vendor's may name the same suite; else the first.
archive_entry() {
    {
        find /etc/apt/sources.list.d -name '*.sources' ! -path "$SOURCES" 2>/dev/null | sort |
            while read -r file; do
                deb822_entry "$1" "$2" <"$file"
            done
        find /etc/apt/sources.list /etc/apt/sources.list.d -name '*.list' 2>/dev/null | sort |
            while read -r file; do
                one_line_entry "$1" "$2" <"$file"
            done
    } | awk -v known="$(debian_uris)" '
        function plain(uri) { sub(/\/+$/, "", uri); return uri }
        BEGIN {
            n = split(known, uris, "\n")
            for (i = 1; i <= n; i++) debian[plain(uris[i])] = 1
            RS = ""; FS = "\n"
        }
        NR == 1 { first = $0 }
        !found {
            for (i = 1; i <= NF; i++)
                if (tolower($i) ~ /^uris:/) {
                    n = split(substr($i, 6), uris, " ")
                    for (j = 1; j <= n; j++) if (plain(uris[j]) in debian) found = 1
                }
            if (found) first = $0
        }
        END { if (first) print first }'
}

debian_uris() { apt-get indextargets --format '$(REPO_URI)' 'Origin: Debian' 2>/dev/null | sort -u; }

# A paragraph keeps all its fields (Signed-By may be a whole key) but what it offers: Types, Suites, Components.
deb822_entry() {
    sed -e '/^#/d' -e 's/^[[:space:]]*$//' | awk -v own="$1" -v suites="$2" '
        function words(name) { return " " (name in value ? value[name] : "") " " }
        BEGIN { RS = ""; FS = "\n" }
        {
            kept = ""; name = ""; split("", value)
            for (i = 1; i <= NF; i++) {
                if ($i ~ /^[^ \t:]+:/) {
                    name = tolower(substr($i, 1, index($i, ":") - 1))
                    value[name] = substr($i, index($i, ":") + 1)
                } else
                    value[name] = value[name] " " $i
                if (name != "types" && name != "suites" && name != "components" && name != "enabled")
                    kept = kept $i "\n"
            }
            gsub(/\t/, " ", value["uris"]); gsub(/\t/, " ", value["suites"]); gsub(/\t/, " ", value["components"])
            if (words("types") ~ / deb / && words("enabled") !~ / no / && words("uris") !~ / cdrom:/ &&
                index(words("suites"), " " own " ") && index(words("components"), " main "))
                printf "Types: deb\nSuites: %s\nComponents: main\n%s\n", suites, kept
        }'
}

# `deb [signed-by=FILE arch=amd64] URI SUITE COMPONENT...`
one_line_entry() {
    awk -v own="$1" -v suites="$2" '
        BEGIN { field["arch"] = "Architectures"; field["lang"] = "Languages"; field["target"] = "Targets" }
        function field_of(option,    parts, n, i, text) {
            if (option in field) return field[option]
            n = split(option, parts, "-")
            for (i = 1; i <= n; i++)
                text = text (i > 1 ? "-" : "") toupper(substr(parts[i], 1, 1)) substr(parts[i], 2)
            return text
        }
        $1 == "deb" && !/[ \t]cdrom:/ { # whose name has brackets, too
            sub(/#.*/, "")
            options = ""
            if (match($0, /\[[^\]]*\]/)) {
                n = split(substr($0, RSTART + 1, RLENGTH - 2), list, " ")
                for (i = 1; i <= n; i++) {
                    at = index(list[i], "=")
                    text = substr(list[i], at + 1)
                    gsub(/,/, " ", text)
                    options = options field_of(substr(list[i], 1, at - 1)) ": " text "\n"
                }
                sub(/\[[^\]]*\]/, "")
            }
            components = " "
            for (i = 4; i <= NF; i++) components = components $i " "
            if ($3 == own && index(components, " main "))
                printf "Types: deb\nSuites: %s\nComponents: main\nURIs: %s\n%s\n", suites, $2, options
        }'
}

# Write a file as root, where it differs. Returns whether it did.
write_config() {
    if [ "$(cat "$1" 2>/dev/null)" = "$2" ]; then
        return 1
    fi
    printf '%s\n' "$2" | as_root tee "$1" >/dev/null
    as_root chmod 644 "$1"
}

# Make newer suites known to apt. Ubuntu: the CRIU project's PPA (this path is untried).
add_newer() {
    if [ "$(os_release ID)" = ubuntu ]; then
        say "adds the CRIU project's package archive, ppa:criu/ppa"
        has add-apt-repository || apt_install - software-properties-common
        grep -rqsF criu/ppa /etc/apt/sources.list.d || write_config "$PPA" "$ARCHIVE_MARK"
        as_root add-apt-repository -y ppa:criu/ppa
        apt_update
        return
    fi
    own=$(own_suite)
    newer=$(newer_suites "$own")
    [ -n "$newer" ] || die "no newer Debian suite is known for this machine's archive (${own:-none found in /etc/apt})"
    changed=no
    if write_config "$SOURCES" "$ARCHIVE_MARK
$(archive_entry "$own" "$newer")"; then
        changed=yes
    fi
    if write_config "$PREFERENCES" "$ARCHIVE_MARK
$(pins "$newer")"; then
        changed=yes
    fi
    if [ $changed = yes ]; then
        say "adds $newer of the archive this machine uses, pinned low: $SOURCES, $PREFERENCES"
    fi
    apt_update
}

pins() {
    priority=50
    for suite in $1; do
        printf 'Package: *\nPin: release n=%s\nPin-Priority: %s\n\n' "$suite" "$priority"
        priority=$((priority - 10))
    done
}

remove_newer() {
    for file in "$SOURCES" "$PREFERENCES"; do
        if grep -qsF "$ARCHIVE_MARK" "$file"; then
            say "removes $file"
            as_root rm -f -- "$file"
        fi
    done
    if grep -qsF "$ARCHIVE_MARK" "$PPA"; then
        say "removes ppa:criu/ppa"
        as_root add-apt-repository -y --remove ppa:criu/ppa
        as_root rm -f -- "$PPA"
    fi
}
