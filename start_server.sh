#!/usr/bin/env bash
# Start an instance's worker: `BACKEND=tgi ./start_server.sh`, or piped from a URL. A template's onstart script
# runs this at every boot; steps that are already done are skipped. README.md, "On an instance", has the variables.
#
# The exit status is the worker's. If no worker ran: 2 for wrong settings, 3 if another process uses the port,
# 1 if a step failed, and 128 plus the signal's number after a signal.
#
# shellcheck disable=SC2329 # `trap`, `attempt` and `launch` call functions by their names
set -uo pipefail
shopt -s extglob

# The repository to fetch if this script was piped and PYWORKER_REPO is not set.
readonly PROJECT_REPO=https://github.com/vast-ai/pyworker
readonly MIN_PYTHON=3.10
# The largest copy of the model server's log of the last boot, and the largest log of the worker before rotation.
readonly OLD_MODEL_LOG_BYTES=$((64 * 1024 * 1024))
readonly LOG_BYTES=$((64 * 1024 * 1024))
# The end of the log that is reported to the engine after a failure.
readonly LAST_LINES=20
readonly LAST_BYTES=3000
readonly REPORT_LIMIT_S=10
readonly SIGN_LIMIT_S=30
# The longest time between two checks of the certificate's age, and the wait after an attempt to renew it.
readonly CERTIFICATE_CHECK_S=3600

# In messages about code that could not be fetched.
readonly SOURCE_VARIABLES='PYWORKER_REPO and PYWORKER_REF'

readonly EXIT_FAILED=1 EXIT_SETTINGS=2 EXIT_PORT_TAKEN=3 EXIT_SIGNAL=128

# State that the steps share.
problems=()      # with the settings, one line each
log=''           # the log file of the worker and this script
log_writer=''    # the process that writes all output to the log
step=''          # the current step's message, as it is in the log
code=''          # the folder that has the worker's code
project=''       # the checkout of this project that has this script, if any
repo='' ref=''   # the repository and the reference to fetch into `code`
updating=false   # whether new code was fetched because the engine requested an update
module=''        # the Python module of the worker
python=''        # the Python that runs it
child='' to=''   # the process to wait for, and the target of signals: that process, or its group
signal=''        # the last signal
signals=0        # the number of signals
renewer=''       # the process that renews the certificate

main() {
  exec </dev/null # if this script was piped, its own text is its standard input
  locate_code
  rotate_model_log
  open_log
  trap 'pass_on TERM' TERM
  trap 'pass_on INT' INT
  trap 'pass_on HUP' HUP
  check_settings
  refuse_taken_port
  lock_workspace
  refuse_taken_port # another start may have taken the port meanwhile
  get_code
  find_worker
  check_worker_needs
  make_environment
  if [[ $USE_SSL == true ]]; then get_certificate; fi
  exec 9>&- # release the lock: the installation is complete
  if [[ $USE_SSL == true ]]; then start_renewals; fi
  run_worker
}

# --- Messages, log and exit ---

say() {
  printf '%(%Y-%m-%d %H:%M:%S)T start_server.sh: %s\n' -1 "$*" >&2
}

begin() {
  step=$1
  say "$1"
}

# refuse STATUS MESSAGE: print and report the message, and exit.
refuse() {
  say "$2"
  report "$2"
  leave "$1"
}

# give_up STATUS MESSAGE: exit after a failed step; the report has the step's last lines of the log too.
give_up() {
  local lines
  close_log
  lines=$(tail -n "$LAST_LINES" "$log" | tail -c "$LAST_BYTES")
  say "$2"
  say "$2" 2>>"$log"
  lines=${lines##*"$step"}
  report "$2"$'\n'"${lines#$'\n'}"
  leave "$1"
}

leave() {
  close_log
  exit "$1"
}

# Copy standard input to the console and to the log, and rotate the log at a size. The worker must not end
# because the console is gone or the disk is full.
readonly LOG_PROGRAM='
import os, sys

path, limit = sys.argv[1], int(sys.argv[2])
console, log = sys.stdout.buffer, open(path, "ab", buffering=0)
while chunk := os.read(0, 65536):
    try:
        console.write(chunk)
        console.flush()
    except OSError:
        console = open(os.devnull, "wb")
    try:
        if log.tell() + len(chunk) > limit:
            os.replace(path, path + ".old")
            log = open(path, "ab", buffering=0)
        log.write(chunk)
    except OSError:
        pass
'

# Write all further output to the log too. If the log can't be written, add that to `problems`.
open_log() {
  local workspace=${WORKSPACE_DIR:-/workspace}
  log=$workspace/pyworker.log
  if ! { mkdir -p "$workspace" && : >>"$log"; } 2>/dev/null; then
    problems+=("WORKSPACE_DIR: $log can't be written by $(id -un): set a folder that this user may write")
    return
  fi
  have python3 || return
  exec 3>&1 4>&2 # the console
  exec > >(
    trap '' TERM INT HUP # the worker still writes after these signals
    exec python3 -ISc "$LOG_PROGRAM" "$log" "$LOG_BYTES" 3>&- 4>&-
  ) 2>&1
  log_writer=$!
}

# End the processes that write to the log, and wait until it is complete; at most 2 s, as a process that the
# worker has left behind may go on writing.
close_log() {
  local tries=40
  if [[ -n $renewer ]]; then
    kill -s TERM -- "-$renewer" 2>/dev/null
    wait "$renewer" 2>/dev/null
    renewer=''
  fi
  [[ -n $log_writer ]] || return 0
  exec 1>&3 2>&4 3>&- 4>&-
  while kill -0 "$log_writer" 2>/dev/null && ((tries-- > 0)); do pause 0.05; done
  log_writer=''
}

# --- Processes and signals ---

# pause SECONDS: like sleep, but without a process that would survive a signal.
pause() {
  read -rt "$1" <> <(:)
  return 0
}

# Start `child` in a process group of its own: at Ctrl-C the terminal signals this script only, which passes
# the signal on once.
launch() {
  set -m
  "$@" 3>&- 4>&- &
  child=$!
  set +m
}

# Wait for `child`, and return its exit status.
await() {
  local status before
  while
    before=$signals
    wait "$child"
    status=$?
    ((signals > before)) # `wait` was interrupted by a signal
  do :; done
  child=''
  return "$status"
}

pass_on() {
  signal=$1
  signals=$((signals + 1))
  if [[ -n $child ]]; then kill -s "$1" -- "$to"; fi
}

# attempt COMMAND…: run it up to three times, until it succeeds.
attempt() {
  local pause_s
  for pause_s in 1 2 ''; do
    leave_if_asked
    launch "$@"
    to=-$child
    await && return
    leave_if_asked
    if [[ -n $pause_s ]]; then pause "$pause_s"; fi
  done
  return 1
}

leave_if_asked() {
  [[ -n $signal ]] || return 0
  say "stopped by SIG$signal"
  leave $((EXIT_SIGNAL + $(kill -l "$signal")))
}

# --- Reports to the engine ---

# report MESSAGE: send a status report with this error to every report address, in parallel.
report() {
  local addresses address json posts=()
  have curl || return
  json=$(worker_status "$1")
  IFS=, read -ra addresses <<<"${REPORT_ADDR:-https://run.vast.ai}"
  for address in "${addresses[@]}"; do
    address=${address//[[:space:]]/}
    [[ -n $address ]] || continue
    post_status "${address%%+(/)}" "$json" &
    posts+=($!)
  done
  wait ${posts[@]+"${posts[@]}"}
}

# post_status ADDRESS JSON. The JSON goes through a pipe, because every user can read a command's arguments.
post_status() {
  printf '%s' "$2" | curl -fsS -o /dev/null -m "$REPORT_LIMIT_S" -H 'Content-Type: application/json' \
    --data-binary @- "$1/worker_status/" ||
    say "the error could not be reported to $1: check REPORT_ADDR and the network"
}

# worker_status ERROR: a status report of a worker that does nothing (docs/protocol.md, "Worker status").
worker_status() {
  local id=0 used_mib
  is_integer "${CONTAINER_ID:-}" && id=$CONTAINER_ID
  used_mib=$(df --output=used -B 1M / 2>/dev/null | tail -n 1)
  printf '{"id": %s, "mtoken": %s, "version": "1.1.0", "loadtime": 0.0, "new_load": 0.0, "cur_load": 0.0, ' \
    "$id" "$(json_text "${MASTER_TOKEN:-}")"
  printf '"rej_load": 0.0, "cur_perf": 0.0, "max_perf": 0.0, "error_msg": %s, ' "$(json_text "$1")"
  printf '"num_requests_working": 0, "num_requests_recieved": 0, "working_request_idxs": [], '
  printf '"additional_disk_usage": 0.0, "disk_usage": %d.%03d, "cur_capacity": 0.0, "max_capacity": 0.0, ' \
    $((used_mib / 1024)) $((used_mib % 1024 * 1000 / 1024))
  printf '"url": %s}' "$(json_text "$(public_url)")"
}

# json_text TEXT: a JSON string; without a python3, other characters than plain ASCII are replaced. The text, which
# may be a token, goes through a pipe too.
json_text() {
  printf '%s' "$1" | python3 -ISc '
import json, sys
print(json.dumps(sys.stdin.buffer.read().decode(errors="replace")), end="")' 2>/dev/null ||
    printf '"%s"' "$(printf '%s' "$1" | LC_ALL=C tr -c ' -~' ' ' | tr '"\134' "'/")"
}

# The worker's public URL; empty if the environment doesn't have it.
public_url() {
  local scheme=https host public_port=VAST_TCP_PORT_${WORKER_PORT:-3000}
  is_integer "${WORKER_PORT:-3000}" && [[ -n ${PUBLIC_IPADDR:-} && -n ${!public_port:-} ]] || return
  [[ ${USE_SSL:-true} == true ]] || scheme=http
  host=$(address)
  [[ $host != *:* ]] || host="[$host]"
  printf '%s://%s:%s' "$scheme" "$host" "${!public_port}"
}

# PUBLIC_IPADDR without the brackets of a URL.
address() {
  local bare=${PUBLIC_IPADDR#\[}
  printf '%s' "${bare%\]}"
}

# --- 1. The model server's log of the last boot ---

# Copy the log of the last boot to `.old` and empty it, once per boot: an old "loaded" line must not count in
# this boot, and a line of this boot must not be lost. The file is not replaced: the model server may have it open.
rotate_model_log() {
  local model_log boot marker
  model_log=$(find_model_log)
  [[ -n $model_log ]] || return
  boot=$(this_boot)
  marker=${WORKSPACE_DIR:-/workspace}/.rotated${model_log//\//_}
  [[ $boot != "$(cat "$marker" 2>/dev/null)" ]] || return
  # If the marker can't be written, open_log will report that.
  { mkdir -p "${marker%/*}" && printf '%s\n' "$boot" >"$marker"; } 2>/dev/null || return
  [[ -f $model_log ]] || return
  tail -c "$OLD_MODEL_LOG_BYTES" "$model_log" >"$model_log.old" ||
    say "$model_log.old could not be written completely: check the free space of its disk"
  : >"$model_log"
}

# MODEL_LOG, or the default in the source of the ready-made worker.
find_model_log() {
  local line server=$code/workers/${BACKEND:-}/server.py
  printf '%s' "${MODEL_LOG:-}"
  [[ -z ${MODEL_LOG:-} && -f $server ]] || return
  while IFS= read -r line; do
    if [[ $line =~ ^MODEL_LOG\ =\ \"(.+)\"$ ]]; then printf '%s' "${BASH_REMATCH[1]}"; fi
  done <"$server"
}

# A text that differs after each boot. In a container, the kernel's boot id is the host's, which doesn't change
# when the instance restarts; but the start time of the first process does.
this_boot() {
  local stat fields
  stat=$(cat /proc/1/stat 2>/dev/null)
  read -ra fields <<<"${stat##*)}" # the process's name before them, in parentheses, may contain anything
  printf '%s %s' "$(cat /proc/sys/kernel/random/boot_id 2>/dev/null)" "${fields[19]:-}"
}

# --- 2. Settings ---

have() {
  command -v "$1" >/dev/null
}

is_integer() {
  [[ $1 =~ ^(0|[1-9][0-9]{0,17})$ ]]
}

# Exit with one message if settings are wrong or commands are missing.
check_settings() {
  check_boolean USE_SSL true
  check_instance
  check_tools
  if [[ -z $code ]]; then
    problems+=("PYWORKER_REPO: '$(without_password "$repo")' does not end in a name: set a repository's URL")
  fi
  if [[ -n ${BACKEND:-} && ! $BACKEND =~ ^[A-Za-z0-9_-]+$ ]]; then
    problems+=("BACKEND: '$BACKEND' is not a worker's name: set the name of a folder of workers/")
  elif [[ -z ${BACKEND:-} && -z ${PYWORKER_REPO:-} && ! -f $code/worker.py ]]; then
    problems+=("BACKEND: missing: set the name of a folder of workers/, as there is no worker.py")
  fi
  if [[ -n ${PYWORKER_VENV:-} && ! -x $PYWORKER_VENV/bin/python ]]; then
    problems+=("PYWORKER_VENV: $PYWORKER_VENV/bin/python does not exist: set a Python environment, or unset it")
  fi
  refuse_problems
}

refuse_problems() {
  local text
  ((${#problems[@]})) || return 0
  printf -v text '\n  - %s' "${problems[@]}"
  refuse "$EXIT_SETTINGS" "cannot start:$text"
}

# check_boolean NAME DEFAULT: set the variable to true or false, if it has a boolean value.
check_boolean() {
  local value=${!1:-$2}
  case ${value,,} in
    true | 1 | yes | on) value=true ;;
    false | 0 | no | off) value=false ;;
    *) problems+=("$1: '$value' is none of true, false, 1, 0, yes, no, on, off") ;;
  esac
  export "$1=$value"
}

check_instance() {
  local port=${WORKER_PORT:-3000} public_port
  is_integer "${CONTAINER_ID:-}" || problems+=("CONTAINER_ID: missing or not an integer: set the instance's id")
  if [[ ! ${PUBLIC_IPADDR:-} =~ ^[][A-Za-z0-9.:_-]+$ ]]; then
    problems+=("PUBLIC_IPADDR: missing or not an address: set the instance's public address")
  fi
  if ! is_integer "$port"; then
    problems+=("WORKER_PORT: '$port' is not a port: set a number from 1 to 65535")
    return
  fi
  public_port=VAST_TCP_PORT_$port
  if [[ -z ${!public_port:-} ]]; then
    problems+=("$public_port: missing: set it to the public port that leads to WORKER_PORT $port")
  fi
}

check_tools() {
  have curl || problems+=("curl is missing: install it (for reports and certificates)")
  [[ $USE_SSL != true ]] || have openssl ||
    problems+=("openssl is missing: install it, or set USE_SSL=false")
  if ! have python3; then
    problems+=("python3 is missing: install it, $MIN_PYTHON or newer")
  elif [[ -z ${PYWORKER_VENV:-} ]] && ! have uv && ! is_new_enough; then
    problems+=("python3 is $(python3 -V 2>&1), older than $MIN_PYTHON: install a newer one, or uv, which fetches one")
  fi
}

is_new_enough() {
  python3 -ISc '
import sys
sys.exit(sys.version_info[:2] < tuple(int(n) for n in sys.argv[1].split(".")))' "$MIN_PYTHON"
}

# Set `module`.
find_worker() {
  if [[ -f $code/worker.py ]]; then
    module=worker
  elif [[ -z ${BACKEND:-} ]]; then
    problems+=("BACKEND: missing: set it to one of $(all_workers), as $code has no worker.py")
  elif [[ -f $code/workers/$BACKEND/worker.py ]]; then
    module=workers.$BACKEND.worker
  elif [[ -f $code/workers/$BACKEND/server.py ]]; then
    module=workers.$BACKEND.server
  else
    problems+=("BACKEND: there is no worker '$BACKEND' in $code: set it to one of $(all_workers)")
  fi
  refuse_problems
}

all_workers() {
  local folder names=''
  for folder in "$code"/workers/*/; do
    if [[ -f ${folder}worker.py || -f ${folder}server.py ]]; then names+=", $(basename "$folder")"; fi
  done
  printf '%s' "${names:2}"
}

# Exit if a variable is missing that the worker's README has as `required` in its table of variables.
check_worker_needs() {
  local readme=$code/${module//.//} name default purpose _
  readme=${readme%/*}/README.md
  while IFS='|' read -r _ name default purpose _; do
    if [[ ${default//[[:space:]]/} == required && $name =~ \`([A-Z][A-Z0-9_]*)\` ]]; then
      name=${BASH_REMATCH[1]}
      if [[ -z ${!name:-} ]]; then problems+=("$name: missing: set it ($(trimmed "$purpose"))"); fi
    fi
  done < <(cat "$readme" 2>/dev/null)
  # It has two default workflows, and needs neither if the author gives a workflow for the benchmark.
  if [[ $module == workers.comfyui.* && -z ${COMFY_MODEL:-}${BENCHMARK_JSON_PATH:-} ]] &&
    [[ ! -f $code/workers/comfyui/misc/benchmark.json ]]; then
    problems+=("COMFY_MODEL: missing: set the default workflow, flux or sd3")
  fi
  refuse_problems
}

trimmed() {
  local words
  read -ra words <<<"$1"
  printf '%s' "${words[*]}"
}

# --- 3. Other processes: the port, and other starts ---

# Exit if another process uses the port. This is not reported: the running worker may have the same id, and the
# engine would take it for that worker's error.
refuse_taken_port() {
  local port=${WORKER_PORT:-3000} inode
  inode=$(listening_socket "$port")
  [[ -n $inode ]] || return 0
  say "port $port is in use by $(holder "$inode"), which keeps running: stop it, or set another WORKER_PORT"
  leave "$EXIT_PORT_TAKEN"
}

# listening_socket PORT: the inode of the socket that listens on it; empty without one.
listening_socket() {
  local local_address state inode hex _
  printf -v hex %04X "$1"
  while read -r _ local_address _ state _ _ _ _ _ inode _; do
    if [[ $state == 0A && ${local_address##*:} == "$hex" ]]; then
      printf '%s' "$inode"
      return
    fi
  done < <(cat /proc/net/tcp /proc/net/tcp6 2>/dev/null)
}

# holder INODE: the process that has the socket, as far as this user may see it.
holder() {
  local folder pid
  for folder in /proc/[0-9]*/fd; do
    if [[ $(ls -l "$folder" 2>/dev/null) == *"socket:[$1]"* ]]; then
      pid=${folder//[!0-9]/}
      printf 'process %s (%s)' "$pid" "$(trimmed "$(tr '\0' ' ' <"/proc/$pid/cmdline")")"
      return
    fi
  done
  printf 'a process of another user'
}

# Wait for another start in the same folder: two installations into one environment would break it.
readonly LOCK_PROGRAM='
import fcntl, sys

try:
    fcntl.flock(9, fcntl.LOCK_EX | fcntl.LOCK_NB)
except BlockingIOError:
    print("waiting for another start_server.sh in", sys.argv[1], flush=True)
    fcntl.flock(9, fcntl.LOCK_EX)
'

# The lock belongs to descriptor 9 and ends with the last process that has it open.
lock_workspace() {
  local workspace=${WORKSPACE_DIR:-/workspace}
  exec 9>>"$workspace/pyworker.lock"
  launch python3 -ISc "$LOCK_PROGRAM" "$workspace"
  to=$child
  await || say "$workspace/pyworker.lock could not be locked: don't start twice at the same time"
  leave_if_asked
}

# --- 4. Code and environment ---

# Set `project`, `repo`, `ref` and `code`, which stays empty if PYWORKER_REPO does not end in a name.
locate_code() {
  local name source=${BASH_SOURCE[0]:-}
  if [[ -f $source ]]; then
    source=$(dirname "$(readlink -f "$source")")
    if [[ -f $source/lib/server.py ]]; then project=$source; fi
  fi
  repo=${PYWORKER_REPO:-$PROJECT_REPO}
  ref=${PYWORKER_REF:-}
  name=${repo%%+(/)}
  name=${name%.git}
  name=${name##*[/:]}
  if [[ -n $project && -z ${PYWORKER_REPO:-} ]]; then
    code=$project
  elif [[ -n ${name//./} ]]; then
    code=${WORKSPACE_DIR:-/workspace}/$name
  fi
}

has_code() {
  [[ -f $code/worker.py || -d $code/workers ]]
}

# Fetch or update `code`, and set `updating`. Without a network, code that is there runs unchanged.
get_code() {
  export FORCE_UPDATE_FILE=${FORCE_UPDATE_FILE:-/.force_update} GIT_TERMINAL_PROMPT=0
  local from before
  from="$(without_password "$repo")${ref:+ at $ref}"
  if ! has_code; then
    have git || refuse "$EXIT_SETTINGS" "git is missing: install it, to fetch $from"
    begin "fetching $from"
    attempt clone || give_up "$EXIT_FAILED" "$from could not be fetched: check the network, $SOURCE_VARIABLES"
    has_code || refuse "$EXIT_SETTINGS" "$from has neither a worker.py nor workers/: check $SOURCE_VARIABLES"
  elif [[ -n ${PYWORKER_REPO:-} && $(origin) != "$repo" ]]; then
    refuse "$EXIT_SETTINGS" "$code is a clone of $(without_password "$(origin)"), not of $from: move it away"
  elif [[ -e $FORCE_UPDATE_FILE ]]; then
    begin "updating $code, as $FORCE_UPDATE_FILE exists"
    if attempt update; then updating=true; else say "$code could not be updated: it runs unchanged"; fi
  elif before=$(fetched_ref) && [[ $before != "$ref" ]]; then
    begin "fetching $from in place of ${before:-the default branch}"
    attempt update || give_up "$EXIT_FAILED" "$from could not be fetched: check the network, $SOURCE_VARIABLES"
  fi
}

# without_password URL: a repository's URL as it may be logged.
without_password() {
  if [[ $1 =~ ^([a-z+]+://)[^/]*@(.*)$ ]]; then set -- "${BASH_REMATCH[1]}${BASH_REMATCH[2]}"; fi
  printf '%s' "$1"
}

# The repository of `code`; for code that this script did not fetch, the requested one.
origin() {
  { [[ -e $code/.git ]] && git -C "$code" remote get-url origin 2>/dev/null; } || printf '%s' "$repo"
}

fetched_ref() {
  { [[ -e $code/.git ]] && git -C "$code" config pyworker.ref 2>/dev/null; } || printf '%s' "$ref"
}

# Clone into another folder first, so that an interruption leaves no incomplete `code`.
clone() {
  rm -rf "$code.new" &&
    git init -q "$code.new" &&
    git -C "$code.new" remote add origin "$repo" &&
    fetch "$code.new" "${ref:-HEAD}" &&
    mv -T "$code.new" "$code"
}

update() {
  local wanted=${ref:-$(git -C "$code" symbolic-ref --short -q HEAD)}
  fetch "$code" "${wanted:-HEAD}"
}

# fetch FOLDER REFERENCE: a branch, a tag or a full commit id. Files that were changed by hand are not overwritten.
fetch() {
  git -C "$1" fetch -q --depth 1 origin "$2" &&
    git -C "$1" checkout -q --detach FETCH_HEAD &&
    git -C "$1" config pyworker.ref "$ref"
}

# Make an environment with the worker's packages, unless it is there, and set `python`.
make_environment() {
  local venv=${PYWORKER_VENV:-${WORKSPACE_DIR:-/workspace}/pyworker-venv}
  python=$venv/bin/python
  if [[ -z ${PYWORKER_VENV:-} ]] && ! is_installed "$venv"; then
    begin "installing into $venv"
    rm -f "$venv/installed"
    "$python" -c '' 2>/dev/null || attempt make_venv "$venv" ||
      give_up "$EXIT_FAILED" "no Python environment could be made in $venv: install uv or Python's venv module"
    attempt install ||
      give_up "$EXIT_FAILED" "packages could not be installed: check the network, and the requirements in $code"
    to_install >"$venv/installed"
  fi
  if $updating; then rm -f "$FORCE_UPDATE_FILE"; fi
  export VIRTUAL_ENV=$venv PATH=$venv/bin:$PATH
}

is_installed() {
  ! $updating && [[ $(cat "$1/installed" 2>/dev/null) == "$(to_install)" ]]
}

# A digest of everything that determines the environment's packages.
to_install() {
  {
    printf '%s\n' "$code" "$project"
    "$python" -VV
    cat "$code"/{requirements.txt,pyproject.toml} "${project:-$code}/pyproject.toml"
  } 2>/dev/null | sha256sum
}

make_venv() {
  rm -rf "$1"
  if have uv; then
    uv venv -q --python ">=$MIN_PYTHON" "$1"
  else
    python3 -m venv "$1"
  fi
}

# Install the code's requirements, and this project if they don't include it.
install() {
  if [[ -f $code/requirements.txt ]]; then
    add -r "$code/requirements.txt" || return
  elif [[ -f $code/pyproject.toml ]]; then
    add -e "$code" || return
  fi
  (cd "$code" && "$python" -c 'import lib.server' 2>/dev/null) && return
  if [[ -n $project ]]; then
    add -e "$project"
  else
    add "pyworker @ git+$PROJECT_REPO"
  fi
}

add() {
  if $updating; then set -- --upgrade "$@"; fi
  if have uv; then
    uv pip install -q --python "$python" "$@"
  else
    "$python" -m pip install -q --disable-pip-version-check --no-input "$@"
  fi
}

# --- 5. The certificate ---

# Get a certificate. If that fails, one that has not expired is used.
get_certificate() {
  export SSL_CERT=${SSL_CERT:-/etc/instance.crt} SSL_KEY=${SSL_KEY:-/etc/instance.key}
  if is_usable "$SSL_CERT" && (($(seconds_to_renewal) > 0)); then return; fi
  begin "requesting a certificate for $(address)"
  attempt renew || is_usable "$SSL_CERT" ||
    give_up "$EXIT_FAILED" "no certificate for $(address): check VAST_CONSOLE_URL, or set USE_SSL=false"
}

start_renewals() {
  set -m
  keep_certificate 3>&- 4>&- &
  set +m
  renewer=$!
}

keep_certificate() {
  local wait_s
  while kill -0 $$ 2>/dev/null; do
    wait_s=$(seconds_to_renewal)
    if ((wait_s <= 0)); then
      say "renewing the certificate"
      renew || say "the certificate could not be renewed: the next attempt is in $CERTIFICATE_CHECK_S s"
      wait_s=$CERTIFICATE_CHECK_S
    fi
    pause $((wait_s < CERTIFICATE_CHECK_S ? wait_s : CERTIFICATE_CHECK_S))
  done
}

# Seconds until a third of the certificate's lifetime is left; 0 if it is for another address.
seconds_to_renewal() {
  local start end
  if ! is_for_us "$SSL_CERT"; then
    printf 0
    return
  fi
  start=$(openssl x509 -in "$SSL_CERT" -noout -startdate)
  end=$(openssl x509 -in "$SSL_CERT" -noout -enddate)
  start=$(date -d "${start#*=}" +%s)
  end=$(date -d "${end#*=}" +%s)
  printf %d $((end - (end - start) / 3 - $(date +%s)))
}

is_for_us() {
  local check=-checkhost
  if is_ip "$(address)"; then check=-checkip; fi
  [[ $(openssl x509 -in "$1" -noout "$check" "$(address)" 2>/dev/null) == *' does match '* ]]
}

is_ip() {
  [[ $1 == *:* || ! $1 == *[!0-9.]* ]]
}

# is_usable FILE: whether it is a PEM certificate for our key that has not expired.
is_usable() {
  local theirs ours
  openssl x509 -in "$1" -noout -checkend 0 >/dev/null 2>&1 || return
  theirs=$(openssl x509 -in "$1" -noout -pubkey)
  ours=$(openssl pkey -in "$SSL_KEY" -passin pass: -pubout 2>/dev/null)
  [[ $theirs == "$ours" ]]
}

# Replace the certificate atomically by a new one for the same key, so that the two always fit.
renew() (
  scratch=$(mktemp -d) || exit
  trap 'rm -rf "$scratch"' EXIT
  make_key && request_text >"$scratch/request.cnf" || exit
  openssl req -new -config "$scratch/request.cnf" -key "$SSL_KEY" -out "$scratch/request.pem" || exit
  sign "$scratch/request.pem" >"$scratch/certificate.pem" || exit
  if ! is_usable "$scratch/certificate.pem"; then
    say "the signed certificate is not for $SSL_KEY, or has expired: check VAST_CONSOLE_URL"
    exit 1
  fi
  cp "$scratch/certificate.pem" "$SSL_CERT.new" && mv -f "$SSL_CERT.new" "$SSL_CERT"
)

make_key() {
  local options=(-algorithm RSA -pkeyopt rsa_keygen_bits:2048)
  openssl pkey -in "$SSL_KEY" -passin pass: -noout 2>/dev/null && return
  # Its standard error has progress only.
  (umask 077 && openssl genpkey "${options[@]}" -out "$SSL_KEY.new" 2>/dev/null) &&
    mv -f "$SSL_KEY.new" "$SSL_KEY" && return
  say "no key could be written to $SSL_KEY: set SSL_KEY to a file that may be written"
  return 1
}

# A complete configuration for OpenSSL, since small images lack its default file.
request_text() {
  local kind=DNS
  if is_ip "$(address)"; then kind=IP; fi
  printf '%s\n' '[req]' 'prompt = no' 'distinguished_name = name' 'req_extensions = more' \
    '[name]' "CN = $(address)" '[more]' "subjectAltName = $kind:$(address)"
}

sign() {
  local console=${VAST_CONSOLE_URL:-https://console.vast.ai}
  curl -fsS -m "$SIGN_LIMIT_S" -H 'Content-Type: application/octet-stream' --data-binary "@$1" \
    "${console%%+(/)}/api/v0/sign_cert/?instance_id=$CONTAINER_ID"
}

# --- 6. The worker ---

# Run the worker in the root of its code, as authors open files by relative paths.
run_worker() {
  local status how name
  cd "$code" || leave "$EXIT_FAILED"
  leave_if_asked
  begin "starting $module"
  export PYTHONUNBUFFERED=1
  launch "$python" -m "$module"
  to=$child
  await
  status=$?
  how="ended with exit status $status"
  if ((status > EXIT_SIGNAL)) && name=$(kill -l $((status - EXIT_SIGNAL)) 2>/dev/null); then
    how="was ended by SIG$name"
  fi
  # A port in use is not reported: see refuse_taken_port.
  if ((status == 0 || status == EXIT_PORT_TAKEN)) || [[ -n $signal ]]; then
    say "the worker $how"
    leave "$status"
  fi
  give_up "$status" "the worker $how"
}

main
