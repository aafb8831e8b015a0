# shellcheck shell=bash
#
# quickstart: the whole service on this host, without Docker.

# Data of `workflow-api dev`: its database, logs, pid file.
readonly DEV_DIR="$ROOT/.dev"
readonly DEV_LOG="$DEV_DIR/logs/dev.log"
readonly DEV_PID_FILE="$DEV_DIR/dev.pid"
readonly DEV_READY_FILE="$DEV_DIR/ready"
readonly DEV_PROCESSES_FILE="$DEV_DIR/processes"

# Prints the pid of this checkout's running `workflow-api dev`. A pid file can outlive its process, and the pid can be
# reused, so program, sub-command and directory of the process are checked.
dev_pid() {
    local pid
    [[ -r $DEV_PID_FILE ]] && pid="$(<"$DEV_PID_FILE")" || return 1
    [[ $pid =~ ^[0-9]+$ ]] || return 1
    is_our_dev_process "$pid" && echo "$pid"
}

is_our_dev_process() {
    local program cmdline
    [[ $(readlink "/proc/$1/cwd" 2>/dev/null) == "$ROOT" ]] || return 1
    # After a rebuild while it runs, the kernel adds " (deleted)".
    program="$(readlink "/proc/$1/exe" 2>/dev/null)" || return 1
    program="${program% (deleted)}"
    [[ ${program##*/} == workflow-api ]] || return 1
    cmdline="$(tr '\0' ' ' <"/proc/$1/cmdline" 2>/dev/null)"
    [[ " $cmdline " == *" dev "* ]]
}

quickstart() {
    local pid lock binary
    if pid="$(dev_pid)"; then
        show_running "$pid"
        return
    fi

    mkdir -p "$DEV_DIR/logs"
    exec {lock}>"$DEV_DIR/quickstart.lock"
    flock -n "$lock" || die "another quickstart of this checkout is running"

    ensure_cargo
    need_build_tools
    install_missing
    build_quickstart
    binary="$(target_directory)/debug/workflow-api"
    [[ -x $binary ]] || die "the build did not produce $binary"

    rm -f "$DEV_READY_FILE"
    step "Starting workflow-api dev (its output: $DEV_LOG)"
    # Created here, because tail may start before the redirection of the background process.
    : >"$DEV_LOG"
    # In its own session: closing this terminal, or Ctrl-C in it, does not stop it.
    setsid nohup "$binary" dev --data-dir .dev </dev/null >"$DEV_LOG" 2>&1 {lock}>&- &
    pid=$!
    # Until it is ready, Ctrl-C cancels the start.
    trap 'echo >&2; step "Interrupted: stopping workflow-api dev"; end_process "$pid"; exit 130' INT TERM
    follow_until_ready "$pid"
    trap - INT TERM
    step "Ready, and running in the background. Stop it with: ./deploy-api.sh stop"
}

show_running() {
    step "Already running (pid $1)"
    if [[ -e $DEV_READY_FILE ]]; then
        cat "$DEV_READY_FILE"
    else
        follow_until_ready "$1"
    fi
    note "To restart with the current sources: ./deploy-api.sh stop && ./deploy-api.sh quickstart"
}

# The development profile builds faster, and a first run does not need an optimised program.
build_quickstart() {
    step "Building (the first time takes some minutes, later seconds)"
    cargo build --locked --features embedded || die "the build failed; its messages are above"
}

target_directory() {
    cargo metadata --locked --no-deps --format-version 1 | sed 's/.*"target_directory":"\([^"]*\)".*/\1/'
}

# Shows the output of the dev process until its first run has ended.
follow_until_ready() {
    local pid=$1 tail_pid
    tail -n +1 -s 0.1 -f "$DEV_LOG" 2>/dev/null &
    tail_pid=$!
    while [[ ! -e $DEV_READY_FILE ]] && is_alive "$pid"; do
        sleep 0.05
    done
    # For tail to print the last lines.
    sleep 0.3
    kill "$tail_pid" 2>/dev/null || true
    wait "$tail_pid" 2>/dev/null || true
    if [[ ! -e $DEV_READY_FILE ]]; then
        die "workflow-api dev ended before it was ready. Its output is above and in $DEV_LOG; the logs of its processes are in $DEV_DIR/logs/"
    fi
}

# Sends SIGTERM and waits up to 45 s: API and executor finish their work within 28 s.
end_process() {
    kill -TERM "$1" 2>/dev/null || return 0
    wait_for_end "$1" 45
}

# Waits for the end of a process: wait_for_end PID SECONDS.
wait_for_end() {
    local pid=$1 deadline=$((SECONDS + $2))
    while is_alive "$pid"; do
        ((SECONDS < deadline)) || return 1
        sleep 0.1
    done
}

# A zombie counts as ended; its parent has not waited for it yet.
is_alive() {
    local state
    state="$(sed -n 's/^State:[[:space:]]*\([A-Z]\).*/\1/p' "/proc/$1/status" 2>/dev/null)" || return 1
    [[ -n $state && $state != Z ]]
}

# Ends the processes that a killed dev process has left. Each line of the file has pid, start time in ticks since boot, and
# name; pid and start time together identify the process. For PostgreSQL SIGINT is a fast shutdown.
end_orphans() {
    local pid started name stat fields found=false
    [[ -r $DEV_PROCESSES_FILE ]] || return 1
    while read -r pid started name; do
        [[ $pid =~ ^[0-9]+$ && -n $name && -r /proc/$pid/stat ]] || continue
        stat="$(cat "/proc/$pid/stat" 2>/dev/null)" || continue
        read -ra fields <<<"${stat##*) }"
        [[ ${fields[19]} == "$started" ]] || continue
        is_alive "$pid" || continue
        found=true
        note "Stopping $name (pid $pid); its supervisor was killed"
        if [[ $name == postgres ]]; then kill -INT "$pid"; else kill -TERM "$pid"; fi 2>/dev/null || true
        wait_for_end "$pid" 5 || kill -KILL "$pid" 2>/dev/null || true
    done < <(sort -k 3 "$DEV_PROCESSES_FILE" | sed -n '/ postgres$/!p'; grep ' postgres$' "$DEV_PROCESSES_FILE")
    rm -f "$DEV_PROCESSES_FILE" "$DEV_PID_FILE" "$DEV_READY_FILE"
    [[ $found == true ]]
}
