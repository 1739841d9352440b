"""The two-dimensional world of Karras et al. 2024 (arXiv:2406.02507, appendix C), written from the paper.

Two classes of branching, fractal-like data whose density, score and denoiser are known in closed form at every noise
level, and networks small enough to train in minutes: what a guidance does to outliers, coverage and mean can be
measured here instead of judged by eye. Pure torch and numpy; no image model is involved.
"""
