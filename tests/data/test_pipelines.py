"""Batches: exact contents, nothing lost or doubled, bounded shapes, and continuation bit for bit."""

import json
import os
import subprocess
import sys
import time

import numpy as np
import pytest

from rlaif_jax.data import pipelines
from rlaif_jax.data.records import LabelledResponse, PreferencePair, Prompt, SftExample
from rlaif_jax.data.rows import encode_sft, labelled_rows, pack, pair_rows, prompt_rows, sft_rows
from rlaif_jax.data.tokenizer import Tokenizer
from rlaif_jax.errors import UserError

# Lengths differ, and every text is unlike any other: a row can be traced back to its record.
WORDS = [f"第{i}条" + "祝福" * (i % 9) for i in range(41)]
EXAMPLES = [SftExample(f"写{i}", text, system="系" if i % 5 == 0 else "") for i, text in enumerate(WORDS)]
PAIRS = [PreferencePair(f"写{i}", text, text + "坏", margin=i / 10) for i, text in enumerate(WORDS)]
LABELLED = [LabelledResponse(f"写{i}", text, i % 2) for i, text in enumerate(WORDS)]
PROMPTS = [Prompt(text) for text in WORDS]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    Tokenizer.train(["祝福", "写第条坏系", "0123456789"], 300, folder)
    return folder


@pytest.fixture(scope="module")
def tokenizer(folder):
    return Tokenizer.load(folder)


def sft(tokenizer, examples=EXAMPLES, packing=False, max_length=64, seed=3, too_long="drop"):
    return sft_rows(encode_sft(examples, tokenizer, max_length, too_long), max_length, 0, packing=packing, seed=seed)


def makers(tokenizer, max_length=64, too_long="drop", **options):
    """The training iterators over 41 records, by name; max_length holds everything."""
    options = {"batch_size": 4, "seed": 3} | options
    rows = {
        "packed": lambda: sft(tokenizer, packing=True, max_length=max_length, seed=options["seed"], too_long=too_long),
        "sft": lambda: sft(tokenizer, max_length=max_length, too_long=too_long),
        "pairs": lambda: pair_rows(PAIRS, tokenizer, max_length, too_long),
        "labelled": lambda: labelled_rows(LABELLED, tokenizer, max_length, too_long),
        "prompts": lambda: prompt_rows(PROMPTS, tokenizer, max_length, too_long),
    }
    return {name: lambda make=make: pipelines.train_batches(make(), **options) for name, make in rows.items()}


NAMES = ("packed", "sft", "pairs", "labelled", "prompts")


def assert_same(a, b):
    assert a.keys() == b.keys()
    for name in a:
        np.testing.assert_array_equal(a[name], b[name], err_msg=name)
        assert a[name].dtype == b[name].dtype


def assert_int32(batch, *shape):
    assert all(batch[n].shape == shape and batch[n].dtype == np.int32 for n in ("tokens", "segment_ids", "positions"))


def segments(batch):
    """(tokens, positions, loss mask) of every packed example of a batch, as tuples."""
    for row in range(len(batch["tokens"])):
        ids = batch["segment_ids"][row]
        for number in range(1, ids.max() + 1):
            at = ids == number
            yield tuple(tuple(batch[n][row][at].tolist()) for n in ("tokens", "positions", "loss_mask"))


@pytest.mark.parametrize("packing", [True, False])
def test_an_epoch_of_sft_holds_every_example_once(tokenizer, packing):
    rows = sft(tokenizer, packing=packing, seed=1)
    size = next(d for d in range(2, len(rows) + 1) if len(rows) % d == 0)  # no remainder, nothing sits out
    found = [s for b in pipelines.train_batches(rows, batch_size=size, seed=5, epochs=1) for s in segments(b)]
    expected = []
    for e in EXAMPLES:
        prompt, response = tokenizer.encode_chat_prompt(e.prompt, e.system), tokenizer.encode_response(e.response)
        assert response[-1] == tokenizer.eos_ids[0]
        mask = (0.0,) * len(prompt) + (1.0,) * len(response)
        expected.append((tuple(prompt + response), tuple(range(len(mask))), mask))
    assert sorted(found) == sorted(expected)
    assert len(rows) < 41 * 0.6 if packing else len(rows) == 41


def test_sft_batches_are_right_padded_with_nothing_to_learn_there(tokenizer):
    batch = next(makers(tokenizer)["packed"]())
    assert_int32(batch, 4, 64)
    assert batch["loss_mask"].shape == (4, 64) and batch["loss_mask"].dtype == np.float32 and len(batch) == 4
    padding = batch["segment_ids"] == 0
    assert padding.any() and (np.diff(padding.astype(int), axis=1) >= 0).all()
    assert (batch["tokens"][padding] == tokenizer.pad_id).all() and (batch["loss_mask"][padding] == 0).all()
    assert (batch["loss_mask"][batch["positions"] == 0] == 0).all()


def test_pairs_have_the_chosen_side_first(tokenizer):
    batch = next(makers(tokenizer)["pairs"]())
    assert_int32(batch, 4, 2, 64)
    assert batch["margin"].shape == (4,) and batch["margin"].dtype == np.float32 and len(batch) == 4
    for row in range(4):
        pair = PAIRS[round(float(batch["margin"][row]) * 10)]
        for side, text in enumerate((pair.chosen, pair.rejected)):
            real = batch["segment_ids"][row, side] == 1
            expected = tokenizer.encode_chat_prompt(pair.prompt) + tokenizer.encode_response(text)
            assert batch["tokens"][row, side][real].tolist() == expected
            assert batch["positions"][row, side][real].tolist() == list(range(len(expected)))


def test_labels_stay_with_their_responses(tokenizer):
    batch = next(makers(tokenizer, batch_size=41)["labelled"]())
    assert_int32(batch, 41, 64)
    assert batch["label"].shape == (41,) and batch["label"].dtype == np.float32 and len(batch) == 4
    for row in range(41):
        text = tokenizer.decode([i for i in batch["tokens"][row] if i not in tokenizer.control_ids])
        assert next(r.label for r in LABELLED if text == r.prompt + r.response) == batch["label"][row]


def test_prompts_are_left_padded_and_name_their_record(tokenizer):
    batch = next(makers(tokenizer)["prompts"]())
    assert set(batch) == {"tokens", "segment_ids", "row"} and batch["row"].dtype == np.int64
    assert batch["tokens"].shape == batch["segment_ids"].shape == (4, 64)
    for row, index in enumerate(batch["row"]):
        expected = tokenizer.encode_chat_prompt(PROMPTS[index].prompt)
        assert batch["tokens"][row, -len(expected) :].tolist() == expected
        assert batch["segment_ids"][row].tolist() == [0] * (64 - len(expected)) + [1] * len(expected)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("buckets", [(), (16, 24)])
def test_a_restored_iterator_continues_exactly(tokenizer, name, buckets):
    make = makers(tokenizer, buckets=buckets)[name]
    straight = make()
    expected = [next(straight) for _ in range(30)]  # several epochs
    for stop in (0, 1, 13):
        first = make()
        for _ in range(stop):
            next(first)
        state = json.loads(json.dumps(first.get_state()))
        next(first)  # the state is a snapshot, not a view
        second = make()
        second.set_state(state)
        for batch in expected[stop:]:
            assert_same(next(second), batch)


CHILD = """
import json, sys, time
from rlaif_jax.data import pipelines
from rlaif_jax.data.tokenizer import Tokenizer
sys.path.insert(0, sys.argv[3])
from test_pipelines import makers
batches = makers(Tokenizer.load(sys.argv[1]), buckets=(16, 24))["packed"]()
while True:
    total = int(next(batches)["tokens"].sum())
    with open(sys.argv[2], "a") as file:
        file.write(json.dumps([total, batches.get_state()]) + "\\n")
    time.sleep(0.01)
"""


def test_a_killed_process_is_continued_by_another(tokenizer, folder, tmp_path):
    log = tmp_path / "log.jsonl"
    child = subprocess.Popen([sys.executable, "-c", CHILD, str(folder), str(log), os.path.dirname(__file__)])
    try:
        deadline = time.monotonic() + 60
        while (not log.exists() or log.read_text().count("\n") < 9) and time.monotonic() < deadline:
            assert child.poll() is None
            time.sleep(0.01)
    finally:
        child.kill()
        child.wait()
    lines = [json.loads(line) for line in log.read_text().splitlines(keepends=True) if line.endswith("\n")]
    make = makers(tokenizer, buckets=(16, 24))["packed"]
    straight, resumed = make(), make()
    assert [int(next(straight)["tokens"].sum()) for _ in lines] == [total for total, _ in lines]
    resumed.set_state(lines[-1][1])
    for _ in range(5):
        assert_same(next(resumed), next(straight))


def test_a_state_of_other_data_is_refused(tokenizer):
    state = makers(tokenizer)["sft"]().get_state()
    with pytest.raises(UserError, match="rows changed"):
        makers(tokenizer)["packed"]().set_state(state)
    with pytest.raises(UserError, match="batch_size, seed changed"):
        makers(tokenizer, batch_size=8, seed=4)["sft"]().set_state(state)
    edited = [*EXAMPLES[:-1], SftExample("写40", WORDS[39] + "福")]
    with pytest.raises(UserError, match="rows changed"):
        pipelines.train_batches(sft(tokenizer, edited), batch_size=4, seed=3).set_state(state)


def test_other_labels_margins_or_columns_are_other_data(tokenizer):
    def batches(kind, change):
        if kind == "label":
            rows = labelled_rows([LabelledResponse("写", "好", 0 if change else 1), LabelledResponse("写", "坏", 0)], tokenizer, 64)
        elif kind == "margin":
            rows = pair_rows([PreferencePair("写", "好", "坏", 9.0 if change else 0.0)], tokenizer, 64)
        else:
            rows = prompt_rows([Prompt("写", meta={"answer": 5 if change else 4})], tokenizer, 64)
        return pipelines.train_batches(rows, batch_size=2, seed=1)

    for kind in ("label", "margin", "meta"):
        state = json.loads(json.dumps(batches(kind, False).get_state()))
        batches(kind, False).set_state(state)
        with pytest.raises(UserError, match="labels, margins or other columns changed"):
            batches(kind, True).set_state(state)
        del state["data"]["labels, margins or other columns"]  # as an earlier version saved it
        batches(kind, False).set_state(state)


def test_each_epoch_has_its_own_order_and_repeats_no_row(tokenizer):
    batches = list(makers(tokenizer, epochs=3)["prompts"]())
    assert len(batches) == 30  # 41 // 4 each
    epochs = [np.concatenate([b["row"] for b in batches[i : i + 10]]) for i in (0, 10, 20)]
    for order in epochs:
        assert len(set(order.tolist())) == 40
    assert not np.array_equal(epochs[0], epochs[1]) and not np.array_equal(epochs[1], epochs[2])
    endless, other = makers(tokenizer)["prompts"](), makers(tokenizer, seed=1)["prompts"]()
    assert [next(endless)["row"].tolist() for _ in range(30)] == [b["row"].tolist() for b in batches]
    assert [next(other)["row"].tolist() for _ in range(30)] != [b["row"].tolist() for b in batches]


def test_every_row_gets_its_turn_even_alone_in_its_bucket(tokenizer):
    prompts = [Prompt("写" * 2)] * 9 + [Prompt("写" * 30)]  # the long one never fills a batch of its own
    rows = prompt_rows(prompts, tokenizer, 64)
    batches = pipelines.train_batches(rows, batch_size=4, seed=0, buckets=(16,), epochs=30)
    seen = np.concatenate([b["row"] for b in batches])
    assert np.bincount(seen, minlength=10).min() > 15  # of 24 expected
    few = next(pipelines.train_batches(prompt_rows(PROMPTS[:3], tokenizer, 64), batch_size=8, seed=0))
    assert sorted(np.bincount(few["row"]).tolist()) == [2, 3, 3]  # less than a batch is repeated to fill it


def test_buckets_bound_the_shapes(tokenizer):
    batches = list(makers(tokenizer, buckets=(16, 20), epochs=4)["sft"]())
    widths = [b["tokens"].shape[1] for b in batches]
    assert len(batches) == 40 and set(widths) == {16, 20, 64}
    lengths = [(b["segment_ids"] > 0).sum(axis=1) for b in batches]
    smallest = [[min(w for w in (16, 20, 64) if w >= n) for n in (row.min(), row.max())] for row in lengths]
    assert widths == [longest for _, longest in smallest]
    assert sum(a != b for a, b in smallest) <= 4 * 2  # like goes with like: one batch per border and epoch mixes
    assert {b["tokens"].shape for b in makers(tokenizer, epochs=4)["sft"]()} == {(4, 64)}
    with pytest.raises(UserError, match=r"1 to 64 \(max_length\), found \(16, 65\)"):
        makers(tokenizer, buckets=(16, 65))["sft"]()


@pytest.mark.parametrize("name", NAMES)
def test_hosts_share_the_global_batch(tokenizer, name):
    whole = makers(tokenizer, buckets=(16, 24))[name]()
    parts = [makers(tokenizer, buckets=(16, 24), mine=mine)[name]() for mine in ([0, 3], [1, 2])]  # as a mesh may have it
    for _ in range(15):
        expected, shares = next(whole), [next(p) for p in parts]
        assert_same({k: np.concatenate([s[k] for s in shares])[[0, 2, 3, 1]] for k in expected}, expected)
    assert parts[0].get_state() == parts[1].get_state() == whole.get_state()
    with pytest.raises(UserError, match=r"positions in a batch of 4 rows, found \[4\]"):
        makers(tokenizer, mine=[4])[name]()


def test_evaluation_keeps_every_row(tokenizer):
    rows = prompt_rows(PROMPTS, tokenizer, 64)
    batches = list(pipelines.eval_batches(rows, 8))
    assert [len(b["row"]) for b in batches] == [8] * 6
    mask = np.concatenate([b["row_mask"] for b in batches])
    assert mask.dtype == np.float32 and mask.tolist() == [1.0] * 41 + [0.0] * 7
    assert np.concatenate([b["row"] for b in batches])[mask > 0].tolist() == list(range(41))


def test_filled_rows_weigh_nothing_in_sft_evaluation(tokenizer):
    rows = sft(tokenizer)
    total = sum(len(tokenizer.encode_response(e.response)) for e in EXAMPLES)
    for size in (1, 8, 64):
        assert sum(b["loss_mask"].sum() for b in pipelines.eval_batches(rows, size)) == total
    halves = [list(pipelines.eval_batches(rows, 8, buckets=(16, 24), mine=mine)) for mine in (range(4), range(4, 8))]
    whole = list(pipelines.eval_batches(rows, 8, buckets=(16, 24)))
    assert {b["tokens"].shape[1] for b in whole} <= {16, 24, 64} and len(whole) == 6
    for a, b, both in zip(*halves, whole, strict=True):
        assert_same({k: np.concatenate([a[k], b[k]]) for k in both}, both)


def test_what_is_too_long_is_dropped_and_told(tokenizer, caplog):
    long = sum(len(ids) > 20 for _, [(ids, _)] in encode_sft(EXAMPLES, tokenizer, 64).items)
    assert 0 < long < 41
    batches = makers(tokenizer, max_length=20)["sft"]()
    assert batches.rows.dropped == long and len(batches.rows) == 41 - long
    assert f"{long} of 41 examples exceed 20 tokens: {long} dropped, 0 truncated" in caplog.text
    rows = prompt_rows([*PROMPTS, Prompt("写" * 80)], tokenizer, 64)
    assert rows.dropped == 1 and len(rows) == 41


def test_truncation_keeps_what_can_be_learned(tokenizer, caplog):
    records = [SftExample("写", "祝福" * 20), SftExample("写" * 40, "好"), SftExample("写", "好")]
    encoded = encode_sft(records, tokenizer, 16, "truncate")
    assert (len(encoded), encoded.dropped, encoded.truncated) == (2, 1, 1)  # the second has no room for an answer
    assert "1 dropped, 1 truncated" in caplog.text
    batch = next(pipelines.eval_batches(sft_rows(encoded, 16, 0, packing=False, seed=0), 2))
    full = tokenizer.encode_chat_prompt("写") + tokenizer.encode_response("祝福" * 20)
    assert batch["tokens"][0].tolist() == full[:16] and tokenizer.eos_ids[0] not in full[6:16]
    assert batch["loss_mask"][0].sum() == 16 - len(tokenizer.encode_chat_prompt("写"))
    rows = prompt_rows([Prompt("写" * 80)], tokenizer, 16, "truncate")
    prompt = next(pipelines.eval_batches(rows, 1))["tokens"][0].tolist()
    assert prompt == tokenizer.encode_chat_prompt("写" * 80)[-16:] and rows.truncated == 1


def test_mistakes_are_named(tokenizer):
    with pytest.raises(UserError, match="none of 41 examples fits into 3 tokens; raise the limit"):
        sft(tokenizer, max_length=3)
    with pytest.raises(UserError, match="there are no pairs"):
        pair_rows([], tokenizer, 64)
    for wrong, message in (({"too_long": "cut"}, "truncate, found 'cut'"), ({"batch_size": 0}, "positive.*found 0")):
        with pytest.raises(UserError, match=message):
            makers(tokenizer, **wrong)["labelled"]()


def test_packing_is_dense_and_never_overflows():
    lengths = np.random.default_rng(0).integers(5, 60, size=3000).tolist()
    groups = pack(lengths, 96, seed=0)
    assert sorted(i for g in groups for i in g) == list(range(3000))
    filled = [sum(lengths[i] for i in g) for g in groups]
    assert max(filled) <= 96 and np.mean(filled) / 96 > 0.95
    assert groups == pack(lengths, 96, seed=0) != pack(lengths, 96, seed=1)
