"""Where arrays lie: one mesh and one table of rules."""
