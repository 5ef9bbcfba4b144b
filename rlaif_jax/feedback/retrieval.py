"""Retrieves few-shot examples: the examples whose requests have the largest inner product with a query's embedding."""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from rlaif_jax.data.records import SftExample
from rlaif_jax.errors import UserError
from rlaif_jax.sharding.placement import Placement

Embed = Callable[[Sequence[str]], np.ndarray]  # texts -> (N, E) float32 of unit length


def tfidf_embedder(texts: Sequence[str], sizes: tuple[int, ...] = (1, 2, 3), width: int = 4096) -> Embed:
    """TF-IDF of hashed character n-grams, with document frequencies from `texts`.

    A deterministic hash (crc32) maps each n-gram to one of `width` columns. tf is 1 + log(count), idf is smoothed.
    """

    def counts(text: str) -> dict[int, int]:
        found: dict[int, int] = {}
        for n in sizes:
            for i in range(len(text) - n + 1):
                column = zlib.crc32(text[i : i + n].encode("utf-8")) % width
                found[column] = found.get(column, 0) + 1
        return found

    frequency = np.zeros(width)
    for text in texts:
        frequency[list(counts(text))] += 1
    idf = np.log((1 + len(texts)) / (1 + frequency)) + 1

    def embed(batch: Sequence[str]) -> np.ndarray:
        out = np.zeros((len(batch), width), np.float32)
        for row, text in enumerate(batch):
            found = counts(text)
            columns = list(found)
            out[row, columns] = (1 + np.log(list(found.values()))) * idf[columns]
        return out / np.maximum(np.linalg.norm(out, axis=1, keepdims=True), 1e-9)

    return embed


def sentence_embedder(model: str) -> Embed:
    """Embeddings of the optional package sentence-transformers; `model` is a local folder (safetensors)."""
    try:
        from sentence_transformers import SentenceTransformer
    except ImportError as error:
        raise UserError("curate.embedder needs a package: pip install sentence-transformers; or leave the field empty") from error
    encoder = SentenceTransformer(model, trust_remote_code=False, model_kwargs={"use_safetensors": True})
    return lambda texts: np.asarray(encoder.encode(list(texts), normalize_embeddings=True), np.float32)


class Retriever:
    """Finds the examples whose requests are nearest to a query, by exact search on the mesh.

    score = similarity + popularity_weight * popularity. Popularity, in [0, 1], is how often the request occurs, divided by the
    count of the most frequent one. Among similar examples, those for frequent requests come first.
    """

    def __init__(self, examples: Sequence[SftExample], embed: Embed, place: Placement, popularity_weight: float = 0.0):
        if not examples:
            raise UserError("retrieval needs at least one example")
        self._examples, self._embed, self._place = list(examples), embed, place
        self._repeats = max(Counter(e.prompt for e in examples).values())
        shards = place.row_shards
        padded = -(-len(examples) // shards) * shards
        matrix = np.pad(embed([e.prompt for e in examples]), ((0, padded - len(examples)), (0, 0)))
        bonus = np.pad(popularity_weight * _popularity(examples), (0, padded - len(examples)), constant_values=-np.inf)
        rows = place.rows(padded)
        self._matrix, self._bonus = jax.device_put(matrix, rows), jax.device_put(bonus.astype(np.float32), rows)
        self._top = jax.jit(_top_k, static_argnames="k")

    def __call__(self, queries: Sequence[str], k: int) -> list[list[SftExample]]:
        """The k best examples for each query, best first. Examples whose request equals the query are excluded."""
        if k == 0:
            return [[] for _ in queries]
        # Of the best, those for the query itself are left out: as many more are fetched as the most frequent request has examples.
        most = min(k + self._repeats, len(self._examples))
        _, indices = jax.device_get(self._top(self._matrix, self._bonus, self._embed(queries), k=most))
        found = []
        for query, row in zip(queries, indices, strict=True):
            others = [self._examples[i] for i in row if self._examples[i].prompt != query]
            found.append(others[:k])
        return found


def _top_k(matrix: jax.Array, bonus: jax.Array, queries: jax.Array, k: int) -> tuple[jax.Array, jax.Array]:
    """(scores, indices), each (Q, k), of the rows of `matrix` (N, E) with the largest inner product plus `bonus` (N,)."""
    return jax.lax.top_k(jnp.einsum("qe,ne->qn", queries, matrix) + bonus, k)


def _popularity(examples: Sequence[SftExample]) -> np.ndarray:
    counts = Counter(e.prompt for e in examples)
    return np.array([counts[e.prompt] for e in examples], np.float32) / max(counts.values())
