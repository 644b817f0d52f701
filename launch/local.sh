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
ACCELERATOR=cuda (driver 580 or newer, several GB more) or ACCELERATOR=tpu sets up for that; later calls keep it.
--dry_run before the action prints the commands that are missing and runs none.
On Debian and Ubuntu without python3-venv, that package is installed first (as root or with sudo).
END
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
        call "${sudo[@]}" apt-get update -qq
        call "${sudo[@]}" apt-get install -y -qq python3-venv
    fi
    local accelerator extras
    accelerator=${ACCELERATOR:-$(cat .venv/accelerator 2>/dev/null || echo cpu)}
    case $accelerator in
        cpu) extras="test" ;;
        cuda | tpu) extras="test,gcs,$accelerator" ;;
        *) fail "ACCELERATOR=$accelerator is none of cpu, cuda, tpu" ;;
    esac
    # The stamp changes with what is to be installed; without it a killed set-up is done again.
    local stamp
    stamp=$accelerator-$(cat setup.py launch/constraints.txt | sha256sum | cut -c1-16)
    if [ ! -e ".venv/ready-$stamp" ]; then
        echo "setting up .venv"
        call "$python" -m venv --clear .venv
        [ -n "${DRY_RUN:-}" ] || echo "$accelerator" >.venv/accelerator
        call .venv/bin/python -m pip install --quiet --upgrade pip
        call .venv/bin/python -m pip install --quiet --constraint launch/constraints.txt --editable ".[$extras]"
        call touch ".venv/ready-$stamp"
    fi
}

# Becomes a command, or prints it in a dry run.
become() {
    if [ -n "${DRY_RUN:-}" ]; then show "$@"; else exec "$@"; fi
}

cd "$(dirname "${BASH_SOURCE[0]}")/.."
. launch/shell.sh
if [ "${1:-}" = --dry_run ]; then
    DRY_RUN=1
    shift
fi
[ $# -ge 1 ] || { usage >&2; exit 2; }
action=$1
shift
case $action in
    run)
        setup
        [ $# -ge 1 ] || set -- --config=configs/digits.py --workdir=runs/digits
        become .venv/bin/python -m tdsm_jax.main "$@"
        ;;
    test)
        setup
        # A file stays with one process: its tests share what the first of them made.
        become .venv/bin/python -m pytest --numprocesses=auto --dist=loadfile "$@"
        ;;
    setup) setup ;;
    -h | --help) usage ;;
    *) fail "unknown action '$action'; see launch/local.sh --help" ;;
esac
