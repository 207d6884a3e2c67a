"""Flax modules: which layer owns which parameter, in which shape. All arithmetic is in ops."""
