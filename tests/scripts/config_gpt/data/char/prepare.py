"""Write train.bin, val.bin and meta.pkl beside this file: a made-up text as ids of characters."""

import os
import pickle
import random

import numpy as np

source = random.Random(3)
names = ["Anna", "Bertram", "Cleo", "Dorian"]
words = ["good", "night", "my", "lord", "the", "moon", "is", "out", "and", "all", "are", "asleep"]
lines = []
for _ in range(6000):
    lines.append(f"{source.choice(names)}: {' '.join(source.choices(words, k=6))}.")
data = "\n".join(lines)

chars = sorted(set(data))
stoi = {ch: i for i, ch in enumerate(chars)}
ids = np.array([stoi[ch] for ch in data], dtype=np.uint16)
here = os.path.dirname(os.path.abspath(__file__))
n = int(0.9 * len(ids))
ids[:n].tofile(os.path.join(here, "train.bin"))
ids[n:].tofile(os.path.join(here, "val.bin"))
with open(os.path.join(here, "meta.pkl"), "wb") as file:
    pickle.dump({"vocab_size": len(chars), "stoi": stoi}, file)
print(f"length of dataset in characters: {len(data):,}")
print(f"vocab size: {len(chars)}")
