"""
Train a small GPT. Examples:
$ python train.py config/train_char.py
$ python train.py config/train_char.py --batch_size=32 --compile=False
"""

import os
import pickle
import time

import numpy as np
import torch
from model import GPT

# default config values; a config file and the command line override them
out_dir = "out"
eval_interval = 2000
log_interval = 1
eval_iters = 200
init_from = "scratch"  # 'scratch' or 'resume'
dataset = "openwebtext"
batch_size = 12
block_size = 1024
n_layer = 12
n_head = 12
n_embd = 768
learning_rate = 6e-4
max_iters = 600000
seed = 1337
device = "cpu"
compile = False
config_keys = [k for k, v in globals().items() if not k.startswith("_") and isinstance(v, (int, float, bool, str))]
exec(open("configurator.py").read())
config = {k: globals()[k] for k in config_keys}

os.makedirs(out_dir, exist_ok=True)
torch.manual_seed(seed)
data_dir = os.path.join("data", dataset)


def get_batch(split):
    data = np.memmap(os.path.join(data_dir, f"{split}.bin"), dtype=np.uint16, mode="r")
    ix = torch.randint(len(data) - block_size, (batch_size,))
    x = torch.stack([torch.from_numpy(data[i : i + block_size].astype(np.int64)) for i in ix])
    y = torch.stack([torch.from_numpy(data[i + 1 : i + 1 + block_size].astype(np.int64)) for i in ix])
    return x.to(device), y.to(device)


with open(os.path.join(data_dir, "meta.pkl"), "rb") as file:
    vocab_size = pickle.load(file)["vocab_size"]
model = GPT(vocab_size, block_size, n_layer, n_head, n_embd).to(device)
optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate)
iter_num, best_val_loss = 0, 1e9
if init_from == "scratch":
    print("Initializing a new model from scratch")
else:
    print(f"Resuming training from {out_dir}")
    checkpoint = torch.load(os.path.join(out_dir, "ckpt.pt"), map_location=device)
    model.load_state_dict(checkpoint["model"])
    optimizer.load_state_dict(checkpoint["optimizer"])
    iter_num, best_val_loss = checkpoint["iter_num"], checkpoint["best_val_loss"]
print(f"number of parameters: {sum(p.numel() for p in model.parameters()) / 1e6:.2f}M")
if compile:
    print("compiling the model... (takes a ~minute)")
    model = torch.compile(model)


@torch.no_grad()
def estimate_loss():
    model.eval()
    out = {
        split: np.mean([model(*get_batch(split))[1].item() for _ in range(eval_iters)]) for split in ("train", "val")
    }
    model.train()
    return out


t0 = time.time()
while True:
    if iter_num % eval_interval == 0:
        losses = estimate_loss()
        print(f"step {iter_num}: train loss {losses['train']:.4f}, val loss {losses['val']:.4f}")
        if iter_num > 0:
            best_val_loss = min(best_val_loss, float(losses["val"]))
            state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "config": config}
            print(f"saving checkpoint to {out_dir}")
            torch.save(
                {**state, "iter_num": iter_num, "best_val_loss": best_val_loss}, os.path.join(out_dir, "ckpt.pt")
            )
    if iter_num >= max_iters:
        break
    logits, loss = model(*get_batch("train"))
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    t1 = time.time()
    dt, t0 = t1 - t0, t1
    if iter_num % log_interval == 0:
        print(f"iter {iter_num}: loss {loss.item():.4f}, time {dt * 1000:.2f}ms")
    iter_num += 1
