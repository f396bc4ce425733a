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
    for script in dev dev.d/*.sh tests/*.sh tests/fresh/*.sh; do
        sh -n "$script" || return
    done
}

verb_image() {
    setup_packages python node
    setup_python
    python_as_root -m kybernate.lab.product_image "$@"
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

# The fast suite first, then what needs root: tests/suites.py says in which order.
verb_test() {
    junit=
    if [ "${1:-}" = --junit ]; then
        junit=$(mkdir -p "${2:?"--junit needs a folder"}" && cd "$2" && pwd)
        shift 2
    fi
    setup_packages python node tests cluster
    setup_python
    if [ $# -gt 0 ]; then
        python_as_root -m pytest -p no:cacheprovider "$@"
        return
    fi
    failed=
    check "tests/unit" "$PYTHON" -m pytest -p no:cacheprovider --durations=5 ${junit:+"--junitxml=$junit/unit.xml"} tests/unit
    check "Kubernetes" python_as_root -m kybernate.lab.kubernetes
    check "tests with containers and clusters" python_as_root tests/suites.py ${junit:+--junit "$junit"}
    [ -z "$failed" ] || die "failed:$failed"
    say "tests: all passed"
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
    release_orphan
    if [ -x "$PYTHON" ]; then
        python_as_root -m kybernate.lab.clean
    elif [ "${1:-}" != --all ]; then
        die "there is no .venv, which it takes to find what a demo, a cluster or a test left; ./dev setup makes it"
    fi
    rm -rf .pytest_cache .ruff_cache .mypy_cache .import_linter_cache build dist
    if [ "${1:-}" = --all ]; then
        remove_newer
        say "removes .venv and $(cache_folder)"
        as_root rm -rf "$(cache_folder)"
        rm -rf .venv
    fi
}
