"""The arithmetic, in numpy: what a target does to its base tensor, and how much of that survived rounding."""
