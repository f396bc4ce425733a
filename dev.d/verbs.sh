# The verbs of ./dev.
# shellcheck shell=sh

verb_setup() {
    setup_packages python node tests cluster
    setup_python
}

verb_demo() {
    case " $* " in
        *" --cluster "*) setup_packages python node cluster ;;
        *) setup_packages python node ;;
    esac
    setup_python
    python_as_root -m kybernate.cli demo "$@"
}

verb_lint() {
    setup_packages python
    setup_python
    failed=
    check "ruff" "$PYTHON" -m ruff check .
    check "ruff format" "$PYTHON" -m ruff format --check .
    check "mypy" "$PYTHON" -m mypy kybernate agent/kybernate_agent controller/kybernate_controller \
        installer/kybernate_installer shim/kybernate_shim tests bench
    check "import floors" env PYTHONPATH=agent:controller:installer:shim .venv/bin/lint-imports
    check "shell scripts" scripts_parse
    [ -z "$failed" ] || die "lint failed:$failed"
    say "lint: all is well"
}

scripts_parse() {
    bash -n .ci/run || return
    for script in dev dev.d/*.sh tests/fresh/*.sh; do
        sh -n "$script" || return
    done
}

verb_image() {
    setup_packages python node
    setup_python
    "$PYTHON" -m kybernate.lab.product_image "$@"
}

verb_bench() {
    if [ $# -eq 0 ]; then
        list_benchmarks
        return
    fi
    name=$1
    shift
    [ -e "bench/$name.py" ] || die "there is no benchmark $name; ./dev bench lists them"
    setup_packages python node cluster bench
    setup_python
    python_as_root -m "bench.$name" "$@"
}

# A benchmark is a module with a docstring and a main part; its first line says what it measures.
list_benchmarks() {
    for file in bench/*.py; do
        if grep -qs '^if __name__ == ' "$file"; then
            name=$(basename "$file" .py)
            printf '  %-12s %s\n' "$name" "$(sed -n '1s/^"""\(.*\)$/\1/p' "$file" | sed 's/"""$//')"
        fi
    done
}

# The suites one after the other, all of them also when one fails. On a machine with cgroup v1 the tests with real
# containers run once more on v2: mounted in place of v1 in a private mount namespace, runc takes it for the machine's.
verb_test() {
    junit=
    if [ "${1:-}" = --junit ]; then
        junit=${2:?"--junit needs a folder"}
        shift 2
        mkdir -p "$junit"
    fi
    setup_packages python node tests cluster
    setup_python
    if [ $# -gt 0 ]; then
        python_as_root -m pytest -p no:cacheprovider "$@"
        return
    fi
    failed=
    check "tests/unit" suite unit tests/unit
    check "tests/node" as_root_suite node tests/node
    if [ "$(stat -fc %T /sys/fs/cgroup)" != cgroup2fs ]; then
        check "tests/node on cgroup v2" suite_on_v2 node-v2 tests/node
    fi
    check "tests/faults" as_root_suite faults tests/faults
    check "Kubernetes" "$PYTHON" -m kybernate.lab.kubernetes
    check "tests/cluster" as_root_suite cluster tests/cluster
    [ -z "$failed" ] || die "failed:$failed"
    say "tests: all passed"
}

pytest_words() { # pytest_words NAME FOLDER
    echo "-m pytest -p no:cacheprovider --durations=5 ${junit:+--junitxml=$junit/$1.xml} $2"
}

suite() {
    # shellcheck disable=SC2046 # words
    "$PYTHON" $(pytest_words "$@")
}

as_root_suite() {
    # shellcheck disable=SC2046
    python_as_root $(pytest_words "$@")
}

suite_on_v2() {
    # shellcheck disable=SC2046,SC2016
    as_root env PYTHONDONTWRITEBYTECODE=1 unshare --mount --propagation private \
        sh -c 'mount -t cgroup2 none /sys/fs/cgroup && exec "$@"' sh "$PYTHON" $(pytest_words "$@")
}

# Run one check, say how long it took, and remember it where it failed.
check() {
    label=$1
    shift
    say "$label"
    began=$(date +%s)
    "$@" || failed="$failed [$label]"
    say "$label: $(($(date +%s) - began)) s"
}

verb_clean() {
    case ${1:-} in
        '' | --all) ;;
        *) die "usage: ./dev clean [--all]" ;;
    esac
    if [ -x "$PYTHON" ]; then
        python_as_root -m kybernate.lab.clean
    fi
    rm -rf .pytest_cache .ruff_cache .mypy_cache .import_linter_cache build dist
    if [ "${1:-}" = --all ]; then
        remove_newer
        say "removes .venv and ${XDG_CACHE_HOME:-$HOME/.cache}/kybernate"
        as_root rm -rf "${XDG_CACHE_HOME:-$HOME/.cache}/kybernate"
        rm -rf .venv
    fi
}
