"""Debates, rejection sampling into pairs, retrieval, and what survives a crash."""

import json

import numpy as np
import pytest
from rich.console import Console

from rlaif_jax.data.records import Prompt, SftExample
from rlaif_jax.errors import UserError
from rlaif_jax.feedback.agents import Agent
from rlaif_jax.feedback.curate import CurateConfig, check_examples, curate, pairs_of
from rlaif_jax.feedback.curated_items import causes, read_items, why_no_pair
from rlaif_jax.feedback.debate import Debate, debate
from rlaif_jax.feedback.llm import Failure, LLMReply
from rlaif_jax.feedback.prompts import ROLES, Prompts, load_prompts
from rlaif_jax.feedback.retrieval import Retriever, tfidf_embedder

PROMPTS = load_prompts("zh")


class Panel:
    """Plays every role by simple rules: good answers hold 好; the judge errs on 误, which the reflection mends."""

    name = "panel"

    def __init__(self):
        self.candidates = 0

    def complete(self, requests, on_reply=None):
        texts = [r.messages[-1].content for r in requests]
        return [self._reply(text, texts[:i].count(text), requests[i].seed) for i, text in enumerate(texts)]

    def _reply(self, text, number, seed):
        """`number`: how often the same was asked before in this batch; the seed tells those requests apart."""
        if "评论员" in text:
            return LLMReply("话")
        if "严格的评委" in text or "复核" in text:
            if "坏掉" in text:
                return LLMReply(failure=Failure("server"))
            good = ("好" in text.split("回答：⟦")[1].split("⟧")[0]) != ("误" in text and "严格的评委" in text)
            return LLMReply(json.dumps({"verdict": int(good), "reason": "因"}, ensure_ascii=False))
        self.candidates += 1
        return LLMReply(f"{'好' if number % 2 else '差'}祝福{seed % 7}号")


def test_a_debate_is_recorded_whole_and_the_reflection_has_the_last_word():
    found = debate(Agent(Panel(), PROMPTS), [("问", "好祝福"), ("问", "误祝福好"), ("问", "坏掉")])
    assert [(d.verdict, d.final, d.agreed) for d in found] == [(1, 1, True), (0, 1, False), (None, None, False)]
    assert found[0].positive == "话" and found[0].reason == "因" and found[2].problem.startswith("judge: server")


def test_pairs_join_one_prompt_by_nearest_length_each_answer_once():
    def d(response, final, verdict=None):
        return Debate("问", response, verdict=final if verdict is None else verdict, final=final)

    found = pairs_of([d("a" * 10, 1), d("b" * 30, 1), d("c" * 28, 0), d("d" * 12, 0, 1), d("e" * 90, 0), d("f", None)], 2, 1.0)
    assert [(len(p.chosen), len(p.rejected), p.margin) for p in found] == [(10, 12, 0.5), (30, 28, 1.0)]
    assert pairs_of([d("a", 1), d("b", 1)], 2, 1.0) == []


def run(path, count, llm=None, **more):
    llm = llm or Panel()
    cfg = CurateConfig(source="llm", chunk=4, **{"candidates": 4, **more})
    records = [Prompt(f"给{i}号朋友写一条祝福") for i in range(count)]
    return curate(records, Agent(llm, PROMPTS), Agent(llm, PROMPTS), None, cfg, path, seed=0, console=Console(quiet=True))


def test_a_crash_loses_and_repeats_nothing(tmp_path):
    whole = run(tmp_path / "whole.jsonl", 10)
    path = tmp_path / "items.jsonl"
    run(path, 5)
    path.write_bytes(path.read_bytes() + b'{"prompt": "half a li')
    resumed = run(path, 10)
    assert resumed == whole == read_items(path)
    assert all(item["pairs"] for item in whole)
    again = Panel()
    assert run(path, 10, again) == whole and again.candidates == 0


def test_too_many_lost_verdicts_stop_the_run_but_keep_what_was_decided(tmp_path):
    class Broken(Panel):
        def _reply(self, text, number, seed):
            return LLMReply(failure=Failure("timeout")) if "严格的评委" in text else super()._reply(text, number, seed)

    with pytest.raises(UserError, match="100% of the debates"):
        run(tmp_path / "i.jsonl", 8, Broken())
    assert len(read_items(tmp_path / "i.jsonl")) == 4


class Flaky(Panel):
    """A panel whose requests fail while `down` holds: "all", "judge", "author", or nothing."""

    def __init__(self, down="", failure=None, candidate=None):
        super().__init__()
        self.down, self.failure, self.candidate = down, failure or Failure("connection", "refused"), candidate

    def _reply(self, text, number, seed):
        judged = "评论员" in text or "严格的评委" in text or "复核" in text
        if self.down == "all" or self.down == ("judge" if judged else "author"):
            return LLMReply(failure=self.failure)
        if not judged and self.candidate is not None:
            return self.candidate
        return super()._reply(text, number, seed)


@pytest.mark.parametrize("down", ["all", "author", "judge"])
def test_an_outage_marks_nothing_as_done(tmp_path, down):
    path, whole = tmp_path / "items.jsonl", run(tmp_path / "whole.jsonl", 10)
    for _ in range(2):  # it may last for several starts
        with pytest.raises(UserError, match="connection: refused") as error:
            run(path, 10, Flaky(down, Failure("connection", "refused")))
        assert "run the same command" in str(error.value)
    assert all(item["unanswered"] for item in read_items(path))
    assert run(path, 10) == whole == read_items(path)


def test_what_got_no_answer_is_asked_again_at_the_end(tmp_path):
    class Hiccup(Flaky):
        """The judges are away for the first four prompts."""

        def complete(self, requests, on_reply=None):
            self.down = "judge" if 0 < self.candidates <= 16 else ""
            return super().complete(requests)

    whole = run(tmp_path / "whole.jsonl", 10)
    found = run(tmp_path / "items.jsonl", 10, Hiccup(), max_invalid=1.0)
    assert found == whole
    assert len((tmp_path / "items.jsonl").read_text(encoding="utf-8").splitlines()) == 14


def test_files_of_older_versions_are_read_and_their_outages_asked_again(tmp_path):
    path, whole = tmp_path / "items.jsonl", run(tmp_path / "whole.jsonl", 3)
    old = json.loads(json.dumps(whole))
    for item in old:
        for name in ("system", "lost", "problem", "unanswered"):
            del item[name]
        for part in (*item["debates"], *item["pairs"]):
            for name in ("system", "cause", "unanswered"):
                part.pop(name, None)
    old[1]["debates"] = [d | {"final": None, "problem": "judge: rejected: HTTP 401"} for d in old[1]["debates"]]
    old[1]["pairs"], old[2]["debates"], old[2]["pairs"] = [], [], []
    path.write_text("".join(json.dumps(item, ensure_ascii=False) + "\n" for item in old), encoding="utf-8")
    assert read_items(path) == old
    panel = Panel()
    found = run(path, 3, panel)
    assert [item["pairs"] for item in found[1:]] == [item["pairs"] for item in whole[1:]] and panel.candidates == 8


@pytest.mark.parametrize(
    ("reply", "cause"),
    [(LLMReply("好祝福", finish_reason="length"), "cut"), (LLMReply(" "), "empty"), (LLMReply("<think>想"), "thinking"),
     (LLMReply(failure=Failure("filtered")), "filtered")],
)  # fmt: skip
def test_without_a_candidate_the_cause_is_named(tmp_path, reply, cause):
    with pytest.raises(UserError, match=f"no candidate could be used .*{cause} 32"):
        run(tmp_path / "i.jsonl", 8, Flaky(candidate=reply), candidates=8)  # stops at the first 4 prompts
    if cause != "filtered":
        items = run(tmp_path / "few.jsonl", 1, Flaky(candidate=reply))
        assert items[0]["debates"] == [] and f"{cause} 4" in why_no_pair(items)
        assert ("curate.max_tokens" in why_no_pair(items)) == (cause in ("cut", "thinking"))


def test_all_duplicates_and_one_sided_verdicts_are_named(tmp_path):
    items = run(tmp_path / "i.jsonl", 2, Flaky(candidate=LLMReply("好祝福")))
    assert causes(items) == "duplicate 6" and "all debated candidates were accepted (duplicate 6)" in why_no_pair(items)


def test_candidates_and_statements_lose_their_thinking(tmp_path):
    class Thinker(Panel):
        def _reply(self, text, number, seed):
            reply = super()._reply(text, number, seed)
            return LLMReply(f'<think>也许 {{"verdict": 1, "reason": "草稿"}}</think>{reply.text}')

    assert run(tmp_path / "i.jsonl", 3, Thinker()) == run(tmp_path / "whole.jsonl", 3)

    class Endless(Panel):
        def _reply(self, text, number, seed):
            if "反方" in text:
                return LLMReply("<think>没完", finish_reason="length")
            return super()._reply(text, number, seed)

    record = debate(Agent(Endless(), PROMPTS), [("问", "好祝福")])[0]
    assert record.final is None and (record.cause, record.unanswered) == ("thinking", False)
    assert record.problem.startswith("negative side: thinking") and record.verdict is None


class Listener(Panel):
    """Keeps all requests."""

    def __init__(self):
        super().__init__()
        self.heard = []

    def complete(self, requests, on_reply=None):
        self.heard += requests
        return super().complete(requests)


@pytest.mark.parametrize("family", ["zh", "en", "embedded"])
def test_the_system_turn_and_the_principles_reach_all_who_see_the_prompt(tmp_path, family):
    class Even(Listener):
        def _reply(self, text, number, seed):
            shown = "".join(m.content for m in self.heard[-1].messages)
            if "verdict" in shown or family == "embedded":
                return LLMReply(json.dumps({"verdict": seed % 2 if family == "embedded" else number % 2, "reason": "r"}))
            return LLMReply(f"text {number} {seed}")

    prompts, llm = load_prompts(family), Even()
    systems = ["只许用英文写", "只许用文言文写", ""]
    records = [Prompt("写一条祝福", system) for system in (*systems, systems[0])]
    cfg = CurateConfig(source="llm", candidates=2, max_invalid=1.0)
    items = curate(records, Agent(llm, prompts), Agent(llm, prompts), None, cfg, tmp_path / "i.jsonl", seed=0,
                   console=Console(quiet=True), principles=["不用叠词"])  # fmt: skip
    assert [item["system"] for item in items] == systems  # rows with another system turn stay apart
    for system in systems[:2]:
        shown = [r for r in llm.heard if any(system in m.content for m in r.messages)]
        assert len(shown) == len(llm.heard) / 3
    assert all(pair["system"] == item["system"] for item in items for pair in item["pairs"])
    author = next(r for r in llm.heard if any(systems[0] in m.content for m in r.messages))
    assert author.messages[0].role == "system" and author.messages[0].content == systems[0]
    debated = [r for r in llm.heard if any("不用叠词" in m.content for m in r.messages)]
    assert family == "embedded" or len(debated) == sum(len(item["debates"]) for item in items) * 4


def test_examples_reach_the_author_whoever_writes(tmp_path, one_device):
    examples = [SftExample("写一条生日祝福", "愿你年年有今日"), SftExample("写一条春节祝福", "愿你新春大吉")]
    retriever = Retriever(examples, tfidf_embedder([e.prompt for e in examples]), one_device)
    cfg = CurateConfig(examples=2, candidates=2)
    for family, roles in (("embedded", ["user", "assistant"] * 2 + ["user"]), ("zh", ["user"]), ("en", ["user"])):
        llm = Listener()
        author = Agent(llm, load_prompts(family))
        curate([Prompt("写一条节日祝福")], author, Agent(Panel(), PROMPTS), retriever, cfg, tmp_path / f"{family}.jsonl", seed=0,
               console=Console(quiet=True))  # fmt: skip
        assert [m.role for m in llm.heard[0].messages] == roles
        assert all(any(e.response in m.content for m in llm.heard[0].messages) for e in examples)


def test_examples_that_no_prompt_shows_are_refused(tmp_path):
    for role in ROLES:
        (tmp_path / f"{role}.j2").write_text("{{ query }}", encoding="utf-8")
    own = Prompts(str(tmp_path))
    with pytest.raises(UserError, match="curate.examples is 3, but candidate.j2"):
        check_examples(CurateConfig(examples=3, source="llm"), own)
    check_examples(CurateConfig(source="llm"), own)
    check_examples(CurateConfig(examples=3), load_prompts("embedded"))


@pytest.mark.parametrize(
    "line",
    [b"{", b"[]", b'"x"', b"\xff", b'{"prompt": "p"}', b'{"prompt": 1, "debates": [], "pairs": []}', b'{"a":' * 5000,
     b'{"prompt": "p", "debates": [{"query": "p"}], "pairs": []}', b'{"prompt": "p", "debates": [], "pairs": [{"prompt": "p"}]}',
     b'{"prompt": "p", "debates": [{"query": "p", "response": "r", "final": true}], "pairs": []}', b"9" * 5000],
)  # fmt: skip
def test_a_damaged_line_is_named(tmp_path, line):
    path = tmp_path / "items.jsonl"
    run(path, 1)
    path.write_bytes(path.read_bytes() + line + b"\n")
    with pytest.raises(UserError, match=r"items.jsonl:2 is (not an item|damaged)"):
        read_items(path)


def test_half_characters_in_a_reply_reach_no_file(tmp_path):
    class Half(Panel):
        def _reply(self, text, number, seed):
            reply = super()._reply(text, number, seed)
            return LLMReply(reply.text.replace('"因"', '"因\\ud83d"') + ("\ud83d" if "评论员" in text else ""))

    found = run(tmp_path / "i.jsonl", 2, Half())
    first = found[0]["debates"][0]
    assert first["reason"] == "因\ufffd" and first["positive"] == "话\ufffd" and read_items(tmp_path / "i.jsonl") == found
    assert run(tmp_path / "i.jsonl", 3, Half())[:2] == found


def test_line_separators_inside_texts_are_kept(tmp_path):
    text = "好\u2028祝\u0085福\u2029\x0b"
    found = run(tmp_path / "i.jsonl", 1, Flaky(candidate=LLMReply(text)))
    assert read_items(tmp_path / "i.jsonl") == found and found[0]["debates"][0]["response"] == text.strip()


def test_retrieval_is_the_exact_nearest(one_device, eight_devices):
    rng = np.random.default_rng(0)
    words = ["春节", "中秋", "生日", "老师", "爸爸", "客户", "祝福", "一条", "幽默", "八个字"]
    examples = [SftExample("".join(rng.choice(words, 4)), f"答{i}") for i in range(203)]
    embed = tfidf_embedder([e.prompt for e in examples])
    queries = ["给老师的春节祝福", "爸爸生日八个字"]
    scores = embed(queries) @ embed([e.prompt for e in examples]).T
    for place in (one_device, eight_devices):
        found = Retriever(examples, embed, place)(queries, 5)
        for query_scores, row in zip(scores, found, strict=True):
            best = np.sort(query_scores)[::-1][:5]
            at = [examples.index(e) for e in row]
            assert np.allclose(query_scores[at], best, atol=1e-6)
    own = Retriever(examples, embed, one_device)([examples[0].prompt], 3)[0]
    assert all(e.prompt != examples[0].prompt for e in own)


def test_a_frequent_request_leaves_room_for_others(one_device):
    examples = [SftExample("写生日祝福", str(i)) for i in range(12)] + [SftExample(f"写生日贺词{i}", "好") for i in range(3)]
    found = Retriever(examples, tfidf_embedder([e.prompt for e in examples]), one_device)(["写生日祝福"], 3)[0]
    assert sorted(e.prompt for e in found) == ["写生日贺词0", "写生日贺词1", "写生日贺词2"]


def test_a_line_separator_in_an_answer_is_part_of_it(tmp_path):
    path, text = tmp_path / "items.jsonl", "第一行\u2028第二行\u0085第三行"
    path.write_text(json.dumps({"prompt": text, "pairs": []}, ensure_ascii=False) + "\n", encoding="utf-8")
    assert read_items(path) == [{"prompt": text, "pairs": []}]


def test_popularity_breaks_ties(one_device):
    examples = [SftExample("甲乙", "1"), SftExample("甲丙", "2"), SftExample("甲丙", "3")]
    embed = tfidf_embedder([e.prompt for e in examples])
    plain = Retriever(examples, embed, one_device)(["甲"], 1)[0][0]
    popular = Retriever(examples, embed, one_device, popularity_weight=1.0)(["甲"], 1)[0][0]
    assert popular.prompt == "甲丙" and plain.prompt in ("甲乙", "甲丙")


def test_a_changed_item_is_named_and_a_cut_one_is_curated_again(tmp_path):
    path = tmp_path / "items.jsonl"
    items = curate([Prompt("好的祝福"), Prompt("新年祝福")], Agent(Panel(), PROMPTS), Agent(Panel(), PROMPTS), None,
                   CurateConfig(candidates=2), path, seed=0, console=Console(quiet=True))  # fmt: skip
    whole = path.read_bytes()
    assert read_items(path) == items
    path.write_bytes(whole.replace("新年".encode(), "旧年".encode(), 1))
    with pytest.raises(UserError, match=r"items\.jsonl:2 is damaged"):
        read_items(path)
    path.write_bytes(whole[:-9])
    assert read_items(path) == items[:1], "the last line is incomplete"
    path.write_bytes(b"".join(json.dumps(item).encode() + b"\n" for item in items))
    assert read_items(path) == items, "an earlier version wrote no checksums"
