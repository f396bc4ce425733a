# ./dev cluster: a Kubernetes cluster on this machine, for people. Tests start their own.
# shellcheck shell=sh

verb_cluster() {
    case ${1:-} in
        up)
            setup_packages python node cluster
            setup_python
            ;;
        load | down | status | shell)
            [ -x "$PYTHON" ] || die "there is no .venv; ./dev cluster up makes it"
            ;;
        *)
            die "usage: ./dev cluster up [--nodes N] [--runtime] [--short] | load | down | status | shell NODE [COMMAND...]"
            ;;
    esac
    python_as_root -m kybernate.lab.cluster "$@"
}

# A cluster is real: etcd, and Kubernetes built from its Go modules, once. A Go is needed for that alone.
missing_cluster() {
    need etcd-server 3.5 program etcd 3.5
    need openssl - has openssl
    if ! kubernetes_built; then
        need golang-go 1.24~ go_toolchain
    fi
}

kubernetes_built() {
    version=$(sed -n 's/^VERSION = "\(.*\)"$/\1/p' kybernate/lab/kubernetes.py)
    for program in kube-apiserver kube-controller-manager kube-scheduler kubelet kube-proxy kubectl coredns; do
        [ -x "$(cache_folder)/kubernetes/$version/$program" ] || return
    done
}
