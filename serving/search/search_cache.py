"""One search's view of the caches."""

from hashlib import sha256
from typing import cast

from serving.index.searcher import Neighbors
from serving.search.caches import Caches
from serving.search.query import Query, text_encoder
from serving.search.schemas import SearchAnswer
from serving.versions.release import EncodedQuery, Release


class SearchCache:
    """One search's view of the caches: builds the keys, and lists in `hits` what was found.

    Every key names the versions its value depends on. Personal and partial answers are not cached.
    """

    def __init__(self, release: Release, query: Query, caches: Caches) -> None:
        self.release, self.query, self.caches = release, query, caches
        self.hits: list[str] = []
        self.answer_key = f"{release.identity}|{query.key}"
        self.photo_key = f"{release.query.fingerprint}|{release.searcher.features.palette is not None}|{query.photo_sha256}"
        if query.box is not None:
            self.photo_key += f"|{query.box.model_dump_json()}"

    def answer(self) -> SearchAnswer | None:
        if self.query.personal:
            return None
        version = self.release.version_info
        return cast(SearchAnswer | None, self.caches.response.get(self.answer_key, lambda kept: kept.version == version))

    def put_answer(self, answer: SearchAnswer, found: Neighbors) -> SearchAnswer:
        if not self.query.personal and not found.missing:
            self.caches.response.put(self.answer_key, answer)
        return answer

    def photo(self) -> EncodedQuery | None:
        return self._embedding(self.photo_key) if self.query.photo_sha256 else None

    def put_photo(self, encoded: EncodedQuery) -> EncodedQuery:
        self.caches.embedding.put(self.photo_key, encoded)
        return encoded

    def text(self) -> EncodedQuery | None:
        """The cached text embedding. Raises QueryError where the encoder has no text tower."""
        return self._embedding(self._text_key()) if self.query.request.text is not None else None

    def put_text(self, encoded: EncodedQuery) -> EncodedQuery:
        self.caches.embedding.put(self._text_key(), encoded)
        return encoded

    def candidates(self, encoded: EncodedQuery, k: int) -> Neighbors | None:
        key, release = self._candidates_key(encoded, k), self.release
        found: Neighbors | None = self.caches.candidates.get(key, lambda kept: release.accepts_candidates(kept, k))
        if found is not None:
            self.hits.append("candidates")
        return found

    def put_candidates(self, encoded: EncodedQuery, k: int, found: Neighbors) -> None:
        if not found.missing:
            self.caches.candidates.put(self._candidates_key(encoded, k), found)

    def _embedding(self, key: str) -> EncodedQuery | None:
        encoded: EncodedQuery | None = self.caches.embedding.get(key, self.release.accepts_query)
        if encoded is not None:
            self.hits.append("embedding")
        return encoded

    def _text_key(self) -> str:
        text = (self.query.request.text or "").encode()
        return f"{text_encoder(self.release).fingerprint}|text|{sha256(text).hexdigest()}"

    def _candidates_key(self, encoded: EncodedQuery, k: int) -> str:
        chosen = self.query.request.filter
        rest = sha256((chosen.canonical() if chosen else "").encode()).hexdigest()[:32]
        words = "|words" if self.query.words(self.release, encoded) else ""
        return f"{self.release.identity}|{sha256(encoded.vector.tobytes()).hexdigest()}|{k}|{rest}{words}"
