import argparse

import lightning as L
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


def digits(count, seed):
    """Return `count` noisy images of 8 x 8 pixels, each a bar at one of eight places."""
    source = torch.Generator().manual_seed(seed)
    place = torch.randint(8, (count,), generator=source)
    images = torch.zeros(count, 8, 8)
    images[torch.arange(count), place] = 1.0
    return TensorDataset((images + 0.1 * torch.randn(count, 8, 8, generator=source)).flatten(1), place)


class AutoEncoder(L.LightningModule):
    def __init__(self, hidden=16, lr=1e-2):
        super().__init__()
        self.save_hyperparameters()
        self.encoder = nn.Sequential(nn.Linear(64, hidden), nn.ReLU())
        self.decoder = nn.Linear(hidden, 64)

    def training_step(self, batch, batch_idx):
        loss = nn.functional.mse_loss(self.decoder(self.encoder(batch[0])), batch[0])
        self.log("train_loss", loss, prog_bar=True)
        return loss

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", nn.functional.mse_loss(self.decoder(self.encoder(batch[0])), batch[0]), prog_bar=True)

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=self.hparams.lr)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--max_epochs", type=int, default=60)
    parser.add_argument("--limit_train_batches", type=float, default=1.0)
    parser.add_argument("--hidden", type=int, default=16)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--ckpt_path", default=None, help="checkpoint to resume from")
    args = parser.parse_args()
    L.seed_everything(args.seed)
    trainer = L.Trainer(
        max_epochs=args.max_epochs,
        limit_train_batches=args.limit_train_batches,
        accelerator="auto",
        devices=1,
        log_every_n_steps=5,
        logger=CSVLogger("."),
        callbacks=[ModelCheckpoint(monitor="val_loss", save_last=True)],
        enable_model_summary=False,
    )
    train = DataLoader(digits(2000, seed=1), batch_size=16, shuffle=True)
    val = DataLoader(digits(200, seed=2), batch_size=100)
    trainer.fit(AutoEncoder(args.hidden), train, val, ckpt_path=args.ckpt_path)
    print(f"best model: {trainer.checkpoint_callback.best_model_path}")


if __name__ == "__main__":
    main()
