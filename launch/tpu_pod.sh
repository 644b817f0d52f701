#!/usr/bin/env bash
# A Cloud TPU slice of one or many hosts: gets it, puts this commit on it, runs the program on all of its workers.
set -euo pipefail

usage() {
    cat <<'END'
Usage: launch/tpu_pod.sh ACTION --zone=ZONE [OPTIONS] [-- FLAGS]

create    asks for the TPU (a queued resource) and waits for it: needs --type and --version, takes --spot
setup     copies the last commit to every worker and makes its environment there
run       starts python -m tdsm_jax.main FLAGS on all workers and returns; --workdir=gs://BUCKET/RUN must be in FLAGS
logs      follows the log of one worker (--worker=0)
status    the state of the TPU and the last line of each worker's log
resume    run, after create and setup where the TPU is gone (preempted): same options and FLAGS; leaves a live run alone
delete    deletes the TPU

Options: --name=tdsm --project=ID --type=v5litepod-16 --version=v2-alpha-tpuv5-lite --spot --worker=0
         --dry_run prints the commands and runs none
END
}

cd "$(dirname "${BASH_SOURCE[0]}")/.."
. launch/shell.sh
check_action "create setup run logs status resume delete" "$@"
action=$1
shift

name=tdsm zone='' type='' version='' worker=0 project=() spot=()
while [ $# -gt 0 ]; do
    case $1 in
        --name=*) name=${1#*=} ;;
        --zone=*) zone=${1#*=} ;;
        --project=*) project=(--project="${1#*=}") ;;
        --type=*) type=${1#*=} ;;
        --version=*) version=${1#*=} ;;
        --spot) spot=(--spot) ;;
        --worker=*) worker=${1#*=} ;;
        --dry_run) DRY_RUN=1 ;;
        --)
            shift
            break
            ;;
        *) fail "unknown option '$1'; flags of the program come after --" ;;
    esac
    shift
done
[ -n "$zone" ] || fail "give --zone=ZONE"
where=(--zone="$zone" "${project[@]}")

queue() { # VERB ARGUMENTS
    call gcloud compute tpus queued-resources "$1" "$name" "${where[@]}" "${@:2}"
}

on() { # WORKER COMMAND
    call gcloud compute tpus tpu-vm ssh "$name" "${where[@]}" --worker="$1" --command="$2"
}

state() {
    queue describe --format='value(state.state)'
}

wait_for() {
    local state
    if [ -n "${DRY_RUN:-}" ]; then
        echo "# every 30 s until it says ACTIVE:"
        state
        return
    fi
    while state=$(state); do
        case $state in
            ACTIVE) return ;;
            FAILED | SUSPENDED) fail "the TPU is $state; launch/tpu_pod.sh resume asks for it again" ;;
        esac
        echo "$(date +%T) $state"
        sleep 30
    done
    fail "the TPU is gone"
}

create() {
    [ -n "$type" ] && [ -n "$version" ] || fail "$action needs --type= and --version="
    queue create --node-id="$name" --accelerator-type="$type" --runtime-version="$version" "${spot[@]}"
    wait_for
}

# An archive of the last commit, not scp --recurse of the checkout, which holds .venv and runs, and not git clone, for
# which every worker needs a way into the repository. What runs is then a commit, the same on all workers.
setup() {
    git rev-parse --quiet --verify HEAD >/dev/null || fail "this is no git checkout"
    git diff --quiet HEAD || echo "note: changes that are not committed stay here" >&2
    call mkdir -p .cache
    call git archive --format=tar.gz --output=.cache/tdsm_jax.tar.gz HEAD
    call gcloud compute tpus tpu-vm scp .cache/tdsm_jax.tar.gz "$name:" "${where[@]}" --worker=all
    # The images of TPU machines have Python 3.10; uv brings the one that launch/constraints.txt was made with.
    local unpack python
    unpack='mkdir -p tdsm_jax && tar -xzf tdsm_jax.tar.gz -C tdsm_jax && cd tdsm_jax'
    python='python3 -m pip install --quiet --user uv && python3 -m uv python install --quiet 3.11'
    # shellcheck disable=SC2016  # the workers expand it
    python+=' && PYTHON=$(python3 -m uv python find --system 3.11)'
    on all "$unpack && $python ACCELERATOR=tpu bash launch/local.sh setup"
}

run() {
    local flags alive start
    printf -v flags ' %q' --distributed=on "$@"
    # shellcheck disable=SC2016  # the workers expand it
    alive='kill -0 "$(cat run.pid 2>/dev/null)" 2>/dev/null'
    start="nohup bash launch/worker.sh$flags >>run.log 2>&1 </dev/null & echo \$! >run.pid"
    on all "cd tdsm_jax && if $alive; then echo already running; else $start; fi"
}

resume() {
    local now=SUSPENDED
    if [ -n "${DRY_RUN:-}" ]; then
        state
        echo "# where it is gone (FAILED, SUSPENDED):"
    else
        now=$(state) || now=
    fi
    case $now in
        ACTIVE) on all 'ls tdsm_jax/.venv/ready-* >/dev/null' || setup ;;
        FAILED | SUSPENDING | SUSPENDED)
            queue delete --force --quiet
            create
            setup
            ;;
        '')
            create
            setup
            ;;
        *)
            wait_for
            setup
            ;;
    esac
    run "$@"
}

case $action in
    run | resume)
        case $(value_of workdir "$@") in
            gs://*) ;;
            *) fail "$action needs --workdir=gs://BUCKET/RUN after --, a folder that outlives the TPU" ;;
        esac
        ;;
    *) [ $# -eq 0 ] || fail "$action takes no flags of the program" ;;
esac
case $action in
    logs) on "$worker" 'tail -n 100 -F tdsm_jax/run.log' ;;
    status)
        state
        on all 'tail -n 1 tdsm_jax/run.log'
        ;;
    delete) queue delete --force --quiet ;;
    *) "$action" "$@" ;;
esac
