"""Generates the corpus, a list of rows for each part, and writes its files."""

from __future__ import annotations

import dataclasses
import random
from pathlib import Path
from typing import Annotated, Any

from rlaif_jax import state_files
from rlaif_jax.data.corpus.corrupt import flawed_response
from rlaif_jax.data.corpus.flaws import RESPONSE_ONLY, applicable_flaws
from rlaif_jax.data.corpus.gold import gold_flaws
from rlaif_jax.data.corpus.requests import Request, sample_request
from rlaif_jax.data.corpus.responses import good_response
from rlaif_jax.ranges import Range, Share, check_fields

SECOND_FLAW_SHARE = 0.12
_TRIES = 200
Rows = Annotated[int, Range(0, 10_000_000)]


@dataclasses.dataclass(frozen=True)
class CorpusConfig:
    """Number of rows of each part of the bundled corpus, and their flaws.

    Attributes:
      sft, pairs, labelled, rl_prompts, eval_prompts: number of rows of this part.
      sft_flaw_rate: share of SFT answers with a flaw.
      sft_visible: share of the flawed SFT answers whose flaw can be seen without the request (stock phrases, adverts, no wish
        ...), as in texts from the web.
      visible: share of the bad answers of pairs and labelled rows whose flaw can be seen without the request.
    """

    sft: Rows = 12000
    pairs: Rows = 6000
    labelled: Rows = 3000
    rl_prompts: Rows = 2000
    eval_prompts: Rows = 400
    sft_flaw_rate: Share = 0.65
    sft_visible: Share = 0.7
    visible: Share = 0.45

    def __post_init__(self):
        check_fields(self)


@dataclasses.dataclass(frozen=True)
class Corpus:
    """Rows as dicts. No request text of a held-out part occurs in a training part.

    Attributes:
      sft, sft_val: {"prompt", "response", "meta"}.
      pairs, pairs_test: {"prompt", "chosen", "rejected", "meta"}.
      labelled, labelled_val, labelled_test: {"prompt", "response", "label", "flaws", "meta"}.
      prompts, eval_prompts: {"prompt", "meta"}.
    """

    sft: list[dict[str, Any]]
    sft_val: list[dict[str, Any]]
    pairs: list[dict[str, Any]]
    pairs_test: list[dict[str, Any]]
    labelled: list[dict[str, Any]]
    labelled_val: list[dict[str, Any]]
    labelled_test: list[dict[str, Any]]
    prompts: list[dict[str, Any]]
    eval_prompts: list[dict[str, Any]]


FILES = {
    "sft": "sft.jsonl", "sft_val": "sft_val.jsonl", "pairs": "pairs_train.jsonl", "pairs_test": "pairs_test.jsonl",
    "labelled": "labelled_train.jsonl", "labelled_val": "labelled_val.jsonl", "labelled_test": "labelled_test.jsonl",
    "prompts": "prompts.jsonl", "eval_prompts": "eval_prompts.jsonl",
}  # fmt: skip


def sample_flaw(rng: random.Random, request: Request, visible: float) -> str:
    """A random flaw that this request allows. A share `visible` of the flaws can be seen without the request."""
    weights = applicable_flaws(request)
    only = {f: w for f, w in weights.items() if f in RESPONSE_ONLY}
    relative = {f: w for f, w in weights.items() if f not in only}
    pool = only if not relative or (only and rng.random() < visible) else relative
    return rng.choices(list(pool), list(pool.values()))[0]


def bad_response(rng: random.Random, request: Request, visible: float, *, second: bool = False) -> str:
    """An answer with a random flaw; if `second`, sometimes with two."""
    for _ in range(_TRIES):
        flaw, extra = sample_flaw(rng, request, visible), ""
        if second and flaw not in RESPONSE_ONLY and rng.random() < SECOND_FLAW_SHARE:
            extra = rng.choice([f for f in ("repetition", "garbled", "unfinished") if f in applicable_flaws(request)])
        try:
            return flawed_response(rng, request, flaw, extra)
        except ValueError:
            continue
    raise ValueError(f"no flawed answer was found for the request {request}")


def generate(seed: int, sizes: CorpusConfig | None = None) -> Corpus:
    """The corpus for a seed. The same arguments give the same rows."""
    sizes = sizes or CorpusConfig()
    held_out: set[str] = set()
    fifth = sizes.labelled // 5
    counts = {"pairs": sizes.pairs // 10, "val": fifth, "test": fifth, "sft": sizes.sft // 20}
    requests = _Requests(random.Random(f"{seed}/requests"), held_out)
    eval_requests = requests.fresh(sizes.eval_prompts)
    pairs_test, val, test, sft_val = (requests.fresh(counts[name]) for name in ("pairs", "val", "test", "sft"))
    held_out.update(r.text for part in (eval_requests, pairs_test, val, test, sft_val) for r in part)
    labelled = requests.training(sizes.labelled - 2 * fifth)
    rngs = {name: random.Random(f"{seed}/{name}") for name in FILES}
    return Corpus(
        sft=_sft(rngs["sft"], requests.training(sizes.sft - counts["sft"]), sizes),
        sft_val=_sft(rngs["sft_val"], sft_val, sizes),
        pairs=_pairs(rngs["pairs"], requests.training(sizes.pairs - counts["pairs"]), sizes.visible),
        pairs_test=_pairs(rngs["pairs_test"], pairs_test, sizes.visible),
        labelled=_labelled(rngs["labelled"], labelled, sizes.visible),
        labelled_val=_labelled(rngs["labelled_val"], val, sizes.visible),
        labelled_test=_labelled(rngs["labelled_test"], test, sizes.visible),
        prompts=[_row(r) for r in requests.fresh(sizes.rl_prompts)],
        eval_prompts=[_row(r) for r in eval_requests],
    )


def write(corpus: Corpus, folder: str | Path) -> None:
    """Writes the parts as JSON lines (UTF-8) into `folder`, which is created if needed. `FILES` has their names."""
    for part, name in FILES.items():
        state_files.write_rows(Path(folder) / name, getattr(corpus, part))


class _Requests:
    """Draws new requests, or training requests whose texts are not in `held_out`."""

    def __init__(self, rng: random.Random, held_out: set[str]):
        self._rng, self._held_out, self._seen = rng, held_out, set()

    def fresh(self, count: int) -> list[Request]:
        """`count` requests with new texts."""
        found = []
        while len(found) < count:
            request = sample_request(self._rng)
            if request.text not in self._seen:
                self._seen.add(request.text)
                found.append(request)
        return found

    def training(self, count: int) -> list[Request]:
        """`count` requests whose texts are not held out; a text may occur twice."""
        found = []
        while len(found) < count:
            request = sample_request(self._rng)
            if request.text not in self._held_out:
                found.append(request)
        return found


def _row(request: Request, **columns: Any) -> dict[str, Any]:
    return {"prompt": request.text, **columns, "meta": request.to_meta()}


def _sft(rng: random.Random, requests: list[Request], sizes: CorpusConfig) -> list[dict[str, Any]]:
    def answer(request: Request) -> str:
        flawed = rng.random() < sizes.sft_flaw_rate
        return bad_response(rng, request, sizes.sft_visible) if flawed else good_response(rng, request)

    return [_row(r, response=answer(r)) for r in requests]


def _pairs(rng: random.Random, requests: list[Request], visible: float) -> list[dict[str, Any]]:
    return [_row(r, chosen=good_response(rng, r), rejected=bad_response(rng, r, visible, second=True)) for r in requests]


def _labelled(rng: random.Random, requests: list[Request], visible: float) -> list[dict[str, Any]]:
    rows = []
    for i, request in enumerate(requests):
        response = good_response(rng, request) if i % 2 else bad_response(rng, request, visible)
        flaws = list(gold_flaws(request, response))
        rows.append(_row(request, response=response, label=int(not flaws), flaws=flaws))
    rng.shuffle(rows)
    return rows
