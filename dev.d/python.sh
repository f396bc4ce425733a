# The Python environment in .venv, from the locked requirements, by the distribution's Python.
# shellcheck shell=sh

STAMP=$ROOT/.venv/kybernate-stamp

# The lock on this file keeps two runs in one checkout from building at once.
setup_python() {
    (
        flock -n 9 || { say ".venv: waits for another ./dev" && flock -w 1800 9; } || die "another ./dev has held .venv for 30 minutes"
        wanted=$(stamp)
        if [ -x "$PYTHON" ] && [ "$(cat "$STAMP" 2>/dev/null)" = "$wanted" ]; then
            say ".venv: nothing to do"
            exit 0
        fi
        build_venv || exit 1
        printf '%s\n' "$wanted" >"$STAMP"
    ) 9<"$ROOT/dev.d/python.sh" || die "the Python environment could not be made"
}

# What the environment was made of, and where (its scripts hold its path).
stamp() {
    /usr/bin/python3 --version
    printf '%s\n' "$ROOT"
    cat requirements.lock pyproject.toml | sha256sum
}

build_venv() {
    again=
    if [ -e .venv ] && [ "$(version_of "$PYTHON" || true)" != "$(version_of /usr/bin/python3)" ]; then
        again=--clear
    fi
    say ".venv: installs $(grep -c '^[a-z].*==' requirements.lock) locked Python packages"
    # shellcheck disable=SC2086 # empty or one word
    /usr/bin/python3 -m venv $again .venv &&
        "$PYTHON" -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock &&
        "$PYTHON" -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
}
