"""The `rlaif` command: arguments only. Every command parses them and calls a function with plain parameters."""

from __future__ import annotations

import argparse
import contextlib
import difflib
import os
import re
import signal
import sys
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from rlaif_jax import __version__
from rlaif_jax.commands.ending import end_of, interrupts
from rlaif_jax.errors import EXIT_USER_ERROR, Preempted, UserError, masked, printable, shown

if TYPE_CHECKING:
    from rich.console import Console

# What a command does is imported where it is called: `rlaif --help` should not wait for Flax, Orbax and the rest.


class _Parser(argparse.ArgumentParser):
    """A parser whose errors are one line, with a suggestion for a command that does not exist."""

    def error(self, message: str) -> NoReturn:
        if found := re.search(r"invalid choice: '(.*)' \(choose from (.*)\)", message, re.DOTALL):
            known = re.findall(r"[\w-]+", found[2])
            close = difflib.get_close_matches(found[1][:50], known, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"expected one of {', '.join(known)}"
            message = f"unknown {'command' if 'COMMAND' in message else 'choice'} {shown(found[1])}; {hint}"
        self.exit(EXIT_USER_ERROR, f"{self.prog}: error: {masked(printable(message))}; {self.prog} --help shows more\n")


def _parser() -> argparse.ArgumentParser:
    from rlaif_jax.config.stages import PRINCIPLES, STAGES

    parser = _Parser(
        prog="rlaif",
        description="Make small language models write better with AI feedback: SFT, reward model or judge, GRPO or PPO, report. "
        "Start with: rlaif run greetings_demo --out runs/demo",
    )
    parser.add_argument("--version", action="version", version=f"rlaif_jax {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    run = _add(commands, "run", "all stages; skips what is done, resumes what was interrupted", _run)
    _add_config(run)
    run.add_argument("--dry-run", action="store_true", help="print stages, models, mesh, memory, steps and data; run nothing")
    text = "check data, models, functions, the judge (one real call) and memory of a config, in seconds; trains nothing"
    _add_config(_add(commands, "check", text, _check))
    for stage in STAGES:
        _add_config(_add(commands, stage.name, stage.help, _stage, stages=(stage.name,)))
    rl = _add(commands, "rl", "reinforcement learning: GRPO, or PPO where the config has a critic, once for each arm", _rl)
    _add_config(rl)
    rl.add_argument("--arm", action="append", default=[], metavar="NAME", help="only this arm of the config (repeatable)")
    _add_config(_add(commands, "rl_judge", "the same as: rlaif rl --arm rl_judge", _stage, stages=("rl_judge",)))
    _add_judge(commands, PRINCIPLES.name)
    _add_config_info(commands)
    _add(commands, "doctor", "versions, devices and memory of this machine", _doctor)
    _add_plan(commands)
    _add_launch(commands)
    _add_models(commands)
    _add_generate(commands)
    return parser


def _add(commands: Any, name: str, text: str, call: Any, **fixed: Any) -> argparse.ArgumentParser:
    """A command; `call(args, console)` runs it and returns the exit code."""
    parser = commands.add_parser(name, help=text, description=text)
    parser.set_defaults(call=call, **fixed)
    return parser


def _add_config(parser: argparse.ArgumentParser, out: bool = True) -> None:
    parser.add_argument("config", metavar="CONFIG", help="a config file (.py, .json, .yaml), or a bundled one: greetings_demo")
    if out:
        parser.add_argument("--out", type=Path, default=None, help="the run's folder (default: runs/<name of the config>)")
    parser.add_argument(
        "--set", action="append", default=[], dest="overrides", metavar="FIELD=VALUE",
        help="change one field of the config, for example --set rl.train.steps=20 (repeatable; see rlaif config list)",
    )  # fmt: skip


def _add_judge(commands: Any, principles: str) -> None:
    judge = commands.add_parser("judge", help="arm B: rate a file with the judge, or optimise the judge's principles")
    actions = judge.add_subparsers(dest="action", required=True, metavar="ACTION")
    text = f"the same as: rlaif {principles}"
    _add_config(_add(actions, "optimize", text, _stage, stages=(principles,)))
    score = _add(actions, "score", "rate every (query, response) of a file: JSON lines, JSON, CSV or parquet", _score)
    score.add_argument("file", type=Path, metavar="FILE", help="rows with prompt (or query) and response, or a file of generate")
    score.add_argument("--run", type=Path, required=True, metavar="RUN", help="the run whose judge rates")
    score.add_argument("--principles", default="", help="a file with one principle per line (default: the run's best)")
    score.add_argument("--out", type=Path, default=None, help="where the rated rows go (default: FILE.rated.jsonl)")
    score.add_argument("--columns", default="", metavar="FIELD=COLUMN,...", help="for example prompt=question,response=answer")
    score.add_argument("--skip-bad-rows", action="store_true", help="leave out rows that cannot be read")
    score.add_argument("--import-code", action="store_true", help="import the backend of your own that the run's config names")


def _add_config_info(commands: Any) -> None:
    config = commands.add_parser("config", help="list every field of a config, show a resolved one, or compare two")
    actions = config.add_subparsers(dest="action", required=True, metavar="ACTION")
    listed = _add(actions, "list", "every field with its type, default and meaning", _config_list)
    listed.add_argument("words", nargs="?", default="", metavar="WORD", help="only fields whose name contains this")
    shown = _add(actions, "show", "a config with every field in it, as YAML that `rlaif run` takes", _config_show)
    _add_config(shown, out=False)
    compared = _add(actions, "diff", "the fields in which two configs differ", _config_diff)
    _add_config(compared, out=False)
    compared.add_argument("other", metavar="OTHER", help="the config to compare with, as it is")


def _add_plan(commands: Any) -> None:
    plan = _add(commands, "plan", "compile a run's programs for TPUs that are not here: memory, FLOPs, traffic, time", _plan)
    _add_config(plan, out=False)
    plan.add_argument("--topology", required=True, metavar="VERSION:SHAPE", help="v5e:8x8, v5p:4x4x2, v6e:4x8, v4:2x2x2 ...")
    plan.add_argument("--program", action="append", default=[], metavar="NAME", help="only this one of the table (repeatable)")
    plan.add_argument("--json", type=Path, default=None, metavar="FILE", help="write the rows there, anew after each program")


def _add_generate(commands: Any) -> None:
    generate = _add(commands, "generate", "answer prompts, or chat, with a policy of a run or a Hugging Face folder", _generate)
    generate.add_argument("run", type=Path, nargs="?", metavar="RUN", help="the run's folder, for example runs/demo")
    generate.add_argument("--model", type=Path, metavar="FOLDER", help="instead of RUN: a Hugging Face folder")
    generate.add_argument("--adapter", type=Path, metavar="FOLDER", help="a PEFT adapter over --model")
    generate.add_argument("--stage", default="", help="whose weights of RUN: base, sft, dpo or an arm (default: the first arm)")
    generate.add_argument("--prompt", action="append", default=[], help="answer this (repeatable); without it: chat")
    generate.add_argument("--system", default="", help="a system prompt")
    generate.add_argument("--file", type=Path, metavar="FILE", help="answer the prompts of a file: JSON lines, JSON, CSV, parquet")
    generate.add_argument("--columns", default="", metavar="FIELD=COLUMN,...", help="of the file, for example prompt=question")
    generate.add_argument("--out", type=Path, metavar="FILE", help="where they go, one JSON line each; resumed, never overwritten")
    generate.add_argument("--batch-size", type=int, default=32, help="prompts of the file at a time (default: 32)")
    generate.add_argument("--samples", type=int, default=1, help="answers for each prompt (default: 1)")
    generate.add_argument("--temperature", type=float, default=0.7, help="0 = greedy (default: 0.7)")
    generate.add_argument("--top-p", type=float, default=1.0, help="nucleus mass (default: 1 = off)")
    generate.add_argument("--top-k", type=int, default=0, help="0 = off")
    generate.add_argument("--max-tokens", type=int, default=64, help="bound on an answer, in tokens (default: 64)")
    generate.add_argument("--seed", type=int, default=0)


def _add_models(commands: Any) -> None:
    text = "check a Hugging Face folder and write it as a sharded checkpoint, for a faster start on many devices"
    imported = _add(commands, "import", text, _import)
    imported.add_argument("folder", type=Path, metavar="FOLDER", help="a folder with config.json, safetensors and tokenizer")
    imported.add_argument("--out", type=Path, required=True, help="the new folder; then --set model.init_from=OUT")
    imported.add_argument("--dtype", choices=("float32", "bfloat16"), default="", help="of the weights (default: as stored)")
    text = "write a model of a run as a Hugging Face folder, which transformers and vLLM load"
    exported = _add(commands, "export", text, _export)
    exported.add_argument("run", type=Path, metavar="RUN", help="the run's folder, for example runs/demo")
    exported.add_argument(
        "--stage", default="", help="whose weights: base, sft, feedback, dpo, an arm, or reward and grader, which become sequence "
        "classifiers with one label (default: the first arm)",
    )  # fmt: skip
    exported.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="the new folder")
    exported.add_argument(
        "--dtype", choices=("float32", "bfloat16", "float16"), default="", help="default: as the run's start, or float32"
    )
    exported.add_argument("--adapter", action="store_true", help="of a run with a lora section: only the adapter, for PEFT")
    exported.add_argument("--max-shard-size", default="5GB", metavar="SIZE", help="of one weight file (default: 5GB)")


def _add_launch(commands: Any) -> None:
    parser = _add(commands, "launch", "start the processes of a run, and all of them again when one dies", _launch)
    parser.add_argument("--local", type=int, default=0, metavar="N", help="N processes here, with virtual CPU devices (default: "
                        "one process, in the environment as it is: on each host of a TPU or GPU cluster)")  # fmt: skip
    parser.add_argument("--devices-per-process", type=int, default=1, metavar="M", help="virtual CPU devices of each (default: 1)")
    parser.add_argument("--restarts", type=int, default=5, help="restarts in a row before it gives up (default: 5)")
    parser.add_argument("--backoff", type=float, default=1.0, help="seconds before the first restart; doubled each time")
    parser.add_argument("--grace", type=float, default=60.0, help="seconds to save and end after a signal (default: 60)")
    parser.epilog = "After -- comes an rlaif command: rlaif launch --local 2 --devices-per-process 4 -- run CONFIG --out DIR"


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; a user's mistake is one line on standard error and exit code 2.

    A run that gets SIGTERM while it trains saves and ends with exit code 75: start the same command again.
    """
    argv = [_utf8(text) for text in (sys.argv[1:] if argv is None else argv)]
    end = argv.index("--") if argv[:1] == ["launch"] and "--" in argv else len(argv)
    args = argparse.Namespace(call=None)
    with interrupts() as came:
        try:
            from rlaif_jax.terminal import PlainConsole, plain_log

            args = _parser().parse_args(argv[:end])
            args.after = argv[end + 1 :]
            with plain_log():
                return args.call(args, PlainConsole())
        except (Exception, KeyboardInterrupt) as error:
            code, line = end_of(error, interrupted=bool(came), resumable=args.call in (_run, _stage, _rl))
            if line:
                _say(line)
            return code


def _utf8(text: str) -> str:
    """An argument as UTF-8, also where the locale names another encoding (LC_ALL=C); unchanged where its bytes are none."""
    try:
        return os.fsencode(text).decode("utf-8")
    except UnicodeError:
        return text


def _say(text: str) -> None:
    print(f"rlaif: {masked(printable(text))}", file=sys.stderr, flush=True)


def _config(args: argparse.Namespace) -> Any:
    from rlaif_jax.config import load_config

    return load_config(args.config, args.overrides, _say)


def _run(args: argparse.Namespace, console: Console) -> int:
    if not args.dry_run:
        return _run_stages(args, console, None)
    from rlaif_jax.commands.check import dry_run

    cfg = _config(args)
    dry_run(cfg, args.out or Path("runs") / cfg.name, console)
    return 0


def _check(args: argparse.Namespace, console: Console) -> int:
    from rlaif_jax.commands.check import check_run

    cfg = _config(args)
    check_run(cfg, args.out or Path("runs") / cfg.name, console)
    return 0


def _stage(args: argparse.Namespace, console: Console) -> int:
    return _run_stages(args, console, args.stages)


def _rl(args: argparse.Namespace, console: Console) -> int:
    cfg = _config(args)
    names = args.arm or list(cfg.all_arms())
    if not names:
        raise UserError(f"the config {cfg.name!r} has no arm: set a reward, a judge or arms={{...}}")
    return _run_stages(args, console, names)


def _run_stages(args: argparse.Namespace, console: Console, names: Sequence[str] | None) -> int:
    from rlaif_jax.commands.launch import end_with_supervisor
    from rlaif_jax.config.stages import stage_of
    from rlaif_jax.runs.folder import open_run
    from rlaif_jax.sharding.distributed import init_distributed
    from rlaif_jax.stages import pipeline

    cfg = _config(args)
    for name in names or ():
        stage_of(cfg, name)  # one that the config does not have is refused before anything starts
    end_with_supervisor()
    processes = init_distributed(say=lambda text: _say(f"process 0 {text}"))
    console.quiet = processes.index > 0
    run = open_run(args.out or Path("runs") / cfg.name, cfg, console)
    with _ends_alone(processes.count):
        pipeline.run(run, names)
    return 0


@contextlib.contextmanager
def _ends_alone(processes: int) -> Iterator[None]:
    """One of several processes that fails exits at once. At a normal exit JAX would wait for the others, which may wait for it."""
    try:
        yield
    except Exception as error:
        if processes == 1 or isinstance(error, (UserError, Preempted)):
            raise
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)


def _columns(text: str, fields: Sequence[str]) -> dict[str, str]:
    """Field -> column, of --columns."""
    pairs = [item.partition("=") for item in text.split(",") if item]
    if bad := [field for field, _, column in pairs if field not in fields or not column]:
        raise UserError(f"--columns has {bad[0]!r}; expected FIELD=COLUMN,... with the fields {', '.join(fields)}")
    return {field: column for field, _, column in pairs}


def _score(args: argparse.Namespace, console: Console) -> int:
    from rlaif_jax.commands.judge_score import score_file
    from rlaif_jax.runs.folder import open_run

    score_file(
        open_run(args.run, console=console), args.file, args.out, principles=args.principles,
        columns=_columns(args.columns, ("prompt", "response", "system")), skip_bad_rows=args.skip_bad_rows,
        import_code=args.import_code, console=console,
    )  # fmt: skip
    return 0


def _doctor(args: argparse.Namespace, console: Console) -> int:
    from rlaif_jax.commands.doctor import describe_machine

    describe_machine(console)
    return 0


def _config_list(args: argparse.Namespace, console: Console) -> int:
    from rlaif_jax.commands.config_info import list_fields

    list_fields(args.words, console)
    return 0


def _config_show(args: argparse.Namespace, console: Console) -> int:
    from rlaif_jax.commands.config_info import as_yaml

    print(as_yaml(_config(args)), end="")
    return 0


def _config_diff(args: argparse.Namespace, console: Console) -> int:
    from rlaif_jax.commands.config_info import print_differences
    from rlaif_jax.config import load_config

    print_differences(load_config(args.other, (), _say), _config(args), console)
    return 0


def _plan(args: argparse.Namespace, console: Console) -> int:
    from rlaif_jax.plan.compiled import run_plan

    cfg = _config(args)
    before = signal.signal(signal.SIGINT, signal.SIG_DFL)  # or Ctrl-C would wait until the compiler returns
    try:
        return 0 if run_plan(cfg, args.topology, args.program, args.json, console) else 1
    finally:
        signal.signal(signal.SIGINT, before)


def _import(args: argparse.Namespace, console: Console) -> int:
    from rlaif_jax.commands.import_model import import_model

    import_model(args.folder, args.out, dtype=args.dtype, console=console)
    return 0


def _export(args: argparse.Namespace, console: Console) -> int:
    from rlaif_jax.commands.export import export, export_adapter, shard_bytes
    from rlaif_jax.config.stages import final_policy
    from rlaif_jax.runs.folder import open_run

    run = open_run(args.run, console=console)
    stage = args.stage or final_policy(run.cfg)
    if args.adapter:
        export_adapter(run, stage, args.out)
        console.print(f"{args.out}: the adapter of {stage}, for PEFT", soft_wrap=True, markup=False)
        return 0
    files = export(run, stage, args.out, dtype=args.dtype, max_shard_bytes=shard_bytes(args.max_shard_size))
    size = sum(f.stat().st_size for f in files) / 2**20
    console.print(f"{args.out}: {stage}, {size:,.0f} MiB in {len(files)} weight files", soft_wrap=True, markup=False)
    return 0


def _generate(args: argparse.Namespace, console: Console) -> int:
    _check_generate(args)
    from rlaif_jax.commands.answer_file import answer_file
    from rlaif_jax.commands.generate import chat, generate
    from rlaif_jax.config.stages import final_policy
    from rlaif_jax.runs.chat_model import ChatModel
    from rlaif_jax.runs.folder import open_run
    from rlaif_jax.sampling.filters import SamplingConfig

    sampling = SamplingConfig(args.temperature, args.top_k, args.top_p, 0.0, args.max_tokens)
    if args.model:
        model = ChatModel.of_folder(args.model, args.max_tokens, args.adapter)
    else:
        run = open_run(args.run, console=console)
        model = ChatModel.of_run(run, args.stage or final_policy(run.cfg))
    settings = {"samples": args.samples, "seed": args.seed, "system": args.system, "console": console}
    if args.file:
        columns = _columns(args.columns, ("prompt", "system"))
        answer_file(model, args.file, args.out, sampling, batch_size=args.batch_size, columns=columns, **settings)
    elif args.prompt:
        generate(model, args.prompt, sampling, **settings)
    else:
        chat(model, sampling, remember=args.model is not None, **settings)
    return 0


def _check_generate(args: argparse.Namespace) -> None:
    for name, least in (("samples", 1), ("batch_size", 1), ("seed", 0)):
        if getattr(args, name) < least:
            raise UserError(f"generate: --{name.replace('_', '-')} is {getattr(args, name)}; expected at least {least}")
    for name, texts in (("prompt", args.prompt), ("system", [args.system])):
        if any(re.search("[\ud800-\udfff]", text) for text in texts):
            raise UserError(f"generate: --{name} is not UTF-8")
    if (args.run is None) == (args.model is None):
        raise UserError("generate: expected either a run's folder or --model FOLDER")
    if (args.file is None) != (args.out is None):
        raise UserError("generate: --file and --out go together")
    if args.adapter and not args.model:
        raise UserError("generate: --adapter goes with --model; a run's own adapters are merged already")


def _launch(args: argparse.Namespace, console: Console) -> int:
    from rlaif_jax.commands.launch import Launch, supervise
    from rlaif_jax.config.stages import STAGES

    command, known = args.after, ("run", *(stage.name for stage in STAGES), "rl", "rl_judge")
    if command[:2] != ["judge", "optimize"] and command[:1] not in ([name] for name in known):
        found = repr(" ".join(command)) if command else "nothing"
        raise UserError(f"launch: after -- comes one of {', '.join(known)}, judge optimize; found {found}")
    if "--dry-run" in command:
        raise UserError("launch: a dry run needs no processes; call it without launch")
    if args.local < 0 or args.devices_per_process < 1 or args.restarts < 0 or args.backoff < 0 or args.grace < 0:
        raise UserError("launch: --local, --restarts, --backoff and --grace are at least 0, --devices-per-process at least 1")
    cfg = Launch(args.local, args.devices_per_process, args.restarts, args.backoff, grace=args.grace)
    python = [sys.executable, "-m", "rlaif_jax.cli", *command]
    return supervise(python, cfg, lambda text: print(f"rlaif launch: {text}", file=sys.stderr, flush=True))


if __name__ == "__main__":
    sys.exit(main())
