#!/usr/bin/env bash
# A run on a GKE cluster with JobSet: fills in launch/gke_tpu.yaml or launch/gke_gpu.yaml and hands it to kubectl.
set -euo pipefail

usage() {
    cat <<'END'
Usage: launch/gke.sh ACTION tpu|gpu [OPTIONS] [-- FLAGS]    FLAGS are further ones of python -m tdsm_jax.main

render    prints the manifest: needs --image, --config and --workdir (gs://BUCKET/RUN)
apply     starts the run; a preempted or broken pod restarts all of them until the run is finished
status    the JobSet and its pods
logs      follows the log of one pod (--worker=0)
delete    deletes the JobSet; apply with the same workdir goes on with the run

Options: --name=tdsm --service_account=default --hosts=4 --worker=0
         tpu: --accelerator=tpu-v5-lite-podslice --topology=4x4 --chips=4 (a host)
         gpu: --accelerator=nvidia-h100-80gb --chips=8 (a host)
         --dry_run prints the commands and runs none
END
}

cd "$(dirname "${BASH_SOURCE[0]}")/.."
. launch/shell.sh
check_action "render apply status logs delete" "$@"
action=$1
shift
# What the manifests call ${NAME}, ${IMAGE} and so on.
declare -A value=([NAME]=tdsm [IMAGE]='' [CONFIG]='' [WORKDIR]='' [HOSTS]=4 [SERVICE_ACCOUNT]=default)
kind=${1:-}
case $kind in
    tpu) value+=([ACCELERATOR]=tpu-v5-lite-podslice [TOPOLOGY]=4x4 [CHIPS]=4) ;;
    gpu) value+=([ACCELERATOR]=nvidia-h100-80gb [CHIPS]=8) ;;
    *) fail "say tpu or gpu after $action, not '$kind'" ;;
esac
shift
worker=0
while [ $# -gt 0 ]; do
    key=${1%%=*}
    key=${key#--}
    key=${key^^}
    case $1 in
        --dry_run) DRY_RUN=1 ;;
        --worker=*) worker=${1#*=} ;;
        --)
            shift
            break
            ;;
        --*=*)
            [ -n "${value[$key]+known}" ] || fail "unknown option '${1%%=*}' for $kind"
            [[ ${1#*=} != *[\'[:space:]]* ]] || fail "no quotes or blanks in ${1%%=*}"
            value[$key]=${1#*=}
            ;;
        *) fail "unknown option '$1'; flags of the program come after --" ;;
    esac
    shift
done

render() {
    local key flag flags='' text
    for key in IMAGE CONFIG WORKDIR; do
        [ -n "${value[$key]}" ] || fail "$action needs --${key,,}="
    done
    for key in HOSTS CHIPS; do
        [[ ${value[$key]} =~ ^[1-9][0-9]*$ ]] || fail "--${key,,}=${value[$key]} is no number of ${key,,}"
    done
    for flag; do
        flags+=$'\n'"                    - '${flag//\'/\'\'}'"
    done
    text=$(<"launch/gke_$kind.yaml")
    for key in "${!value[@]}"; do
        text=${text//"\${$key}"/"${value[$key]}"}
    done
    echo "${text/$'\n'"                    # \${FLAGS}"/"$flags"}"
}

of_run=jobset.sigs.k8s.io/jobset-name=${value[NAME]}
case $action in
    render) render "$@" ;;
    apply)
        manifest=$(render "$@")
        if [ -n "${DRY_RUN:-}" ]; then
            printf "%s <<'END'\n%s\nEND\n" "$(show kubectl apply --filename=-)" "$manifest"
        else
            kubectl apply --filename=- <<<"$manifest"
        fi
        ;;
    status)
        call kubectl get jobset "${value[NAME]}"
        call kubectl get pods --selector="$of_run"
        ;;
    logs) call kubectl logs --follow --tail=100 --selector="$of_run,batch.kubernetes.io/job-completion-index=$worker" ;;
    delete) call kubectl delete jobset "${value[NAME]}" ;;
esac
