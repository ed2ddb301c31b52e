"""Answers: the sampler (`sampler.py`) and who is asked what on which image (`run.py`)."""
