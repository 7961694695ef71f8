import argparse
import os
import shutil
import time

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

parser = argparse.ArgumentParser(description="Image classification with DistributedDataParallel")
parser.add_argument("data", metavar="DIR", nargs="?", default="data", help="path to the dataset")
parser.add_argument("-j", "--workers", default=0, type=int, metavar="N", help="number of data loading workers")
parser.add_argument("--epochs", default=30, type=int, metavar="N", help="number of total epochs to run")
parser.add_argument("--start-epoch", default=0, type=int, metavar="N", help="manual epoch number")
parser.add_argument("-b", "--batch-size", default=16, type=int, metavar="N", help="mini-batch size per process")
parser.add_argument("--lr", default=0.05, type=float, metavar="LR", dest="lr", help="initial learning rate")
parser.add_argument("-p", "--print-freq", default=5, type=int, metavar="N", help="print frequency")
parser.add_argument("--resume", default="", type=str, metavar="PATH", help="path to the latest checkpoint")
parser.add_argument("--dist-backend", default="gloo", type=str, help="distributed backend")
parser.add_argument("--seed", default=0, type=int, help="seed for initializing training")


class AverageMeter:
    def __init__(self, name, fmt):
        self.name, self.fmt = name, fmt
        self.val = self.sum = self.count = 0.0

    def update(self, val, n=1):
        self.val = val
        self.sum += val * n
        self.count += n

    def __str__(self):
        mean = self.sum / self.count
        return f"{self.name} {self.val:{self.fmt}} ({mean:{self.fmt}})"


def images(count, seed):
    """Return `count` images of 16 x 16 pixels, bright in the corner that their class names."""
    source = torch.Generator().manual_seed(seed)
    labels = torch.randint(4, (count,), generator=source)
    pixels = torch.randn(count, 1, 16, 16, generator=source)
    for row, label in enumerate(labels.tolist()):
        y, x = 8 * (label // 2), 8 * (label % 2)
        pixels[row, 0, y : y + 8, x : x + 8] += 0.5
    return TensorDataset(pixels, labels)


def main():
    args = parser.parse_args()
    dist.init_process_group(args.dist_backend)
    rank = dist.get_rank()
    torch.manual_seed(args.seed)
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if args.dist_backend == "nccl" else torch.device("cpu")
    net = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(128, 4))
    model = DistributedDataParallel(net.to(device))
    criterion = nn.CrossEntropyLoss()
    optimizer = torch.optim.SGD(model.parameters(), args.lr, momentum=0.9)
    best_acc1 = 0.0
    if args.resume:
        if os.path.isfile(args.resume):
            checkpoint = torch.load(args.resume, map_location=device)
            args.start_epoch, best_acc1 = checkpoint["epoch"], checkpoint["best_acc1"]
            model.load_state_dict(checkpoint["state_dict"])
            optimizer.load_state_dict(checkpoint["optimizer"])
            print(f"=> loaded checkpoint '{args.resume}' (epoch {checkpoint['epoch']})")
        else:
            print(f"=> no checkpoint found at '{args.resume}'")
    train_set = images(1600, seed=1)
    sampler = DistributedSampler(train_set)
    train_loader = DataLoader(train_set, args.batch_size, sampler=sampler, num_workers=args.workers)
    val_loader = DataLoader(images(200, seed=2), 100)
    for epoch in range(args.start_epoch, args.epochs):
        sampler.set_epoch(epoch)
        train(train_loader, model, criterion, optimizer, epoch, args, rank)
        acc1 = validate(val_loader, model)
        if rank == 0:
            print(f" *   Acc@1 {acc1:.3f}")
            is_best, best_acc1 = acc1 > best_acc1, max(acc1, best_acc1)
            state = {"epoch": epoch + 1, "best_acc1": best_acc1, "state_dict": model.state_dict()}
            torch.save({**state, "optimizer": optimizer.state_dict()}, "checkpoint.pth.tar")
            if is_best:
                shutil.copyfile("checkpoint.pth.tar", "model_best.pth.tar")
    dist.destroy_process_group()


def train(loader, model, criterion, optimizer, epoch, args, rank):
    batch_time, losses = AverageMeter("Time", "6.3f"), AverageMeter("Loss", ".4e")
    model.train()
    end = time.time()
    for i, (pixels, target) in enumerate(loader):
        loss = criterion(model(pixels), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.update(loss.item(), len(target))
        batch_time.update(time.time() - end)
        end = time.time()
        if rank == 0 and i % args.print_freq == 0:
            print(f"Epoch: [{epoch}][{i + 1:3d}/{len(loader)}]\t{batch_time}\t{losses}")


@torch.no_grad()
def validate(loader, model):
    model.eval()
    correct = total = 0
    for pixels, target in loader:
        correct += (model(pixels).argmax(1) == target).sum().item()
        total += len(target)
    return 100.0 * correct / total


if __name__ == "__main__":
    main()
