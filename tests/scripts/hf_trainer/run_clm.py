"""Train a small GPT-2 from scratch (random weights) on counting sequences."""

import random
from dataclasses import dataclass, field

import torch
from torch.utils.data import Dataset
from transformers import GPT2Config, GPT2LMHeadModel, HfArgumentParser, Trainer, TrainingArguments, set_seed


@dataclass
class ModelArguments:
    n_embd: int = field(default=32, metadata={"help": "width of the model"})
    n_layer: int = field(default=2, metadata={"help": "number of layers"})


@dataclass
class DataTrainingArguments:
    block_size: int = field(default=16, metadata={"help": "length of a sequence"})
    max_train_samples: int = field(default=4000, metadata={"help": "number of sequences"})


class Counting(Dataset):
    """Sequences that count upwards from a random number, modulo 64."""

    def __init__(self, length, block_size, seed):
        source = random.Random(seed)
        self.starts = [source.randrange(64) for _ in range(length)]
        self.block_size = block_size

    def __len__(self):
        return len(self.starts)

    def __getitem__(self, i):
        ids = (self.starts[i] + torch.arange(self.block_size)) % 64
        return {"input_ids": ids, "labels": ids}


def main():
    parser = HfArgumentParser((ModelArguments, DataTrainingArguments, TrainingArguments))
    model_args, data_args, training_args = parser.parse_args_into_dataclasses()
    set_seed(training_args.seed)
    config = GPT2Config(
        vocab_size=64,
        n_positions=data_args.block_size,
        n_embd=model_args.n_embd,
        n_layer=model_args.n_layer,
        n_head=2,
        bos_token_id=0,
        eos_token_id=0,
    )
    trainer = Trainer(
        model=GPT2LMHeadModel(config),
        args=training_args,
        train_dataset=Counting(data_args.max_train_samples, data_args.block_size, seed=1),
        eval_dataset=Counting(200, data_args.block_size, seed=2),
    )
    result = trainer.train(resume_from_checkpoint=training_args.resume_from_checkpoint)
    trainer.save_model()
    trainer.log_metrics("train", result.metrics)
    trainer.save_metrics("train", result.metrics)
    if training_args.do_eval:
        metrics = trainer.evaluate()
        trainer.log_metrics("eval", metrics)
        trainer.save_metrics("eval", metrics)


if __name__ == "__main__":
    main()
