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


@pytest.mark.parametrize("script", ["run.sh", "supervise.sh", "xpk_example.sh"])
def test_a_secret_in_the_command_is_refused(bench, script):
    extra = ["--cluster", "c", "--docker-image", "i"] if script == "xpk_example.sh" else []
    done = bench.run(script, "--secrets", "MY_KEY", *extra, "--", "curl", f"--header=Bearer {SECRET}", MY_KEY=SECRET)
    assert done.returncode == 2 and "the value of MY_KEY stands in a command line" in done.stderr
    _assert_hidden(bench, done.stdout, done.stderr)
    assert not bench.calls


def test_the_file_is_private_and_whole_or_not_there(tmp_path):
    def send(size: int) -> int:
        command = ["bash", str(SCRIPTS / "worker.sh"), "secrets", "j", str(size)]
        env = {"HOME": str(tmp_path), "PATH": "/usr/bin:/bin"}
        return subprocess.run(command, input=b"export A=b\n", env=env, capture_output=True, check=False).returncode

    path = tmp_path / "rlaif_jobs/j/secrets"
    assert send(11) == 0
    assert stat.S_IMODE(path.stat().st_mode) == 0o600 and stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert send(12) == 1 and not path.exists(), "a transfer that was cut off"
