#!/usr/bin/env bash
# Sets up tdsm_jax on this machine in its own virtual environment (.venv) and runs one thing in it.
set -euo pipefail

usage() {
    cat <<'END'
Usage: launch/local.sh run [FLAGS]    the main job; FLAGS go to python -m tdsm_jax.main and replace the default
                                      --config=configs/digits.py --workdir=runs/digits
       launch/local.sh test [ARGS]    the tests; ARGS go to pytest
       launch/local.sh setup          the environment alone

Needs Python 3.11 or newer (PYTHON=python3.12 chooses one) and about 1.3 GB of disk for the environment.
On Debian and Ubuntu without python3-venv, that package is installed first (as root or with sudo).
END
}

fail() {
    echo "error: $*" >&2
    exit 2
}

setup() {
    local python=${PYTHON:-python3}
    command -v "$python" >/dev/null || fail "no $python; install Python 3.11 or newer (Debian: apt-get install python3-venv)"
    "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
        fail "$("$python" --version) is too old; give a newer one: PYTHON=python3.12 launch/local.sh ..."
    if ! "$python" -c 'import ensurepip' 2>/dev/null; then
        command -v apt-get >/dev/null || fail "$python has no venv module; install it and run again"
        local sudo=()
        [ "$(id -u)" = 0 ] || sudo=(sudo)
        echo "installing python3-venv"
        "${sudo[@]}" apt-get update -qq
        "${sudo[@]}" apt-get install -y -qq python3-venv >/dev/null
    fi
    # The stamp changes with what is to be installed; without it a killed set-up is done again.
    local stamp
    stamp=$(cat setup.py launch/constraints.txt | sha256sum | cut -c1-16)
    if [ ! -e ".venv/ready-$stamp" ]; then
        echo "setting up .venv"
        "$python" -m venv --clear .venv
        .venv/bin/python -m pip install --quiet --upgrade pip
        .venv/bin/python -m pip install --quiet --constraint launch/constraints.txt --editable ".[test]"
        touch ".venv/ready-$stamp"
    fi
}

cd "$(dirname "${BASH_SOURCE[0]}")/.."
[ $# -ge 1 ] || { usage >&2; exit 2; }
action=$1
shift
case $action in
    run)
        setup
        [ $# -ge 1 ] || set -- --config=configs/digits.py --workdir=runs/digits
        exec .venv/bin/python -m tdsm_jax.main "$@"
        ;;
    test)
        setup
        # A file stays with one process: its tests share what the first of them made.
        exec .venv/bin/python -m pytest --numprocesses=auto --dist=loadfile "$@"
        ;;
    setup) setup ;;
    -h | --help) usage ;;
    *)
        usage >&2
        fail "unknown action '$action'"
        ;;
esac
