"""The contract of a guidance inside a ComfyUI sampling run, and what the families share of the host.

A guidance is a subclass of `Guidance` whose instance holds settings only; `attach(model, guidance)` gives a clone of
MODEL that carries it. The clone may be cloned and patched further, and may carry many guidances; they act in wiring
order. One that touches nothing unusual knows five names: `Guidance`, `attach`, and in its `step(step, state)`
`step.denoised`, `step.cond_denoised` and `step.uncond_denoised`. What else there is to override is in `guidance.py`:

    begin(run)                   once, when all is loaded; what it returns is the state that all others get
    extra_conds(step, state)     more conds for the guider's own call of the main model
    wrap(step, state, evaluate)  around the whole evaluation
    step(step, state)            the new denoised estimate, after CFG
    observe(step, state)         the finished evaluation
    end(run, state)              once, also after an error or an interrupt

What changes during sampling lives in `state`, which exists for one run only, never on the node, the guidance or the
patch. Nothing is registered: the driver sees what a class overrides. It also keeps the window, and knows on whose
account a network is evaluated: all of it inside a callback of a guidance counts on that guidance's name.
`Run` and `Step` (`run.py`) are what may be read. Another model is an `ExtraModel` in `guidance.extra_models`: it is
loaded in one call with the main model, under its own options, hooks and processed conds, and
`run.evaluator(extra).predict_like(step)` gives its prediction.
"""

from .attach import attach, attached
from .evaluate import Evaluator
from .guidance import Guidance
from .meter import MODEL, Cost
from .models import ExtraModel, one_network, own_module, same_prediction, same_weights
from .run import Run, Step, Term

__all__ = [
    "MODEL", "Cost", "Evaluator", "ExtraModel", "Guidance", "Run", "Step", "Term",
    "attach", "attached", "one_network", "own_module", "same_prediction", "same_weights",
]  # fmt: skip
