#!/usr/bin/env bash
# Start an instance's worker: `BACKEND=tgi ./start_server.sh`, or piped from a URL. A template's onstart script
# runs this at every boot; steps that are already done are skipped. It finds a Python, and fetches the framework if it
# was piped; lib/launch/launcher.py does the rest. The variables are in docs/operating.md, "Start on an instance".
#
# The exit status is the worker's. If no worker ran: 2 for wrong settings, 3 if another process uses the port,
# 1 if a step failed, and 128 plus the signal's number after a signal.
set -uo pipefail
shopt -s extglob

readonly FRAMEWORK=https://github.com/vast-ai/pyworker # if this script was piped without PYWORKER_FRAMEWORK
readonly MIN_PYTHON=3.10
readonly PACKAGE='^[A-Za-z0-9][A-Za-z0-9._-]*( *\[[^]#]*\])? *([=~!<>]=|[<>])[^#]*$' # as in lib/launch/packages.py
readonly LAUNCH='import runpy, sys; sys.path.insert(0, sys.argv[1]); runpy.run_module("lib.launch", run_name="__main__")'
readonly RETRY_PAUSES_S=(1 2 '') REPORT_LIMIT_S=10
readonly WAITING_S=30 # until the first message about a wait; later it is a quarter of the time waited
readonly LAST_LINES=20 # of a failed command's output are reported to the engine
readonly EXIT_FAILED=1 EXIT_SETTINGS=2 EXIT_SIGNAL=128

workspace=${WORKSPACE_DIR:-/workspace}
log=$workspace/pyworker.log
python=''      # the Python that runs the launcher
framework=''   # the folder with the framework's code
url='' ref=''  # the repository and the reference, or the requirement, that this script fetches it from
step=''        # the current step's message
scratch=''     # a temporary folder in the workspace
child=''       # the process to wait for

main() {
  exec </dev/null     # if this script was piped, its own text is its standard input
  exec {never}<> <(:) # a pause reads from it, without a process that would survive a signal
  trap 'stop TERM' TERM
  trap 'stop INT' INT
  trap 'stop HUP' HUP
  trap 'rm -rf ${scratch:+"$scratch"}' EXIT
  mkdir -p "$workspace" 2>/dev/null # if it can't be made, the launcher says so
  find_python
  find_framework
  rm -rf ${scratch:+"$scratch"}
  exec {never}>&-
  exec "$python" -Ic "$LAUNCH" "$framework" "$url" "$ref"
}

# --- Messages, commands and exit ---

say() {
  local text
  printf -v text '%(%Y-%m-%d %H:%M:%S)T start_server.sh: %s' -1 "$*"
  printf '%s\n' "$text" >&2
  { printf '%s\n' "$text" >>"$log"; } 2>/dev/null
}

# refuse STATUS MESSAGE [LINES]: print and report the message, and exit. The report has the lines too.
refuse() {
  say "$2"
  report "$2${3:+$'\n'$3}"
  exit "$1"
}

stop() {
  [[ -z $child ]] || { kill -s "$1" -- "-$child" && wait "$child"; } 2>/dev/null
  say "stopped by SIG$1"
  exit $((EXIT_SIGNAL + $(kill -l "$1")))
}

# attempt COMMAND…: run it up to three times, until it succeeds.
attempt() {
  local pause_s
  say "$step"
  scratch=${scratch:-$(mktemp -d "$workspace/.pyworker-start.XXXXXX" 2>/dev/null)} || refuse "$EXIT_SETTINGS" \
    "cannot start: WORKSPACE_DIR: $workspace can't be written by $(id -un): set a folder that this user may write"
  for pause_s in "${RETRY_PAUSES_S[@]}"; do
    run "$@" && return
    say "$(<"$scratch/output")"
    if [[ -n $pause_s ]]; then read -rt "$pause_s" <&"$never"; fi
  done
  return 1
}

# run COMMAND…: run it in a process group of its own, with its output in a file, and say what is waited for.
run() {
  local started_s=$SECONDS due_s=$WAITING_S waited_s status
  set -m
  "$@" &>"$scratch/output" &
  child=$!
  set +m
  while kill -0 "$child" 2>/dev/null; do
    read -rt 0.1 <&"$never"
    waited_s=$((SECONDS - started_s))
    ((waited_s >= due_s)) || continue
    say "still $step, for $waited_s s so far"
    due_s=$((waited_s + (waited_s / 4 > WAITING_S ? waited_s / 4 : WAITING_S)))
  done
  wait "$child"
  status=$? child=''
  return "$status"
}

# --- Reports to the engine ---

# report ERROR: send a status report to every report address, in parallel. The JSON goes through a pipe, because
# every user can read a command's arguments.
report() {
  local addresses address
  command -v curl >/dev/null || return
  IFS=, read -ra addresses <<<"${REPORT_ADDR:-https://run.vast.ai}"
  for address in "${addresses[@]//[[:space:]]/}"; do
    [[ -n $address ]] || continue
    worker_status "$1" | curl -fsS -o /dev/null -m "$REPORT_LIMIT_S" -H 'Content-Type: application/json' \
      --data-binary @- "${address%%+(/)}/worker_status/" ||
      say "the error could not be reported to ${address%%+(/)}: check REPORT_ADDR and the network" &
  done
  wait
}

# worker_status ERROR: a status report of a worker that does nothing (docs/protocol.md, "Worker status").
worker_status() {
  local id=${CONTAINER_ID:-} used_mib
  [[ $id =~ ^(0|[1-9][0-9]{0,17})$ ]] || id=0
  used_mib=$(df --output=used -B 1M / 2>/dev/null | tail -n 1)
  printf '{"id": %s, "mtoken": %s, "version": "1.1.0", "loadtime": 0.0, "new_load": 0.0, "cur_load": 0.0, ' \
    "$id" "$(json_text "${MASTER_TOKEN:-}")"
  printf '"rej_load": 0.0, "cur_perf": 0.0, "max_perf": 0.0, "error_msg": %s, ' "$(json_text "$1")"
  printf '"num_requests_working": 0, "num_requests_recieved": 0, "working_request_idxs": [], '
  printf '"additional_disk_usage": 0.0, "disk_usage": %d.%03d, "cur_capacity": 0.0, "max_capacity": 0.0, "url": ""}' \
    $((used_mib / 1024)) $((used_mib % 1024 * 1000 / 1024))
}

# json_text TEXT: a JSON string, with other characters than plain ASCII replaced.
json_text() {
  local LC_ALL=C text=$1
  text=${text//\\/\\\\} text=${text//\"/\\\"} text=${text//$'\n'/\\n}
  printf '"%s"' "${text//[^ -~]/?}"
}

# --- Python and the framework ---

# Set `python`: that of the machine or of PYWORKER_VENV, or one that uv has or fetches.
find_python() {
  local candidate venv=${PYWORKER_VENV:-} problem="python3 is missing: install it, $MIN_PYTHON or newer, or uv"
  for candidate in python3 python3.1{4,3,2,1,0} ${venv:+"$venv/bin/python"}; do
    python=$(command -v "$candidate") && is_new_enough && return
  done
  python=$(uv python find ">=$MIN_PYTHON" 2>/dev/null) && is_new_enough && return
  step="fetching a Python, $MIN_PYTHON or newer"
  command -v uv >/dev/null && attempt uv python install ">=$MIN_PYTHON"
  python=$(uv python find ">=$MIN_PYTHON" 2>/dev/null) && is_new_enough && return
  command -v python3 >/dev/null &&
    problem="python3 is $(python3 -V 2>&1), older than $MIN_PYTHON: install a newer one, or uv, which fetches one"
  refuse "$EXIT_SETTINGS" "cannot start:"$'\n'"  - $problem"
}

is_new_enough() { "$python" -ISc "import sys; sys.exit(sys.version_info < (${MIN_PYTHON/./,}))" 2>/dev/null; }

# Set `framework`: a folder that has it, this script's checkout, or a clone or a package's folder in the workspace.
find_framework() {
  local source=${PYWORKER_FRAMEWORK:-} script=${BASH_SOURCE[0]:-} get=clone
  if [[ -z $source && -f $script ]]; then source=$(dirname "$(readlink -f "$script")"); fi
  framework=$(readlink -f "${source:-.}")
  if [[ -n $source ]] && has_launcher; then return; fi
  url=${PYWORKER_FRAMEWORK:-$FRAMEWORK} framework=$workspace/pyworker-framework
  if [[ $url == *'#'* ]]; then ref=${url##*'#'} url=${url%'#'*}; fi
  if [[ $url != *[/:]* ]]; then framework+=-$url get=install; fi
  [[ $get == clone || $PYWORKER_FRAMEWORK =~ $PACKAGE ]] ||
    refuse "$EXIT_SETTINGS" "cannot start:"$'\n'"  - PYWORKER_FRAMEWORK: there is no folder '$PYWORKER_FRAMEWORK' with \
lib/launch, and a package is named with its version and without #, such as pyworker==1.2"
  has_launcher || fetch_framework "${url/\/\/*@/\/\/}${ref:+ at $ref}"
}

has_launcher() { [[ -f $framework/lib/launch/__main__.py ]]; }

# fetch_framework FROM: get it into another folder first, as another start may do the same.
fetch_framework() {
  [[ $get != clone ]] || command -v git >/dev/null || refuse "$EXIT_SETTINGS" "git is missing: install it, to fetch $1"
  export GIT_TERMINAL_PROMPT=0
  step="fetching $1"
  attempt "$get" || refuse "$EXIT_FAILED" "$1 could not be fetched: check the network and PYWORKER_FRAMEWORK" \
    "$(tail -n "$LAST_LINES" "$scratch/output")"
  mv -T "$scratch/code" "$framework" 2>/dev/null
  has_launcher || refuse "$EXIT_SETTINGS" "$1 has no lib/launch: check PYWORKER_FRAMEWORK"
}

clone() {
  local wanted=$ref code=$scratch/code
  [[ -n ${PYWORKER_REPO:-} ]] || wanted=${PYWORKER_REF:-$ref}
  rm -rf "$code"
  git init -q "$code" && git -C "$code" remote add origin "$url" &&
    git -C "$code" fetch -q --depth 1 origin "${wanted:-HEAD}" &&
    git -C "$code" checkout -q --detach FETCH_HEAD && git -C "$code" config pyworker.ref "$wanted"
}

# The packages that it requires are installed later, into the worker's environment.
install() {
  local pip=("$python" -m pip install --disable-pip-version-check --no-input)
  if command -v uv >/dev/null; then pip=(uv pip install --python "$python"); fi
  rm -rf "$scratch/code"
  "${pip[@]}" -q --no-deps --target "$scratch/code" "$url"
}

main
