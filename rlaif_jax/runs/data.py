"""The records and batches of one run, as its config names them."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable
from typing import Any

from rlaif_jax.config import DpoConfig, RewardConfig
from rlaif_jax.config.stages import CURATE, FEEDBACK, SFT, TOKENIZER, Stage, samples_prompts
from rlaif_jax.data import corpus, pipelines
from rlaif_jax.data.audit import without_leaks
from rlaif_jax.data.records import LabelledResponse, PreferencePair, Prompt, Record, SftExample, request_of
from rlaif_jax.data.rows import encode_sft, labelled_rows, pair_rows, sft_rows, verdict_rows
from rlaif_jax.data.streams import stream
from rlaif_jax.data.tokenizer import Segment, Tokenizer, chat_segment, encode_records
from rlaif_jax.errors import UserError
from rlaif_jax.feedback.curated_items import read_items
from rlaif_jax.feedback.principles import read_rules
from rlaif_jax.feedback.prompts import load_prompts
from rlaif_jax.feedback.transcripts import Transcript, VerdictPair, labelled_verdicts, write_transcripts, write_verdict_pairs
from rlaif_jax.language import Language, get_language
from rlaif_jax.runs.sources import RunSources
from rlaif_jax.sharding import host_rows

_SCRIPT_ROWS = 200  # prompts from which the language of a task is detected
_TOKENIZER_ROWS = 4000  # transcripts that a tokenizer is trained on


class RunData(RunSources):
    """Loads what a stage needs; reports rows that were skipped, leaked or too long."""

    @functools.cached_property
    def language(self) -> Language:
        """The task's language: as the config says, or by the script of the first prompts, those of RL where the config has any."""
        name = self._run.cfg.language
        if name != "auto":
            return get_language(name)
        prompts = self.records(Prompt, self._cfg.prompts if self.uses_prompts else self._cfg.eval_prompts)
        return get_language(name, "".join(r.prompt for r in prompts[:_SCRIPT_ROWS]))

    def prepare(self) -> dict[str, Any]:
        """Writes the bundled corpus where the config names no data of its own."""
        if self._cfg.root:
            return {"data": str(self.root)}
        corpus.write(corpus.generate(self._run.cfg.seed, self._cfg.corpus), self.root)
        return {"data": "bundled corpus"}

    def make_tokenizer(self) -> Tokenizer:
        """The tokenizer of the run, copied or trained into its folder."""
        folder, cfg = self._run.folder(TOKENIZER.name) / "tokenizer", self._run.cfg.tokenizer
        if source := cfg.path or self._run.cfg.model.start:
            tokenizer = Tokenizer.load(source)
            tokenizer.save(folder)
            return tokenizer
        texts = [t for r in self.records(SftExample, self._cfg.sft) for t in (r.prompt, r.response)]
        if self.reads_pairs:
            texts += [t for p in self.records(PreferencePair, self._cfg.pairs) for t in (p.prompt, p.chosen, p.rejected)]
        if self._run.cfg.embedded_feedback:
            rows, pairs = self.transcripts(_TOKENIZER_ROWS)
            rows = [*rows, *(side[0] for pair in pairs for side in pair)]
            texts += [text for r in rows for text in (*(m.content for m in r.messages), r.target)]
        return Tokenizer.train(texts, cfg.vocab_size, folder)

    def sft_batches(self, tokenizer: Tokenizer) -> tuple[Any, Callable[[], Iterable[dict]], dict[str, Any]]:
        """(training iterator, held-out pass, facts)."""
        cfg, seed = self._run.cfg.sft, self.seed(SFT, "rows")
        train, held_out = self.split(SftExample, self._cfg.sft, self._cfg.sft_eval)
        encoded = [encode_sft(part, tokenizer, cfg.max_length, field="sft.max_length") for part in (train, held_out)]
        self._too_long("SFT examples", encoded[0].dropped + encoded[1].dropped, cfg.max_length)
        rows, held_rows = (sft_rows(e, cfg.max_length, tokenizer.pad_id, packing=cfg.packing, seed=seed) for e in encoded)
        facts = {"examples": len(encoded[0]), "rows": len(rows), "held_out": len(encoded[1])}
        return *self._batches(rows, held_rows, cfg.train.batch_size, seed), facts

    def transcripts(self, most: int = 0) -> tuple[list[Transcript], list[VerdictPair]]:
        """The embedded feedback model's data: transcripts of every role, and pairs of verdicts; at most `most` of each (0: all).

        They contain no request of the evaluation, of the judge's held-out labelled rows, of the held-out pairs or of the grader.
        """
        cfg, judge = self._run.cfg.feedback, self._run.cfg.judge
        prompts, language = load_prompts(cfg.family(self.language)), self.language
        if cfg.source == "labelled":
            return labelled_verdicts(self.game_rows()[0], prompts, read_rules(judge.principles, language))
        rows = self.game_rows()[1:] if self.has_labels else ()
        graded = self.grader_rows()[0] if self._run.cfg.grader is not None and not self._run.cfg.grader.folder else []
        held_out = {r.prompt for part in (self.eval_prompts(), self.pairs()[2], graded, *rows) for r in part}
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

    def scalar_batches(self, cfg: RewardConfig, tokenizer: Tokenizer, seed: int, grader: bool = False):
        """(training iterator, held-out pass, facts) for pairs or labelled responses, of the reward model or of the grader.

        Held-out rows that also occur in the training files of this model, or of SFT, are left out.
        """
        make, leaked = (pair_rows if cfg.loss == "bradley_terry" else labelled_rows), 0
        if grader:
            train, held_out = self.grader_rows()
        elif cfg.loss == "bradley_terry":
            train, held_out = self.pairs()[0], self.require_held_out_pairs()
            leaked = len(self.pairs()[2]) - len(held_out)
        else:
            train, held_out = self.labelled()
        field = f"{'grader' if grader else 'reward'}.max_length"
        rows, held_rows = (make(part, tokenizer, cfg.max_length, field=field) for part in (train, held_out))
        self._too_long("answers", rows.dropped + held_rows.dropped, cfg.max_length)
        facts = {"examples": len(rows), "held_out": len(held_rows), "leaked_left_out": leaked}
        return *self._batches(rows, held_rows, cfg.train.batch_size, seed), facts

    def pair_batches(self, cfg: DpoConfig, tokenizer: Tokenizer, seed: int):
        """(training iterator, held-out pass, facts) for DPO: the reward model's pairs, with a loss mask on the answers."""
        parts = self.pairs()[0], self.require_held_out_pairs()
        encoded = (pair_rows(part, tokenizer, cfg.max_length, field="dpo.max_length") for part in parts)
        rows, held_rows = (dataclasses.replace(part, with_loss_mask=True) for part in encoded)
        self._too_long("answers", rows.dropped + held_rows.dropped, cfg.max_length)
        facts = {"examples": len(rows), "held_out": len(held_rows)}
        return *self._batches(rows, held_rows, cfg.train.batch_size, seed), facts

    @property
    def uses_prompts(self) -> bool:
        """Whether any stage samples answers to the RL prompts."""
        return samples_prompts(self._run.cfg)

    @property
    def reads_pairs(self) -> bool:
        """Whether the run reads `data.pairs`: curated pairs are enough for a reward model."""
        curate = self._run.cfg.curate
        return self.uses_pairs and (curate is None or curate.with_data_pairs or self._cfg.grader_share > 0)

    @property
    def uses_pairs(self) -> bool:
        """Whether any model of the run learns from the data's preference pairs."""
        cfg = self._run.cfg
        pairwise = [c for c in (cfg.reward, cfg.grader) if c is not None and not c.folder and c.loss == "bradley_terry"]
        return bool(pairwise) or cfg.dpo is not None or self._cfg.grader_share > 0

    def pairs(self) -> tuple[list[PreferencePair], list[PreferencePair], list[PreferencePair]]:
        """(pairs for the reward model, pairs of other prompts for the grader, held-out pairs); empty where no stage learns from
        pairs. Where curated pairs are all there is, a share of them is held out, unless there is a held-out file."""
        if not self.uses_pairs:
            return [], [], []
        if not self.reads_pairs:
            return self._only_curated()
        train, held_out = self.split(PreferencePair, self._cfg.pairs, self._cfg.pairs_eval)
        share = self._cfg.grader_share
        prompts = list(dict.fromkeys(p.prompt for p in train))
        apart = {q for i, q in enumerate(prompts) if int((i + 1) * share) > int(i * share)}
        own, kept_apart = [p for p in train if p.prompt not in apart], [p for p in train if p.prompt in apart]
        if self._run.cfg.curate:
            own = self.curated_pairs() + (own if self._run.cfg.curate.with_data_pairs else [])
        return own, kept_apart, held_out

    def _only_curated(self) -> tuple[list[PreferencePair], list[PreferencePair], list[PreferencePair]]:
        curated, held_out = self.curated_pairs(), self._cfg.pairs_eval
        if self.is_given(held_out):
            return curated, [], self.records(PreferencePair, held_out)
        if not self._run.is_done(CURATE.name):  # a stage before it, to which these pairs mean nothing
            return [], [], []
        train, held_out = self._held_out_share(curated, "the curated pairs")
        return train, [], held_out

    def require_held_out_pairs(self) -> list[PreferencePair]:
        """`held_out_pairs`, or a UserError that says why there are none."""
        found, every = self.held_out_pairs(), len(self.pairs()[2])
        if not found:
            raise UserError(
                f"data.pairs_eval: each of the {every} held-out pairs has an answer that is also in a training file (data.pairs, "
                "data.sft) for the same prompt, and is left out; give data.pairs_eval pairs with other answers"
            )
        return found

    def held_out_pairs(self) -> list[PreferencePair]:
        """Held-out pairs that occur in no training file of the reward model or of SFT."""
        train, _, held_out = self.pairs()
        return without_leaks(held_out, train, self.sft_examples())[0]

    def _parts_of_labelled(self) -> tuple[list[LabelledResponse], list[LabelledResponse]]:
        """The labelled training responses for the judge, and for the grader: of different prompts where both learn from them."""
        cfg, rows = self._run.cfg, self.labelled()[0]
        grader = cfg.grader is not None and not cfg.grader.folder and cfg.grader.loss == "binary"
        judge = cfg.judge is not None and (cfg.judge.game is not None or cfg.feedback.source == "labelled")
        if not (grader and judge):
            return rows, rows
        graders = set(list(dict.fromkeys(r.prompt for r in rows))[::2])
        return [r for r in rows if r.prompt not in graders], [r for r in rows if r.prompt in graders]

    def grader_rows(self) -> tuple[list, list]:
        """(training, held-out) rows of the grader: pairs or labelled responses, as its loss asks for.

        No answer in the training rows is in what an arm learns from (`training_of_arms`).
        """
        if self._run.cfg.grader.loss == "bradley_terry":
            own, kept_apart, held_out = self.pairs()
            train = kept_apart or ([] if self._arms_use_pairs else own)
        else:
            train, held_out = self._parts_of_labelled()[1], self.labelled()[1]
        seen = self.training_of_arms().values()
        apart, leaked = without_leaks(train, *seen)
        if leaked:  # with all rows of their prompts, so that good and bad answers stay balanced
            kept = {id(r) for r in apart}
            mixed = {r.prompt for r in train if id(r) not in kept}
            apart = [r for r in apart if r.prompt not in mixed]
            lost = len(train) - len(apart)
            self._say(f"grader: {lost} of {len(train)} rows left out: an arm learns from an answer to their prompt")
        return apart, without_leaks(held_out, apart, *seen)[0]

    def training_of_arms(self) -> dict[str, list]:
        """What the arms learn from, by name: SFT's targets, pairs of the reward model and of DPO (curated ones too), labelled
        responses of the judge."""
        cfg = self._run.cfg
        found: dict[str, list] = {"SFT examples": self.sft_examples()}
        if self._arms_use_pairs:
            found["preference pairs"] = self.pairs()[0]
        if cfg.judge is not None and self.has_labels and (cfg.judge.game is not None or cfg.feedback.source == "labelled"):
            found["judge"] = [r for part in self.game_rows()[:2] for r in part]
        return found

    @property
    def _arms_use_pairs(self) -> bool:
        """Whether the reward model or DPO learns from the preference pairs."""
        reward = self._run.cfg.reward
        trains = reward is not None and not reward.folder and reward.loss == "bradley_terry"
        return trains or self._run.cfg.dpo is not None

    def reference_answers(self, most: int) -> list[SftExample]:
        """Held-out requests, at most `most`, with the data's own best answer: chosen ones of held-out pairs, then held-out SFT
        examples. None of the requests is trained on."""
        prompts = self.records(Prompt, self._cfg.prompts) if self.uses_prompts else []
        seen = {r.prompt for r in prompts}
        found: dict[str, SftExample] = {}
        for pair in self.held_out_pairs():
            if not pair.history:
                found.setdefault(pair.prompt, SftExample(pair.prompt, pair.chosen, pair.system))
        if self._run.cfg.sft is not None:
            train, held_out = self.split(SftExample, self._cfg.sft, self._cfg.sft_eval)
            seen = {r.prompt for r in (*prompts, *train)}
            for example in held_out:
                if not example.history:
                    found.setdefault(example.prompt, example)
        return [e for prompt, e in found.items() if prompt not in seen][:most]

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
        return self._cfg.grader_share > 0 or self.is_given(self._cfg.labelled)

    def labelled(self) -> tuple[list[LabelledResponse], list[LabelledResponse]]:
        """(training, held-out) labelled responses for the grader. None occurs in a training file of the reward model.

        With `data.grader_share` they are both sides of the grader's pairs and of the held-out pairs. Otherwise they come from the
        labelled files, without rows that SFT trains on.
        """
        data, seen = self._cfg, self._learned()
        if data.grader_share:
            _, grader_pairs, pairs_eval = self.pairs()
            train, held_out = _sides(grader_pairs), _sides(pairs_eval)
        else:
            train, held_out = self.split(LabelledResponse, data.labelled, data.labelled_eval)
        (train, a), (held_out, b) = (without_leaks(part, *seen) for part in (train, held_out))
        held_out, c = without_leaks(held_out, train)
        if a + b + c:
            self._say(f"labelled responses: {a + b + c} leaked rows left out (they also occur in the training files)")
        return train, held_out

    def _learned(self) -> list[list[Record]]:
        """What a labelled response must not occur in: the reward model's pairs, and the SFT examples beside labelled files."""
        return [self.pairs()[0], *([] if self._cfg.grader_share else [self.sft_examples()])]

    def game_rows(self) -> tuple[list[LabelledResponse], list[LabelledResponse], list[LabelledResponse]]:
        """Labelled responses for the judge's game: (to reflect on, for its gate, held-out test rows). The judge rates answers to
        single requests, so rows with earlier turns are left out."""
        train, test = (self._single(part) for part in (self._parts_of_labelled()[0], self.labelled()[1]))
        if self.is_given(self._cfg.labelled_val) and not self._cfg.grader_share:
            gate, leaked = without_leaks(self.records(LabelledResponse, self._cfg.labelled_val), *self._learned(), train, test)
            if leaked:
                self._say(f"data.labelled_val: {leaked} leaked rows left out (they also occur in other files)")
            return train, self._single(gate), test
        prompts = list(dict.fromkeys(r.prompt for r in train))
        gate = set(prompts[-max(len(prompts) // 5, 1) :])
        return [r for r in train if r.prompt not in gate], [r for r in train if r.prompt in gate], test

    def _single(self, rows: list[LabelledResponse]) -> list[LabelledResponse]:
        single = [r for r in rows if not r.history]
        if len(single) < len(rows):
            self._say(f"labelled responses: {len(rows) - len(single)} with earlier turns are not for the judge, and left out")
        return single

    def rl_prompts(self, held_out: int) -> tuple[list[Prompt], list[Prompt], dict[str, Any]]:
        """(training prompts, the last `held_out` prompts, which evaluations during training use, facts). A prompt that occurs
        several times is either trained on or held out."""
        records = self.records(Prompt, self._cfg.prompts)
        requests = list(dict.fromkeys(map(request_of, records)))
        if held_out < 1:
            raise UserError(f"rl.eval_prompts is {held_out}: RL measures its reward on held-out prompts; set it to at least 1")
        if len(requests) < 2:
            raise UserError("data.prompts: it has one prompt, and RL holds one out (rl.eval_prompts): give at least 2 prompts")
        last = set(requests[-min(held_out, len(requests) // 10 or 1) :])
        train, apart = [r for r in records if request_of(r) not in last], [r for r in records if request_of(r) in last]
        return train, apart, {"prompts": len(train), "held_out": len(apart)}

    def eval_prompts(self) -> list[Prompt]:
        """Held-out prompts for the comparison, each once, without those that a stage trains on."""
        limit, records = self._run.cfg.evaluation.limit, self.records(Prompt, self._cfg.eval_prompts)
        seen = {request_of(r) for part in self._trained_on() for r in part}
        unique = list({request_of(r): r for r in records if request_of(r) not in seen}.values())
        if not unique:
            raise UserError(
                f"data.eval_prompts: each of its {len(records)} prompts is also in a training file (data.prompts, data.sft, "
                "data.pairs); give it prompts that no stage trains on"
            )
        return unique[: limit or None]

    def _trained_on(self) -> list[list[Record]]:
        prompts = self.records(Prompt, self._cfg.prompts) if self.uses_prompts else []
        pairs = self.records(PreferencePair, self._cfg.pairs) if self.reads_pairs else []
        return [prompts, self.sft_examples(), pairs]

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


def _sides(pairs: list[PreferencePair]) -> list[LabelledResponse]:
    """Both answers of each pair, the chosen one labelled 1."""
    return [
        LabelledResponse(p.prompt, text, label, p.system, history=p.history)
        for p in pairs for text, label in ((p.chosen, 1), (p.rejected, 0))
    ]  # fmt: skip
