"""What `orch init` finds in repositories of many styles, and the jobs.toml that it writes."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

from orchestrator.commands import first_settings, first_spec, init
from orchestrator.commands.init import Initialised, write_spec
from orchestrator.errors import SpecError
from orchestrator.spec.load import load
from orchestrator.spec.models import Job
from tests.example_projects import ALIKE, ARGPARSE, CONFIG_GPT, HF_TRAINER, PROJECTS, SRC_LAYOUT, make_project

COMMANDS = {
    "argparse": "python main.py --epochs 6",
    "config_gpt": "python train.py config/train_shakespeare_char.py --device=cpu --compile=False --eval_iters=20 "
    "--max_iters=2000",
    "lightning": "python main.py fit --config config.yaml",
    "hf_trainer": "python run_clm.py --output_dir out --do_train",
    "torchrun": "torchrun --standalone --nproc_per_node=1 main.py data",
    "hydra": "python train.py",
    "src_layout": "python -m tinynet.train",
    "notebooks": "python -m nbconvert --to notebook --execute --ExecutePreprocessor.timeout=-1 --output-dir out "
    "02_train.ipynb",
    "alike": "python train_a.py",
    "empty": "python train.py",
}
LINES = {
    "argparse": {
        "rehearse": "python main.py --epochs 6 --dry-run",
        "# environment": "requirements.txt",
        "# outputs": ["model.pt"],
        "# expects": ["model.pt"],
        "# valid_ppl": "<= 0.5",
    },
    "config_gpt": {
        "prepare": "python data/shakespeare_char/prepare.py",
        "rehearse": "python train.py config/train_shakespeare_char.py --device=cpu --compile=False --eval_iters=20 "
        "--max_iters=2",
        "resume": "--init_from=resume",
        "checkpoints": "out-shakespeare-char/ckpt.pt",
        "# outputs": ["out-shakespeare-char"],
    },
    "lightning": {
        "rehearse": "python main.py fit --config config.yaml --trainer.max_steps 2",
        "# environment": "pyproject.toml",
        "resume": "--ckpt_path $ORCH_RESUME",
        "checkpoints": "lightning_logs/version_*/checkpoints/*.ckpt",
        "# outputs": ["lightning_logs"],
        "# val_loss": "<= 0.5",
    },
    "hf_trainer": {
        "rehearse": "python run_clm.py --output_dir out --do_train --max_steps 2",
        "resume": "--resume_from_checkpoint $ORCH_RESUME",
        "checkpoints": "out/checkpoint-*",
        "# outputs": ["out"],
    },
    "torchrun": {
        "# rehearse": "torchrun --standalone --nproc_per_node=1 main.py data --epochs 1",
        "resume": "--resume $ORCH_RESUME",
        "checkpoints": "checkpoint.pth.tar",
        "# outputs": ["checkpoint.pth.tar", "model_best.pth.tar"],
    },
    "hydra": {
        "rehearse": "python train.py trainer.max_steps=2",
        "# resume": ["ckpt_path=$ORCH_RESUME"],
        "# outputs": ["outputs", "last.ckpt"],
    },
    "src_layout": {
        "rehearse": "python -m tinynet.train --steps 2",
        "# environment": "uv.lock",
        "# resume": "--resume",
        "# outputs": ["runs/tinynet"],
    },
    "notebooks": {},
    "alike": {},
    "empty": {},
}


@pytest.fixture(autouse=True)
def machine_without_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make every test see the same machine: no GPU, and one environment, which has everything."""
    monkeypatch.setattr(init, "has_gpu", lambda: False)
    monkeypatch.setattr(init, "has_torchrun", lambda directory: True)
    monkeypatch.setattr(first_spec, "missing_libraries", lambda command: [])
    monkeypatch.delenv("VIRTUAL_ENV", raising=False)
    monkeypatch.delenv("CONDA_PREFIX", raising=False)


def started(directory: Path) -> tuple[Initialised, str]:
    """Run `orch init` in a directory; return its result, and the text of a jobs.toml that loads."""
    result = write_spec(directory)
    load(result.path)
    return result, result.path.read_text()


def value(text: str, key: str) -> Any:
    """Return the value of the first line `key = ...`; `# key` is the one of a suggestion."""
    found = re.search(rf"^{re.escape(key)} = .*$", text, re.MULTILINE)
    assert found, f"no line {key!r} in:\n{text}"
    return next(iter(tomllib.loads(found[0].removeprefix("# ")).values()))


def job(text: str) -> dict[str, Any]:
    table: dict[str, Any] = tomllib.loads(text)["jobs"]["train"]
    return table


def comments(text: str) -> str:
    return "\n".join(line for line in text.splitlines() if line.startswith("# "))


# --- the styles -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("style", PROJECTS)
def test_style_gets_its_command_and_settings(style: str, tmp_path: Path) -> None:
    _, text = started(make_project(tmp_path / style, PROJECTS[style]))
    assert job(text)["command"] == COMMANDS[style]
    assert {key: value(text, key) for key in LINES[style]} == LINES[style]


@pytest.mark.parametrize("style", PROJECTS)
def test_every_suggestion_is_valid_once_it_is_no_comment(style: str, tmp_path: Path) -> None:
    result, text = started(make_project(tmp_path / style, PROJECTS[style]))
    known = {*Job.toml_keys(), "ssh", "python", "file", "log"}
    suggested = re.findall(r"^# (?:\w+ = |\[[\w.]+\]$)", text, re.MULTILINE)
    assert len(suggested) > 8

    def shown(line: str) -> str:
        key = re.match(r"# (\w+) = ", line)
        is_setting = line.startswith("# [") or (key and (key[1] in known or re.match("val|test|eval", key[1])))
        return line.removeprefix("# ") if is_setting else line

    result.path.write_text("\n".join(map(shown, text.splitlines())))
    spec = load(result.path)
    assert spec.hosts["box"].gpus == 1 and spec.jobs["train"].goals and spec.jobs["train"].restarts == 2


def test_script_that_knows_no_gpu_option_keeps_the_command_of_the_readme(tmp_path: Path) -> None:
    readme = "    $ CUDA_VISIBLE_DEVICES=0 LR=3 uv run python3 ./main.py --epochs 2 > log.txt 2>&1\n"
    _, text = started(make_project(tmp_path / "p", {**ARGPARSE, "README.md": readme}))
    assert (job(text)["command"], job(text)["env"]) == ("python main.py --epochs 2", {"LR": "3"})


def test_gpu_options_stay_on_a_machine_with_a_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(init, "has_gpu", lambda: True)
    _, text = started(make_project(tmp_path / "p", ARGPARSE))
    assert job(text)["command"] == "python main.py --cuda --epochs 6"
    assert "gpus" not in tomllib.loads(text)["hosts"]["local"]


@pytest.mark.parametrize(
    "line",
    ["python main.py --epochs 3 --bogus", "python main.py --data <path>", "python main.py --data /path/to/data"],
)
def test_command_of_the_readme_that_cannot_work_is_only_shown(line: str, tmp_path: Path) -> None:
    _, text = started(make_project(tmp_path / "p", {**ARGPARSE, "README.md": f"```\n{line}\n```\n"}))
    assert job(text)["command"] == "python main.py"
    assert f"The README has: {line}" in comments(text)


def test_torchrun_is_run_as_a_module_where_the_program_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(init, "has_torchrun", lambda directory: False)
    _, text = started(make_project(tmp_path / "p", PROJECTS["torchrun"]))
    assert job(text)["command"] == "python -m torch.distributed.run --standalone --nproc_per_node=1 main.py data"


def test_missing_argument_is_named_to_the_user(tmp_path: Path) -> None:
    script = "import argparse\np = argparse.ArgumentParser()\np.add_argument('--corpus-name', required=True)\n"
    script += "p.parse_args()\n"
    result, text = started(make_project(tmp_path / "p", {"train.py": script}))
    assert job(text)["command"] == "python train.py --corpus-name SET_THIS"
    assert result.command.to_set == ("corpus-name; the script does not run without it",)
    assert "SET THIS: corpus-name" in comments(text)


def test_scripts_that_look_alike_are_candidates(tmp_path: Path) -> None:
    result, text = started(make_project(tmp_path / "p", ALIKE))
    assert result.command.candidates == ("train_a.py", "train_b.py")
    assert "Not certain: train_a.py, train_b.py look alike." in comments(text)


def test_notebooks_alone_are_named(tmp_path: Path) -> None:
    result, text = started(make_project(tmp_path / "p", PROJECTS["notebooks"]))
    assert result.command.candidates == ("01_explore.ipynb", "02_train.ipynb")
    assert "there are only notebooks here" in comments(text)


@pytest.mark.parametrize(
    ("script", "command", "rehearse"),
    [
        (
            "import typer\napp = typer.Typer()\n@app.command()\ndef main(epochs: int = 3, out: str = 'o'): ...\n"
            "if __name__ == '__main__':\n    app()\n",
            "python train.py",
            '# rehearse = "python train.py --epochs 1"',
        ),
        (
            "import fire\ndef train(max_steps=100): ...\nif __name__ == '__main__':\n    fire.Fire(train)\n",
            "python train.py",
            'rehearse = "python train.py --max_steps=2"',
        ),
        (
            "from absl import app, flags\nflags.DEFINE_string('workdir', None, 'where')\n"
            "flags.DEFINE_integer('num_steps', 10, '')\nflags.mark_flag_as_required('workdir')\napp.run(main)\n"
            "if __name__ == '__main__':\n    app.run(main)\n",
            "python train.py --workdir=out",
            'rehearse = "python train.py --workdir=out --num_steps=2"',
        ),
        (
            "import tyro\nfrom dataclasses import dataclass\n@dataclass\nclass Args:\n    max_steps: int = 10\n"
            "if __name__ == '__main__':\n    args = tyro.cli(Args)\n",
            "python train.py",
            'rehearse = "python train.py --max_steps 2"',
        ),
        (
            "import argparse\np = argparse.ArgumentParser()\ns = p.add_subparsers()\n"
            "t = s.add_parser('train')\nt.add_argument('--epochs', type=int)\ns.add_parser('test')\np.parse_args()\n",
            "python train.py train",
            '# rehearse = "python train.py train --epochs 1"',
        ),
        (
            "import argparse\np = argparse.ArgumentParser()\np.add_argument('-c', '--config', required=True)\n"
            "p.add_argument('--steps', type=int)\np.parse_args()\n",
            "python train.py --config configs/a.yaml",
            'rehearse = "python train.py --config configs/a.yaml --steps 2"',
        ),
    ],
)
def test_other_command_lines_are_read(script: str, command: str, rehearse: str, tmp_path: Path) -> None:
    _, text = started(make_project(tmp_path / "p", {"train.py": script, "configs/a.yaml": "lr: 1\n"}))
    assert job(text)["command"] == command
    assert rehearse in text.splitlines()


def test_options_in_an_imported_module_are_found(tmp_path: Path) -> None:
    options = "import argparse\ndef parse():\n    p = argparse.ArgumentParser()\n    p.add_argument('--max-steps')\n"
    script = "from lib.options import parse\nif __name__ == '__main__':\n    parse()\n"
    _, text = started(make_project(tmp_path / "p", {"train.py": script, "lib/options.py": options}))
    assert job(text)["rehearse"] == "python train.py --max-steps 2"


def test_console_script_without_a_main_is_called(tmp_path: Path) -> None:
    source = SRC_LAYOUT["src/tinynet/train.py"].split("if __name__")[0]
    _, text = started(make_project(tmp_path / "p", {**SRC_LAYOUT, "src/tinynet/train.py": source}))
    assert job(text)["command"] == "python -c 'from tinynet.train import main; main()'"
    assert "the console script tinynet-train" in comments(text)


# --- the rest of the file -----------------------------------------------------------------------------------


def test_python_of_the_project_runs_its_jobs(tmp_path: Path) -> None:
    project = make_project(tmp_path / "p", {**ARGPARSE, ".venv/pyvenv.cfg": "", ".venv/bin/python": ""})
    (project / ".venv" / "bin" / "python").chmod(0o755)
    result, _ = started(project)
    assert load(result.path).hosts["local"].python == str(project / ".venv" / "bin" / "python")


def test_environment_is_set_if_the_python_of_orch_lacks_a_library(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(first_spec, "missing_libraries", first_settings.missing_libraries)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    result, text = started(make_project(tmp_path / "p", ARGPARSE))
    environment = load(result.path).jobs["train"].environment
    assert environment is not None and environment.file == "requirements.txt"
    assert "The Python that runs orch has no torch." in comments(text)


@pytest.mark.parametrize(
    ("script", "is_certain"),
    [
        ("torch.save({}, 'out/ckpt.pt')\ntorch.save({}, 'out/best.pt')\n", True),
        ("torch.save({}, 'model.pt')\n", True),
        ("torch.save({}, 'a.pt')\ntorch.save({}, 'b.pt')\n", False),
        ("torch.save({}, name)\n", False),
    ],
)
def test_resume_is_set_only_if_its_checkpoints_are_certain(script: str, is_certain: bool, tmp_path: Path) -> None:
    options = "import argparse, torch\np = argparse.ArgumentParser()\np.add_argument('--resume')\np.parse_args()\n"
    _, text = started(make_project(tmp_path / "p", {"train.py": options + script}))
    assert ({"restarts", "resume", "checkpoints"} <= set(job(text))) == is_certain
    assert ("Not certain: see whether" in text or "not certain: set the names" in text) != is_certain


def test_script_with_a_trainer_of_lightning_has_its_logs(tmp_path: Path) -> None:
    script = "import argparse\nimport lightning as L\np = argparse.ArgumentParser()\np.add_argument('--ckpt_path')\n"
    script += "args = p.parse_args()\nL.Trainer(max_epochs=2).fit(None, ckpt_path=args.ckpt_path)\n"
    _, text = started(make_project(tmp_path / "p", {"train.py": script}))
    assert job(text)["checkpoints"] == "lightning_logs/version_*/checkpoints/*.ckpt"
    assert value(text, "# outputs") == ["lightning_logs"]


def test_ignored_data_is_linked(tmp_path: Path) -> None:
    project = make_project(tmp_path / "p", {**ARGPARSE, ".gitignore": "data/\n", "train.csv": ""}, with_git=True)
    (project / "data" / "wikitext-2").mkdir(parents=True)
    _, text = started(project)
    assert job(text)["links"] == {"data": str(project / "data")}
    assert "git ignores data/, so it is not uploaded with the code." in comments(text)
    assert value(text, "# data") == {"from": "data"}


def test_text_of_a_repository_cannot_break_the_file(tmp_path: Path) -> None:
    readme = "python main.py --model 'a\x1b[2Jb\\'\npython main.py --save '\"\"\" \\ \x7f'\n"
    files = {**ARGPARSE, "README.md": readme, "sp ace.py": ARGPARSE["main.py"], "we\u202eird.py": "print(1)\n"}
    _, text = started(make_project(tmp_path / "p\x1b", files))
    assert "\x1b" not in text and "\u202e" not in text


def test_code_of_the_repository_is_not_run(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    script = f"import pathlib\npathlib.Path({str(mark)!r}).touch()\nprint('trained')\n"
    started(make_project(tmp_path / "p", {"train.py": script, "setup.py": script, "conftest.py": script}))
    assert not mark.exists()


# --- which files it writes ------------------------------------------------------------------------------------


def test_existing_spec_is_refused_and_kept(tmp_path: Path) -> None:
    (tmp_path / "jobs.toml").write_text("mine")
    with pytest.raises(SpecError, match="already has one"):
        write_spec(tmp_path)
    assert (tmp_path / "jobs.toml").read_text() == "mine"


@pytest.mark.parametrize(
    ("before", "added"),
    [
        ("", (".orch/", "results/")),
        ("*.pt", (".orch/", "results/")),
        ("results\n/.orch\n", ()),
        (".*\n!.gitignore\n", ("results/",)),
        ("*\n!*.py\n", ()),
    ],
)
def test_gitignore_gets_only_what_is_not_ignored(before: str, added: tuple[str, ...], tmp_path: Path) -> None:
    project = make_project(tmp_path / "p", {".gitignore": before, "train.py": "print(1)\n"}, with_git=True)
    result, _ = started(project)
    assert result.ignored == added
    assert [line for line in (project / ".gitignore").read_text().splitlines() if line] == [*before.split(), *added]


def test_gitignore_of_an_outer_folder_counts(tmp_path: Path) -> None:
    outer = make_project(
        tmp_path / "p", {".gitignore": "results/\n.orch/\n", "sub/train.py": "print(1)"}, with_git=True
    )
    assert started(outer / "sub")[0].ignored == ()
    assert not (outer / "sub" / ".gitignore").exists()


def test_directory_without_git_gets_no_gitignore(tmp_path: Path) -> None:
    project = make_project(tmp_path / "p", {"train.py": "print(1)\n"})
    assert started(project)[0].ignored == ()
    assert not (project / ".gitignore").exists()


def test_damaged_repository_is_read_without_git(tmp_path: Path) -> None:
    project = make_project(tmp_path / "p", {**HF_TRAINER, ".git/HEAD": "nonsense", ".git/config": "[core"})
    _, text = started(project)
    assert job(text)["command"] == COMMANDS["hf_trainer"]


def test_dataset_that_several_scripts_prepare_is_left_to_the_user(tmp_path: Path) -> None:
    files = {**CONFIG_GPT, "config/train_shakespeare_char.py": "max_iters = 3\n"}
    _, text = started(make_project(tmp_path / "p", files))
    assert "prepare" in job(text)  # that of the dataset in train.py
    assert job(text)["prepare"] == "python data/openwebtext/prepare.py"
    files["train.py"] = files["train.py"].replace("'openwebtext'", "'enwik8'")
    _, text = started(make_project(tmp_path / "q", files))
    assert "prepare" not in job(text)
    assert text.count("# prepare = ") == 2
