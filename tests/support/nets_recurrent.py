"""The table of small networks, continued: recurrent layers, their cells, and what is done with their states."""

from __future__ import annotations

from typing import Any

import torch
from nets import net
from torch import nn


class Recurrent(nn.Module):
    """Tokens or features through a recurrent layer into a head."""

    def __init__(self, rnn: nn.Module, head: int, first: nn.Module | None = None) -> None:
        super().__init__()
        self.first, self.rnn, self.head = first or nn.Identity(), rnn, nn.Linear(head, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.rnn(self.first(x))[0])


@net("ids 2 5 11", free="first rnn")
def Tagger() -> nn.Module:
    return Recurrent(nn.LSTM(6, 8, 2, batch_first=True, bidirectional=True, dropout=0.1), 16, nn.Embedding(11, 6))


@net((5, 2, 6), free="rnn first")
def ProjectedLstm() -> nn.Module:
    return Recurrent(nn.LSTM(7, 10, 2, proj_size=4, bidirectional=True), 8, nn.Linear(6, 7))


@net((5, 6), free="rnn")
def UnbatchedLstm() -> nn.Module:
    return Recurrent(nn.LSTM(6, 8, bias=False), 8)


@net((5, 6), free="rnn")
def UnbatchedGru() -> nn.Module:
    return Recurrent(nn.GRU(6, 8, 2, bidirectional=True), 16)


@net((2, 5, 6), free="rnn first")
def DeepRnn() -> nn.Module:
    return Recurrent(nn.RNN(7, 8, 3, nonlinearity="relu", batch_first=True), 8, nn.Linear(6, 7))


@net((2, 5, 6), free="rnn.0 rnn.2")
def Layered() -> nn.Module:
    """Layers of different widths, one after another."""

    class First(nn.Module):
        def forward(self, found: Any) -> torch.Tensor:
            return found[0]

    rnn = nn.Sequential(nn.LSTM(6, 9, batch_first=True), First(), nn.GRU(9, 7, batch_first=True))
    return Recurrent(rnn, 7)


@net((2, 5, 6), free="rnn")
class LastStates(nn.Module):
    """The last layer's final states of both directions."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.head = nn.LSTM(6, 8, 2, batch_first=True, bidirectional=True), nn.Linear(16, 3)

    def forward(self, x):
        _, (h, _c) = self.rnn(x)
        return self.head(torch.cat((h[-2], h[-1]), 1))


@net((2, 5, 6), free="rnn")
class AllStates(nn.Module):
    """Hidden states and cells of all layers and directions, by layer, side by side."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.head = nn.LSTM(6, 6, 2, batch_first=True, bidirectional=True), nn.Linear(48, 3)

    def forward(self, x):
        _, (h, c) = self.rnn(x)
        n = self.rnn.num_layers
        h = h.view(n, 2, x.shape[0], -1).permute(2, 0, 1, 3).flatten(1)
        return self.head(torch.cat((h, c.transpose(0, 1).flatten(1)), 1))


@net((5, 2, 6), free="rnn")
class MadeStates(nn.Module):
    """Initial states that the forward makes by the sizes of the layer."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.head = nn.LSTM(6, 8, 2, bidirectional=True), nn.Linear(16, 3)

    def forward(self, x):
        shape = (self.rnn.num_layers * 2, x.size(1), self.rnn.hidden_size)
        h, c = torch.zeros(shape, dtype=x.dtype), x.new_zeros(*shape)
        return self.head(self.rnn(x, (h, c))[0])


@net((5, 2, 6), (2, 4), free="start rnn")
class ComputedState(nn.Module):
    """An initial state that a layer computes: its units are those of every layer that begins with it."""

    def __init__(self) -> None:
        super().__init__()
        self.start, self.rnn, self.head = nn.Linear(4, 8), nn.GRU(6, 8, 2), nn.Linear(8, 3)

    def forward(self, x, z):
        h = torch.tanh(self.start(z)).unsqueeze(0).expand(self.rnn.num_layers, -1, -1).contiguous()
        return self.head(self.rnn(x, h)[0])


@net((5, 2, 6), (4, 2, 6), free="encoder decoder")
class EncoderDecoder(nn.Module):
    """A decoder that begins where the encoder ends."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder, self.head = nn.LSTM(6, 8, 2), nn.LSTM(6, 8, 2), nn.Linear(8, 3)

    def forward(self, x, y):
        _, states = self.encoder(x)
        return self.head(self.decoder(y, states)[0])


@net("ids 2 5 11", free="embed encoder score")
class GruAttention(nn.Module):
    """A GRU, and attention over its steps."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.encoder = nn.Embedding(11, 6), nn.GRU(6, 8, batch_first=True, bidirectional=True)
        self.score, self.weigh, self.head = nn.Linear(16, 6), nn.Linear(6, 1), nn.Linear(16, 3)

    def forward(self, x):
        y, _ = self.encoder(self.embed(x))
        weights = torch.softmax(self.weigh(torch.tanh(self.score(y))), 1)
        return self.head((weights.transpose(1, 2) @ y).squeeze(1))


class Loop(nn.Module):
    """A cell over time."""

    def __init__(self, cell: nn.Module) -> None:
        super().__init__()
        self.inp, self.cell, self.head = nn.Linear(6, 7), cell, nn.Linear(8, 3)

    def forward(self, x):
        state, found = None, []
        for step in torch.relu(self.inp(x)).unbind(1):
            state = self.cell(step, state)
            found.append(state[0] if isinstance(state, tuple) else state)
        return self.head(torch.stack(found, 1))


@net((2, 4, 6), free="inp cell")
def LstmCellLoop() -> nn.Module:
    return Loop(nn.LSTMCell(7, 8))


@net((2, 4, 6), free="inp cell")
def GruCellLoop() -> nn.Module:
    return Loop(nn.GRUCell(7, 8, bias=False))


@net((2, 4, 6), free="inp cell")
def RnnCellLoop() -> nn.Module:
    return Loop(nn.RNNCell(7, 8, nonlinearity="relu"))


@net((2, 4, 6), free="low high")
class TwoCells(nn.Module):
    """Two cells, one above the other, from states made by their sizes, and what they feed back."""

    def __init__(self) -> None:
        super().__init__()
        self.low, self.high, self.head = nn.LSTMCell(6 + 8, 9), nn.LSTMCell(9, 8), nn.Linear(8, 3)

    def forward(self, x):
        h1 = c1 = x.new_zeros(x.shape[0], self.low.hidden_size)
        h2, c2 = (torch.zeros(x.shape[0], self.high.hidden_size, dtype=x.dtype) for _ in range(2))
        for k in range(4):
            h1, c1 = self.low(torch.cat((x[:, k], h2), 1), (h1, c1))
            h2, c2 = self.high(h1, (h2, c2))
        return self.head(h2 + c2)


@net((6,), free="cell")
class UnbatchedCell(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cell, self.head = nn.GRUCell(6, 8), nn.Linear(8, 3)

    def forward(self, x):
        return self.head(self.cell(x, self.cell(x)))


@net((2, 3, 9), free="conv rnn")
class ConvThenRnn(nn.Module):
    """Channels become features, pixels become steps."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.rnn, self.head = nn.Conv1d(3, 8, 3), nn.GRU(8, 8, bidirectional=True), nn.Linear(16, 3)

    def forward(self, x):
        return self.head(self.rnn(torch.relu(self.conv(x)).permute(2, 0, 1))[0].mean(0))


@net((5, 2, 6), free="rnn")
class RecurrentResidual(nn.Module):
    """A recurrent layer beside an identity: its units are those of its input."""

    def __init__(self) -> None:
        super().__init__()
        self.inp, self.rnn, self.head = nn.Linear(6, 8), nn.GRU(8, 8), nn.Linear(8, 3)

    def forward(self, x):
        y = self.inp(x)
        return self.head(y + self.rnn(y)[0])


@net((5, 2, 6), free="inp rnn")
class ShuffledStates(nn.Module):
    """Hidden units that meet others in another order, and states in an order of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.inp, self.start, self.rnn, self.head = nn.Linear(6, 8), nn.Linear(6, 8), nn.LSTM(8, 8), nn.Linear(8, 3)

    def forward(self, x):
        swap = lambda t: torch.cat(t.chunk(2, -1)[::-1], -1)  # noqa: E731
        start = swap(self.start(x[0])).unsqueeze(0)
        y, (h, c) = self.rnn(swap(self.inp(x)), (start, swap(start)))
        return self.head(y + h + swap(c))
