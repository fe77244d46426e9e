"""What the unmodified reference packages say; as a script it reads texts as JSON and prints scores as JSON.

f1chexbert is in the environment; pycocoevalcap and sacrebleu, which only tests read, lie in a folder of their own
(tests/reference.lock, `make reference`).
"""

import contextlib
import io
import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

FOLDER = Path(os.environ.get("DIVE_REFERENCE", f"{sys.prefix}/reference"))


def ask(what: str, *arguments: str, environment: dict[str, str] | None = None, **texts):
    """Run one of the functions below in an interpreter that has the packages."""
    if not find_spec(what) and not (FOLDER / what).is_dir():
        pytest.skip(f"{what} is neither installed nor in {FOLDER}: `make install reference` puts it there")
    path = os.pathsep.join([str(FOLDER), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, __file__, what, *arguments],
        input=json.dumps(texts),
        env={**os.environ, "PYTHONPATH": path, **(environment or {})},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


def pycocoevalcap(hyps, refs):
    """BLEU-1 to 4 of texts that are tokenised already, 0..1."""
    from pycocoevalcap.bleu.bleu_scorer import BleuScorer

    scorer = BleuScorer(n=4)
    for hyp, ref in zip(hyps, refs, strict=True):
        scorer += (hyp, [ref])
    return scorer.compute_score(option="closest", verbose=0)[0]


def sacrebleu(hyps, refs):
    """Corpus BLEU-4 of texts that are tokenised already, without smoothing, 0..100."""
    import sacrebleu

    return sacrebleu.corpus_bleu(hyps, [refs], tokenize="none", smooth_method="none", force=True).score


def f1chexbert(hyps, refs):
    """Classes of every text, and the package's scores; HF_HOME and XDG_CACHE_HOME say where its files are."""
    from f1chexbert import F1CheXbert

    scorer = F1CheXbert(device="cpu")
    accuracy, each, over14, over5 = scorer(hyps=hyps, refs=refs)
    labels = {"": 0, 1: 1, 0: 2, -1: 3}
    classes = [[labels[label] for label in scorer.get_label(text.strip(), "classification")] for text in hyps]
    return {"accuracy": accuracy, "each": each.tolist(), "over14": over14, "over5": over5, "classes": classes}


if __name__ == "__main__":
    texts = json.load(sys.stdin)
    with contextlib.redirect_stdout(io.StringIO()):
        answer = globals()[sys.argv[1]](**texts)
    json.dump(answer, sys.stdout, default=float)
