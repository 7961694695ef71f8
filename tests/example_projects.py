"""Small repositories in the styles of common training code, for tests of what `orch init` finds in them."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping
from pathlib import Path

ARGPARSE = {
    "README.md": """\
# Word-level language model

```bash
python main.py --cuda --epochs 6           # Train an LSTM with CUDA.
python main.py --cuda --epochs 6 --tied    # with tied weights
python generate.py                         # Generate samples from the default model checkpoint.
```
""",
    "requirements.txt": "torch\n",
    "main.py": """\
import argparse
import time

import torch

import data

parser = argparse.ArgumentParser(description="Language model")
parser.add_argument("--data", type=str, default="./data/wikitext-2", help="location of the data corpus")
parser.add_argument("--model", type=str, default="LSTM")
parser.add_argument("--epochs", type=int, default=40, help="upper epoch limit")
parser.add_argument("--tied", action="store_true", help="tie the embeddings")
parser.add_argument("--cuda", action="store_true", default=False, help="use CUDA")
parser.add_argument("--save", type=str, default="model.pt", help="path to save the final model")
parser.add_argument("--dry-run", action="store_true", help="verify the code and the model")
args = parser.parse_args()

try:
    for epoch in range(1, args.epochs + 1):
        loss = torch.zeros(1, requires_grad=True)
        loss.backward()
        print("| end of epoch {:3d} | valid loss {:5.2f} | valid ppl {:8.2f}".format(epoch, 1.0, 2.0))
        with open(args.save, "wb") as f:
            torch.save({"epoch": epoch}, f)
except KeyboardInterrupt:
    print("Exiting from training early")
""",
    "generate.py": """\
import argparse
import torch

parser = argparse.ArgumentParser()
parser.add_argument("--checkpoint", type=str, default="./model.pt")
parser.add_argument("--outf", type=str, default="generated.txt")
args = parser.parse_args()
with open(args.outf, "w") as out:
    out.write("words")
""",
    "data.py": "class Corpus:\n    pass\n",
}

CONFIG_GPT = {
    "README.md": """\
# gpt

    pip install torch numpy

```sh
python data/shakespeare_char/prepare.py
```

```sh
python train.py config/train_shakespeare_char.py
```

On a laptop:

```sh
python train.py config/train_shakespeare_char.py --device=cpu --compile=False --eval_iters=20 \\
    --max_iters=2000
```

```sh
python data/openwebtext/prepare.py
torchrun --standalone --nproc_per_node=8 train.py config/train_gpt2.py
python sample.py --out_dir=out-shakespeare-char
```
""",
    "train.py": """\
import os
import time

import torch

out_dir = 'out'
eval_interval = 2000
eval_only = False
eval_iters = 200
init_from = 'scratch' # 'scratch' or 'resume' or 'gpt2*'
dataset = 'openwebtext'
max_iters = 600000
learning_rate = 6e-4
device = 'cuda'
compile = True
config_keys = [k for k, v in globals().items() if not k.startswith('_') and isinstance(v, (int, float, bool, str))]
exec(open('configurator.py').read()) # overrides from command line or config file

ddp = int(os.environ.get('RANK', -1)) != -1
if ddp:
    torch.distributed.init_process_group(backend='nccl')
os.makedirs(out_dir, exist_ok=True)
data_dir = os.path.join('data', dataset)
if init_from == 'resume':
    checkpoint = torch.load(os.path.join(out_dir, 'ckpt.pt'), map_location=device)
iter_num = 0
while True:
    loss = torch.zeros(1, requires_grad=True)
    loss.backward()
    print(f"step {iter_num}: train loss {loss.item():.4f}, val loss {loss.item():.4f}")
    torch.save({'iter_num': iter_num}, os.path.join(out_dir, 'ckpt.pt'))
    iter_num += 1
    if iter_num > max_iters:
        break
""",
    "configurator.py": "import sys\nfor arg in sys.argv[1:]:\n    print(arg)\n",
    "sample.py": "out_dir = 'out'\nexec(open('configurator.py').read())\nprint('sample')\n",
    "config/train_shakespeare_char.py": "out_dir = 'out-shakespeare-char'\ndataset = 'shakespeare_char'\n",
    "config/train_gpt2.py": "batch_size = 12\nmax_iters = 600000\n",
    "data/shakespeare_char/prepare.py": "print('prepared')\n",
    "data/openwebtext/prepare.py": "if __name__ == '__main__':\n    print('prepared')\n",
}

LIGHTNING = {
    "pyproject.toml": '[project]\nname = "demo"\nversion = "1"\ndependencies = ["lightning[extra]"]\n',
    "main.py": """\
from lightning.pytorch.cli import LightningCLI

from demo_model import DataModule, Model


def cli_main():
    LightningCLI(Model, DataModule)


if __name__ == "__main__":
    cli_main()
""",
    "demo_model.py": """\
import lightning as L


class Model(L.LightningModule):
    def training_step(self, batch, batch_idx):
        self.log("train_loss", 1.0)

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", 1.0)


class DataModule(L.LightningDataModule):
    pass
""",
    "config.yaml": "seed_everything: 1\ntrainer:\n  max_epochs: 10\n",
}

HF_TRAINER = {
    "requirements.txt": "transformers\ntorch\n",
    "run_clm.py": """\
import os
from dataclasses import dataclass, field

from transformers import HfArgumentParser, Trainer, TrainingArguments
from transformers.trainer_utils import get_last_checkpoint


@dataclass
class ModelArguments:
    model_name_or_path: str | None = field(default=None)
    hidden_size: int = field(default=64)


@dataclass
class DataTrainingArguments:
    max_samples: int = field(default=100)


def main():
    parser = HfArgumentParser((ModelArguments, DataTrainingArguments, TrainingArguments))
    model_args, data_args, training_args = parser.parse_args_into_dataclasses()
    trainer = Trainer(model=None, args=training_args)
    if training_args.do_train:
        trainer.train(resume_from_checkpoint=training_args.resume_from_checkpoint)
        trainer.save_model()


if __name__ == "__main__":
    main()
""",
}

TORCHRUN = {
    "main.py": """\
import argparse
import os
import shutil

import torch
import torch.distributed as dist

parser = argparse.ArgumentParser(description="ImageNet training")
parser.add_argument("data", metavar="DIR", help="path to the dataset")
parser.add_argument("-a", "--arch", metavar="ARCH", default="resnet18")
parser.add_argument("--epochs", default=90, type=int)
parser.add_argument("--resume", default="", type=str, metavar="PATH", help="path to the latest checkpoint")
parser.add_argument("-e", "--evaluate", action="store_true")


def main():
    args = parser.parse_args()
    dist.init_process_group("gloo")
    rank = int(os.environ["LOCAL_RANK"])
    for epoch in range(args.epochs):
        loss = torch.zeros(1, requires_grad=True)
        loss.backward()
        print(f"Epoch: [{epoch}][1/10]  Loss 1.0  Acc@1 10.0")
        save_checkpoint({"epoch": epoch}, True)


def save_checkpoint(state, is_best, filename="checkpoint.pth.tar"):
    torch.save(state, filename)
    if is_best:
        shutil.copyfile(filename, "model_best.pth.tar")


if __name__ == "__main__":
    main()
""",
}

HYDRA = {
    "train.py": """\
import hydra
import torch
from omegaconf import DictConfig


@hydra.main(version_base="1.3", config_path="conf", config_name="config")
def main(cfg: DictConfig) -> None:
    for epoch in range(cfg.trainer.max_epochs):
        loss = torch.zeros(1, requires_grad=True)
        loss.backward()
        torch.save({}, "last.ckpt")


if __name__ == "__main__":
    main()
""",
    "conf/config.yaml": "defaults:\n  - _self_\n  - trainer: default\n\nseed: 1\nckpt_path: null\n",
    "conf/trainer/default.yaml": "max_epochs: 10\nmax_steps: -1\ndevices: 1\n",
}

SRC_LAYOUT = {
    "pyproject.toml": """\
[project]
name = "tinynet"
version = "0.1"
dependencies = ["torch"]

[project.scripts]
tinynet-train = "tinynet.train:main"
tinynet-export = "tinynet.export:main"
""",
    "uv.lock": "version = 1\n",
    "src/tinynet/__init__.py": "",
    "src/tinynet/train.py": """\
import click

from .model import Net


@click.command()
@click.option("--steps", default=1000, show_default=True)
@click.option("--out-dir", default="runs/tinynet", help="where to write")
@click.option("--resume/--no-resume", default=False)
def main(steps, out_dir, resume):
    net = Net()
    net.fit(steps)


if __name__ == "__main__":
    main()
""",
    "src/tinynet/model.py": "class Net:\n    def fit(self, steps):\n        print('fit', steps)\n",
    "src/tinynet/export.py": "def main():\n    print('export')\n",
    "tests/test_train.py": "from tinynet.train import main\nmain()\n",
}

NOTEBOOKS = {"01_explore.ipynb": "{}", "02_train.ipynb": "{}", "README.md": "Open the notebooks in Jupyter.\n"}

ALIKE = {
    "train_a.py": "import torch\nloss = torch.zeros(1, requires_grad=True)\nloss.backward()\nprint('a')\n",
    "train_b.py": "import torch\nloss = torch.zeros(1, requires_grad=True)\nloss.backward()\nprint('b')\n",
    "broken.py": "def f(:\n",
}

LFS_POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:" + "0" * 64 + "\nsize 12345\n"

PROJECTS: dict[str, Mapping[str, str]] = {
    "argparse": ARGPARSE,
    "config_gpt": CONFIG_GPT,
    "lightning": LIGHTNING,
    "hf_trainer": HF_TRAINER,
    "torchrun": TORCHRUN,
    "hydra": HYDRA,
    "src_layout": SRC_LAYOUT,
    "notebooks": NOTEBOOKS,
    "alike": ALIKE,
    "empty": {},
}


def make_project(directory: Path, files: Mapping[str, str], with_git: bool = False) -> Path:
    """Write `files` below `directory`, and commit them if `with_git`."""
    directory.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    if with_git:
        git = ("git", "-C", str(directory), "-c", "user.name=somebody", "-c", "user.email=somebody@example.org")
        for arguments in (("init", "-q"), ("add", "-A"), ("commit", "-q", "--allow-empty", "-m", "first")):
            subprocess.run([*git, *arguments], check=True, timeout=60)
    return directory
