"""Training of the Shapes models: one script per model, seeded, resumable; every run lives in `demo/runs/` until it is exported."""
