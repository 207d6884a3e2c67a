"""A recurrent encoder-decoder of torch's own layers, as a PyTorch user would write it.

Luong 2015 (section 3) and Bahdanau 2015 (appendix A). B batch, S source, T target, H width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from tests.parity.torch_folder import FolderModule, Result


class Attention(nn.ModuleDict):
    """scores_BS of a state [B, H] for each of the source's states [B, S, H]."""

    def forward(self, state: torch.Tensor, source: torch.Tensor) -> torch.Tensor:
        if "general" in self:
            return torch.einsum("bh,bsh->bs", state, self["general"](source))
        energy = torch.tanh(self["query"](state)[:, None] + self["key"](source))
        return self["score"](energy)[..., 0]


class RNNSeq2Seq(FolderModule):
    """See jaxformer/interop/recurrent.py, whose names these are."""

    def __init__(self, **config: Any):
        super().__init__(**config)
        c = self.config
        E, H, A = c.embedding_size, c.hidden_size, getattr(c, "attention_size", 0)
        self.feeds = c.attention == "bahdanau" or c.input_feeding
        layers = {"lstm": nn.LSTM, "gru": nn.GRU}[c.cell]
        self.embedding = nn.Embedding(c.vocab_size, E)
        if not c.share_embeddings:
            self.source_embedding = nn.Embedding(c.source_vocab_size, E)
        self.encoder = layers(
            E, H // (1 + c.bidirectional), c.num_layers, bidirectional=c.bidirectional,
            batch_first=True,
        )  # fmt: skip
        self.decoder = layers(E + H * self.feeds, H, c.num_layers, batch_first=True)

        def linear(inputs: int, outputs: int) -> nn.Linear:
            return nn.Linear(inputs, outputs, bias=False)

        if c.attention == "luong":
            self.attention = Attention({"general": linear(H, H)})
            self.readout = linear(2 * H, H)
        else:
            self.attention = Attention(
                {"query": linear(H, A), "key": linear(H, A), "score": linear(A, 1)}
            )
            self.readout = linear(2 * H + E, H)
        self.output = nn.Linear(H, c.vocab_size, bias=c.output_bias)
        if c.tie_word_embeddings:
            self.output.weight = self.embedding.weight

    def encode(self, source_BS: torch.Tensor, mask_BS: torch.Tensor) -> tuple[Any, Any]:
        """Returns (the source's states [B, S, H], the decoder's first state)."""
        table = self.embedding if self.config.share_embeddings else self.source_embedding
        lengths = mask_BS.sum(1)
        packed = pack_padded_sequence(
            table(source_BS), lengths, batch_first=True, enforce_sorted=False
        )
        out, last = self.encoder(packed)
        out, _ = pad_packed_sequence(out, batch_first=True, total_length=source_BS.shape[1])
        lasts = last if isinstance(last, tuple) else (last,)
        lasts = [
            torch.stack([torch.cat(list(ways), -1) for ways in x.chunk(self.config.num_layers)])
            for x in lasts
        ]
        return out, tuple(lasts) if len(lasts) == 2 else lasts[0]

    def step(self, token_B, state, feed_BH, source_BSH, mask_BS):
        """One token; returns (its readout [B, H], the state)."""
        x = self.embedding(token_B)

        def read(query_BH: torch.Tensor) -> torch.Tensor:
            scores = self.attention(query_BH, source_BSH).masked_fill(mask_BS == 0, -torch.inf)
            return torch.einsum("bs,bsh->bh", scores.softmax(-1), source_BSH)

        if self.config.attention == "bahdanau":
            context = read((state[0] if isinstance(state, tuple) else state)[-1])
            top, state = self.decoder(torch.cat([x, context], -1)[:, None], state)
            return torch.tanh(self.readout(torch.cat([context, top[:, 0], x], -1))), state
        below = torch.cat([x, feed_BH], -1) if self.feeds else x
        top, state = self.decoder(below[:, None], state)
        context = read(top[:, 0])
        return torch.tanh(self.readout(torch.cat([context, top[:, 0]], -1))), state

    def forward(self, input_ids, decoder_input_ids, attention_mask) -> Result:
        source, state = self.encode(input_ids, attention_mask)
        feed, logits = torch.zeros(len(source), self.config.hidden_size), []
        for token_B in decoder_input_ids.T:
            feed, state = self.step(token_B, state, feed, source, attention_mask)
            logits.append(self.output(feed))
        return Result(logits=torch.stack(logits, dim=1))

    def generate(self, tokens, attention_mask, max_new_tokens: int, **_: Any) -> torch.Tensor:
        """Greedy, a step at a time."""
        source, state = self.encode(tokens, attention_mask)
        feed = torch.zeros(len(source), self.config.hidden_size)
        rows = [torch.full((len(source),), self.config.decoder_start_token_id)]
        for _ in range(max_new_tokens):
            feed, state = self.step(rows[-1], state, feed, source, attention_mask)
            rows.append(self.output(feed).argmax(-1))
        return torch.stack(rows, dim=1)
