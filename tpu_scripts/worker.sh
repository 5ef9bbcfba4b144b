#!/usr/bin/env bash
# Runs on a worker (a TPU VM or a GPU host); the other scripts call it over ssh. Nothing here knows of gcloud.
#
#   worker.sh unpack                       what sync.sh has copied; removes files that it no longer has
#   worker.sh setup EXTRA PYTHON MOUNT     virtual environment, this package, shared folder (PYTHON and MOUNT may be '')
#   worker.sh secrets JOB BYTES            keep standard input, that many bytes, for the next start of the job
#   worker.sh start JOB FLAGS SECRETS [NAME=VALUE ...] -- COMMAND ...   (SECRETS: the names that `secrets` has brought, or '')
#   worker.sh status|stop|log|follow JOB [GRACE|LINES]
#
# A job is a folder ~/rlaif_jobs/JOB with: log, pid (its process group), exit (code, once it has ended).
set -euo pipefail
CODE=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
VENV=$HOME/rlaif_venv
JOBS=$HOME/rlaif_jobs

say() { printf 'rlaif-worker: %s\n' "$*"; }

# What is gone is removed first: where a file was, a folder may come, and the other way round.
unpack() {
  local archive=$HOME/rlaif_code.tar.gz old=$HOME/.rlaif_synced file
  # One name a line: in this style and locale a newline is written \n, and what is not ASCII in octal; printf %b takes it back.
  LC_ALL=C tar -tzf "$archive" --quoting-style=escape | grep -v '/$' | LC_ALL=C sort >"$old.new"
  if [ -f "$old" ]; then
    LC_ALL=C comm -23 "$old" "$old.new" | while IFS= read -r file; do
      printf -v file %b "$file"
      rm -f -- "$CODE/$file"
      case $file in */*) (cd "$CODE" && rmdir -p -- "${file%/*}" 2>/dev/null) || true ;; esac # folders that are empty now
    done
  fi
  tar -xzf "$archive" -C "$CODE"
  mv "$old.new" "$old"
  rm -f "$archive"
  say "synced $(wc -l <"$old") files"
}

new_enough() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; }

# The images of TPU VMs may come with a Python that is too old; uv fetches one without root.
make_venv() { # PYTHON
  local python
  for python in ${1:-python3.13 python3.12 python3.11 python3}; do
    if command -v "$python" >/dev/null && new_enough "$python"; then
      if "$python" -m venv "$VENV"; then return; fi
      rm -rf "$VENV" # Debian's Python without its venv package leaves half of one
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
  refuse_running "$1" # before anything is read: a file that no start takes away would go into some later job
  umask 077
  mkdir -p "$folder"
  cat >"$folder/secrets"
  if [ "$(wc -c <"$folder/secrets")" -ne "$2" ]; then
    rm -f "$folder/secrets"
    say "error: the secrets did not arrive whole"
    exit 1
  fi
}

# Whether the job's process group lives. Its processes carry RLAIF_JOB_FOLDER in their environment: a number alone may be
# another's by now (after a reboot, say), and `kill -- -1` would end every process of the user.
is_running() { # JOB
  local folder=$JOBS/$1 group stat process state member
  [ -f "$folder/pid" ] || return 1
  read -r group <"$folder/pid"
  [[ $group =~ ^[0-9]+$ ]] && [ "$group" -gt 1 ] || return 1
  for process in /proc/[0-9]*; do # stat: PID (NAME) STATE PARENT GROUP ...; not ps: a container may lack it
    { read -r stat <"$process/stat"; } 2>/dev/null || continue
    read -r state _ member _ <<<"${stat##*) }"
    [ "$member" = "$group" ] && [ "$state" != Z ] || continue # a zombie: not every container reaps its orphans
    ! grep -qzxF "RLAIF_JOB_FOLDER=$folder" "$process/environ" 2>/dev/null || return 0
  done
  return 1
}

refuse_running() { # JOB
  is_running "$1" || return 0
  rm -f "$JOBS/$1/secrets" # the running job has read its own
  say "error: the job $1 is running already; stop it first, or give another --job"
  exit 1
}

start() { # JOB FLAGS SECRETS [NAME=VALUE ...] -- COMMAND ...
  local job=$1 folder=$JOBS/$1
  refuse_running "$job"
  if [ -z "$3" ]; then
    rm -f "$folder/secrets" # of a start that never came
  elif [ ! -f "$folder/secrets" ]; then
    say "error: the secrets $3 are not here (a stop came between?); start the job again"
    exit 1
  fi
  mkdir -p "$folder"
  rm -f "$folder/exit"
  # A session of its own: it outlives the ssh connection, and stop reaches all its processes.
  RLAIF_JOB_FOLDER=$folder setsid nohup bash "$CODE/tpu_scripts/worker.sh" main "$@" >>"$folder/log" 2>&1 </dev/null &
  printf '%s\n' "$!" >"$folder/pid"
  # It becomes a session in its own time; until then status would call it lost.
  for _ in {1..50}; do
    if is_running "$job" || [ -f "$folder/exit" ]; then break; fi
    sleep 0.1
  done
  say "started $job"
}

main() { # as start; the body of the detached process
  local folder=$JOBS/$1 flags=$2 code=0
  shift 3
  trap : TERM # the command gets the signal, too; this shell waits for it and writes down how it ended
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

status() { # JOB: one line: running, exited CODE, lost (it vanished without an exit code: a reboot or a kill), none
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
      for _ in {1..50}; do # it dies in its own time, too; until then a start would be refused
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
