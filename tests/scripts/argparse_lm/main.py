import argparse
import math
import time

import torch
from corpus import Corpus
from model import RNNModel
from torch import nn

parser = argparse.ArgumentParser(description="RNN language model on a small corpus")
parser.add_argument("--data", type=str, default="./data", help="location of the corpus")
parser.add_argument("--model", type=str, default="LSTM", help="type of network (LSTM, GRU)")
parser.add_argument("--emsize", type=int, default=64, help="size of word embeddings")
parser.add_argument("--nhid", type=int, default=64, help="number of hidden units per layer")
parser.add_argument("--nlayers", type=int, default=2, help="number of layers")
parser.add_argument("--lr", type=float, default=0.005, help="initial learning rate")
parser.add_argument("--clip", type=float, default=0.25, help="gradient clipping")
parser.add_argument("--epochs", type=int, default=40, help="upper epoch limit")
parser.add_argument("--batch-size", type=int, default=20, metavar="N", help="batch size")
parser.add_argument("--bptt", type=int, default=12, help="sequence length")
parser.add_argument("--seed", type=int, default=1111, help="random seed")
parser.add_argument("--cuda", action="store_true", default=False, help="use CUDA")
parser.add_argument("--log-interval", type=int, default=10, metavar="N", help="report interval")
parser.add_argument("--save", type=str, default="model.pt", help="path to save the final model")
parser.add_argument("--resume", type=str, default="", help="path of a saved model to go on from")
parser.add_argument("--dry-run", action="store_true", help="verify the code and the model")
args = parser.parse_args()

torch.manual_seed(args.seed)
device = torch.device("cuda" if args.cuda else "cpu")
corpus = Corpus(args.data)


def batchify(ids, size):
    steps = ids.size(0) // size
    return ids.narrow(0, 0, steps * size).view(size, -1).t().contiguous().to(device)


train_data = batchify(corpus.train, args.batch_size)
val_data = batchify(corpus.valid, 10)
test_data = batchify(corpus.test, 10)
words = len(corpus.dictionary.words)
model = RNNModel(args.model, words, args.emsize, args.nhid, args.nlayers).to(device)
criterion = nn.CrossEntropyLoss()
optimizer = torch.optim.Adam(model.parameters(), lr=args.lr)
first_epoch, best_val_loss = 1, None
if args.resume:
    saved = torch.load(args.resume, weights_only=True)
    model.load_state_dict(saved["model"])
    optimizer.load_state_dict(saved["optimizer"])
    first_epoch, best_val_loss = saved["epoch"] + 1, saved["val_loss"]
    print(f"resumed {args.resume} after epoch {saved['epoch']}")


def get_batch(source, i):
    length = min(args.bptt, len(source) - 1 - i)
    return source[i : i + length], source[i + 1 : i + 1 + length].reshape(-1)


@torch.no_grad()
def evaluate(source):
    model.eval()
    total, hidden = 0.0, None
    for i in range(0, source.size(0) - 1, args.bptt):
        data, targets = get_batch(source, i)
        output, hidden = model(data, hidden)
        total += len(data) * criterion(output, targets).item()
    return total / (len(source) - 1)


def train(epoch):
    model.train()
    total, start, hidden = 0.0, time.time(), None
    batches = math.ceil((train_data.size(0) - 1) / args.bptt)
    for batch, i in enumerate(range(0, train_data.size(0) - 1, args.bptt)):
        data, targets = get_batch(train_data, i)
        if hidden is not None:
            hidden = tuple(h.detach() for h in hidden) if isinstance(hidden, tuple) else hidden.detach()
        output, hidden = model(data, hidden)
        loss = criterion(output, targets)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), args.clip)
        optimizer.step()
        total += loss.item()
        if batch % args.log_interval == 0 and batch > 0:
            mean, elapsed = total / args.log_interval, time.time() - start
            print(
                f"| epoch {epoch:3d} | {batch:5d}/{batches:5d} batches | lr {args.lr:02.3f} | "
                f"ms/batch {elapsed * 1000 / args.log_interval:5.2f} | loss {mean:5.2f} | ppl {math.exp(mean):8.2f}"
            )
            total, start = 0.0, time.time()
        if args.dry_run:
            break


for epoch in range(first_epoch, args.epochs + 1):
    epoch_start = time.time()
    train(epoch)
    val_loss = evaluate(val_data)
    print("-" * 89)
    print(
        f"| end of epoch {epoch:3d} | time: {time.time() - epoch_start:5.2f}s | "
        f"valid loss {val_loss:5.2f} | valid ppl {math.exp(val_loss):8.2f}"
    )
    print("-" * 89)
    if best_val_loss is None or val_loss <= best_val_loss or epoch == args.epochs:
        state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "epoch": epoch, "val_loss": val_loss}
        torch.save(state, args.save)
        best_val_loss = val_loss

test_loss = evaluate(test_data)
print("=" * 89)
print(f"| End of training | test loss {test_loss:5.2f} | test ppl {math.exp(test_loss):8.2f}")
print("=" * 89)
