"""The `rlaif` command."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import traceback
from pathlib import Path

from rich.console import Console

from rlaif_jax.errors import EXIT_RESTART, EXIT_USER_ERROR, Preempted, UserError

_STAGE_HELP = {
    "tokenizer": "write the bundled corpus (where no data.root is set) and train or copy the tokenizer",
    "sft": "supervised fine-tuning on (prompt, response) examples",
    "feedback": "train the embedded feedback model, which plays every role without a key or a download",
    "curate": "arm A: candidates, debates and verdicts on them, into preference pairs",
    "reward": "train the reward model on preference pairs",
    "grader": "train the independent evaluator (where the config has one)",
    "dpo": "preference training without RL on the reward model's pairs (where the config has it)",
    "rl": "GRPO, or PPO where the config has a critic, against the reward model, starting from SFT",
    "rl_judge": "the same against the judge",
    "evaluate": "answer the held-out prompts with every system, and score the answers with every grader",
    "report": "write report.html, report.md and report.json from the evaluation",
}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="rlaif",
        description="Make small language models write better with AI feedback: tokenizer -> SFT -> reward model -> GRPO "
        "-> report. Start with: rlaif run greetings_demo --out runs/demo",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    run = commands.add_parser("run", help="all stages; skips what is done, resumes what was interrupted")
    _add_config(run)
    run.add_argument("--dry-run", action="store_true", help="print stages, models, mesh, memory and steps; run nothing")
    for name, text in _STAGE_HELP.items():
        _add_config(commands.add_parser(name, help=text, description=text))
    judge = commands.add_parser("judge", help="arm B: optimise the judge's principles, or rate a file with the judge")
    actions = judge.add_subparsers(dest="action", required=True, metavar="ACTION")
    optimize = actions.add_parser("optimize", help="the game of generator and detector that optimises the principles")
    _add_config(optimize)
    score = actions.add_parser("score", help="rate every (query, response) of a file: JSON lines, JSON, CSV or parquet")
    score.add_argument("file", type=Path, metavar="FILE", help="rows with prompt (or query) and response")
    score.add_argument("--run", type=Path, required=True, metavar="RUN", help="the run whose judge rates")
    score.add_argument("--principles", default="", help="a file with one principle per line (default: the run's best)")
    score.add_argument("--out", type=Path, default=None, help="where the rated rows go (default: FILE.rated.jsonl)")
    plan = commands.add_parser("plan", help="compile a run's programs for TPUs that are not here: memory, FLOPs, traffic, time")
    _add_config(plan, out=False)
    plan.add_argument("--topology", required=True, metavar="VERSION:SHAPE", help="v5e:8x8, v5p:4x4x2, v6e:4x8, v4:2x2x2 ...")
    plan.add_argument("--program", action="append", default=[], metavar="NAME", help="only this one of the table (repeatable)")
    plan.add_argument("--json", type=Path, default=None, metavar="FILE", help="write the rows there, anew after each program")
    _add_launch(commands.add_parser("launch", help="start the processes of a run, and all of them again when one dies"))
    _add_models(commands)
    _add_generate(commands)
    return parser


def _add_generate(commands: argparse._SubParsersAction) -> None:
    text = "answer prompts, or chat, with a checkpoint of a run or a Hugging Face folder"
    generate = commands.add_parser("generate", help=text, description=text)
    generate.add_argument("run", type=Path, nargs="?", metavar="RUN", help="the run's folder, for example runs/demo")
    generate.add_argument("--model", type=Path, metavar="FOLDER", help="instead of RUN: a Hugging Face folder")
    generate.add_argument("--adapter", type=Path, metavar="FOLDER", help="a PEFT adapter over --model")
    generate.add_argument(
        "--stage", choices=("base", "sft", "dpo", "rl", "rl_judge"), default="rl", help="whose weights of RUN (default: rl)"
    )  # fmt: skip
    generate.add_argument("--prompt", action="append", default=[], help="answer this (repeatable); without it: chat")
    generate.add_argument("--system", default="", help="a system prompt")
    generate.add_argument("--file", type=Path, metavar="FILE", help="answer the prompts of a file: JSON lines, JSON, CSV, parquet")
    generate.add_argument("--out", type=Path, metavar="FILE", help="where they go, one JSON line each; resumed, never overwritten")
    generate.add_argument("--batch-size", type=int, default=32, help="prompts of the file at a time (default: 32)")
    generate.add_argument("--samples", type=int, default=1, help="answers for each prompt (default: 1)")
    generate.add_argument("--temperature", type=float, default=0.7, help="0 = greedy (default: 0.7)")
    generate.add_argument("--top-p", type=float, default=1.0, help="nucleus mass (default: 1 = off)")
    generate.add_argument("--top-k", type=int, default=0, help="0 = off")
    generate.add_argument("--max-tokens", type=int, default=64, help="bound on an answer, in tokens (default: 64)")
    generate.add_argument("--seed", type=int, default=0)


def _add_models(commands: argparse._SubParsersAction) -> None:
    text = "check a Hugging Face folder and write it as a sharded checkpoint, for a faster start on many devices"
    imported = commands.add_parser("import", help=text, description=text)
    imported.add_argument("folder", type=Path, metavar="FOLDER", help="a folder with config.json, safetensors and tokenizer")
    imported.add_argument("--out", type=Path, required=True, help="the new folder; then --set model.init_from=OUT")
    imported.add_argument("--dtype", choices=("float32", "bfloat16"), default="", help="of the weights (default: as stored)")
    text = "write a model of a run as a Hugging Face folder, which transformers and vLLM load"
    exported = commands.add_parser("export", help=text, description=text)
    exported.add_argument("run", type=Path, metavar="RUN", help="the run's folder, for example runs/demo")
    exported.add_argument(
        "--stage", choices=("base", "sft", "feedback", "dpo", "rl", "rl_judge", "reward", "grader"), default="rl",
        help="whose weights (default: rl); reward and grader become sequence classifiers with one label",
    )  # fmt: skip
    exported.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="the new folder")
    exported.add_argument(
        "--dtype", choices=("float32", "bfloat16", "float16"), default="", help="default: as the run's start, or float32"
    )
    exported.add_argument("--adapter", action="store_true", help="of a run with a lora section: only the adapter, for PEFT")
    exported.add_argument("--max-shard-size", default="5GB", metavar="SIZE", help="of one weight file (default: 5GB)")


def _add_launch(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--local", type=int, default=0, metavar="N", help="N processes here, with virtual CPU devices (default: "
                        "one process, in the environment as it is: on each host of a TPU or GPU cluster)")  # fmt: skip
    parser.add_argument("--devices-per-process", type=int, default=1, metavar="M", help="virtual CPU devices of each (default: 1)")
    parser.add_argument("--restarts", type=int, default=5, help="restarts in a row before it gives up (default: 5)")
    parser.add_argument("--backoff", type=float, default=1.0, help="seconds before the first restart; doubled each time")
    parser.add_argument("--grace", type=float, default=60.0, help="seconds to save in, once told to stop (default: 60)")
    parser.epilog = "After -- stands an rlaif command: rlaif launch --local 2 --devices-per-process 4 -- run CONFIG --out DIR"


def _launch(args: argparse.Namespace, command: list[str]) -> int:
    from rlaif_jax.launch import Launch, supervise

    known = ("run", *_STAGE_HELP)
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


def _add_config(parser: argparse.ArgumentParser, out: bool = True) -> None:
    text = "a config file, or the name of a bundled one, for example greetings_demo"
    parser.add_argument("config", type=Path, metavar="CONFIG", help=text)
    if out:
        parser.add_argument("--out", type=Path, default=None, help="the run's folder (default: runs/<name of the config>)")
    parser.add_argument(
        "--set", action="append", default=[], dest="overrides", metavar="FIELD=VALUE",
        help="change one field of the config, for example --set rl.train.steps=20 (repeatable)",
    )  # fmt: skip


def main(argv: list[str] | None = None) -> int:
    """Runs one command; a user's mistake is one line on standard error and exit code 2.

    A run that is told to stop (SIGTERM) while it trains saves and ends with exit code 75: start the same command again.
    """
    argv = sys.argv[1:] if argv is None else argv
    end = argv.index("--") if argv[:1] == ["launch"] and "--" in argv else len(argv)
    args = _parser().parse_args(argv[:end])
    try:
        if args.command == "launch":
            return _launch(args, argv[end + 1 :])
        return _dispatch(args, Console(highlight=False))
    except UserError as error:
        print(f"rlaif: error: {error}", file=sys.stderr)
        return EXIT_USER_ERROR
    except Preempted as notice:
        print(f"rlaif: {notice}; the same command goes on from there", file=sys.stderr)
        return EXIT_RESTART
    except KeyboardInterrupt:
        print("rlaif: interrupted; the same command goes on from the last checkpoint", file=sys.stderr)
        return 130


def _dispatch(args: argparse.Namespace, console: Console) -> int:
    # Imported here: `rlaif --help` should not wait for jax.
    if args.command == "generate":
        from rlaif_jax.generate import run_generate

        run_generate(args, console)
        return 0
    if args.command == "import":
        from rlaif_jax.pretrained import run_import

        run_import(args, console)
        return 0
    if args.command == "export":
        from rlaif_jax.export import run_export

        run_export(args, console)
        return 0
    if args.command == "judge" and args.action == "score":
        from rlaif_jax.judge_score import run_score

        run_score(args, console)
        return 0
    from rlaif_jax import pipeline
    from rlaif_jax.config import load_config
    from rlaif_jax.dry_run import print_plan
    from rlaif_jax.experiment import open_experiment
    from rlaif_jax.launch import end_with_supervisor
    from rlaif_jax.sharding.distributed import init_distributed

    cfg = load_config(args.config, args.overrides)
    if args.command == "run" and args.dry_run:
        print_plan(cfg, console)
        return 0
    if args.command == "plan":
        from rlaif_jax.aot.plan import run_plan

        before = signal.signal(signal.SIGINT, signal.SIG_DFL)  # or Ctrl-C would wait until the compiler returns
        try:
            return 0 if run_plan(cfg, args.topology, args.program, args.json, console) else 1
        finally:
            signal.signal(signal.SIGINT, before)
    end_with_supervisor()
    processes = init_distributed(say=lambda text: print(f"rlaif: process 0 {text}", file=sys.stderr, flush=True))
    console.quiet = processes.index > 0
    experiment = open_experiment(cfg, args.out or Path("runs") / cfg.name, console)
    stages = pipeline.stages(cfg) if args.command == "run" else {args.command: pipeline.ALL_STAGES[args.command]}
    try:
        pipeline.run(experiment, stages)
    except Exception as error:
        if processes.count == 1 or isinstance(error, (UserError, Preempted)):
            raise
        # At an ordinary end JAX waits for the other processes, and they may wait in a collective for this one.
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)
    return 0


if __name__ == "__main__":
    sys.exit(main())
