"""The configurations of the ledger, at least three a family, all small and odd."""

from __future__ import annotations

from tests.parity.case import Case
from tests.parity.decoders import DECODERS
from tests.parity.encoders import ENCODERS
from tests.parity.others import OTHERS
from tests.parity.seq2seq import SEQ2SEQ
from tests.parity.xlnet import XLNET

CASES: list[Case] = [*ENCODERS, *DECODERS, *SEQ2SEQ, *XLNET, *OTHERS]
