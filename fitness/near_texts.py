"""Texts that are all but the same: the Jaccard index of their character n-grams, exact, without comparing all pairs.

Of two sets x and y, each in one order of all elements, at least ``l`` elements are shared by the first
``|x| - ceil(t |x|) + l`` of x and the same of y if their Jaccard index is at least t. With the rarest elements first,
few other pairs share so many (prefix filtering: Bayardo et al. 2007, WWW, "Scaling Up All Pairs Similarity Search";
with l above 1: Wang et al. 2012, SIGMOD, "Can We Beat the Prefix Filtering?").

N-grams that many texts have are the wording of a template ("Answer with one letter: ..."). A pair must be alike with
them and without them, so that neither two questions in one frame pass for one, nor one subject asked about twice.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from fitness.measures import comparable

THRESHOLD = 0.8
_NGRAM_CHARS, _NGRAM_CHARS_CJK = 5, 3  # a Chinese or Japanese character says more than a letter
_TEMPLATE_SHARE, _TEMPLATE_TEXTS = 0.05, 5
_END_CHARS = 1000  # of a longer text, as many at either end are compared
_EXTRA_PREFIX = 0.1  # l, as a share of the set
_ROWS_AT_ONCE = 256
_EDGE = "\0"

_KEPT_MARKS = "#%&*@/\\"  # C# is not C
_SPACE_FOR_MARK = {
    point: " "
    for point in range(0x10000)
    if unicodedata.category(chr(point)).startswith("P") and chr(point) not in _KEPT_MARKS
}
_BETWEEN_DIGITS = re.compile(r"(\d ?[^\w\s]+ ?)(?=\d)")
_CJK = "\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff"
_SPACES_OF_CJK = re.compile(rf" (?:(?<=[{_CJK}] )|(?=[{_CJK}]))")
_ANY_CJK = re.compile(f"[{_CJK}]")


def fold(text: str) -> str:
    """The text without what makes no other question of it: width, case, white space, punctuation.

    Punctuation between digits stays: 12-34 is not 12/34.
    """
    plain, *rest = _BETWEEN_DIGITS.split(comparable(text))  # plain, between digits, plain, ...
    parts = [plain.translate(_SPACE_FOR_MARK)]
    for digits, plain in zip(rest[::2], rest[1::2], strict=True):
        parts += [digits.replace(" ", ""), plain.translate(_SPACE_FOR_MARK)]
    return _SPACES_OF_CJK.sub("", " ".join("".join(parts).split()))


def near_pairs(texts: Sequence[str], *, threshold: float = THRESHOLD) -> list[tuple[int, int, float]]:
    """The pairs of texts that are all but the same.

    Args:
        texts: distinct, as :func:`fold` gives them; the first and the last 1,000 characters of each are compared.
        threshold: least Jaccard index, in (0, 1].

    Returns:
        (index, greater index, Jaccard index), in the order of the texts.
    """
    if len(texts) < 2:
        return []
    grams, distinctive = _ranked([_ngrams(text) for text in texts])
    pairs = []
    for a, b in _candidates(grams, distinctive, threshold):
        if _jaccard(grams[a][: distinctive[a]], grams[b][: distinctive[b]]) < threshold:
            continue
        similarity = _jaccard(grams[a], grams[b])
        if similarity >= threshold:
            pairs.append((a, b, similarity))
    return sorted(pairs)


def _ngrams(text: str) -> NDArray[np.uint32]:
    """(number of distinct n-grams,) their hashes; those over the text's ends too, so that each character counts alike.

    A collision of two hashes makes two texts more alike by one n-gram, which no threshold notices.
    """
    size = _NGRAM_CHARS_CJK if len(_ANY_CJK.findall(text)) * 2 > len(text) else _NGRAM_CHARS
    if len(text) > 2 * _END_CHARS:
        text = text[:_END_CHARS] + text[-_END_CHARS:]
    edge = _EDGE * (size - 1)
    points = np.frombuffer(f"{edge}{text}{edge}".encode("utf-32-le"), dtype=np.uint32)
    codes = np.zeros(len(points) - size + 1, dtype=np.uint32)
    for offset in range(size):
        codes = codes * np.uint32(0x9E3779B1) + points[offset : offset + len(codes)]
    return np.unique(codes)


def _ranked(grams: Sequence[NDArray[np.uint32]]) -> tuple[list[NDArray[np.int64]], NDArray[np.int64]]:
    """Per text its n-grams as ranks, the rarest first, and how many of them are not a template's."""
    _, inverse, counts = np.unique(np.concatenate(grams), return_inverse=True, return_counts=True)
    order = np.argsort(counts, kind="stable")
    ranks = np.empty(len(order), dtype=np.int64)
    ranks[order] = np.arange(len(order))
    limit = max(_TEMPLATE_TEXTS, _TEMPLATE_SHARE * len(grams))
    first_of_template = int((counts <= limit).sum())
    ends = np.cumsum([0, *(len(one) for one in grams)])
    ranked = [np.sort(ranks[inverse[start:end]]) for start, end in pairwise(ends)]
    return ranked, np.array([np.searchsorted(one, first_of_template) for one in ranked])


def _candidates(
    grams: Sequence[NDArray[np.int64]], sizes: NDArray[np.int64], threshold: float
) -> Iterator[tuple[int, int]]:
    """The pairs (lesser index first) whose first ``sizes`` n-grams may be alike."""
    shared = 1 + np.floor(_EXTRA_PREFIX * sizes).astype(np.int64)
    least_shared = np.ceil(threshold * sizes - 1e-9).astype(np.int64)
    lengths = np.minimum(sizes, sizes - least_shared + shared)
    columns = np.concatenate([one[:length] for one, length in zip(grams, lengths, strict=True)])
    if not len(columns):
        return
    rows = np.repeat(np.arange(len(grams)), lengths)
    shape = (len(grams), int(columns.max()) + 1)
    prefixes = sparse.csr_matrix((np.ones(len(columns), dtype=np.int32), (rows, columns)), shape=shape)
    index = prefixes.T.tocsr()
    for start in range(0, len(grams), _ROWS_AT_ONCE):
        counted = (prefixes[start : start + _ROWS_AT_ONCE] @ index).tocoo()
        a, b = counted.row.astype(np.int64) + start, counted.col.astype(np.int64)
        small, large = np.minimum(sizes[a], sizes[b]), np.maximum(sizes[a], sizes[b])
        alike = (a < b) & (counted.data >= np.minimum(shared[a], shared[b])) & (small >= threshold * large - 1e-9)
        yield from zip(a[alike].tolist(), b[alike].tolist(), strict=True)


def _jaccard(a: NDArray[np.int64], b: NDArray[np.int64]) -> float:
    shared = len(np.intersect1d(a, b, assume_unique=True))
    return shared / (len(a) + len(b) - shared)
