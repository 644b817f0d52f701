#!/usr/bin/env bash
# Runs the program as one host of several and says by its exit code whether the run is finished.
set -euo pipefail

usage() {
    cat <<'END'
Usage: launch/worker.sh [--dry_run] FLAGS    FLAGS go to python -m tdsm_jax.main; --workdir=DIR must be among them

Ends with 0 only when DIR/report.html is there, with 75 when the program saved and stopped early (SIGTERM is passed on
to it), else with the program's own code. What starts it again on any code but 0 and 2 so brings a run to its end.
launch/tpu_pod.sh and the manifests of launch/gke.sh start it; PYTHON= chooses the interpreter.
END
}

cd "$(dirname "${BASH_SOURCE[0]}")/.."
. launch/shell.sh
case ${1:-} in
    -h | --help)
        usage
        exit
        ;;
    --dry_run)
        DRY_RUN=1
        shift
        ;;
esac
[ -n "$(value_of workdir "$@")" ] || fail "give --workdir=DIR, a folder that all hosts see"

command=("$(python_here)" -m tdsm_jax.main "$@")
if [ -n "${DRY_RUN:-}" ]; then
    show "${command[@]}"
    exit
fi
stopping=
"${command[@]}" &
program=$!
# A shell does not pass signals on by itself, and a container's first process gets them alone.
trap 'stopping=1; kill -TERM "$program" 2>/dev/null || true' TERM
status=0
wait "$program" || status=$?
if [ -n "$stopping" ]; then # the signal ended the wait, not the program
    status=0
    wait "$program" || status=$?
fi
[ "$status" = 0 ] || exit "$status"
finished "$@" || {
    echo "not finished: no report in $(value_of workdir "$@"); the same command goes on"
    exit 75
}
