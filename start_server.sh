#!/usr/bin/env bash
# Starts the worker of an instance: `BACKEND=tgi ./start_server.sh`, or piped from a URL. A template's onstart
# script runs it at every boot: each step does only what is still to be done. README.md has its environment.
#
# The exit status is the worker's. Where there is none: 2 for what can't work, 3 when another process holds
# the port, 1 when a step failed, and 128 and a signal's number after that signal.
#
# shellcheck disable=SC2329 # `trap`, `attempt` and `launch` call functions by their names
set -uo pipefail
shopt -s extglob

# What is fetched where this script was piped and PYWORKER_REPO is not set.
readonly PROJECT_REPO=https://github.com/vast-ai/pyworker
readonly MIN_PYTHON=3.10
# What is kept of the model server's log of the last boot, and of the worker's own before it is rotated.
readonly OLD_MODEL_LOG_BYTES=$((64 * 1024 * 1024))
readonly LOG_BYTES=$((64 * 1024 * 1024))
# As much of the log tells the engine why something failed.
readonly LAST_LINES=20
readonly LAST_BYTES=3000
readonly REPORT_LIMIT_S=10
readonly SIGN_LIMIT_S=30
# How often, at least, it is asked whether the certificate is due, and how soon after a renewal again.
readonly CERTIFICATE_CHECK_S=3600

readonly EXIT_FAILED=1 EXIT_SETTINGS=2 EXIT_PORT_TAKEN=3 EXIT_SIGNAL=128

# What the steps leave to each other.
problems=()      # with the environment, a line each
log=''           # the worker's and this script's
log_writer=''    # the process that all output goes through
step=''          # what was last begun, as the log has it
code=''          # the folder whose worker runs
project=''       # the checkout of this project that the script lies in, if it does
repo='' ref=''   # what `code` is a clone of
updating=false   # new code has come, as the engine has asked
module=''        # what of `code` is run
python=''        # what runs it
child='' to=''   # the process that is waited for, and where signals go: to it, or to its group
signal=''        # the last one that came
signals=0        # how many came
renewer=''       # the process that renews the certificate

main() {
  exec </dev/null # where this script was piped, its own text is its standard input
  locate_code
  rotate_model_log
  open_log
  trap 'pass_on TERM' TERM
  trap 'pass_on INT' INT
  trap 'pass_on HUP' HUP
  check_settings
  refuse_taken_port
  lock_workspace
  refuse_taken_port # by whom it was locked
  get_code
  find_worker
  check_worker_needs
  make_environment
  if [[ $USE_SSL == true ]]; then get_certificate; fi
  exec 9>&- # everything is there: who waits may go on
  if [[ $USE_SSL == true ]]; then start_renewals; fi
  run_worker
}

# --- What is told, and to whom ---

say() {
  printf '%(%Y-%m-%d %H:%M:%S)T start_server.sh: %s\n' -1 "$*" >&2
}

begin() {
  step=$1
  say "$1"
}

# refuse STATUS MESSAGE: the end, of which the console, the log and the engine are told.
refuse() {
  say "$2"
  report "$2"
  leave "$1"
}

# give_up STATUS MESSAGE: the end of a step that failed; the engine is told its last lines as well.
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

# Copies its input to the console, and to the log, whose size it bounds. The worker must not end because
# one of the two is gone or full.
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

# From here on, all output is in the log too. Where that can't be, `problems` says why.
open_log() {
  local workspace=${WORKSPACE_DIR:-/workspace}
  log=$workspace/pyworker.log
  if ! { mkdir -p "$workspace" && : >>"$log"; } 2>/dev/null; then
    problems+=("WORKSPACE_DIR: $log can't be written by $(id -un) (the folder for log, code and environment)")
    return
  fi
  have python3 || return
  exec 3>&1 4>&2 # the console
  exec > >(
    trap '' TERM INT HUP # the worker's last lines come after them
    exec python3 -ISc "$LOG_PROGRAM" "$log" "$LOG_BYTES" 3>&- 4>&-
  ) 2>&1
  log_writer=$!
}

# Ends what writes to the log, and returns once all of it is there: unless a process that the worker has
# left behind goes on writing.
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

# --- Processes, and signals for them ---

# pause SECONDS: without a process, which a signal would leave behind.
pause() {
  read -rt "$1" <> <(:)
  return 0
}

# Starts `child`. It is in a process group of its own: what a terminal sends at Ctrl-C comes to this script,
# which passes it on, and not a second time from the terminal.
launch() {
  set -m
  "$@" 3>&- 4>&- &
  child=$!
  set +m
}

# Returns once `child` has ended, with its exit status.
await() {
  local status before
  while
    before=$signals
    wait "$child"
    status=$?
    ((signals > before)) # it was the signal that ended the waiting
  do :; done
  child=''
  return "$status"
}

pass_on() {
  signal=$1
  signals=$((signals + 1))
  if [[ -n $child ]]; then kill -s "$1" -- "$to"; fi
}

# attempt COMMAND…: three times, or until it succeeds.
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

# report MESSAGE: a worker_status with this error, to every report address at once.
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

# Through a pipe: what is among a command's arguments, all users of the machine can read.
post_status() {
  printf '%s' "$2" | curl -fsS -o /dev/null -m "$REPORT_LIMIT_S" -H 'Content-Type: application/json' \
    --data-binary @- "$1/worker_status/" || say "$1 could not be told"
}

# Every field of a report, for a worker that does nothing.
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

# A JSON string of any text; without a python3, of as much of it as can do no harm.
json_text() {
  python3 -ISc '
import json, os, sys
print(json.dumps(os.fsencode(sys.argv[1]).decode(errors="replace")), end="")' "$1" 2>/dev/null ||
    printf '"%s"' "$(printf '%s' "$1" | LC_ALL=C tr -c ' -~' ' ' | tr '"\134' "'/")"
}

# The worker's; empty where the environment doesn't tell it.
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

# Its "loaded" line must not be taken for one of this boot, and one of this boot must not be lost when the
# script runs again. The file stays the same: the model server may be writing to it.
rotate_model_log() {
  local model_log boot marker
  model_log=$(find_model_log)
  [[ -n $model_log ]] || return
  boot=$(this_boot)
  marker=${WORKSPACE_DIR:-/workspace}/.rotated${model_log//\//_}
  [[ $boot != "$(cat "$marker" 2>/dev/null)" ]] || return
  # Where it can't be noted, open_log refuses.
  { mkdir -p "${marker%/*}" && printf '%s\n' "$boot" >"$marker"; } 2>/dev/null || return
  [[ -f $model_log ]] || return
  tail -c "$OLD_MODEL_LOG_BYTES" "$model_log" >"$model_log.old" || say "$model_log.old is not whole"
  : >"$model_log"
}

# MODEL_LOG, or what a ready-made worker takes in its place.
find_model_log() {
  local line server=$code/workers/${BACKEND:-}/server.py
  printf '%s' "${MODEL_LOG:-}"
  [[ -z ${MODEL_LOG:-} && -f $server ]] || return
  while IFS= read -r line; do
    if [[ $line =~ ^MODEL_LOG\ =\ \"(.+)\"$ ]]; then printf '%s' "${BASH_REMATCH[1]}"; fi
  done <"$server"
}

# What is another after each boot. In a container the kernel's own id is that of the host, which goes on
# when the instance restarts; but the first process is another then, and was started at another time.
this_boot() {
  local stat fields
  stat=$(cat /proc/1/stat 2>/dev/null)
  read -ra fields <<<"${stat##*)}" # before them a name in parentheses, which may hold anything
  printf '%s %s' "$(cat /proc/sys/kernel/random/boot_id 2>/dev/null)" "${fields[19]:-}"
}

# --- 2. What can't work ---

have() {
  command -v "$1" >/dev/null
}

is_integer() {
  [[ $1 =~ ^(0|[1-9][0-9]{0,17})$ ]]
}

# Refuses with all that the environment alone tells to be wrong.
check_settings() {
  check_boolean USE_SSL true
  check_instance
  check_tools
  if [[ -z $code ]]; then
    problems+=("PYWORKER_REPO: '$(without_password "$repo")' has no name at its end (what to fetch)")
  fi
  if [[ -n ${BACKEND:-} && ! $BACKEND =~ ^[A-Za-z0-9_-]+$ ]]; then
    problems+=("BACKEND: '$BACKEND' is no worker's name (which of workers/ to run)")
  elif [[ -z ${BACKEND:-} && -z ${PYWORKER_REPO:-} && ! -f $code/worker.py ]]; then
    problems+=("BACKEND: missing (which of workers/ to run, where there is no worker.py)")
  fi
  if [[ -n ${PYWORKER_VENV:-} && ! -x $PYWORKER_VENV/bin/python ]]; then
    problems+=("PYWORKER_VENV: there is no $PYWORKER_VENV/bin/python (an environment to use as it is)")
  fi
  refuse_problems
}

refuse_problems() {
  local text
  ((${#problems[@]})) || return 0
  printf -v text '\n  - %s' "${problems[@]}"
  refuse "$EXIT_SETTINGS" "cannot start:$text"
}

# check_boolean NAME DEFAULT: leaves the variable true or false, where it can be read as such.
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
  is_integer "${CONTAINER_ID:-}" || problems+=("CONTAINER_ID: missing or no integer (the instance's id)")
  if [[ ! ${PUBLIC_IPADDR:-} =~ ^[][A-Za-z0-9.:_-]+$ ]]; then
    problems+=("PUBLIC_IPADDR: missing or no address (the instance's public address)")
  fi
  if ! is_integer "$port"; then
    problems+=("WORKER_PORT: '$port' is no port (the worker's public port)")
    return
  fi
  public_port=VAST_TCP_PORT_$port
  if [[ -z ${!public_port:-} ]]; then
    problems+=("$public_port: missing (the public port that leads to WORKER_PORT $port)")
  fi
}

check_tools() {
  have curl || problems+=("curl is missing (reports, certificates)")
  [[ $USE_SSL != true ]] || have openssl || problems+=("openssl is missing (certificates, with USE_SSL=true)")
  if ! have python3; then
    problems+=("python3 is missing (the worker, its log)")
  elif [[ -z ${PYWORKER_VENV:-} ]] && ! have uv && ! is_new_enough; then
    problems+=("python3 is $(python3 -V 2>&1), older than $MIN_PYTHON, and there is no uv to fetch another")
  fi
}

is_new_enough() {
  python3 -ISc '
import sys
sys.exit(sys.version_info[:2] < tuple(int(n) for n in sys.argv[1].split(".")))' "$MIN_PYTHON"
}

# Sets `module`.
find_worker() {
  if [[ -f $code/worker.py ]]; then
    module=worker
  elif [[ -z ${BACKEND:-} ]]; then
    problems+=("BACKEND: missing (which of workers/ to run; $code has no worker.py)")
  elif [[ -f $code/workers/$BACKEND/worker.py ]]; then
    module=workers.$BACKEND.worker
  elif [[ -f $code/workers/$BACKEND/server.py ]]; then
    module=workers.$BACKEND.server
  else
    problems+=("BACKEND: there is no worker '$BACKEND' in $code, only $(all_workers)")
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

# Refuses where a variable is missing that the worker's README calls required, in its table of variables.
check_worker_needs() {
  local readme=$code/${module//.//} name default purpose _
  readme=${readme%/*}/README.md
  while IFS='|' read -r _ name default purpose _; do
    if [[ ${default//[[:space:]]/} == required && $name =~ \`([A-Z][A-Z0-9_]*)\` ]]; then
      name=${BASH_REMATCH[1]}
      if [[ -z ${!name:-} ]]; then problems+=("$name: missing ($(trimmed "$purpose"))"); fi
    fi
  done < <(cat "$readme" 2>/dev/null)
  # Its own workflows are one of two; with a workflow of one's own to measure by, none of them may be in use.
  if [[ $module == workers.comfyui.* && -z ${COMFY_MODEL:-}${BENCHMARK_JSON_PATH:-} ]] &&
    [[ ! -f $code/workers/comfyui/misc/benchmark.json ]]; then
    problems+=("COMFY_MODEL: missing (which of the default workflows: flux or sd3)")
  fi
  refuse_problems
}

trimmed() {
  local words
  read -ra words <<<"$1"
  printf '%s' "${words[*]}"
}

# --- 3. Another worker on the port ---

# The engine isn't told: to it, this would be an error of the worker that runs, whose id is the same.
refuse_taken_port() {
  local port=${WORKER_PORT:-3000} inode
  inode=$(listening_socket "$port")
  [[ -n $inode ]] || return 0
  say "port $port is taken by $(holder "$inode"), which is left alone"
  leave "$EXIT_PORT_TAKEN"
}

# The inode of the socket that listens on a port, if any.
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

# Which process has a socket, as far as this user may see.
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

# What runs at the same time in the same folder waits: two installations into one environment break it.
readonly LOCK_PROGRAM='
import fcntl, sys

try:
    fcntl.flock(9, fcntl.LOCK_EX | fcntl.LOCK_NB)
except BlockingIOError:
    print("waiting for another start_server.sh, which is at work in", sys.argv[1], flush=True)
    fcntl.flock(9, fcntl.LOCK_EX)
'

# The lock is that of descriptor 9, and gone with the last process that has it.
lock_workspace() {
  local workspace=${WORKSPACE_DIR:-/workspace}
  exec 9>>"$workspace/pyworker.lock"
  launch python3 -ISc "$LOCK_PROGRAM" "$workspace"
  to=$child
  await || say "$workspace/pyworker.lock could not be locked"
  leave_if_asked
}

# --- 4. Code and environment ---

# Sets `project`, `repo`, `ref` and `code`, which stays empty where PYWORKER_REPO gives it no name.
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

# Sets `updating`. Without a network, code that is there runs as it is.
get_code() {
  export FORCE_UPDATE_FILE=${FORCE_UPDATE_FILE:-/.force_update} GIT_TERMINAL_PROMPT=0
  local from
  from="$(without_password "$repo")${ref:+ at $ref}"
  if ! has_code; then
    have git || refuse "$EXIT_SETTINGS" "git is missing (to fetch $from)"
    begin "fetching $from"
    attempt clone || give_up "$EXIT_FAILED" "$from could not be fetched"
    has_code || refuse "$EXIT_SETTINGS" "$from has neither a worker.py nor workers/"
  elif [[ -n ${PYWORKER_REPO:-} && $(origin) != "$repo" ]]; then
    refuse "$EXIT_SETTINGS" "$code is a clone of $(without_password "$(origin)"), not of $from: move it away"
  elif [[ -e $FORCE_UPDATE_FILE ]]; then
    begin "updating $code, as $FORCE_UPDATE_FILE asks"
    if attempt update; then updating=true; else say "$code could not be updated, and runs as it is"; fi
  elif [[ $(fetched_ref) != "$ref" ]]; then
    begin "fetching $from, in place of $(fetched_ref)"
    attempt update || give_up "$EXIT_FAILED" "$from could not be fetched"
  fi
}

# A repository's address as it may be shown: there are some with a password in them.
without_password() {
  if [[ $1 =~ ^([a-z+]+://)[^/]*@(.*)$ ]]; then set -- "${BASH_REMATCH[1]}${BASH_REMATCH[2]}"; fi
  printf '%s' "$1"
}

# Of code that was not fetched here, what is asked for: nothing is known against it.
origin() {
  { [[ -e $code/.git ]] && git -C "$code" remote get-url origin 2>/dev/null; } || printf '%s' "$repo"
}

fetched_ref() {
  { [[ -e $code/.git ]] && git -C "$code" config pyworker.ref 2>/dev/null; } || printf '%s' "$ref"
}

# Into another folder first: where this is interrupted, no half of the code is taken for all of it.
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

# fetch FOLDER REFERENCE: a branch, a tag or a commit's whole id. What was changed by hand is not overwritten.
fetch() {
  git -C "$1" fetch -q --depth 1 origin "$2" &&
    git -C "$1" checkout -q --detach FETCH_HEAD &&
    git -C "$1" config pyworker.ref "$ref"
}

# Sets `python`, that of an environment with all that the worker needs.
make_environment() {
  local venv=${PYWORKER_VENV:-${WORKSPACE_DIR:-/workspace}/pyworker-venv}
  python=$venv/bin/python
  if [[ -z ${PYWORKER_VENV:-} ]] && ! is_installed "$venv"; then
    begin "installing into $venv"
    rm -f "$venv/installed"
    "$python" -c '' 2>/dev/null || attempt make_venv "$venv" ||
      give_up "$EXIT_FAILED" "no environment could be made in $venv"
    attempt install || give_up "$EXIT_FAILED" "what the worker needs could not be installed"
    to_install >"$venv/installed"
  fi
  if $updating; then rm -f "$FORCE_UPDATE_FILE"; fi
  export VIRTUAL_ENV=$venv PATH=$venv/bin:$PATH
}

is_installed() {
  ! $updating && [[ $(cat "$1/installed" 2>/dev/null) == "$(to_install)" ]]
}

# A digest of all that tells what has to be in the environment.
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

# What the code asks for; and this project, which a repository of one's own need not ask for.
install() {
  if [[ -f $code/requirements.txt ]]; then
    add -r "$code/requirements.txt" || return
  elif [[ -f $code/pyproject.toml ]]; then
    add -e "${code}[speed]" || return
  fi
  (cd "$code" && "$python" -c 'import lib.server' 2>/dev/null) && return
  if [[ -n $project ]]; then
    add -e "${project}[speed]"
  else
    add "pyworker[speed] @ git+$PROJECT_REPO"
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

# One that is there will do until it has expired, if no other can be had.
get_certificate() {
  export SSL_CERT=${SSL_CERT:-/etc/instance.crt} SSL_KEY=${SSL_KEY:-/etc/instance.key}
  if is_usable "$SSL_CERT" && (($(seconds_to_renewal) > 0)); then return; fi
  begin "asking for a certificate for $(address)"
  attempt renew || is_usable "$SSL_CERT" ||
    give_up "$EXIT_FAILED" "no certificate for $(address) could be had, which USE_SSL=true needs"
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
      renew || say "the certificate could not be renewed; it is tried again in $CERTIFICATE_CHECK_S s"
      wait_s=$CERTIFICATE_CHECK_S
    fi
    pause $((wait_s < CERTIFICATE_CHECK_S ? wait_s : CERTIFICATE_CHECK_S))
  done
}

# Due when a third of its life is left; at once where it isn't for this address.
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

# A PEM certificate of our key that has not expired.
is_usable() {
  local theirs ours
  openssl x509 -in "$1" -noout -checkend 0 >/dev/null 2>&1 || return
  theirs=$(openssl x509 -in "$1" -noout -pubkey)
  ours=$(openssl pkey -in "$SSL_KEY" -passin pass: -pubout 2>/dev/null)
  [[ $theirs == "$ours" ]]
}

# A new certificate in place of the old one, all at once and for the same key: the pair always fits.
renew() (
  scratch=$(mktemp -d) || exit
  trap 'rm -rf "$scratch"' EXIT
  make_key && request_text >"$scratch/request.cnf" || exit
  openssl req -new -config "$scratch/request.cnf" -key "$SSL_KEY" -out "$scratch/request.pem" || exit
  sign "$scratch/request.pem" >"$scratch/certificate.pem" || exit
  if ! is_usable "$scratch/certificate.pem"; then
    say "what was signed is no certificate of $SSL_KEY, or has expired"
    exit 1
  fi
  cp "$scratch/certificate.pem" "$SSL_CERT.new" && mv -f "$SSL_CERT.new" "$SSL_CERT"
)

make_key() {
  local options=(-algorithm RSA -pkeyopt rsa_keygen_bits:2048)
  openssl pkey -in "$SSL_KEY" -passin pass: -noout 2>/dev/null && return
  # Its standard error is progress only.
  (umask 077 && openssl genpkey "${options[@]}" -out "$SSL_KEY.new" 2>/dev/null) &&
    mv -f "$SSL_KEY.new" "$SSL_KEY" && return
  say "no key could be made at $SSL_KEY (SSL_KEY)"
  return 1
}

# Whole, since small images lack OpenSSL's own file.
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

# From the code's root: authors open files by relative paths.
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
  # A port that is taken is told to nobody, as above.
  if ((status == 0 || status == EXIT_PORT_TAKEN)) || [[ -n $signal ]]; then
    say "the worker $how"
    leave "$status"
  fi
  give_up "$status" "the worker $how"
}

main
