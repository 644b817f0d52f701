# shellcheck shell=bash
# What the scripts here share. They source it from the root of the checkout; it does nothing alone.

fail() {
    echo "error: $*" >&2
    exit 2
}

# Lets the first argument pass if it is one of the valid actions, which stand in one word: check_action "run stop" "$@".
# --help shows the script's usage.
check_action() {
    local valid=$1
    shift
    [ $# -ge 1 ] || { usage >&2; exit 2; }
    case $1 in -h | --help) usage && exit ;; esac
    [[ " $valid " == *" $1 "* ]] || fail "unknown action '$1'; see $0 --help"
}

# Prints a command as one line that can be pasted.
show() {
    local word line=()
    for word; do
        [[ $word =~ ^[A-Za-z0-9_./:=@%+,-]+$ ]] || word=${word@Q}
        line+=("$word")
    done
    echo "${line[*]}"
}

# Runs a command, or prints it in a dry run.
call() {
    if [ -n "${DRY_RUN:-}" ]; then show "$@"; else "$@"; fi
}

# Prints the value that the program's flags give to one of them: value_of workdir "$@".
value_of() {
    local name=$1 flag value=
    shift
    for flag; do
        case $flag in --"$name"=*) value=${flag#*=} ;; esac
    done
    echo "$value"
}

# Prints the Python that has the program: $PYTHON, or the one that launch/local.sh made, or that of an image.
python_here() {
    local python=python
    [ ! -x .venv/bin/python ] || python=.venv/bin/python
    echo "${PYTHON:-$python}"
}

# Whether the run that these flags of the program describe is finished, which only the report says: a program that saved
# on SIGTERM ends with 0 as well. A run of some --stages writes no report; its end has to do.
finished() {
    local report there='import sys; from etils import epath; sys.exit(not epath.Path(sys.argv[1]).exists())'
    [ -z "$(value_of stages "$@")" ] || return 0
    report=$(value_of workdir "$@")/report.html
    case $report in
        *://*) "$(python_here)" -c "$there" "$report" ;;
        *) [ -e "$report" ] ;;
    esac
}
