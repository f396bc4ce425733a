# Shared by the verbs: how the script speaks and how it becomes root.
# shellcheck shell=sh

# What programs say is read here: apt's words are other ones in other languages.
LC_ALL=C.UTF-8
export LC_ALL

say() { printf 'dev: %s\n' "$*"; }

die() {
    printf 'dev: %s\n' "$*" >&2
    exit 2
}

# Run a command as root: as it is, or through sudo with the environment kept (proxies, certificates).
as_root() {
    if [ "$(id -u)" -eq 0 ]; then
        "$@"
    elif command -v sudo >/dev/null; then
        sudo -E env "PATH=$PATH" "LC_ALL=$LC_ALL" "$@"
    else
        die "this needs root: run it as root, or install sudo"
    fi
}

cache_folder() { echo "${XDG_CACHE_HOME:-$HOME/.cache}/kybernate"; }

# Run our Python as root. It leaves no files of root's in somebody's tree, and no folder for caches that is root's.
python_as_root() {
    if [ "$(id -u)" -eq 0 ]; then
        "$PYTHON" "$@"
    else
        mkdir -p "$(cache_folder)"
        "$PYTHON" -m compileall -q kybernate agent controller installer shim
        as_root env PYTHONDONTWRITEBYTECODE=1 "$PYTHON" "$@"
    fi
}

# Run a command and print nothing of it unless it fails.
quietly() {
    if output=$("$@" 2>&1); then
        return 0
    else
        status=$?
        printf '%s\n' "$output" >&2
        return "$status"
    fi
}

has() { command -v "$1" >/dev/null 2>&1; }

# The first number with dots that a program says of itself: `criu --version` and its like.
version_of() {
    "$@" --version 2>/dev/null | grep -Eo '[0-9]+(\.[0-9]+)+' | head -n 1
}

at_least() { [ -n "$1" ] && dpkg --compare-versions "$1" ge "$2"; }
