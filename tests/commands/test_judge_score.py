"""`rlaif judge score`: what is read, what is resumed, and when it fails."""

import dataclasses
import json

import pytest
from rich.console import Console

from rlaif_jax.cli import main
from rlaif_jax.config import FeedbackConfig, HttpConfig, JudgeConfig, RunConfig
from rlaif_jax.feedback.llm import LLMReply
from rlaif_jax.runs.folder import open_run
from tests import tiny
from tests.feedback.scripted_api import ScriptedApi, completion, error, first_token

GOOD = completion("Good", logprobs=first_token(("Good", -0.1), ("Bad", -2.5)))


def config(url: str, **more) -> RunConfig:
    http = HttpConfig("m", url, "", concurrency=2, timeout=3.0, attempts=1)
    feedback = FeedbackConfig(backend="http", prompts="en", http=http)
    judge = JudgeConfig(principles="principles_general", game=None)
    return dataclasses.replace(tiny.config(), reward=None, grader=None, feedback=feedback, judge=judge, language="en", **more)


@pytest.fixture
def scored(tmp_path, capsys):
    """scored(answer, lines, *options) -> (exit code, output file, what was printed, the server)."""
    server = ScriptedApi(lambda *_: (500, b""))

    def call(answer, lines, *options, name="rows.jsonl"):
        server.answer = answer if callable(answer) else lambda *_: answer
        server.bodies.clear()
        run = tmp_path / "run"
        open_run(run, config(server.url), Console(quiet=True))
        path = tmp_path / name
        if lines is not None:
            text = lines if isinstance(lines, str) else "".join(json.dumps(line) + "\n" for line in lines)
            path.write_text(text, encoding="utf-8")
        code = main(["judge", "score", str(path), "--run", str(run), *options])
        return code, tmp_path / f"{name}.rated.jsonl", "".join(capsys.readouterr()), server

    yield call
    server.close()


def rows(count: int) -> list[dict]:
    return [{"query": f"Write wish {i}.", "response": f"All the best, {i}."} for i in range(count)]


def rated(path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


def test_a_revoked_key_fails_with_the_sentence_and_the_mended_command_goes_on(scored):
    code, out, said, server = scored((401, error("Incorrect API key provided")), rows(30))
    assert code != 0 and "Incorrect API key provided" in said and "key_variable" in said
    assert not out.exists() and len(server.bodies) <= 4
    code, out, said, _ = scored((200, GOOD), None)
    assert code == 0 and len(rated(out)) == 30 and not list(out.parent.glob("*.part*"))
    assert "100.0% good" in said and "30 requests" in said


def test_an_outage_leaves_a_part_and_asks_only_for_the_rest(scored, monkeypatch):
    monkeypatch.setattr("rlaif_jax.commands.judge_score._CHUNK", 10)
    broken = (503, error("overloaded"))
    code, out, said, _ = scored(lambda n, b: (200, GOOD) if n <= 13 else broken, rows(40))
    part = out.with_name(out.name + ".part")
    assert code != 0 and "overloaded" in said and str(part) in said.replace("\n", "") and not out.exists()
    done = len(rated(part))
    assert 10 <= done < 20
    with part.open("a") as file:
        file.write('{"row": 39, "prompt": "Wri')  # as kill -9 leaves it
    code, out, said, server = scored((200, GOOD), None)
    assert code == 0 and len(server.bodies) <= 40 - done and not part.exists()
    assert [r["prompt"] for r in rated(out)] == [r["query"] for r in rows(40)]


def test_a_part_of_other_rows_is_not_gone_on_with(scored):
    scored(lambda n, b: (200, GOOD) if n <= 2 else (503, error("down")), rows(30))
    code, _, said, _ = scored((200, GOOD), rows(31))
    assert code != 0 and "other settings (rows)" in said


def test_nothing_judged_is_no_success(scored):
    code, out, said, _ = scored((200, completion(None, finish="content_filter")), rows(3))
    assert code != 0 and "none of 3 answers got a verdict" in said and "withheld" in said
    assert not list(out.parent.glob("*.rated*")), "the mended command is not refused"


def test_a_row_that_the_api_withholds_is_null_with_its_cause(scored):
    def answer(n, body):
        return (200, completion(None, finish="content_filter") if "wish 1." in str(body) else GOOD)

    code, out, said, _ = scored(answer, rows(3))
    assert code == 0 and "1 invalid verdicts" in said
    assert [r["p_good"] is None for r in rated(out)] == [False, True, False] and "withheld" in rated(out)[1]["problem"]


def test_a_file_of_generate_is_read(scored):
    lines = [{"prompt": "Write.", "system": "Be brief.", "responses": ["One.", "Two."], "finished": [True, False]},
             {"prompt": "long", "system": "", "error": "too long"}]  # fmt: skip
    code, out, said, _ = scored((200, GOOD), lines)
    assert code == 0 and [r["response"] for r in rated(out)] == ["One.", "Two."] and "too long" in said


def test_columns_are_named_and_bad_rows_left_out_on_demand(scored):
    lines = [{"question": "Write.", "answer": text} for text in ("One.", "", "Two.")]
    options = ("--columns", "prompt=question,response=answer")
    code, _, said, _ = scored((200, GOOD), lines, *options)
    assert code != 0 and "rows.jsonl:2" in said
    code, out, said, _ = scored((200, GOOD), None, *options, "--skip-bad-rows")
    assert code == 0 and [r["response"] for r in rated(out)] == ["One.", "Two."] and "1 rows skipped" in said
    code, _, said, _ = scored((200, GOOD), None, "--columns", "answer=response")
    assert code != 0 and "--columns" in said


def test_a_chat_with_earlier_turns_is_refused_with_its_line(scored):
    talk = [{"role": role, "content": "Write."} for role in ("user", "assistant", "user", "assistant")]
    code, _, said, _ = scored((200, GOOD), [{"prompt": "Write.", "response": "One."}, {"messages": talk}])
    assert code != 0 and "rows.jsonl:2" in said and "earlier turns" in said


def test_csv_with_query(scored):
    code, out, _, _ = scored((200, GOOD), "query,response\nWrite.,One.\n", name="rows.csv")
    assert code == 0 and rated(out)[0]["prompt"] == "Write."


class Own:
    """A backend of the user's."""

    name = "own"

    def complete(self, requests, on_reply=None):
        replies = [LLMReply("Good", 1, 1) for _ in requests]
        for i, reply in enumerate(replies):
            on_reply(i, reply)
        return replies


def test_a_backend_of_ones_own_is_imported_on_demand(tmp_path, capsys):
    (tmp_path / "own.py").write_text("from tests.commands.test_judge_score import Own\n")
    cfg = config("http://127.0.0.1:1/v1")
    feedback = dataclasses.replace(cfg.feedback, backend=f"{tmp_path}/own.py:Own")
    cfg = dataclasses.replace(cfg, feedback=feedback, judge=dataclasses.replace(cfg.judge, mode="binary"))
    open_run(tmp_path / "run", cfg, Console(quiet=True))
    (tmp_path / "rows.jsonl").write_text(json.dumps(rows(1)[0]) + "\n")
    command = ["judge", "score", str(tmp_path / "rows.jsonl"), "--run", str(tmp_path / "run")]
    assert main(command) != 0 and "--import-code" in capsys.readouterr().err
    assert main([*command, "--import-code"]) == 0
    assert rated(tmp_path / "rows.jsonl.rated.jsonl")[0]["p_good"] == 1.0
