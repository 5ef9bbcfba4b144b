"""How a command ends: by a signal, a closed pipe, a full disk, an error of the program."""

import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from rlaif_jax import cli
from rlaif_jax.errors import UserError

_HERE = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2]), "XLA_FLAGS": "", "JAX_PLATFORMS": "cpu"}


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (UserError("rl.steps is -1"), 2, "rlaif: error: rl.steps is -1\n"),
        (KeyboardInterrupt(), 130, "rlaif: interrupted; start the same command again to resume from the last checkpoint\n"),
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "runs/a/x"), 2, "rlaif: error: runs/a/x: No space left on device\n"),
        (PermissionError(errno.EACCES, os.strerror(errno.EACCES), "x"), 2, "rlaif: error: x: Permission denied\n"),
    ],
)
def test_what_a_user_can_cause_is_one_line(error, code, line, monkeypatch, capsys):
    def call(args, console):
        raise error

    monkeypatch.setattr(cli, "_config_list", call)
    assert cli.main(["config", "list"]) == code
    assert capsys.readouterr().err == line


def test_an_interrupt_that_a_library_turns_into_another_error_is_one_line(monkeypatch, capsys):
    def importing(args, console):
        try:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(5)
        except KeyboardInterrupt as error:  # as an extension module does that is being imported
            raise ImportError("initialization failed") from error

    monkeypatch.setattr(cli, "_config_list", importing)
    assert cli.main(["config", "list"]) == 130
    assert capsys.readouterr().err.count("\n") == 1
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_fault_of_the_program_keeps_its_traceback(monkeypatch):
    def call(args, console):
        raise ImportError("no such module")

    monkeypatch.setattr(cli, "_config_list", call)
    with pytest.raises(ImportError):
        cli.main(["config", "list"])


@pytest.mark.parametrize(("command", "lines"), [("list", 0), ("run", 1)])
def test_a_closed_pipe_is_no_traceback(command, lines):
    """A command that only prints ends in silence, one that trains says how to go on."""
    program = (
        "import sys; from rlaif_jax import cli\n"
        "def call(args, console):\n"
        "    for _ in range(10_000): console.print('step')\n"
        f"cli.{'_config_list' if command == 'list' else '_run'} = call\n"
        f"sys.exit(cli.main({['config', 'list'] if command == 'list' else ['run', 'x']}))\n"
    )
    process = subprocess.Popen([sys.executable, "-c", program], env=_HERE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.read(10)
    process.stdout.close()
    errors = process.stderr.read().decode().splitlines()
    assert process.wait() == 141 and len(errors) == lines, errors
    assert not lines or "start the same command again to resume" in errors[0]


@pytest.mark.parametrize("seconds", [0.3, 0.8])
def test_an_interrupt_while_the_program_is_imported_is_one_line(seconds, tmp_path):
    """Sent when main() runs: it imports the parser's choices, then JAX."""
    program = (
        "import os, signal, sys, threading, time\n"
        "from rlaif_jax import cli\n"
        f"threading.Timer({seconds}, os.kill, (os.getpid(), signal.SIGINT)).start()\n"
        "sys.exit(cli.main(['run', 'greetings_demo', '--out', sys.argv[1]]))\n"
    )
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path / "run")], env=_HERE, capture_output=True, text=True)
    assert done.returncode == 130 and done.stderr.count("\n") == 1, done.stderr
