"""Runs a command with the XLA flags of an accelerator; drops flags that the installed XLA does not accept.

    python probe_flags.py v5e -- rlaif run configs/greetings_demo.py
    python probe_flags.py v5e                       # only prints the flags

XLA aborts the process if it gets an unknown flag, and flags change between versions. So the set in flags.json is first tried
in a child process. libtpu parses a TPU's flags when it describes a topology, which uses no chip: so the probe does not occupy
the TPU and does not wait for other hosts. Flags that the user has set come last, so they win.
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
    """Whether XLA starts with these flags in a child process."""
    env = os.environ | {spec["variable"]: " ".join(flags)}
    code = _PARSE_GPU
    if "topology" in spec:
        code = _PARSE_TPU.format(spec["topology"])
        # No request to the metadata server and no lock against other processes: the probe does not use the TPU.
        env |= {"TPU_SKIP_MDS_QUERY": "1", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}
    try:
        child = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, timeout=timeout, check=False)
    except subprocess.TimeoutExpired:
        return False
    return child.returncode == 0


def known(flags: Sequence[str], accept: Accepts) -> list[str]:
    """The flags that `accept` takes. Makes one call if all are good; else one per flag, and one for the remaining ones."""
    if not flags or accept(flags):
        return list(flags)
    kept = [flag for flag in flags if accept([flag])]
    if len(kept) < len(flags) and (not kept or accept(kept)):
        return kept
    return []  # good one by one but bad together: use no flags rather than guess


def environment(name: str, say: Callable[[str], None]) -> dict[str, str]:
    """The environment variable for that accelerator; `say` gets each dropped flag. ValueError for an unknown name."""
    table = json.loads(DATA.read_text(encoding="utf-8"))
    if name == "none":
        return {}
    if name not in table:
        raise ValueError(f"no set of flags is named {name!r}; use one of {', '.join(table)} (see flags.json), or none")
    spec = table[name]
    if not accepts(spec, []):
        say(f"XLA does not start here even without flags of {name}, so none are set; the command will show why")
        return {}
    kept = known(spec["flags"], lambda flags: accepts(spec, flags))
    for flag in spec["flags"]:
        if flag not in kept:
            say(f"dropped {flag}: this version of XLA does not accept it")
    own = os.environ.get(spec["variable"], "")
    value = " ".join([*kept, own]).strip()
    say(f"{spec['variable']}={value}")
    return {spec["variable"]: value}


def main(arguments: Sequence[str]) -> int:
    """probe_flags.py NAME [-- COMMAND ...]; a command replaces this process, so the function does not return."""
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
