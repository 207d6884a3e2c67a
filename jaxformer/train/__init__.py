"""One loop for every objective and family: state, step, loop, and what they tell a person."""
