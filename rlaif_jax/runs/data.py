"""The records and batches of one run, as its config names them."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from rlaif_jax.config import DpoConfig, RewardConfig, SourceConfig
from rlaif_jax.config.stages import CURATE, FEEDBACK, SFT, TOKENIZER, Stage
from rlaif_jax.data import corpus, pipelines
from rlaif_jax.data.audit import without_leaks
from rlaif_jax.data.records import LabelledResponse, PreferencePair, Prompt, Record, SftExample
from rlaif_jax.data.rows import encode_sft, labelled_rows, pair_rows, sft_rows, verdict_rows
from rlaif_jax.data.sources import load
from rlaif_jax.data.streams import stream
from rlaif_jax.data.tokenizer import Segment, Tokenizer, chat_segment, encode_records
from rlaif_jax.errors import UserError
from rlaif_jax.feedback.curate import read_items
from rlaif_jax.feedback.principles import read_rules
from rlaif_jax.feedback.prompts import load_prompts
from rlaif_jax.feedback.transcripts import Transcript, VerdictPair, labelled_verdicts, write_transcripts, write_verdict_pairs
from rlaif_jax.language import Language, get_language
from rlaif_jax.runs.folder import Run
from rlaif_jax.sharding import host_rows

_SCRIPT_ROWS = 200  # prompts from which the language of a task is detected
_TOKENIZER_ROWS = 4000  # transcripts that a tokenizer is trained on


class RunData:
    """Loads what a stage needs; reports rows that were skipped, leaked or too long."""

    def __init__(self, run: Run):
        self._run, self._cfg = run, run.cfg.data

    @property
    def root(self) -> Path:
        """The folder of the data files."""
        return Path(self._cfg.root).expanduser() if self._cfg.root else self._run.folder(TOKENIZER.name) / "corpus"

    @functools.cached_property
    def language(self) -> Language:
        """The task's language: as the config says, or by the script of the first RL prompts."""
        name = self._run.cfg.language
        return get_language(name, "" if name != "auto" else "".join(r.prompt for r in self._some_prompts()))

    def _some_prompts(self) -> list[Prompt]:
        source = self._cfg.prompts
        return self.records(Prompt, dataclasses.replace(source, limit=min(source.limit or _SCRIPT_ROWS, _SCRIPT_ROWS)))

    def require_files(self) -> None:
        """UserError that names the field and the file, where a data file that every run of this config reads is missing."""
        cfg, data = self._run.cfg, self._cfg
        fields = ["prompts", "eval_prompts", *(["sft", "sft_eval"] if cfg.sft is not None else [])]
        fields += ["pairs", "pairs_eval"] if self.uses_pairs else []
        for field in fields if data.root else ():
            path = getattr(data, field).path
            if path and not path.startswith("tfds:") and not (self.root / path).exists():
                held_out = f"; for a held-out share of the training file: data.{field}.path=''" if field.endswith("_eval") else ""
                raise UserError(f"data.{field}: {self.root / path} does not exist{'' if field == 'eval_prompts' else held_out}")

    def prepare(self) -> dict[str, Any]:
        """Writes the bundled corpus where the config names no data of its own."""
        if self._cfg.root:
            return {"data": str(self.root)}
        corpus.write(corpus.generate(self._run.cfg.seed, self._cfg.corpus), self.root)
        return {"data": "bundled corpus"}

    def make_tokenizer(self) -> Tokenizer:
        """The tokenizer of the run, copied or trained into its folder."""
        folder, cfg = self._run.folder(TOKENIZER.name) / "tokenizer", self._run.cfg.tokenizer
        if source := cfg.path or self._run.cfg.model.init_from:
            tokenizer = Tokenizer.load(source)
            tokenizer.save(folder)
            return tokenizer
        texts = [t for r in self.records(SftExample, self._cfg.sft) for t in (r.prompt, r.response)]
        if self.uses_pairs:
            texts += [t for p in self.records(PreferencePair, self._cfg.pairs) for t in (p.prompt, p.chosen, p.rejected)]
        if self._run.cfg.embedded_feedback:
            rows, pairs = self.transcripts(_TOKENIZER_ROWS)
            rows = [*rows, *(side[0] for pair in pairs for side in pair)]
            texts += [text for r in rows for text in (*(m.content for m in r.messages), r.target)]
        return Tokenizer.train(texts, cfg.vocab_size, folder)

    def records(self, kind: type, source: SourceConfig) -> list[Record]:
        """All records of one source, problems reported."""
        path = source.path if source.path.startswith("tfds:") else self.root / source.path
        loaded = load(
            kind, path, format=source.format, columns=source.columns, prefix=source.prefix, limit=source.limit,
            on_error=source.on_error,
        )  # fmt: skip
        if loaded.skipped:
            self._say(f"{source.path}: {len(loaded.skipped)} rows skipped, the first: {loaded.skipped[0]}")
        return loaded.records

    def split(self, kind: type, train: SourceConfig, held_out: SourceConfig) -> tuple[list[Record], list[Record]]:
        """Training and held-out records; without a held-out file, the last part of the training file, by prompt."""
        records = self.records(kind, train)
        if held_out.path:
            return records, self.records(kind, held_out)
        prompts = list(dict.fromkeys(r.prompt for r in records))
        last = set(prompts[-max(int(len(prompts) * self._cfg.eval_fraction), 1) :])
        return [r for r in records if r.prompt not in last], [r for r in records if r.prompt in last]

    def sft_batches(self, tokenizer: Tokenizer) -> tuple[Any, Callable[[], Iterable[dict]], dict[str, Any]]:
        """(training iterator, held-out pass, facts)."""
        cfg, seed = self._run.cfg.sft, self.seed(SFT, "rows")
        train, held_out = self.split(SftExample, self._cfg.sft, self._cfg.sft_eval)
        encoded = [encode_sft(part, tokenizer, cfg.max_length) for part in (train, held_out)]
        self._too_long("SFT examples", encoded[0].dropped + encoded[1].dropped, cfg.max_length)
        rows, held_rows = (sft_rows(e, cfg.max_length, tokenizer.pad_id, packing=cfg.packing, seed=seed) for e in encoded)
        facts = {"examples": len(encoded[0]), "rows": len(rows), "held_out": len(encoded[1])}
        return *self._batches(rows, held_rows, cfg.train.batch_size, seed), facts

    def transcripts(self, most: int = 0) -> tuple[list[Transcript], list[VerdictPair]]:
        """The embedded feedback model's data: transcripts of every role, and pairs of verdicts; at most `most` of each (0: all).

        They contain no request of the evaluation or of the judge's labelled rows.
        """
        cfg, judge = self._run.cfg.feedback, self._run.cfg.judge
        prompts, language = load_prompts(cfg.family(self.language)), self.language
        if cfg.source == "labelled":
            return labelled_verdicts(self.game_rows()[0], prompts, read_rules(judge.principles, language))
        held_out = {r.prompt for part in (self.eval_prompts(), *self.game_rows()[1:]) for r in part}
        limit = judge.game.limit if judge.game else len(read_rules(judge.principles, language))
        together = 1 if judge.mode == "checklist" else limit  # principles that the judge is asked about at one time
        seed, count, pairs = self._run.cfg.seed, cfg.transcripts, cfg.verdict_pairs
        return (
            write_transcripts(seed, min(count, most or count), prompts, limit, held_out, together),
            write_verdict_pairs(seed, min(pairs, most or pairs), prompts, limit, held_out, together, questions=cfg.questions),
        )

    def feedback_batches(self, tokenizer: Tokenizer) -> tuple[Any, Callable[[], Iterable[dict]], dict[str, Any]]:
        """(training iterator, held-out pass, facts) for the embedded feedback model.

        A training batch is {"roles": packed transcripts, "verdicts": pairs}; the held-out pass has the pairs only.
        """
        cfg, seed = self._run.cfg.feedback, self.seed(FEEDBACK, "roles")
        transcripts, pairs = self.transcripts()
        held = len(pairs) // 20 or 1

        pair_length = cfg.pair_max_length or cfg.max_length

        def line(t: Transcript) -> Segment:
            return chat_segment(tokenizer, t.messages, t.target)

        roles = encode_records(transcripts, lambda t: [line(t)], cfg.max_length, "drop", "transcripts")
        role_rows = sft_rows(roles, cfg.max_length, tokenizer.pad_id, packing=True, seed=seed)
        verdicts, held_rows = (
            verdict_rows([[[line(t) for t in side] for side in p] for p in part], pair_length, tokenizer.pad_id)
            for part in (pairs[held:], pairs[:held])
        )
        self._too_long("transcripts", roles.dropped, cfg.max_length)
        self._too_long("pairs of verdicts", verdicts.dropped + held_rows.dropped, pair_length)
        role_batches, _ = self._batches(role_rows, role_rows, cfg.train.batch_size, seed)
        pair_batches, held_pass = self._batches(verdicts, held_rows, cfg.pair_batch_size, self.seed(FEEDBACK, "pairs"))
        facts = {"transcripts": len(roles), "verdict_pairs": len(verdicts), "held_out": len(held_rows)}
        joined = pipelines.JoinedBatches({"roles": role_batches, "verdicts": pair_batches})
        return joined, lambda: ({"verdicts": b} for b in held_pass()), facts

    def scalar_batches(self, cfg: RewardConfig, tokenizer: Tokenizer, seed: int):
        """(training iterator, held-out pass, facts) for pairs or labelled responses.

        Held-out rows that also occur in the training files of this model, or of SFT, are left out.
        """
        if cfg.loss == "bradley_terry":
            train, _, every = self.pairs()
            held_out = self.held_out_pairs()
            leaked = len(every) - len(held_out)
            make = pair_rows
        else:
            train, held_out = self.labelled()
            leaked = 0
            make = labelled_rows
        rows, held_rows = (make(part, tokenizer, cfg.max_length) for part in (train, held_out))
        self._too_long("answers", rows.dropped + held_rows.dropped, cfg.max_length)
        facts = {"examples": len(rows), "held_out": len(held_rows), "leaked_left_out": leaked}
        return *self._batches(rows, held_rows, cfg.train.batch_size, seed), facts

    def pair_batches(self, cfg: DpoConfig, tokenizer: Tokenizer, seed: int):
        """(training iterator, held-out pass, facts) for DPO: the reward model's pairs, with a loss mask on the answers."""
        parts = self.pairs()[0], self.held_out_pairs()
        rows, held_rows = (dataclasses.replace(pair_rows(part, tokenizer, cfg.max_length), with_loss_mask=True) for part in parts)
        self._too_long("answers", rows.dropped + held_rows.dropped, cfg.max_length)
        facts = {"examples": len(rows), "held_out": len(held_rows)}
        return *self._batches(rows, held_rows, cfg.train.batch_size, seed), facts

    @property
    def uses_pairs(self) -> bool:
        """Whether any model of the run learns from the data's preference pairs."""
        cfg = self._run.cfg
        pairwise = [c for c in (cfg.reward, cfg.grader) if c is not None and not c.folder and c.loss == "bradley_terry"]
        return bool(pairwise) or cfg.dpo is not None or self._cfg.grader_share > 0

    def pairs(self) -> tuple[list[PreferencePair], list[PreferencePair], list[PreferencePair]]:
        """(pairs for the reward model, pairs of other prompts for the grader, held-out pairs); empty where no stage learns from
        pairs."""
        if not self.uses_pairs:
            return [], [], []
        train, held_out = self.split(PreferencePair, self._cfg.pairs, self._cfg.pairs_eval)
        share = self._cfg.grader_share
        prompts = list(dict.fromkeys(p.prompt for p in train))
        apart = {q for i, q in enumerate(prompts) if int((i + 1) * share) > int(i * share)}
        own, kept_apart = [p for p in train if p.prompt not in apart], [p for p in train if p.prompt in apart]
        if self._run.cfg.curate:
            own = self.curated_pairs() + (own if self._run.cfg.curate.with_data_pairs else [])
        return own, kept_apart, held_out

    def held_out_pairs(self) -> list[PreferencePair]:
        """Held-out pairs that occur in no training file of the reward model or of SFT."""
        train, _, held_out = self.pairs()
        return without_leaks(held_out, train, self.sft_examples())[0]

    def sft_examples(self) -> list[SftExample]:
        """The examples of SFT; empty for a run without SFT."""
        return [] if self._run.cfg.sft is None else self.records(SftExample, self._cfg.sft)

    def curated_pairs(self) -> list[PreferencePair]:
        """The pairs that the stage "curate" has found so far."""
        items = read_items(self._run.folder(CURATE.name) / "items.jsonl")
        return [PreferencePair(**pair) for item in items for pair in item["pairs"]]

    @property
    def has_labels(self) -> bool:
        """Whether there are labelled responses: from the grader's pairs, or in a file that exists."""
        source = self._cfg.labelled.path
        return self._cfg.grader_share > 0 or bool(source and (source.startswith("tfds:") or (self.root / source).exists()))

    def labelled(self) -> tuple[list[LabelledResponse], list[LabelledResponse]]:
        """(training, held-out) labelled responses for the grader. None occurs in a training file of the reward model.

        With `data.grader_share` they are both sides of the grader's pairs and of the held-out pairs. Otherwise they come from the
        labelled files, without rows that SFT trains on.
        """
        data = self._cfg
        reward_pairs, grader_pairs, pairs_eval = self.pairs()
        if data.grader_share:
            train, held_out, seen = _sides(grader_pairs), _sides(pairs_eval), [reward_pairs]
        else:
            train, held_out = self.split(LabelledResponse, data.labelled, data.labelled_eval)
            seen = [reward_pairs, self.sft_examples()]
        (train, a), (held_out, b) = (without_leaks(part, *seen) for part in (train, held_out))
        held_out, c = without_leaks(held_out, train)
        if a + b + c:
            self._say(f"labelled responses: {a + b + c} leaked rows left out (they also occur in the training files)")
        return train, held_out

    def game_rows(self) -> tuple[list[LabelledResponse], list[LabelledResponse], list[LabelledResponse]]:
        """Labelled responses for the judge's game: (to reflect on, for its gate, held-out test rows)."""
        train, test = self.labelled()
        if self._cfg.labelled_val.path and not self._cfg.grader_share:
            return train, self.records(LabelledResponse, self._cfg.labelled_val), test
        prompts = list(dict.fromkeys(r.prompt for r in train))
        gate = set(prompts[-max(len(prompts) // 5, 1) :])
        return [r for r in train if r.prompt not in gate], [r for r in train if r.prompt in gate], test

    def rl_prompts(self, held_out: int) -> tuple[list[Prompt], list[Prompt], dict[str, Any]]:
        """(training prompts, the last `held_out` prompts, which evaluations during training use, facts)."""
        records = self.records(Prompt, self._cfg.prompts)
        held_out = min(held_out, len(records) // 10 or 1)
        return records[:-held_out], records[-held_out:], {"prompts": len(records) - held_out, "held_out": held_out}

    def eval_prompts(self) -> list[Prompt]:
        """Held-out prompts for the comparison, without those that are also RL prompts. Another system turn makes another prompt."""
        limit = self._run.cfg.evaluation.limit
        seen = {(r.prompt, r.system) for r in self.records(Prompt, self._cfg.prompts)}
        unique = {(r.prompt, r.system): r for r in self.records(Prompt, self._cfg.eval_prompts)}
        return [r for key, r in unique.items() if key not in seen][: limit or None]

    def seed(self, stage: Stage, use: str) -> int:
        """The seed of one use of randomness in a stage."""
        return stream(self._run.cfg.seed, f"{stage.name}/{use}")

    def _batches(self, rows, held_rows, batch_size: int, seed: int):
        mine = host_rows(self._run.place, batch_size)
        train = pipelines.train_batches(rows, batch_size=batch_size, seed=seed, mine=mine)
        return train, lambda: pipelines.eval_batches(held_rows, batch_size, mine=mine)

    def _too_long(self, what: str, count: int, max_length: int) -> None:
        if count:
            self._say(f"{count} {what} are longer than {max_length} tokens and left out")

    def _say(self, text: str) -> None:
        self._run.console.print(text, highlight=False, markup=False)


def _sides(pairs: list[PreferencePair]) -> list[LabelledResponse]:
    """Both answers of each pair, the chosen one labelled 1."""
    return [LabelledResponse(p.prompt, text, label, p.system) for p in pairs for text, label in ((p.chosen, 1), (p.rejected, 0))]
