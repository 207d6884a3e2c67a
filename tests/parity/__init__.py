"""The parity ledger: every family against its published implementation, with random weights.

`pytest tests/parity -q` holds all figures to their bounds; `python -m tests.parity.ledger` prints
them as a table.
"""
