"""`rlaif generate --file`: answers every prompt of a file. It can be interrupted and resumed, and overwrites nothing."""

from __future__ import annotations

import dataclasses
import json
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from rich.console import Console
from rich.progress import track

from rlaif_jax import state_files
from rlaif_jax.data.records import Prompt
from rlaif_jax.data.sources import load
from rlaif_jax.errors import UserError
from rlaif_jax.models import transformer
from rlaif_jax.runs.chat_model import ChatModel, chat_messages
from rlaif_jax.runs.folder import write_json
from rlaif_jax.sampling.decode import Decoded
from rlaif_jax.sampling.filters import SamplingConfig, traced
from rlaif_jax.sampling.sampler import make_sampler


def answer_file(
    model: ChatModel, path: Path, out: Path, sampling: SamplingConfig, *, samples: int = 1, seed: int = 0, system: str = "",
    batch_size: int = 32, columns: Mapping[str, str] | None = None, console: Console,
) -> None:  # fmt: skip
    """Writes one JSON line per prompt: prompt, system, responses, and whether each response is finished.

    `columns`: field -> column of the file, where their names differ.

    A prompt that is too long has an "error" instead of responses. After an interruption, the same command continues. The
    answers depend on seed and row, not on the batch size. UserError if `out` was written with other settings.
    """
    rows = load(Prompt, path, columns=columns).records
    rows = [dataclasses.replace(r, system=r.system or system) for r in rows]
    settings = {
        "model": model.name, "prompts": zlib.crc32(json.dumps([(r.prompt, r.system) for r in rows]).encode()),
        "sampling": dataclasses.asdict(sampling), "samples": samples, "seed": seed,
    }  # fmt: skip
    there = resume(out, settings)
    sampler = make_sampler(
        model.cfg, transformer.logical_axes(model.cfg), model.place, group=samples, max_tokens=sampling.max_tokens,
        pad_id=model.tokenizer.pad_id,
    )  # fmt: skip
    values = traced(sampling, model.tokenizer.eos_ids)

    def draw(tokens: jax.Array, segment_ids: jax.Array, first_key: int) -> Decoded:
        """Row i of the file uses the random keys i * samples to (i + 1) * samples - 1."""
        return sampler(model.params, tokens, segment_ids, seed, 0, values, first_key)

    size = -(-batch_size // model.place.row_shards) * model.place.row_shards
    with out.open("a", encoding="utf-8") as file:
        for start in track(range(there, len(rows), size), "generate", console=console, transient=True):
            lines = _answer(model, draw, rows[start : start + size], start * samples, size)
            file.writelines(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
            file.flush()
    console.print(f"{len(rows)} prompts answered ({there} of them before); written to {out}", soft_wrap=True, markup=False)


def _answer(
    model: ChatModel, draw: Callable[..., Decoded], rows: Sequence[Prompt], first_key: int, size: int
) -> list[dict[str, Any]]:
    """The lines of one batch of `size` rows. draw(tokens, segment_ids, first key) samples the answers, grouped by row."""
    encoded: list[list[int] | None] = []
    lines: list[dict[str, Any]] = [{"prompt": r.prompt, "system": r.system} for r in rows]
    for row, line in zip(rows, lines, strict=True):
        try:
            encoded.append(model.encode(chat_messages(row.prompt, row.system)))
        except UserError as error:
            line["error"] = str(error)
            encoded.append(None)
    if all(ids is None for ids in encoded):
        return lines
    some = next(ids for ids in encoded if ids is not None)
    batch = model.batch([some if ids is None else ids for ids in encoded], size)
    decoded = jax.device_get(draw(*batch, first_key))
    samples = len(decoded.finished) // size
    for i, (ids, line) in enumerate(zip(encoded, lines, strict=True)):
        if ids is not None:
            mine = range(i * samples, (i + 1) * samples)
            texts = (model.tokenizer.decode(decoded.tokens[j][decoded.mask[j] > 0]) for j in mine)
            line["responses"] = [text.replace("\0", "\ufffd") for text in texts]  # no reader of data takes NUL
            line["finished"] = [bool(decoded.finished[j]) for j in mine]
    return lines


def resume(out: Path, settings: dict[str, Any]) -> int:
    """The number of lines in an `out` with the same settings. An incomplete last line, left by a killed run, is deleted."""
    beside = out.with_name(out.name + ".settings.json")
    if not out.exists():
        out.parent.mkdir(parents=True, exist_ok=True)
        write_json(beside, settings)
        out.touch()
        return 0
    found = state_files.read_json(beside) if beside.exists() else {}
    if changed := sorted(k for k in settings if found.get(k) != settings[k]):
        raise UserError(f"{out} was written with other settings ({', '.join(changed)}); choose another --out or move it away")
    whole, newline, _ = out.read_bytes().rpartition(b"\n")
    with out.open("r+b") as file:
        file.truncate(len(whole) + len(newline))
    return whole.count(b"\n") + 1 if newline else 0
