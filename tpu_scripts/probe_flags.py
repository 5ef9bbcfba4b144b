"""Runs a command with the XLA flags of an accelerator, without those that the installed XLA does not know.

    python probe_flags.py v5e -- rlaif run configs/greetings_demo.py
    python probe_flags.py v5e                       # only tells which flags are used

XLA ends the whole process at a flag that it does not know, and flags come and go between versions. So each set in
flags.json is tried in a child process first. A TPU's flags are parsed when libtpu describes a topology, which touches no
chip: the probe neither takes the TPU nor waits for the other hosts. Flags that the user has set come last, and win.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

DATA = Path(__file__).with_name("flags.json")
_PARSE_TPU = "from jax.experimental import topologies as t; t.get_topology_desc(platform='tpu', topology_name={!r})"
_PARSE_GPU = "import jax; jax.devices()"

Accepts = Callable[[Sequence[str]], bool]


def accepts(spec: Mapping, flags: Sequence[str], timeout: float = 300.0) -> bool:
    """Whether a child process with these flags starts XLA and lives."""
    env = os.environ | {spec["variable"]: " ".join(flags)}
    code = _PARSE_GPU
    if "topology" in spec:
        code = _PARSE_TPU.format(spec["topology"])
        # No question to the metadata server, and no lock against other processes: the probe takes no TPU.
        env |= {"TPU_SKIP_MDS_QUERY": "1", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}
    try:
        child = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, timeout=timeout, check=False)
    except subprocess.TimeoutExpired:
        return False
    return child.returncode == 0


def known(flags: Sequence[str], accept: Accepts) -> list[str]:
    """The flags that `accept` takes: one call if all are good, else one for each flag and one for what is left."""
    if not flags or accept(flags):
        return list(flags)
    kept = [flag for flag in flags if accept([flag])]
    if len(kept) < len(flags) and (not kept or accept(kept)):
        return kept
    return []  # good alone and bad together: none is safer than a guess


def environment(name: str, say: Callable[[str], None]) -> dict[str, str]:
    """The variable to set for that accelerator; says which flags are dropped. Unknown names are an error (ValueError)."""
    table = json.loads(DATA.read_text(encoding="utf-8"))
    if name == "none":
        return {}
    if name not in table:
        raise ValueError(f"no set of flags is named {name!r}; flags.json has {', '.join(table)}, or say none")
    spec = table[name]
    if not accepts(spec, []):
        say(f"XLA does not start here even without flags of {name}; none are set, the command will show why")
        return {}
    kept = known(spec["flags"], lambda flags: accepts(spec, flags))
    for flag in spec["flags"]:
        if flag not in kept:
            say(f"dropped {flag}: this version of XLA does not take it")
    own = os.environ.get(spec["variable"], "")
    value = " ".join([*kept, own]).strip()
    say(f"{spec['variable']}={value}")
    return {spec["variable"]: value}


def main(arguments: Sequence[str]) -> int:
    """probe_flags.py NAME [-- COMMAND ...]; does not return if there is a command."""
    if not arguments or (len(arguments) > 1 and arguments[1] != "--") or len(arguments) == 2:
        print(__doc__, file=sys.stderr)
        return 2
    try:
        extra = environment(arguments[0], lambda text: print(f"probe_flags: {text}", flush=True))
    except ValueError as error:
        print(f"probe_flags: error: {error}", file=sys.stderr)
        return 2
    if len(arguments) > 2:
        try:
            os.execvpe(arguments[2], list(arguments[2:]), os.environ | extra)
        except OSError as error:
            print(f"probe_flags: error: cannot run {arguments[2]}: {error.strerror}", file=sys.stderr)
            return 127
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
