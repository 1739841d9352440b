"""The only package that touches host internals: the life of a guidance inside a ComfyUI sampling run.

A guidance is a subclass of `Guidance` whose instance holds settings only; `attach(model, guidance)` gives a clone of MODEL that carries
it. The clone may be cloned and patched further, and may carry many guidances; they act in wiring order. In every sampling run:

    begin(run)          -> state   once, after everything is loaded: conds, shapes, mask, sigmas, seed, frame are on the `Run`
    step(step, state)   -> denoised   once per model evaluation, after CFG; `Step` has x, sigma, denoised, cond_denoised, uncond_denoised
    end(run, state)     once, also after an error or an interrupt

What changes during sampling lives in `state` and `run`, which exist for one run only, never on the node, the guidance or the patch.
- Another model: put an `ExtraModel` in `guidance.extra_models`; it is loaded in one call with the main model, under its own options,
  hooks and processed conds, and `run.evaluator(extra).predict_like(step)` gives its prediction. `run.main` evaluates the main model.
- Another conditioning of the main model: put a function of one `Step` that gives lists of processed conds in `run.beside` during begin;
  they are predicted in the guider's own call, and `step.prediction(cond)` gives each. `text.RunTexts` makes such conds of new text.
- Every evaluation made inside `step` is counted and timed on the guidance's name, all others on "model".
- `step.publish(term, weight)` tells what the guidance adds (term None: nothing this time), `step.note(text)` says something in words. Any
  guidance may put a function of one `Step` in `run.listeners` during begin; it is called after each evaluation, when `step` holds the
  final denoised, all terms, notes and costs.
"""

from .attach import Guidance, attach
from .models import ExtraModel, own_module, same_prediction, same_weights
from .run import MODEL, Cost, Evaluator, Run, Step, Term

__all__ = [
    "MODEL", "Cost", "Evaluator", "ExtraModel", "Guidance", "Run", "Step", "Term",
    "attach", "own_module", "same_prediction", "same_weights",
]  # fmt: skip
