"""Names of files that a script writes, where parts of them change while it runs."""

from __future__ import annotations

import ast

import pytest

from orchestrator.code.script_writes import find_written

SCRIPT = """\
step = 0
best = 1e9
for epoch in range(10):
    step += 1
    torch.save(model, {name})
"""


@pytest.mark.parametrize(
    ("name", "pattern"),
    [
        ('f"ckpt_{step}.pt"', "ckpt_*.pt"),
        ('f"ckpt_{epoch}.pt"', "ckpt_*.pt"),
        ('f"ckpt_{epoch + 1}.pt"', "ckpt_*.pt"),
        ('f"ckpt_{step:06d}.pt"', "ckpt_*.pt"),
        ('f"best_{best:.3f}.pt"', "best_*.pt"),
        ('f"{args.out}/e{epoch:03d}-lr{args.lr:.0e}.pt"', "out/e*-lr*.pt"),
        ('"ckpt_%d.pt" % step', "ckpt_*.pt"),
        ('"ckpt_{:04d}.pt".format(step)', "ckpt_*.pt"),
        ('"ckpt_" + str(step) + ".pt"', "ckpt_*.pt"),
        ('f"{args.out}/last.pt"', "out/last.pt"),
    ],
)
def test_changing_part_of_a_name_becomes_a_star(name: str, pattern: str) -> None:
    tree = ast.parse(SCRIPT.format(name=name))
    assert [each.path for each in find_written([tree], {"out": "out", "lr": 0.1})] == [pattern]
