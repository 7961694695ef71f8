"""Recognise progress and metrics in one line of a program's output, by the forms that training programs commonly use.

Pure functions of text. They take time in proportion to the length of the line, whatever is in it: no expression has
a repeat without a bound next to another one that matches the same characters.

Recognised are progress bars (tqdm, Keras, rich), epochs and steps (`Epoch [3/10]`, `iter 250:`, `| epoch 2 | 40/84
batches |`), and numbers with a name (`loss=0.5`, `'eval_loss': 0.5`, `val loss 2.1`, `Loss 6.9 (7.0)`). A number counts
only if its name is that of a metric, or if the same line has an epoch or a step. A number that is a part of something
else (a time, a version, an address, a size with its unit) never counts.
"""

from __future__ import annotations

import re
from typing import Dict, FrozenSet, NamedTuple, Optional

LONGEST_LINE = 4096  # characters; a longer line is not looked at
LONGEST_PHASE = 40  # characters
MOST_COUNT = 10**12  # of epochs or steps; a larger number is something else
MOST_PAIRS = 40  # numbers with a name in one line; a line with more is a configuration, not a report
TRAIN = "train"


class Sign(NamedTuple):
    """What one line says. Numbers are as printed: epochs may count from 0, and be fractions."""

    epoch: Optional[float] = None
    epochs: Optional[int] = None
    step: Optional[int] = None
    steps: Optional[int] = None
    eta_s: Optional[float] = None  # seconds until the end of what the line counts
    phase: str = ""  # what a bar counts, if it says so
    is_bar: bool = False
    counts_epochs: bool = False  # a bar whose units are epochs: `epoch` is the number that is done
    is_fraction: bool = False  # the epoch counts what is done: it has a decimal point, or is the value of a dict
    metrics: Dict[str, float] = {}

    @property
    def has_position(self) -> bool:
        """Return whether the line has an epoch or a step."""
        return self.epoch is not None or self.step is not None

    @property
    def shows_training(self) -> bool:
        """Return whether the line shows that the program trains, and not only that it prepares to."""
        if any(name.lower() not in _SETTINGS for name in self.metrics):
            return True
        return self.has_position and not (self.is_bar and self.phase != TRAIN and _PREPARES.search(self.phase))


def recognise(line: str, goals: FrozenSet[str] = frozenset()) -> Optional[Sign]:
    """Return what a line says about progress and metrics, or None.

    Args:
        line: One line, or one frame of a progress bar, without control sequences.
        goals: Names of metrics that count wherever they are followed by `=` or `:` and a number.
    """
    if len(line) > LONGEST_LINE or not _DIGIT.search(line):
        return None
    if "%|" in line or "it [" in line:
        found = _tqdm(line)
        if found is not None:
            return found
    if line[:1] in _BOX or _MESSAGE.search(line):
        return None
    return _drawn_bar(line, goals) or _text(line, goals)


# --- progress bars -----------------------------------------------------------------------------------------------

_DIGIT = re.compile(r"\d|nan\b|inf\b")
_BOX = ("╭", "│", "╰")  # a traceback as rich prints it
_MESSAGE = re.compile(r"(?:Error|Exception|Warning): (?![-+.\d])|Namespace\(")
_PERCENT = re.compile(r"(\d{1,3})$")
_CLOCK = r"(?:\d{1,6}:)?\d{1,4}:\d\d|\?"
_COUNTS = re.compile(
    rf"\s{{0,8}}(\d{{1,15}})/(\d{{1,15}})\s{{0,4}}\[(?:{_CLOCK})<({_CLOCK})(?:,\s{{0,4}}([^\]]{{0,1024}}))?\]"
)
_ENDLESS = re.compile(rf"(\d{{1,15}})it \[(?:{_CLOCK}), ([^\]]{{0,1024}})\]")  # without a total
_BYTES = re.compile(r"[kMGT]?i?B/s")
_KERAS = re.compile(r"\s{0,8}(\d{1,12})/(\d{1,12})\s{1,4}(?:\[[=>.]{1,200}\]|━{1,200})")
_RICH = re.compile(r"[━╸╺]{4,400}\s{1,8}(\d{1,12})/(\d{1,12})\s")
_RICH_LEFT = re.compile(r"\d:\d\d:\d\d\s{0,4}•\s{0,4}(\d{1,4}:\d\d:\d\d|-:--:--)")
_KERAS_ETA = re.compile(r"ETA: ((?:\d{1,4}:){0,2}\d{1,4})")
_EPOCHS_BAR = re.compile(r"(?i)\W{0,4}epochs?\W{0,4}$")
# The titles of bars that programs show before they train: downloads, datasets, the sanity check of Lightning.
_PREPARES = re.compile(
    r"(?i)download|load|fetch|extract|token|cach|shard|prepar|process|index|generat|sanity|\bmap\b|filter|creat"
)
_TRAINING = re.compile(r"(?i)train|epoch|step|iter|batch|progress|fit")


def _tqdm(line: str) -> Optional[Sign]:
    left, mark, right = line.partition("%|")
    if not mark:
        found = _ENDLESS.search(line)
        return _bar(line[: found.start()], int(found[1]), None, None, found[2]) if found else None
    percent = _PERCENT.search(left[-4:])
    found = _COUNTS.match(right[right.find("|", 0, 600) + 1 :])
    if not percent or not found or _BYTES.search(found[4] or ""):
        return None
    bar = _bar(left[: -len(percent[1])], int(found[1]), int(found[2]), seconds(found[3]), found[4] or "")
    rest = right[right.find("|", 0, 600) + 1 + found.end() :].strip()
    text = _text(rest, frozenset()) if rest.startswith("{") else None  # printed right behind the bar
    return bar._replace(metrics={**bar.metrics, **text.metrics}) if text else bar


def _bar(title: str, done: int, total: Optional[int], left: Optional[float], rest: str) -> Sign:
    """Return the sign of a bar. `title` is what stands before it, `rest` its rate and what the program added."""
    title = title.strip().rstrip(":").strip()
    rate, _, added = rest.partition(",")
    metrics = _pairs(added, True, frozenset())
    if _EPOCHS_BAR.match(title) or "epoch/s" in rate or "s/epoch" in rate:
        return Sign(epoch=done, epochs=total, eta_s=left, is_bar=True, counts_epochs=True, metrics=metrics)
    epoch = _EPOCH.search(title)
    if epoch:
        return _of_epoch(epoch)._replace(step=done, steps=total, eta_s=left, is_bar=True, metrics=metrics)
    phase = TRAIN if not title or _TRAINING.search(title) else title[-LONGEST_PHASE:]
    return Sign(step=done, steps=total, eta_s=left, phase=phase, is_bar=True, metrics=metrics)


def _drawn_bar(line: str, goals: FrozenSet[str]) -> Optional[Sign]:
    """Recognise the bars of Keras and rich."""
    keras = _KERAS.match(line)
    if keras:
        metrics, eta = _pairs(line[keras.end() :], True, goals), _KERAS_ETA.search(line)
        left = seconds(eta[1]) if eta else None
        return Sign(step=int(keras[1]), steps=int(keras[2]), eta_s=left, phase=TRAIN, is_bar=True, metrics=metrics)
    rich = _RICH.search(line)
    if rich:
        left_text = _RICH_LEFT.search(line)
        bar = _bar(line[: rich.start()], int(rich[1]), int(rich[2]), seconds(left_text[1]) if left_text else None, "")
        return bar._replace(metrics=_pairs(line[rich.end() :], True, goals))
    return None


def seconds(clock: str) -> Optional[float]:
    """Return the seconds of `1:02:03` or `02:03`; None for anything else."""
    parts = clock.split(":")
    if not all(part.isdigit() for part in parts):
        return None
    return float(sum(int(part) * 60**power for power, part in enumerate(reversed(parts))))


# --- epochs and steps --------------------------------------------------------------------------------------------

_EPOCH = re.compile(
    r"(?i)(?<![a-z0-9_/.])epoch(?P<plural>s?)(?:\([a-z]{1,8}\))?(?P<quote>['\"])?[\s:=#\[(]{0,8}['\"]?"
    r"(?P<epoch>\d{1,9}(?:\.\d{1,17})?)(?:\s{0,4}(?:/|of)\s{0,4}(?P<epochs>\d{1,9}))?(?![\d.]{0,9}[a-z%])"
)
_WITHIN = re.compile(r"\]?\s{0,4}\[\s{0,8}(\d{1,12})\s{0,4}/\s{0,8}(\d{1,12})")  # behind the epoch: [10/5005]
_STEP = re.compile(
    r"(?i)(?<![a-z0-9_/.])(?:global_?|train_?)?(?P<what>step|iter|iteration|update|batch)['\"]?[\s:=#\[(]{0,8}['\"]?"
    r"(?P<step>\d{1,12})(?:\s{0,4}(?:/|of)\s{0,8}(?P<steps>\d{1,12}))?(?![\d.]{0,9}[a-z%]|\.\d|,\d{3}|[:/-]\d)"
)
_STEP_WORDS = ("step", "iter", "update", "batch")
_OF_BATCHES = re.compile(r"(?i)(\d{1,12})\s{0,4}/\s{0,8}(\d{1,12})\s{1,4}(?:batches|steps|iters|iterations)\b")
_NOT_THE_CURRENT = re.compile(r"(?i)\b(?:best|every|from|last|per|since)\W{0,4}$")  # "best epoch: 3"
_ETA = re.compile(
    r"(?i)\beta['\"]?[\s:=]{1,3}(?:(?P<days>\d{1,4}) days?,? )?(?P<clock>(?:\d{1,4}:)?\d{1,3}:\d\d)(?![\d:])"
)


def _of_epoch(found: re.Match[str]) -> Sign:
    number, total = found["epoch"], found["epochs"]
    return Sign(
        epoch=float(number),
        epochs=int(total) if total else None,
        is_fraction="." in number or found["quote"] is not None,
    )


def _position(line: str) -> Sign:
    """Return the epoch and the step in `line`. Most lines have none of the words, which is quickly seen."""
    sign, step, steps, lower = Sign(), None, None, line.lower()
    epoch = _EPOCH.search(line) if "epoch" in lower else None
    if epoch and not (epoch["plural"] and not epoch["epochs"]) and not _NOT_THE_CURRENT.search(line[: epoch.start()]):
        sign = _of_epoch(epoch)
        within = _WITHIN.match(line, epoch.end())
        step, steps = (int(within[1]), int(within[2])) if within else (None, None)
    if any(word in lower for word in _STEP_WORDS):
        named = _STEP.search(line)
        if named and not (named["what"].lower() == "batch" and not named["steps"]):  # "batch 64" is a size
            step, steps = int(named["step"]), int(named["steps"]) if named["steps"] else None
        batches = _OF_BATCHES.search(line) if step is None and "/" in line else None
        if batches:
            step, steps = int(batches[1]), int(batches[2])
    eta = _ETA.search(line) if "eta" in lower and (step is not None or sign.epoch is not None) else None
    left = (seconds(eta["clock"]) or 0.0) + 86400 * int(eta["days"] or 0) if eta else None
    return sign._replace(step=step, steps=steps, eta_s=left)


def _text(line: str, goals: FrozenSet[str]) -> Optional[Sign]:
    sign = _position(line)
    metrics = _pairs(line, sign.has_position, goals)
    return sign._replace(metrics=metrics) if metrics or sign.has_position else None


# --- numbers with a name -----------------------------------------------------------------------------------------

_PAIR = re.compile(
    r"(?<![\w@./-])(?P<qualifiers>(?:(?i:train|training|val|valid|validation|dev|test|eval|avg|average|mean|best)\s{1,2})"
    r"{0,2})(?P<name>[A-Za-z][A-Za-z0-9_@./-]{0,63})['\"]?(?P<mark>\s{0,2}[=:]\s{0,8}|\s{1,8})['\"]?"
    r"(?P<value>[-+]?(?:\d{1,40}(?:\.\d{0,40})?|\.\d{1,40})(?:[eE][-+]?\d{1,3})?|[-+]?(?:nan|inf)\b)"
    r"(?:/(?P<of>\d{1,15}))?(?P<percent>\s?%)?(?![\w:/@+-]|\.\d|,\d{3}(?!\d))"
)
_TOKENS = re.compile(r"[A-Z]?[a-z]+|[A-Z]+|\d+")
# Words of which one in a name makes it the name of a metric.
_METRICS = frozenset(
    ("loss", "losses", "logloss", "acc", "accuracy", "ppl", "perplexity", "lr", "mse", "mae", "rmse", "mape", "f")
    + ("auc", "auroc", "precision", "recall", "bleu", "rouge", "wer", "cer", "iou", "miou", "dice", "ndcg", "mrr")
    + ("psnr", "ssim", "fid", "elbo", "nll", "bpb", "bpc", "reward", "entropy", "kappa")
)
# The same if `=` or `:` follows: in a sentence these mean other things.
_METRICS_IF_MARKED = frozenset(
    ("score", "return", "map", "ap", "metric", "kl", "top", "cost", "objective", "likelihood")
)
_SETTINGS = frozenset(("lr", "learning_rate"))  # metrics that programs also print before they train
_METRICS_IF_QUALIFIED = frozenset(("error", "err"))  # `val_error`, but not `error: 404`
NOT_METRICS = frozenset(
    ("epoch", "epochs", "step", "steps", "iter", "iteration", "batch", "update", "global_step", "eta", "v_num", "seed")
    + ("pid", "rank", "local_rank", "port", "version", "line", "worker", "device", "gpu", "node")
)
_SOURCE_FILE = re.compile(r"\.(?:py|cc|cpp|cu|c|h|rs|sh)$")


def _pairs(text: str, is_report: bool, goals: FrozenSet[str]) -> Dict[str, float]:
    """Return the metrics in `text`. With `is_report`, any name counts that is followed by `=` or `:`."""
    found: Dict[str, float] = {}
    for number, pair in enumerate(_PAIR.finditer(text)):
        if number >= MOST_PAIRS:
            return {}
        qualifiers, name, is_marked = pair["qualifiers"].split(), pair["name"], not pair["mark"].isspace()
        name = "_".join([*qualifiers, name])
        if _is_metric(name, is_marked, is_report) or (is_marked and name.casefold() in goals):
            value = _value(pair, name)
            if value is not None:
                found[name] = value
    return found


def _is_metric(name: str, is_marked: bool, is_report: bool) -> bool:
    if name.lower().rpartition("_")[2] in NOT_METRICS or name.lower() in NOT_METRICS or _SOURCE_FILE.search(name):
        return False
    if is_report and is_marked:
        return True
    tokens = {token.lower() for token in _TOKENS.findall(name)}
    words = _METRICS | _METRICS_IF_MARKED if is_marked else _METRICS
    return bool(tokens & words or (len(tokens) > 1 and tokens & _METRICS_IF_QUALIFIED) or name == "learning_rate")


def _value(pair: re.Match[str], name: str) -> Optional[float]:
    """Return the number; `97 %` is 0.97, and `9834/10000` of an accuracy is 0.9834."""
    value = float(pair["value"])
    if pair["of"]:
        of = int(pair["of"])
        return value / of if of and "acc" in name.lower() else None
    return value / 100 if pair["percent"] else value


def named_number(text: str) -> Optional[float]:
    """Return the number that `text` is: `1,000`, `97 %` (0.97), `nan`; None if it is something else."""
    text = text.strip().replace(",", "")
    percent = text.endswith("%")
    if len(text) > 64 or "_" in text:
        return None
    try:
        return float(text[:-1]) / 100 if percent else float(text)
    except ValueError:
        return None
