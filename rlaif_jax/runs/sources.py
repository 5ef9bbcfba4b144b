"""The data files of one run as records, as the config names them; each file is read once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rlaif_jax.config import DataConfig, SourceConfig
from rlaif_jax.config.stages import TOKENIZER
from rlaif_jax.data.files import TFDS
from rlaif_jax.data.records import Record, RecordError, request_of
from rlaif_jax.data.sources import load
from rlaif_jax.errors import UserError, printable
from rlaif_jax.runs.folder import Run


class RunSources:
    """Reads the sources of a config; reports rows that were skipped."""

    def __init__(self, run: Run):
        self._run, self._cfg = run, run.cfg.data
        self._records: dict[tuple[type, str], list[Record]] = {}

    @property
    def root(self) -> Path:
        """The folder of the data files."""
        return Path(self._cfg.root).expanduser() if self._cfg.root else self._run.folder(TOKENIZER.name) / "corpus"

    def records(self, kind: type, source: SourceConfig) -> list[Record]:
        """All records of one source, problems reported. They are read once."""
        known = (kind, repr(source))
        if known not in self._records:
            self._records[known] = self._load(kind, source)
        return self._records[known]

    def _load(self, kind: type, source: SourceConfig) -> list[Record]:
        field = self.field_of(source)
        if not source.path:
            raise UserError(f"{field}.path is empty: name a file")
        try:
            loaded = load(
                kind, self.path_of(source), format=source.format, columns=source.columns, prefix=source.prefix, limit=source.limit,
                on_error="skip",  # all bad rows are counted before they are an error
            )  # fmt: skip
        except UserError as error:
            held_out = field.endswith("_eval") and "does not exist" in str(error)
            hint = f"; for a held-out share of the training file: {field}.path=''" if held_out else ""
            raise UserError(f"{field}: {error}{hint}") from error
        count = len(loaded.skipped)
        if loaded.skipped and source.on_error == "raise":
            more = f" (the first of {count} bad rows; {field}.on_error=skip leaves them out)" if count > 1 else ""
            raise RecordError(f"{field}: {loaded.skipped[0]}{more}")
        if loaded.skipped:
            self._say(f"{field}: {count} rows skipped, the first: {loaded.skipped[0]}")
        return loaded.records

    def path_of(self, source: SourceConfig) -> str | Path:
        """Where the file of a source is."""
        return source.path if source.path.startswith(TFDS) else self.root / Path(source.path).expanduser()

    def field_of(self, source: SourceConfig) -> str:
        """The name of a source in the config, for messages."""
        return next((f"data.{name}" for name, value in vars(self._cfg).items() if value is source), source.path)

    def is_given(self, source: SourceConfig) -> bool:
        """Whether an optional source has a file: it is there, or the config names another one than the default."""
        field = self.field_of(source).removeprefix("data.")
        default = getattr(DataConfig(), field, SourceConfig()).path
        path = self.path_of(source)
        return bool(source.path) and (source.path != default or Path(path).exists())

    def split(self, kind: type, train: SourceConfig, held_out: SourceConfig) -> tuple[list[Record], list[Record]]:
        """Training and held-out records; without a held-out file, the last part of the training file, by prompt."""
        records = self.records(kind, train)
        if held_out.path:
            return records, self.records(kind, held_out)
        return self._held_out_share(records, self.field_of(train))

    def _held_out_share(self, records: list[Record], field: str) -> tuple[list[Record], list[Record]]:
        requests = list(dict.fromkeys(map(asked, records)))
        if len(requests) < 2:
            raise UserError(
                f"{field}: all of its {len(records)} rows have one prompt, and the held-out rows are of other prompts "
                f"(data.eval_fraction): give at least 2 prompts, or {field}_eval a file"
            )
        last = set(requests[-max(int(len(requests) * self._cfg.eval_fraction), 1) :])
        return [r for r in records if asked(r) not in last], [r for r in records if asked(r) in last]

    def _say(self, text: str) -> None:
        self._run.console.print(printable(text), highlight=False, markup=False)


def asked(record: Record) -> tuple[Any, ...]:
    """Earlier turns and prompt, by which records are held out or found in training files, whatever their system text."""
    return request_of(record)[1:]
