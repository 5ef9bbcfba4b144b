"""The bundled corpus: coverage, determinism, splits, and how little of a label the response alone gives away."""

from __future__ import annotations

import json
import random
import statistics

import pytest

from rlaif_jax.data import corpus
from rlaif_jax.data.corpus import gold, recipients, requests, responses

SIZES = corpus.CorpusConfig(sft=1000, pairs=1000, labelled=5000, rl_prompts=400, eval_prompts=200)


@pytest.fixture(scope="module")
def made() -> corpus.Corpus:
    return corpus.generate(0, SIZES)


def _labelled(made: corpus.Corpus) -> list[dict]:
    return made.labelled + made.labelled_val + made.labelled_test


def test_coverage():
    assert len(corpus.OCCASIONS) >= 20 and len(corpus.RECIPIENTS) >= 15 and len(corpus.FLAWS) >= 12
    assert len({t for ts in requests.TEMPLATES.values() for t in ts}) >= 25
    assert sum(f.request_relative for f in corpus.FLAWS.values()) >= 8
    for name, row in corpus.OCCASIONS.items():
        assert len(row.images) >= 5 and len(row.wishes) >= 5 and len(row.fours) >= 4, name
        assert all(thing in clause for thing, clause in row.images.items()), name
        assert all(len(four) == 4 for four in row.fours), name
        assert any(recipients.fits(r, name) for r in corpus.RECIPIENTS), name
    assert not recipients.fits("老板", "母亲节")


def test_more_than_a_million_good_answers():
    # address, opening, image, wish with its head, closing: a lower bound, without second wishes, topics and orders
    count = 0
    for name, row in corpus.OCCASIONS.items():
        for recipient, (group, addresses) in corpus.RECIPIENTS.items():
            if recipients.fits(recipient, name):
                wishes = 3 * len(row.wishes) * len(recipients.GROUP_WISHES[group])
                frame = len(addresses) * len(row.openings) * len(recipients.CLOSINGS["温馨"])
                count += frame * len(row.images) * wishes
    assert count > 10**6


def test_requests_are_varied_short_and_survive_meta():
    rng = random.Random(1)
    found = [corpus.sample_request(rng) for _ in range(2000)]
    assert {r.occasion for r in found} == set(corpus.OCCASIONS)
    assert {r.recipient for r in found} == set(corpus.RECIPIENTS)
    assert {r.constraint[0] for r in found if r.constraint} == set(requests.CONSTRAINTS)
    assert 0.4 < sum(r.constraint is not None for r in found) / len(found) < 0.6
    assert max(len(r.text) for r in found) <= 32 and statistics.mean(len(r.text) for r in found) < 22
    for request in found[:200]:
        meta = json.loads(json.dumps(request.to_meta(), ensure_ascii=False))
        assert corpus.Request.from_meta(meta) == request
        assert recipients.fits(request.recipient, request.occasion)


def test_same_seed_same_rows():
    sizes = corpus.CorpusConfig(40, 40, 40, 40, 40)
    assert corpus.generate(3, sizes) == corpus.generate(3, sizes)
    assert corpus.generate(3, sizes) != corpus.generate(4, sizes)


def test_files_and_splits(made, tmp_path):
    corpus.write(made, tmp_path / "new")
    rows = {}
    for part, name in corpus.FILES.items():
        lines = (tmp_path / "new" / name).read_text(encoding="utf-8").splitlines()
        rows[part] = [json.loads(line) for line in lines]
        assert rows[part] == getattr(made, part)
    sizes = {part: len(found) for part, found in rows.items()}
    assert sizes == {"sft": 950, "sft_val": 50, "pairs": 900, "pairs_test": 100, "labelled": 3000, "labelled_val": 1000,
                     "labelled_test": 1000, "prompts": 400, "eval_prompts": 200}  # fmt: skip
    trained = {row["prompt"] for part in ("sft", "pairs", "labelled", "prompts") for row in rows[part]}
    held = [row["prompt"] for part in ("sft_val", "pairs_test", "labelled_val", "labelled_test", "eval_prompts")
            for row in rows[part]]  # fmt: skip
    assert not trained & set(held) and len(held) == len(set(held))


def test_rows_agree_with_the_gold_scorer(made):
    for row in _labelled(made):
        request = corpus.Request.from_meta(row["meta"])
        assert request.text == row["prompt"]
        assert row["flaws"] == list(corpus.gold_flaws(request, row["response"])) and row["label"] == (not row["flaws"])
    for row in made.pairs + made.pairs_test:
        request = corpus.Request.from_meta(row["meta"])
        assert corpus.is_excellent(request, row["chosen"]) and not corpus.is_excellent(request, row["rejected"])
    good = [corpus.is_excellent(corpus.Request.from_meta(r["meta"]), r["response"]) for r in made.sft]
    assert abs(statistics.mean(good) - (1 - SIZES.sft_flaw_rate)) < 0.06


def test_sizes_of_texts(made):
    chars = [len(row["response"]) for row in _labelled(made) if row["label"]]
    assert 25 < statistics.mean(chars) < 42 and max(chars) < 110
    chosen, rejected = (statistics.mean(len(row[key]) for row in made.pairs) for key in ("chosen", "rejected"))
    assert abs(chosen - rejected) < 2.5
    assert responses.LONGEST < gold.MAX_CHARS


def test_length_does_not_tell_the_label(made):
    rows = [(len(row["response"]), row["label"]) for row in _labelled(made)]
    assert abs(statistics.mean(label for _, label in rows) - 0.5) < 0.01
    shares = [statistics.mean((n >= k) == label for n, label in rows) for k in range(110)]
    assert max(max(share, 1 - share) for share in shares) <= 0.60


def test_character_ngrams_of_the_response_alone_do_not_tell_the_label(made):
    text = pytest.importorskip("sklearn.feature_extraction.text")
    linear = pytest.importorskip("sklearn.linear_model")
    train, held = made.labelled, made.labelled_val + made.labelled_test
    vectors = text.TfidfVectorizer(analyzer="char", ngram_range=(1, 3), min_df=2)
    x = vectors.fit_transform([row["response"] for row in train])
    model = linear.LogisticRegression(max_iter=300).fit(x, [row["label"] for row in train])
    accuracy = model.score(vectors.transform([row["response"] for row in held]), [row["label"] for row in held])
    assert accuracy <= 0.85


def test_share_of_flaws_that_need_no_request(made):
    bad = [row["flaws"] for row in _labelled(made) if row["flaws"]]
    alone = statistics.mean(any(not corpus.FLAWS[f].request_relative for f in flaws) for flaws in bad)
    assert abs(alone - SIZES.visible) < 0.06  # most flaws are flaws only for their request
    assert {f for flaws in bad for f in flaws} == set(corpus.FLAWS)
