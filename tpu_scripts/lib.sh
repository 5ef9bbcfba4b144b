#!/usr/bin/env bash
# Shared by the scripts in this folder: options, dry run and gcloud commands.
#
# Give an option as a flag (--zone us-west4-a) or as an environment variable (RLAIF_ZONE); the flag wins. `options_table`
# lists all of them. Uses only generally available commands and flags of gcloud, and only features of bash 3.2 (macOS).
set -euo pipefail

TPU_SCRIPTS=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck disable=SC2034  # used by the scripts that source this file
REPOSITORY=$(dirname "$TPU_SCRIPTS") COMMAND=()
SCRIPT=$(basename "$0")
REMOTE_CODE=rlaif_code # folder in each worker's home directory to which sync.sh copies this repository
# shellcheck disable=SC2034
readonly EXIT_USAGE=2 EXIT_CAPACITY=3 EXIT_LOST=4 EXIT_UNKNOWN=5
exec 3>&1 # a dry run prints here, so that it also prints from inside $(...)

say() { printf '%s: %s\n' "$SCRIPT" "$*" >&2; }

fail() { # CODE MESSAGE
  local code=$1
  shift
  say "error: $*"
  exit "$code"
}

# name | variable | value or flag | default | what it means
options_table() {
  cat <<'TABLE'
project|RLAIF_PROJECT|value||Google Cloud project (required)
zone|RLAIF_ZONE|value||zone, for example us-west4-a (required)
name|RLAIF_NAME|value||name of the TPU and of its queued resource (required)
accelerator-type|RLAIF_ACCELERATOR|value||for example v5litepod-64, v5p-32 (16 chips: v4 and v5p count cores), v6e-32
runtime-version|RLAIF_RUNTIME|value||software version of the TPU VM (default: chosen by the accelerator)
capacity|RLAIF_CAPACITY|value|spot|spot, reserved or on-demand
valid-until|RLAIF_VALID_UNTIL|value||cancel the request after this time in the queue, for example 6h
service-account|RLAIF_SERVICE_ACCOUNT|value||e-mail address of the VMs' service account
network|RLAIF_NETWORK|value||VPC network (default: gcloud's)
subnetwork|RLAIF_SUBNETWORK|value||subnetwork
internal-ips|RLAIF_INTERNAL_IPS|flag||no external addresses: needs Cloud NAT to install, and an internal route for ssh
attempts|RLAIF_ATTEMPTS|value|1|number of requests for capacity (0 = until there is capacity)
pause|RLAIF_PAUSE|value|300|seconds between two attempts
poll|RLAIF_POLL|value|30|seconds between two checks of the state
timeout|RLAIF_TIMEOUT|value|86400|seconds to wait until a request is ACTIVE
extra|RLAIF_EXTRA|value|tpu|extra of this package to install on the workers: tpu or cuda
python|RLAIF_PYTHON|value||Python >= 3.11 on the workers (default: an installed one, else uv fetches one)
mount-command|RLAIF_MOUNT|value||shell command that mounts the shared checkpoint folder on each worker
job|RLAIF_JOB|value|rlaif|name of the job, for its log and state on the workers
secrets|RLAIF_SECRETS|value||names of environment variables to pass to the job, separated by commas
flags|RLAIF_FLAGS|value||set of XLA flags in flags.json (default: the one for the accelerator; none = no flags)
worker|RLAIF_WORKER|value|all|number of one worker, or all
lines|RLAIF_LINES|value|50|lines of each log to show
follow|RLAIF_FOLLOW|flag||keep printing the log of one worker
fetch|RLAIF_FETCH|value||write the full log of every worker into this local folder
grace|RLAIF_GRACE|value|120|seconds between SIGTERM and SIGKILL
max-restarts|RLAIF_MAX_RESTARTS|value|10|restarts after a job died or its workers stopped answering (preemptions do not count)
lost-after|RLAIF_LOST_AFTER|value|1800|seconds without an answer of the workers, while gcloud answers, until the TPU counts as lost
delete-when-done|RLAIF_DELETE_WHEN_DONE|flag||delete the TPU when the job ends, whether it succeeded or failed
yes|RLAIF_YES|flag||do not ask for confirmation
hosts|RLAIF_HOSTS|value||host names, separated by commas; the first is the coordinator
port|RLAIF_PORT|value|8476|port of the coordinator
cluster|RLAIF_CLUSTER|value||GKE cluster created with xpk
docker-image|RLAIF_DOCKER_IMAGE|value||image with this package installed
dry-run|RLAIF_DRY_RUN|flag||print the commands and run nothing
TABLE
}

# Prints the help. ACCEPTED has the names of the options that a script takes; DESCRIPTION is the first line of its help.
usage() {
  local name variable kind default meaning
  printf '%s\n\noptions (or environment variables):\n' "$DESCRIPTION"
  while IFS='|' read -r name variable kind default meaning; do
    case " $ACCEPTED dry-run " in
      *" $name "*) ;;
      *) continue ;;
    esac
    [ -z "$default" ] || meaning="$meaning (default: $default)"
    [ "$kind" = flag ] && variable="$variable=1"
    printf '  --%-17s %-28s %s\n' "$name" "$variable" "$meaning"
  done < <(options_table)
}

# parse_options "$@": sets and exports the variables of the accepted options. The words after -- become COMMAND.
parse_options() {
  local argument name value
  while [ $# -gt 0 ]; do
    argument=$1
    shift
    case $argument in
      -h | --help) usage && exit 0 ;;
      --)
        # shellcheck disable=SC2034
        COMMAND=("$@")
        break
        ;;
      --*=*) name=${argument%%=*} value=${argument#*=} && set_option "${name#--}" "$value" ;;
      --*)
        if [ "$(field_of "${argument#--}" kind)" = value ]; then
          [ $# -gt 0 ] || fail $EXIT_USAGE "$argument needs a value"
          set_option "${argument#--}" "$1"
          shift
        else
          set_option "${argument#--}" 1
        fi
        ;;
      *) fail $EXIT_USAGE "unexpected argument '$argument'; a command to run goes after --" ;;
    esac
  done
  set_defaults
  check_options
}

field_of() { # OPTION FIELD
  local name variable kind default meaning
  while IFS='|' read -r name variable kind default meaning; do
    [ "$name" = "$1" ] || continue
    case $2 in
      variable) printf '%s' "$variable" ;;
      kind) printf '%s' "$kind" ;;
      *) printf '%s' "$default" ;;
    esac
    return
  done < <(options_table)
}

set_option() { # OPTION VALUE
  case " $ACCEPTED dry-run " in
    *" $1 "*) export "$(field_of "$1" variable)=$2" ;;
    *) fail $EXIT_USAGE "unknown option --$1; --help lists the options" ;;
  esac
}

set_defaults() {
  local name variable kind default meaning
  while IFS='|' read -r name variable kind default meaning; do
    export "$variable=${!variable:-$default}"
    [ "$kind" != flag ] || case ${!variable} in 0 | false) export "$variable=" ;; esac
  done < <(options_table)
}

check_options() {
  local name
  for name in project zone name accelerator-type job hosts cluster; do
    case " $ACCEPTED " in
      *" $name "*) check_name "$name" ;;
    esac
  done
  for name in attempts pause poll timeout lost-after lines grace max-restarts port; do
    check "$name" '^[0-9]+$' "a whole number"
  done
  check worker '^([0-9]+|all)$' "a number or all"
  check capacity '^(spot|reserved|on-demand)$' "spot, reserved or on-demand"
  check_secret_names
}

check_name() { # OPTION: these values go into commands on other machines, so few characters are allowed
  [ -n "$(option "$1")" ] || fail $EXIT_USAGE "--$1 is missing (or $(field_of "$1" variable) in the environment)"
  case $1 in
    job) check job '^[A-Za-z0-9][A-Za-z0-9._-]*$' "letters, digits, . _ -" ;;
    hosts) check hosts '^[A-Za-z0-9._@-]+(,[A-Za-z0-9._@-]+)*$' "host names separated by commas" ;;
    project) check project '^[a-z][a-z0-9:.-]*$' "a project ID" ;;
    *) check "$1" '^[a-z]([a-z0-9-]*[a-z0-9])?$' "lower-case letters, digits and -" ;;
  esac
}

check() { # OPTION REGEX EXPECTED
  [[ "$(option "$1")" =~ $2 ]] || fail $EXIT_USAGE "--$1 is '$(option "$1")'; expected $3"
}

check_secret_names() { # an invalid name may be a secret value, so the message does not repeat it
  [[ "$RLAIF_SECRETS" =~ ^([A-Za-z_][A-Za-z0-9_]*(,[A-Za-z_][A-Za-z0-9_]*)*)?$ ]] ||
    fail $EXIT_USAGE "--secrets (RLAIF_SECRETS) takes NAMES of variables, separated by commas, never values"
}

option() { # the value of an option
  local variable
  variable=$(field_of "$1" variable)
  printf '%s' "${!variable:-}"
}

is_dry() { [ -n "$RLAIF_DRY_RUN" ]; }

quoted() { # the arguments as one line, quoted for a shell
  local line
  line=$(printf '%q ' "$@")
  printf '%s' "${line% }"
}

show() { # prints a command: in a dry run to standard output, else to standard error
  refuse_secrets "$@"
  if is_dry; then printf '%s\n' "$(quoted "$@")" >&3; else printf '+ %s\n' "$(quoted "$@")" >&2; fi
}

run() {
  show "$@"
  is_dry || "$@"
}

# Every user of a machine can see command lines, and logs keep them: so no secret may appear in one.
refuse_secrets() {
  local name value line
  line="$*"
  for name in ${RLAIF_SECRETS//,/ }; do
    value=${!name:-}
    [ ${#value} -ge $SHORTEST_SECRET ] || continue # it is never sent, see secret_lines
    case $line in
      *"$value"* | *"$(quoted "$value")"*)
        fail $EXIT_USAGE "the value of $name is part of a command line; pass only the name $name, with --secrets"
        ;;
    esac
  done
}

# check_secrets COMMAND ...: fails unless every secret is set, long enough, and not in the command.
check_secrets() {
  secret_lines >/dev/null
  refuse_secrets "$@"
}

# The secrets as lines of shell code; the values come only from the environment. A very short value ("1", for example) is
# part of many command lines by chance, so the check for leaks would not work.
readonly SHORTEST_SECRET=6
secret_lines() {
  local name value
  for name in ${RLAIF_SECRETS//,/ }; do
    [ -n "${!name:-}" ] || fail $EXIT_USAGE "--secrets names $name, but it is not set in the environment"
    value=${!name}
    [ ${#value} -ge $SHORTEST_SECRET ] || fail $EXIT_USAGE "the value of $name has less than $SHORTEST_SECRET characters, too few \
to check that it is on no command line; if it is not a secret, set it in the command instead: env $name=... COMMAND"
    printf 'export %s=%q\n' "$name" "$value"
  done
}

tpus() { # GROUP VERB ARGUMENT ...: one gcloud command on this project and zone
  run gcloud compute tpus "$@" --project="$RLAIF_PROJECT" --zone="$RLAIF_ZONE" --quiet
}

# Prints the state that gcloud reports; NONE if the resource does not exist, UNKNOWN if gcloud fails.
ask_state() { # GROUP FORMAT
  local out errors
  set -- gcloud compute tpus "$1" describe "$RLAIF_NAME" --project="$RLAIF_PROJECT" --zone="$RLAIF_ZONE" --format="$2"
  if is_dry; then
    show "$@"
    return
  fi
  errors=$(mktemp)
  if out=$("$@" 2>"$errors"); then
    printf '%s\n' "${out:-UNKNOWN}"
  elif grep -qiE 'not[ _]found' "$errors"; then
    echo NONE
  else
    sed "s/^/$SCRIPT: gcloud: /" "$errors" >&2
    echo UNKNOWN
  fi
  rm -f "$errors"
}

queued_state() { ask_state queued-resources 'value(state.state)'; }

node_state() { ask_state tpu-vm 'value(state)'; }

# The number of workers (hosts) of the TPU; 1 in a dry run.
worker_count() {
  local out
  set -- gcloud compute tpus tpu-vm describe "$RLAIF_NAME" --project="$RLAIF_PROJECT" --zone="$RLAIF_ZONE" \
    --format='value(networkEndpoints[].ipAddress)'
  show "$@"
  if is_dry; then
    echo 1
    return
  fi
  out=$("$@") || fail $EXIT_LOST "gcloud cannot describe the TPU $RLAIF_NAME"
  [ -n "$out" ] || fail $EXIT_LOST "the TPU $RLAIF_NAME has no workers yet"
  printf '%s\n' "$out" | tr ';' '\n' | grep -c .
}

# on_worker WHICH COMMAND: runs a shell command on one worker (which gets standard input) or on all.
# For all, gcloud starts one ssh per worker; they would compete for the same standard input, so they get none.
on_worker() {
  set -- ssh "$RLAIF_NAME" --worker="$1" --command="$2"
  if [ "$3" = --worker=all ]; then over_ssh "$@" </dev/null; else over_ssh "$@"; fi
}

over_ssh() { # ssh|scp ARGUMENT ...
  if [ -n "$RLAIF_INTERNAL_IPS" ]; then set -- "$@" --internal-ip; fi
  tpus tpu-vm "$@"
}

# The command line of worker.sh on a worker.
worker_command() { printf 'bash %s/tpu_scripts/worker.sh %s' "$REMOTE_CODE" "$(quoted "$@")"; }

# Generation of the accelerator, as in flags.json.
generation() {
  case $RLAIF_ACCELERATOR in
    v5litepod-*) echo v5e ;;
    v4-* | v5p-* | v6e-*) echo "${RLAIF_ACCELERATOR%%-*}" ;;
    *) echo none ;;
  esac
}

flag_set() { if [ -n "$RLAIF_FLAGS" ]; then printf '%s' "$RLAIF_FLAGS"; else generation; fi; }

# archive_code FILE: packs the files of this git checkout, also uncommitted ones, so that an experiment needs no commit.
# Leaves out what git ignores (runs, environments, keys in ignored files).
archive_code() {
  local list=$1.list
  git -C "$REPOSITORY" rev-parse --is-inside-work-tree >/dev/null 2>&1 ||
    fail $EXIT_USAGE "$REPOSITORY is not a git checkout; sync needs git to know which files to copy"
  # A deletion that is not committed leaves the file in git's index. A link may point to a folder or be broken.
  (cd "$REPOSITORY" && git ls-files -z --cached --others --exclude-standard |
    while IFS= read -r -d '' file; do
      if [ -f "$file" ] || [ -L "$file" ]; then printf '%s\0' "$file"; fi
    done) >"$list"
  tar -C "$REPOSITORY" --null -T "$list" -czf "$1"
}

# The command with which a worker unpacks the archive, worker.sh first.
# shellcheck disable=SC2034
UNPACK="mkdir -p $REMOTE_CODE && tar -xzf rlaif_code.tar.gz -C $REMOTE_CODE tpu_scripts/worker.sh && $(worker_command unpack)"
