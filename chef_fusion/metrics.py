"""How good written recipes and made pictures are (paper section 4): SacreBLEU, ROUGE-2, CLIP similarity; and
ingredients, perplexity and baselines beside them."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np


def cut_at_first_period(text: str) -> str:
    """The published code scores a text only up to its first period, if that lies beyond character 5."""
    end = text.find(".")
    return text[:end] if end > 5 else text


def sacrebleu_score(hypotheses: Sequence[str], references: Sequence[str]) -> float:
    """The corpus score, 0..100, of SacreBLEU's defaults (13a tokens, exponential smoothing)."""
    import sacrebleu

    return sacrebleu.corpus_bleu(list(hypotheses), [list(references)]).score


def sacrebleu_as_published(hypotheses: Sequence[str], references: Sequence[str]) -> float:
    """What the published code calls SacreBLEU: its first hypothesis against all references of the set."""
    import sacrebleu

    return sacrebleu.corpus_bleu([hypotheses[0]], [[reference] for reference in references]).score


def bleu(hypotheses: Sequence[str], references: Sequence[str], order: int = 4) -> float:
    """Corpus BLEU-n in 0..1 of whitespace tokens, unsmoothed, case kept (torchmetrics' BLEUScore)."""
    from sacrebleu.metrics import BLEU

    scorer = BLEU(tokenize="none", smooth_method="none", max_ngram_order=order)
    return scorer.corpus_score(list(hypotheses), [list(references)]).score / 100


def rouge(hypotheses: Sequence[str], references: Sequence[str], kind: str = "rouge2") -> dict[str, float]:
    """ROUGE in 0..1, the mean over texts of {"fmeasure", "precision", "recall"}: lower case, alphanumerics
    only, no stemming. The published code's figure is the F-measure."""
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer([kind], use_stemmer=False)
    pairs = zip(references, hypotheses, strict=True)
    scores = [scorer.score(reference, hypothesis)[kind] for reference, hypothesis in pairs]
    return {
        name: float(np.mean([getattr(s, name) for s in scores]))
        for name in ("fmeasure", "precision", "recall")
    }


def set_scores(found: Iterable[frozenset[str]], wanted: Iterable[frozenset[str]]) -> dict[str, float]:
    """Precision, recall and F1 of sets, all their members counted together."""
    hits = named = true = 0
    for ours, theirs in zip(found, wanted, strict=True):
        hits, named, true = hits + len(ours & theirs), named + len(ours), true + len(theirs)
    precision, recall = hits / max(named, 1), hits / max(true, 1)
    return {"precision": precision, "recall": recall, "f1": 2 * hits / max(named + true, 1)}


def cosine(a: Any, b: Any) -> np.ndarray:
    """Cosine of each row of a [N, D] with that of b, [N]."""
    a, b = (np.asarray(x, np.float64) for x in (a, b))
    return (a * b).sum(-1) / np.maximum(np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1), 1e-12)


def nearest(queries: Any, keys: Any) -> np.ndarray:
    """For each query [N, D] the index of the key [M, D] most like it by cosine, int [N]."""
    unit = [
        np.asarray(x) / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), 1e-12) for x in (queries, keys)
    ]
    return (unit[0] @ unit[1].T).argmax(1)


def text_scores(
    hypotheses: Sequence[str],
    references: Sequence[str],
    found: Sequence[frozenset[str]],
    wanted: Sequence[frozenset[str]],
) -> dict[str, float]:
    """Everything that is said of written recipes, in the form of the paper's Table 1."""
    cut = [cut_at_first_period(text) for text in hypotheses]
    scores = {
        "sacrebleu": sacrebleu_score(hypotheses, references),
        "sacrebleu_as_published": sacrebleu_as_published(cut, references),
        "rouge2": rouge(hypotheses, references)["fmeasure"],
    }
    return scores | {f"ingredient_{name}": value for name, value in set_scores(found, wanted).items()}
