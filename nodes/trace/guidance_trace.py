"""Guidance Trace: what every term of a sampling run was worth and what it cost, as a picture and as numbers."""

import numpy as np
import torch

from ...guidance.trace import CostTrace, Evaluation, NoteTrace, Record, Trace, account
from ...guidance.trace_plot import plot
from .._api import io, ui
from ..host import Guidance, Run, Step, attach
from ..host.node_text import show_on_node

CATEGORY = "Guidance Lab/Trace"
TraceType = io.Custom("GUIDANCELAB_TRACE")


class Tracing(Guidance):
    """Adds nothing to the prediction and records every evaluation of a run; a new run replaces the record of the
    last.
    """

    name = "Guidance Trace"

    def __init__(self, trace: Trace, node_id: str | None = None):
        self.trace = trace
        self.node_id = node_id

    def begin(self, run: Run) -> Record:
        # The node and its TRACE are cached while the sampler runs again, so the handle is pointed to the newest run.
        self.trace.latest = Record(sigmas=run.sigmas.tolist())
        return self.trace.latest

    def observe(self, step: Step, record: Record) -> None:
        record.evaluations.append(in_numbers(step))
        show_on_node(record.evaluations[-1].summary(), self.node_id)


def in_numbers(step: Step) -> Evaluation:
    """The finished evaluation `step` as numbers."""
    terms = ()
    if step.cond_denoised is not None:
        added = [(term.name, term.value, term.weight) for term in step.terms]
        terms = account(step.cond_denoised, step.uncond_denoised, step.cond_scale, added, step.denoised)
    pictures = step.x.shape[0]
    costs = tuple(CostTrace(name, cost.calls, cost.rows / pictures, cost.seconds) for name, cost in step.costs.items())
    notes = tuple(NoteTrace(term.name, term.note) for term in step.terms if term.note)
    return Evaluation(step.index, step.sigma_value, step.seconds, terms, costs, notes)


class GuidanceTrace(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="GuidanceLab_GuidanceTrace",
            display_name="Guidance Trace",
            category=CATEGORY,
            description=(
                "Watches a model while it is sampled: size, direction, weight and cost of CFG and of every Guidance "
                "Lab term at each step. "
                "The pictures stay exactly the same; no extra model evaluation."
            ),
            search_aliases=["trace", "log", "measure", "profile", "debug guidance", "CFG strength", "cosine"],
            inputs=[
                io.Model.Input(
                    "model",
                    tooltip="The model to watch, with its guidance nodes before or after this one. Connect the MODEL "
                    "that comes out to one sampler; a second sampler needs a Guidance Trace of its own.",
                ),
            ],
            outputs=[
                io.Model.Output(tooltip="The same model, being watched. It samples bit for bit as before."),
                TraceType.Output(
                    display_name="trace", tooltip="The record of the newest sampling run, for Guidance Trace Plot."
                ),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(cls, model) -> io.NodeOutput:
        trace = Trace()
        return io.NodeOutput(attach(model, Tracing(trace, cls.hidden.unique_id)), trace)


class GuidanceTracePlot(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="GuidanceLab_GuidanceTracePlot",
            display_name="Guidance Trace Plot",
            category=CATEGORY,
            description="Draws the trace of a sampling run: size and direction of every guidance term and seconds per "
            "step, over sigma.",
            search_aliases=["trace", "plot", "chart", "graph of guidance", "curve", "profile"],
            inputs=[
                TraceType.Input("trace", tooltip="From the Guidance Trace whose MODEL the sampler uses."),
                io.AnyType.Input(
                    "after",
                    tooltip="What the sampler gave, or anything made from it (LATENT, IMAGE, ...). It is not looked "
                    "at; it makes the plot wait until sampling is over, and be drawn anew after each sampling.",
                ),
            ],
            outputs=[
                io.Image.Output(
                    tooltip="The plot, 1024 x 640: sizes in % of the prediction, cosine to the CFG direction, seconds "
                    "per evaluation."
                ),
                io.String.Output(
                    display_name="numbers",
                    tooltip="The same record as JSON: one entry per model evaluation, and totals.",
                ),
            ],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, trace, after=None) -> io.NodeOutput:
        if trace.latest is None:
            raise ValueError(
                "Guidance Trace Plot found no sampling run in its trace: let a sampler use the MODEL of the Guidance "
                "Trace node, and connect what that sampler gives to 'after'."
            )
        pixels = np.asarray(plot(trace.latest), dtype=np.float32) / 255.0
        image = torch.from_numpy(pixels)[None]
        numbers = trace.latest.to_json()
        # The canvas draws the numbers itself (web/js/trace_plot.js); the picture is for headless use.
        return io.NodeOutput(
            image, numbers, ui={**ui.PreviewImage(image, cls=cls).as_dict(), "guidance_lab_trace": [numbers]}
        )


NODES = [GuidanceTrace, GuidanceTracePlot]
