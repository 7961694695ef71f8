import os
import random

import torch


class Dictionary:
    def __init__(self):
        self.index_of = {}
        self.words = []

    def add(self, word):
        if word not in self.index_of:
            self.index_of[word] = len(self.words)
            self.words.append(word)
        return self.index_of[word]


class Corpus:
    """The words of train.txt, valid.txt and test.txt in `folder`, as ids."""

    def __init__(self, folder):
        self.dictionary = Dictionary()
        if not os.path.exists(os.path.join(folder, "train.txt")):
            write_sentences(folder)
        self.train = self.tokenize(os.path.join(folder, "train.txt"))
        self.valid = self.tokenize(os.path.join(folder, "valid.txt"))
        self.test = self.tokenize(os.path.join(folder, "test.txt"))

    def tokenize(self, path):
        ids = []
        with open(path, encoding="utf-8") as file:
            for line in file:
                ids += [self.dictionary.add(word) for word in [*line.split(), "<eos>"]]
        return torch.tensor(ids)


def write_sentences(folder):
    """Write a small corpus of made-up sentences, where a verb depends on its subject."""
    os.makedirs(folder, exist_ok=True)
    source = random.Random(7)
    verbs = {"the cat": ["sleeps", "purrs"], "the dog": ["barks", "runs"], "a bird": ["sings", "flies"]}
    places = ["at home", "in the garden", "under the old tree", "by the river"]
    for name, lines in (("train", 1500), ("valid", 200), ("test", 200)):
        with open(os.path.join(folder, f"{name}.txt"), "w", encoding="utf-8") as file:
            for _ in range(lines):
                subject = source.choice(list(verbs))
                file.write(f"{subject} {source.choice(verbs[subject])} {source.choice(places)}\n")
