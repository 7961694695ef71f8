"""Find which files and folders a Python script writes, from its source."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from orchestrator.code.script_values import UNKNOWN, Value, Values, argument, calls, constant

# Functions that write a file: the place of its path among the arguments, and its name.
_FILES: dict[str, tuple[int | None, tuple[str, ...]]] = {
    "torch.save": (1, ("f",)),
    "accelerator.save": (1, ("f",)),
    "joblib.dump": (1, ("filename",)),
    "save_file": (1, ("filename",)),
    "copyfile": (1, ("dst",)),
    "shutil.copy": (1, ("dst",)),
    "savefig": (0, ("fname",)),
    "to_csv": (0, ("path_or_buf",)),
    "to_parquet": (0, ("path",)),
    "save_weights": (0, ("filepath",)),
    "save_model": (0, ("fname",)),
    "savez": (0, ("file",)),
    "savez_compressed": (0, ("file",)),
    "savetxt": (0, ("fname",)),
    "save_checkpoint": (0, ("filepath", "filename")),
    "save": (0, ("filepath", "file", "path")),
}
_FOLDERS: dict[str, tuple[int | None, tuple[str, ...]]] = {
    "save_pretrained": (0, ("save_directory",)),
    "save_state": (0, ("output_dir",)),
    "makedirs": (0, ("name",)),
    "os.mkdir": (0, ("path",)),
    "TrainingArguments": (0, ("output_dir",)),
    "Seq2SeqTrainingArguments": (0, ("output_dir",)),
    "SFTConfig": (0, ("output_dir",)),
    "ModelCheckpoint": (0, ("dirpath",)),
    "Trainer": (None, ("default_root_dir",)),
    "SummaryWriter": (0, ("log_dir",)),
}
_OF_A_PATH = {"write_text", "write_bytes", "mkdir", "open"}  # methods of a pathlib.Path
_NO_RESULT = re.compile(r"(?i)(?:\.?/)?(?:\w*data(?:set)?s?\w*|\.?cache\w*|te?mp|downloads?)(?:/|$)")
_HAS_SUFFIX = re.compile(r"\.[A-Za-z0-9*]{1,12}$")
_CHECKPOINT_FILE = re.compile(r"\.(?:pt|pth|ckpt|tar|safetensors|bin|h5|keras|pkl|npz|msgpack)$")


@dataclass(frozen=True)
class Written:
    """A file or folder that a script writes. `path` is relative, with `*` for what is known only when it runs."""

    path: str
    is_folder: bool = False

    @property
    def is_checkpoint(self) -> bool:
        """Return whether the name is that of a file with weights."""
        return not self.is_folder and _CHECKPOINT_FILE.search(self.path) is not None


def find_written(trees: Sequence[ast.Module], options: Mapping[str, Value]) -> list[Written]:
    """Return what a script writes, without its data and what lies outside of its working directory.

    Args:
        trees: Its own module and those that it imports.
        options: The values of its options, by key.
    """
    values = Values(trees, options)
    found: dict[str, Written] = {}
    for tree in trees:
        for path, is_folder in _paths(tree, values):
            path = re.sub(r"\*+", UNKNOWN, path).removeprefix("./").rstrip("/")
            if not path.strip("*./") or path.startswith(("/", "~", UNKNOWN)) or ".." in path.split("/"):
                continue
            if not _NO_RESULT.match(path) and "://" not in path:
                found.setdefault(path, Written(path, is_folder and not _CHECKPOINT_FILE.search(path)))
    return list(found.values())


def _paths(tree: ast.Module, values: Values) -> Iterator[tuple[str, bool]]:
    for name, call in calls(tree):
        last = name.rpartition(".")[2]
        if last == "open" and (path := _opened(name, call, values)):
            yield path, False
        elif last in _OF_A_PATH and isinstance(call.func, ast.Attribute):
            if path := values.text(call.func.value):
                yield path, last == "mkdir"
        elif place := _FILES.get(name) or _FILES.get(last):
            position, names = place
            path = values.text(argument(call, position, *names))
            if path and (_HAS_SUFFIX.search(path) or last not in ("save", "save_checkpoint")):
                yield path, False
        elif place := _FOLDERS.get(name) or _FOLDERS.get(last):
            path = values.text(argument(call, place[0], *place[1]))
            if path or last == "SummaryWriter":
                yield path or "runs", True


def _opened(name: str, call: ast.Call, values: Values) -> str | None:
    """Return the path that `open(path, "w")` or `path.open("w")` writes; None if it only reads."""
    is_method = name != "open" and not name.endswith(("io.open", "gzip.open", "codecs.open"))
    mode = constant(argument(call, 0 if is_method else 1, "mode"))
    if not isinstance(mode, str) or not set(mode) & set("wax"):
        return None
    if is_method:
        return values.text(call.func.value) if isinstance(call.func, ast.Attribute) else None
    return values.text(argument(call, 0, "file"))


def checkpoint_patterns(written: Sequence[Written]) -> list[str]:
    """Return the files with weights, those first whose name says that they are checkpoints."""
    found = [each.path for each in written if each.is_checkpoint and each.path.strip("*/") != ""]
    return sorted(found, key=lambda path: not says_checkpoint(path))


def says_checkpoint(path: str) -> bool:
    """Return whether the name of a file says that it is a checkpoint, and not only weights."""
    return re.search(r"(?i)ckpt|check|last|latest|epoch|step|iter", path.rpartition("/")[2]) is not None
