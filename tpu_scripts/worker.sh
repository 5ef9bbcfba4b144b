#!/usr/bin/env bash
# Runs on a worker (a TPU VM or a GPU host); the other scripts call it over ssh. It does not use gcloud.
#
#   worker.sh unpack                       unpack the files that sync.sh has copied; remove files that were deleted there
#   worker.sh setup EXTRA PYTHON MOUNT     make the virtual environment, install, mount (PYTHON and MOUNT may be '')
#   worker.sh secrets JOB BYTES            save standard input (BYTES long) for the next start of the job
#   worker.sh start JOB FLAGS SECRETS [NAME=VALUE ...] -- COMMAND ...   (SECRETS: names of the saved secrets, or '')
#   worker.sh status|stop|log|follow JOB [GRACE|LINES]
#
# A job is a folder ~/rlaif_jobs/JOB with: log, pid (its process group), exit (its exit code, after it has ended).
set -euo pipefail
CODE=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
VENV=$HOME/rlaif_venv
JOBS=$HOME/rlaif_jobs

say() { printf 'rlaif-worker: %s\n' "$*"; }

# Removes deleted files before it unpacks: a file may have become a folder, or a folder a file.
unpack() {
  local archive=$HOME/rlaif_code.tar.gz old=$HOME/.rlaif_synced file
  # One name per line: in this style and locale, tar escapes newlines as \n and non-ASCII bytes in octal; printf %b reverts it.
  LC_ALL=C tar -tzf "$archive" --quoting-style=escape | grep -v '/$' | LC_ALL=C sort >"$old.new"
  if [ -f "$old" ]; then
    LC_ALL=C comm -23 "$old" "$old.new" | while IFS= read -r file; do
      printf -v file %b "$file"
      rm -f -- "$CODE/$file"
      case $file in */*) (cd "$CODE" && rmdir -p -- "${file%/*}" 2>/dev/null) || true ;; esac # and folders that are now empty
    done
  fi
  tar -xzf "$archive" -C "$CODE"
  mv "$old.new" "$old"
  rm -f "$archive"
  say "synced $(wc -l <"$old") files"
}

new_enough() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; }

# The Python of a TPU VM image may be too old; uv installs another one without root.
make_venv() { # PYTHON
  local python
  for python in ${1:-python3.13 python3.12 python3.11 python3}; do
    if command -v "$python" >/dev/null && new_enough "$python"; then
      if "$python" -m venv "$VENV"; then return; fi
      rm -rf "$VENV" # without Debian's python3-venv, a broken folder is left
    fi
  done
  [ -z "$1" ] || { say "error: $1 is not a Python >= 3.11 that can make a virtual environment" && exit 1; }
  python3 -m pip install --user --quiet uv
  python3 -m uv venv --quiet --seed --clear --python 3.12 "$VENV"
}

setup() { # EXTRA PYTHON MOUNT
  if ! new_enough "$VENV/bin/python"; then make_venv "$2"; fi
  "$VENV/bin/python" -m pip install --quiet --disable-pip-version-check -e "${CODE}[$1]"
  [ -z "$3" ] || bash -c "$3"
  say "ready: $("$VENV/bin/python" --version)"
}

secrets() { # JOB BYTES
  local folder=$JOBS/$1
  refuse_running "$1" # before reading: no start would remove the file, and a later job would get the secrets
  umask 077
  mkdir -p "$folder"
  cat >"$folder/secrets"
  if [ "$(wc -c <"$folder/secrets")" -ne "$2" ]; then
    rm -f "$folder/secrets"
    say "error: the secrets arrived incomplete"
    exit 1
  fi
}

# Whether the job's process group is alive. It checks for RLAIF_JOB_FOLDER in the processes' environment, because another
# process may have the same number by now (after a reboot, for example), and `kill -- -1` would end all processes of the user.
is_running() { # JOB
  local folder=$JOBS/$1 group stat process state member
  [ -f "$folder/pid" ] || return 1
  read -r group <"$folder/pid"
  [[ $group =~ ^[0-9]+$ ]] && [ "$group" -gt 1 ] || return 1
  for process in /proc/[0-9]*; do # stat: PID (NAME) STATE PARENT GROUP ...; not ps: a container may lack it
    { read -r stat <"$process/stat"; } 2>/dev/null || continue
    read -r state _ member _ <<<"${stat##*) }"
    [ "$member" = "$group" ] && [ "$state" != Z ] || continue # not a zombie: not every container reaps its orphans
    ! grep -qzxF "RLAIF_JOB_FOLDER=$folder" "$process/environ" 2>/dev/null || return 0
  done
  return 1
}

refuse_running() { # JOB
  is_running "$1" || return 0
  rm -f "$JOBS/$1/secrets" # the running job has already read its secrets
  say "error: the job $1 is running already; stop it first, or choose another --job"
  exit 1
}

start() { # JOB FLAGS SECRETS [NAME=VALUE ...] -- COMMAND ...
  local job=$1 folder=$JOBS/$1
  refuse_running "$job"
  if [ -z "$3" ]; then
    rm -f "$folder/secrets" # left over if an earlier start did not happen
  elif [ ! -f "$folder/secrets" ]; then
    say "error: the secrets $3 are not here (was the job stopped meanwhile?); start the job again"
    exit 1
  fi
  mkdir -p "$folder"
  rm -f "$folder/exit"
  # In its own session: it survives the end of the ssh connection, and stop reaches all its processes.
  RLAIF_JOB_FOLDER=$folder setsid nohup bash "$CODE/tpu_scripts/worker.sh" main "$@" >>"$folder/log" 2>&1 </dev/null &
  printf '%s\n' "$!" >"$folder/pid"
  # Wait until the new session exists; before that, status would report it as lost.
  for _ in {1..50}; do
    if is_running "$job" || [ -f "$folder/exit" ]; then break; fi
    sleep 0.1
  done
  say "started $job"
}

main() { # arguments as for start; the body of the detached process
  local folder=$JOBS/$1 flags=$2 code=0
  shift 3
  trap : TERM # the command gets the signal, too; this shell waits for it and writes its exit code
  while [ "$1" != -- ]; do
    export "${1?}"
    shift
  done
  if [ -f "$folder/secrets" ]; then
    # shellcheck source=/dev/null
    source "$folder/secrets"
    rm -f "$folder/secrets"
  fi
  export PATH=$VENV/bin:$PATH
  cd "$CODE"
  printf 'rlaif-worker: %s on %s: %s\n' "$(date -u +%FT%TZ)" "$(hostname)" "${*:2}"
  python "$CODE/tpu_scripts/probe_flags.py" "$flags" "$@" || code=$?
  printf 'rlaif-worker: %s ended with exit code %s\n' "$(date -u +%FT%TZ)" "$code"
  printf '%s\n' "$code" >"$folder/exit.new"
  mv "$folder/exit.new" "$folder/exit"
}

status() { # JOB: prints running, exited CODE, lost (no exit code: a reboot or a kill), or none
  local folder=$JOBS/$1
  if is_running "$1"; then
    say "running"
  elif [ -f "$folder/exit" ]; then
    say "exited $(cat "$folder/exit")"
  elif [ -f "$folder/pid" ]; then
    say "lost"
  else
    say "none"
  fi
}

stop() { # JOB GRACE
  local group waited=0
  if is_running "$1"; then
    read -r group <"$JOBS/$1/pid"
    kill -TERM -- "-$group" 2>/dev/null || true
    while is_running "$1" && [ "$waited" -lt "$2" ]; do
      sleep 1
      waited=$((waited + 1))
    done
    if is_running "$1"; then
      say "still running after $2 s: killed"
      kill -KILL -- "-$group" 2>/dev/null || true
      for _ in {1..50}; do # wait until it is dead; before that, a new start would be rejected
        is_running "$1" || break
        sleep 0.1
      done
    fi
  fi
  rm -f "$JOBS/$1/secrets"
  status "$1"
}

log() { # JOB LINES
  if [ "$2" = all ]; then cat "$JOBS/$1/log"; else tail -n "$2" "$JOBS/$1/log"; fi
}

follow() { tail -n "$2" -F "$JOBS/$1/log"; }

case ${1:-} in
  unpack | setup | secrets | start | main | status | stop | log | follow) "$@" ;;
  *) sed -n '2,/^set/{/^set/d;s/^# \{0,1\}//;p;}' "${BASH_SOURCE[0]}" >&2 && exit 2 ;;
esac
