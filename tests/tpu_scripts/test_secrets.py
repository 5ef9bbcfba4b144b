"""Secrets reach the job, and nothing else."""

import shlex
import stat
import subprocess

import pytest

from tests.tpu_scripts.conftest import SCRIPTS

SECRET = "s3same \"open\" $HOME 'now' 开门"
SHOW = ("--", "bash", "-c", "printf '%s\\n' \"$MY_KEY\" > ~/seen; cat /proc/[0-9]*/cmdline | tr '\\0' ' ' > ~/lines; echo ok")


def _forms(secret: str) -> list[str]:
    quoted = subprocess.run(["bash", "-c", 'printf %q "$1"', "-", secret], capture_output=True, text=True, check=True).stdout
    return [secret, quoted, shlex.quote(secret), "s3same", "开门"]


FORMS = _forms(SECRET)  # before any job looks at command lines: bash has the secret on its own here


def _assert_hidden(bench, *texts: str) -> None:
    texts += tuple(" ".join(call) for call in bench.calls)
    for text in texts:
        assert not any(form in text for form in FORMS)


def test_on_a_tpu(ready):
    done = ready.run("run.sh", "--secrets", "MY_KEY", *SHOW, MY_KEY=SECRET)
    assert done.returncode == 0, done.stderr
    for worker in (0, 1):
        log = ready.wait_for("ended with exit code 0", worker)
        assert (ready.home(worker) / "seen").read_text() == SECRET + "\n"
        _assert_hidden(ready, done.stdout, done.stderr, log, (ready.home(worker) / "lines").read_text())
        assert not (ready.home(worker) / "rlaif_jobs/rlaif/secrets").exists(), "read once, then removed"
    ready.ok("run.sh", *SHOW)
    ready.wait_for("ok\n", 0)


def test_under_the_supervisor_and_in_a_dry_run(bench):
    for options in (["--dry-run"], []):
        done = bench.run("supervise.sh", "--secrets", "MY_KEY", *options, *SHOW, MY_KEY=SECRET, RLAIF_POLL="1")
        assert done.returncode == 0, done.stderr
        _assert_hidden(bench, done.stdout, done.stderr)
    assert (bench.home(1) / "seen").read_text() == SECRET + "\n"


def test_on_gpu_hosts_slurm_and_xpk(bench):
    bench.home("g0").mkdir(parents=True)
    bench.ok("gpu_hosts.sh", "setup", "--hosts", "g0")
    done = bench.run("gpu_hosts.sh", "run", "--hosts", "g0", "--secrets", "MY_KEY", *SHOW, MY_KEY=SECRET)
    assert done.returncode == 0, done.stderr
    bench.wait_for("ended with exit code 0", "g0")
    assert (bench.home("g0") / "seen").read_text() == SECRET + "\n"
    other = [
        bench.run("gpu_slurm.sh", "rlaif", RLAIF_SECRETS="MY_KEY", MY_KEY=SECRET),
        bench.run("xpk_example.sh", "--cluster", "c", "--docker-image", "i", "--secrets", "MY_KEY", *SHOW, MY_KEY=SECRET),
    ]
    assert [o.returncode for o in other] == [0, 0]
    _assert_hidden(bench, done.stdout, done.stderr, *(o.stdout + o.stderr for o in other))


EVERY_WAY = ("run.sh", "supervise.sh", "xpk_example.sh", "gpu_hosts.sh", "gpu_slurm.sh")


def _start(bench, script: str, *command: str, secrets: str = "MY_KEY", value: str = SECRET):
    """`command` with MY_KEY set to `value`, by any of the scripts."""
    before = {"xpk_example.sh": ["--cluster", "c", "--docker-image", "i"], "gpu_hosts.sh": ["run", "--hosts", "g0"]}.get(script, [])
    if script != "gpu_slurm.sh":
        command = (*before, "--", *command)
    return bench.run(script, *command, RLAIF_SECRETS=secrets, MY_KEY=value)


@pytest.mark.parametrize("script", EVERY_WAY)
def test_a_secret_in_the_command_is_refused(bench, script):
    value = "another 'key' 门"  # not SECRET: it is part of a command line here, which jobs of the other tests would see
    done = _start(bench, script, "curl", f"--header=Bearer {value}", value=value)
    assert done.returncode == 2 and "the value of MY_KEY is part of a command line" in done.stderr
    assert "another" not in done.stdout + done.stderr and not bench.calls


@pytest.mark.parametrize("script", EVERY_WAY)
def test_a_secret_too_short_to_be_found_in_a_command_is_refused(bench, script):
    done = _start(bench, script, "curl", "--header=ab3de", value="ab3de")
    assert done.returncode == 2 and "less than 6 characters" in done.stderr and "ab3de" not in done.stderr
    assert not bench.calls


@pytest.mark.parametrize("script", EVERY_WAY)
def test_a_value_in_place_of_a_name_is_not_repeated(bench, script):
    done = _start(bench, script, "true", secrets="MY_KEY=topsecret123")
    assert done.returncode == 2 and "never values" in done.stderr and "topsecret123" not in done.stdout + done.stderr
    assert not bench.calls


def test_a_stop_is_no_place_to_look_at_secrets(ready):
    done = ready.run("stop.sh", RLAIF_SECRETS="MY_KEY,NOT_SET", MY_KEY="1")
    assert done.returncode == 0 and "NOT_SET" not in done.stderr and "characters" not in done.stderr


def test_nothing_is_left_for_a_later_job(ready):
    """Not by a start that was refused, nor by one that never came."""
    left = [ready.home(worker) / "rlaif_jobs/rlaif/secrets" for worker in (0, 1)]
    ready.ok("run.sh", "--", "sleep", "300")
    done = ready.run("run.sh", "--secrets", "MY_KEY", "--", "true", MY_KEY=SECRET)
    assert done.returncode != 0 and "running already" in done.stdout
    assert not any(path.exists() for path in left), "refused before it was read"
    for path in left:
        path.write_text("export MY_KEY=old-secret\n")
    assert ready.run("run.sh", "--", "true").returncode != 0
    assert not any(path.exists() for path in left), "a refused start removes them"
    for path in left:
        path.write_text("export MY_KEY=old-secret\n")
    ready.ok("stop.sh")
    assert not any(path.exists() for path in left), "and so does a stop"
    left[0].write_text("export MY_KEY=old-secret\n")
    ready.ok("run.sh", "--", "bash", "-c", "echo KEY=${MY_KEY:-}.")
    assert "KEY=.\n" in ready.wait_for("ended with exit code 0") and not left[0].exists()


def test_a_job_does_not_start_without_its_secrets(ready):
    command = ["bash", "rlaif_code/tpu_scripts/worker.sh", "start", "j", "none", "MY_KEY", "--", "true"]
    home = ready.home()
    env = {"HOME": str(home), "PATH": "/usr/bin:/bin"}
    done = subprocess.run(command, cwd=home, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 1 and "MY_KEY are not here" in done.stdout and not (home / "rlaif_jobs/j").exists()


def test_the_file_is_private_and_whole_or_not_there(tmp_path):
    def send(size: int) -> int:
        command = ["bash", str(SCRIPTS / "worker.sh"), "secrets", "j", str(size)]
        env = {"HOME": str(tmp_path), "PATH": "/usr/bin:/bin"}
        return subprocess.run(command, input=b"export A=b\n", env=env, capture_output=True, check=False).returncode

    path = tmp_path / "rlaif_jobs/j/secrets"
    assert send(11) == 0
    assert stat.S_IMODE(path.stat().st_mode) == 0o600 and stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert send(12) == 1 and not path.exists(), "a transfer that was cut off"
