from torch import nn


class RNNModel(nn.Module):
    """An embedding, a recurrent network and a linear decoder."""

    def __init__(self, kind, words, emsize, nhid, nlayers, dropout=0.2):
        super().__init__()
        self.drop = nn.Dropout(dropout)
        self.encoder = nn.Embedding(words, emsize)
        self.rnn = getattr(nn, kind)(emsize, nhid, nlayers, dropout=dropout)
        self.decoder = nn.Linear(nhid, words)

    def forward(self, ids, hidden=None):
        output, hidden = self.rnn(self.drop(self.encoder(ids)), hidden)
        return self.decoder(self.drop(output)).flatten(0, 1), hidden
