"""Training of the Shapes models: one script per model, seeded, resumable; every run lives in `experiments/runs/` until
it is exported.
"""
