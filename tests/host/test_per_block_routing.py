"""Layer prompts follow their rows: through wrappers that split or tile a batch, and to every model that evaluates them.

A conditioning that carries layer prompts is never read without them: another model of the run reads the same layers or
is refused, and nodes that would drop the layers are refused where they stand.
"""

import nodes as comfy_nodes
import pytest
import tiny_cross_attention
import tiny_networks
import torch
from odd_graph_tools import row_by_row, tiles, wrapped
from per_block_tools import conditioning, told_apart

from guidance_lab.nodes.host import ExtraModel, Guidance, attach
from guidance_lab.nodes.layers import read_in_run
from guidance_lab.nodes.layers.cross_attention import KEY, layer_table, read_layer_prompts


def texts(count, seed, tokens=5):
    return [torch.randn(1, tokens, 24, generator=torch.Generator().manual_seed(seed + i)) for i in range(count)]


class Case:
    """A tiny UNet, a positive and a negative of which each layer reads its own text, and the same without them."""

    def __init__(self, tokens=5):
        self.model = tiny_networks.build("SD15")
        table = layer_table(self.model)
        self.bases = [texts(1, 50, tokens)[0], texts(1, 51, tokens)[0]]
        self.layers = [texts(len(table), 100, tokens), texts(len(table), 200, tokens)]
        self.positive, self.negative = (
            conditioning(table, base, layers, range(len(table)))
            for base, layers in zip(self.bases, self.layers, strict=True)
        )
        self.plain = [[[base, {}]] for base in self.bases]

    def reference(self):
        return told_apart(self.model, list(zip(self.bases, self.layers, strict=True)))


def one_chunk_at_a_time(inner):
    """The same wrapper on each conditioning alone, for the reference: which texts a row reads is then no question."""

    def evaluate(apply_model, args):
        chunks = len(args["cond_or_uncond"])
        rows = args["input"].shape[0] // chunks
        out = []
        for i in range(chunks):
            here = slice(i * rows, (i + 1) * rows)
            c = {k: v[here] if isinstance(v, torch.Tensor) else v for k, v in args["c"].items()}
            options = c["transformer_options"]
            c["transformer_options"] = {**options, "cond_or_uncond": [args["cond_or_uncond"][i]]}
            one = {
                "input": args["input"][here],
                "timestep": args["timestep"][here],
                "c": c,
                "cond_or_uncond": [args["cond_or_uncond"][i]],
            }
            out.append(inner(apply_model, one))
        return torch.cat(out)

    return evaluate


def told_in_tiles(case, wrapper):
    """`told_apart`'s reference, whose evaluation of each conditioning goes through the wrapper."""
    reference = case.reference()
    told = reference.model_options["model_function_wrapper"]

    def through(apply_model, args):
        def one(x, t, **c):
            return told(apply_model, {"input": x, "timestep": t, "c": c, "cond_or_uncond": args["cond_or_uncond"]})

        return wrapper(one, args)

    return wrapped(case.model, one_chunk_at_a_time(through))


@pytest.mark.parametrize(
    ("wrapper", "tokens"),
    [(row_by_row, 5), (tiles(8, 1), 5), (tiles(8, 4), 5), (tiles(8, 2), 10)],
    ids=["row by row", "tiles", "four tiles", "two tiles, long prompts"],
)
@pytest.mark.parametrize("batch", [1, 2])
def test_layers_follow_their_rows_through_a_wrapper(latent, sample, wrapper, tokens, batch):
    case, start = Case(tokens), latent(batch=batch, h=16, w=16, seed=7)
    ours = sample(wrapped(read_layer_prompts(case.model), wrapper), case.positive, case.negative, start, steps=2)
    expected = sample(told_in_tiles(case, wrapper), *case.plain, start, steps=2)
    plain = sample(wrapped(case.model, wrapper), *case.plain, start, steps=2)
    assert (ours - expected).abs().max() <= 1e-5 * expected.abs().max()
    assert (ours - plain).abs().max() > 1e-2 * expected.abs().max()


def test_rows_without_their_numbers_are_refused(latent, sample):
    """A wrapper that hands on whole tensors with part of the rows, or drops what it does not know."""
    case = Case()

    def whole(apply_model, args):
        half = args["input"].shape[0] // 2
        c = {**args["c"], "c_crossattn": args["c"]["c_crossattn"][:half]}
        return apply_model(args["input"][:half], args["timestep"][:half], **c).repeat(2, 1, 1, 1)

    def known(apply_model, args):
        c = {key: args["c"][key] for key in ("c_crossattn", "transformer_options")}
        return apply_model(args["input"], args["timestep"], **c)

    for wrapper in (whole, known):
        with pytest.raises(ValueError, match="nobody knows which row reads which"):
            sample(
                wrapped(read_layer_prompts(case.model), wrapper), case.positive, case.negative, latent(seed=7), steps=1
            )


class Beside(Guidance):
    """A guidance that adds what another model predicts on the guider's own conditionings, as a model pair does."""

    name = "Beside"

    def __init__(self, other, reads: bool):
        self.other, self.reads = ExtraModel(other), reads
        self.extra_models = (self.other,)

    def begin(self, run):
        self.evaluator = run.evaluator(self.other)
        if self.reads:
            read_in_run(self.evaluator.options, self.evaluator.conds)

    def step(self, step, state):
        return self.evaluator.predict_like(step)


@pytest.mark.parametrize("order", ["layers first", "layers last"])
def test_a_guide_reads_the_same_layers(latent, sample, order):
    """Its prediction is that of the same network as the main model, to the last bit; without reading it is refused."""
    case = Case()
    guide, start = tiny_networks.build("SD15", seed=9), latent(seed=7)
    expected = sample(read_layer_prompts(guide), case.positive, case.negative, start, steps=2, cfg=1.0)

    def guided(reads, positive=case.positive):
        if order == "layers first":
            model = attach(read_layer_prompts(case.model), Beside(guide, reads))
        else:
            model = read_layer_prompts(attach(case.model, Beside(guide, reads)))
        return sample(model, positive, case.negative, start, steps=2, cfg=1.0)

    assert torch.equal(guided(True), expected)
    with pytest.raises(ValueError, match="reached a MODEL that does not read it"):
        guided(False)
    assert torch.equal(guided(True, case.plain[0]), guided(False, case.plain[0]))


def test_a_guide_of_other_layers_is_refused(latent, sample):
    case = Case()
    guide = tiny_networks.build("SD15", config={
        **tiny_networks.SD15, "transformer_depth": [0, 0, 1, 1], "transformer_depth_output": [0, 0, 0, 1, 1, 1]
    })  # fmt: skip
    model = attach(read_layer_prompts(case.model), Beside(guide, True))
    with pytest.raises(ValueError, match="prompts for 11 layers of unet, and a model that reads it has 6"):
        sample(model, case.positive, case.negative, latent(seed=7), steps=1, cfg=1.0)


@pytest.mark.parametrize("family", ["UNet", "HunyuanDiT", "Wan", "Kandinsky5", *tiny_cross_attention.COSMOS_READ])
def test_a_model_that_was_not_wired_says_so(latent, sample, family):
    """Instead of drawing the base prompt, or failing on an argument that the network does not know."""
    if family == "UNet":
        case = Case()
        model, cond, start = case.model, case.positive, latent(seed=7)
    else:
        model = tiny_cross_attention.build(family)
        table, base = layer_table(model), tiny_cross_attention.prompt(family, 1)
        layers = [tiny_cross_attention.prompt(family, seed)[0] for seed in range(10, 10 + len(table))]
        cond = conditioning(table, base[0], layers, range(len(table)), **base[1])
        start = {"samples": tiny_cross_attention.noisy(family, model)}
    with pytest.raises(ValueError, match="reached a MODEL that does not read it"):
        sample(model, cond, cond, start, steps=1)


@pytest.mark.parametrize("side", ["to", "from"])
@pytest.mark.parametrize("node", ["average", "concat"])
def test_mixing_with_a_layered_conditioning_is_refused_on_both_sides(node, side):
    case = Case()
    pair = (case.positive, case.plain[1]) if side == "to" else (case.plain[1], case.positive)
    with pytest.raises(ValueError, match="changed after it got its layer prompts"):
        if node == "average":
            comfy_nodes.ConditioningAverage().addWeighted(*pair, 0.5)
        else:
            comfy_nodes.ConditioningConcat().concat(*pair)


def test_a_context_without_its_layers_is_refused(latent, sample):
    """A node that keeps the context and drops the options."""
    case = Case()
    stripped = [[case.positive[0][0], {}]]
    assert KEY not in stripped[0][1]
    with pytest.raises(ValueError, match="changed after it got its layer prompts"):
        sample(read_layer_prompts(case.model), stripped, case.negative, latent(seed=7), steps=1)
