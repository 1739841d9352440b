"""What a step of CLIP guidance costs: every decoder, gradient and scorer, beside a plain CFG step and beside the bare
passes it needs.

All networks have random weights of the real sizes. Each way runs in the same process, one sampling after the other,
many rounds; a ratio is the median over the rounds of (guided step / plain CFG step) and of (guided step / floor). The
floor is what nobody can save: the same forward and backward passes on the same tensors, written down without the pack.
Its operations are counted too, as they do not depend on how busy the machine is.
"""

import statistics
import sys
import tempfile
from pathlib import Path

import open_clip
import torch
from torch.utils.flop_counter import FlopCounterMode

ROOT = Path(__file__).resolve().parents[2]
CFG, STRENGTH = 7.5, 0.5
DECODERS = ("latent_rgb", "taesd", "vae_crop", "vae")
LIKELIHOOD = "likelihood"  # of a caption of 11 tokens, by a BLIP of the published base size
SCORERS = {"B/32": "ViT-B-32", "L/14": "ViT-L-14", LIKELIHOOD: ""}
X0, THROUGH = "x0", "through model"
DEFAULT = ("taesd", X0, "B/32")
KL = dict(
    double_z=True,
    z_channels=4,
    resolution=256,
    in_channels=3,
    out_ch=3,
    ch=128,
    ch_mult=[1, 2, 4, 4],
    num_res_blocks=2,
    dropout=0.0,
)


def random_weights(network: torch.nn.Module, seed: int) -> None:
    """Fills a network with weights that keep activations finite, in place."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if parameter.ndim > 1:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) / max(1, parameter[0].numel()) ** 0.5)
            else:
                parameter.fill_(1.0 if name.endswith("weight") else 0.0)


def make_vaes() -> dict:
    """The VAEs of the `decoder` widget: SD1.5's architecture, and TAESD as Load VAE makes it."""
    import comfy.sd
    from comfy.ldm.models.autoencoder import AutoencoderKL
    from comfy.taesd.taesd import TAESD

    config = {"embed_dim": 4, "ddconfig": {**KL, "attn_resolutions": []}}
    network = AutoencoderKL(**config)
    random_weights(network, 1)
    kl = comfy.sd.VAE(sd=network.state_dict(), config={"params": config})
    tiny = TAESD()
    random_weights(tiny, 2)
    return {
        "vae": kl,
        "vae_crop": kl,
        "taesd": comfy.sd.VAE(sd={**tiny.state_dict(), "vae_scale": torch.tensor(0.18215)}),
    }


def make_objective(scorer: str):
    """An objective of a randomly initialized open_clip model or captioner."""
    from guidance_lab.guidance.similarity import cosine
    from guidance_lab.nodes.clip_guidance.objective import Objective

    if scorer == LIKELIHOOD:
        from guidance_lab.experiments.evidence.architectures import captioner

        with tempfile.TemporaryDirectory() as folder:
            return Objective(((1.0, captioner("blip-base", Path(folder))),))
    from guidance_lab.nodes.clip_guidance.scorers import CLIPSimilarity, OpenCLIPScorer

    network = open_clip.create_model(SCORERS[scorer], pretrained=None)
    clip = OpenCLIPScorer(network, None, (0.5,) * 3, (0.5,) * 3, network.visual.image_size[0], scorer)
    target = torch.randn(1, network.visual.output_dim, generator=torch.Generator().manual_seed(3))
    return Objective(((1.0, CLIPSimilarity(clip, target.to(clip.models[0].load_device), cosine, scorer)),))


def decoder_choice(name: str, vaes: dict) -> dict:
    """The value of the `decoder` widget; there is no file for taesd here, so it comes as a VAE."""
    return {"decoder": "vae" if name == "taesd" else name, "vae": vaes.get(name)}


def bare_guider(model, vaes, way: tuple[str, str, str], objective, positive, negative):
    """The floor of a way: the model on two rows, one decoding, one look, and the backward passes, with nothing in
    between.
    """
    import comfy.model_management
    import comfy.samplers

    from guidance_lab.guidance.crops import Box, cut, whole_view
    from guidance_lab.nodes.host.decode import make_decoder

    decoder_name, gradient, _ = way
    decoder = make_decoder(decoder_choice(decoder_name, vaes), model)
    scorer = objective.parts[0][1]
    networks = [m.model for m in (model, *decoder.models, *objective.models)]
    for network in networks:
        network.requires_grad_(False)

    class Bare(comfy.samplers.CFGGuider):
        def outer_sample(self, *args, **kwargs):
            comfy.model_management.load_models_gpu([*decoder.models, *objective.models])
            return super().outer_sample(*args, **kwargs)

        def predict_noise(self, x, timestep, model_options=None, seed=None):
            conds = [
                {k: v.cond for k, v in self.conds[name][0]["model_conds"].items()} for name in ("positive", "negative")
            ]
            given = {k: torch.cat([c[k] for c in conds]) for k in conds[0]}
            with torch.inference_mode(False), torch.set_grad_enabled(gradient == THROUGH):
                leaf = x.clone().requires_grad_(gradient == THROUGH)
                c, u = self.inner_model.apply_model(torch.cat([leaf] * 2), torch.cat([timestep] * 2), **given).chunk(2)
                denoised = u + CFG * (c - u)
            with torch.inference_mode(False), torch.enable_grad():
                leaf = leaf if gradient == THROUGH else denoised.clone().requires_grad_()
                seen = denoised if gradient == THROUGH else leaf
                side = min(scorer.side // decoder.scale, *x.shape[-2:])
                picture = decoder.decode(cut(seen, Box(0, 0, side)) if decoder.crops else seen)
                torch.autograd.grad(scorer.score(whole_view(picture, scorer.side), None).sum(), leaf)
            return denoised.detach()

    guider = Bare(model)
    guider.set_conds(positive, negative)
    return guider


def guided_guider(model, vaes, way: tuple[str, str, str], objective, positive, negative):
    """The way itself, through its node: one look for each step, as the floor has."""
    from comfy_extras.nodes_custom_sampler import CFGGuider

    from guidance_lab.nodes.clip_guidance.guider import CLIPGuidance

    decoder, gradient, _ = way
    looks = dict(crops=1, whole_view=False) if decoder == "vae_crop" else dict(crops=0, whole_view=True)
    node = CLIPGuidance.PREPARE_CLASS_CLONE(None)
    settings = dict(
        decoder=decoder_choice(decoder, vaes), strength=STRENGTH, start_percent=0.0, gradient=gradient, **looks
    )
    guided = node.EXECUTE_NORMALIZED(model=model, objective=objective, **settings).result[0]
    return CFGGuider.execute(guided, positive, negative, CFG)[0]


def operations(guider, modules, size: int, sample_once) -> float:
    """TFLOP of one evaluation."""
    with FlopCounterMode(display=False) as counter:
        sample_once(guider, modules, size, 1)
    return counter.get_total_flops() / 1e12


def peak_memory(guider, modules, size: int, sample_once) -> float:
    """GiB at the peak of two evaluations: of the device on a GPU; on a CPU what is kept for the backward pass at
    once.
    """
    device = guider.model_patcher.load_device
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        sample_once(guider, modules, size, 2)
        return torch.cuda.max_memory_allocated(device) / 2**30
    weights = {p.untyped_storage().data_ptr() for module in modules for p in module.parameters()}
    kept, peak = {}, 0

    def pack(tensor):
        nonlocal peak
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
            peak = max(peak, sum(kept.values()))
        return tensor

    with torch.inference_mode(False), torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        sample_once(guider, modules, size, 1)
    return peak / 2**30


def measure(layout: str, ways: list, rounds: int, steps: int) -> tuple[dict[str, float], list[dict]]:
    from comfy_extras.nodes_custom_sampler import CFGGuider

    from guidance_lab.experiments.benchmarks.autoguidance import LAYOUTS, random_model, sample_once
    from guidance_lab.nodes.host.models import models_loaded_with

    config, size = LAYOUTS[layout]
    model, vaes = random_model(config, 1), make_vaes()
    objectives = {name: make_objective(name) for name in {way[2] for way in ways}}
    generator = torch.Generator().manual_seed(3)
    positive, negative = (
        [
            [
                torch.randn(1, 77, config["context_dim"], generator=generator),
                {"pooled_output": torch.randn(1, 1280, generator=generator)},
            ]
        ]
        for _ in range(2)
    )
    plain = CFGGuider.execute(model, positive, negative, CFG)[0]
    modules = [model.model]
    plain_operations = operations(plain, modules, size, sample_once)
    ratios, rows = {}, [{"layout": layout, "way": "CFG", "tflop": plain_operations}]
    for way in ways:
        objective = objectives[way[2]]
        guided = guided_guider(model, vaes, way, objective, positive, negative)
        floor = bare_guider(model, vaes, way, objective, positive, negative)
        floor_operations = operations(floor, modules, size, sample_once)
        networks = [model.model, *(m.model for m in models_loaded_with(guided.model_patcher))]
        row = {"layout": layout, "way": " | ".join(way), "tflop": floor_operations}
        row["peak_gib"] = peak_memory(guided, networks, size, sample_once)
        seconds = {"CFG": [], "guided": [], "floor": []}
        for index in range(rounds):
            print(f"{layout} {row['way']}: round {index + 1} of {rounds}", file=sys.stderr)
            for name, guider in (("CFG", plain), ("guided", guided), ("floor", floor)):
                timed = sample_once(guider, modules, size, steps)
                # On a CPU the processor time: wall time there says how busy the machine was.
                times = timed.wall if model.load_device.type == "cuda" else timed.cpu
                seconds[name].append(statistics.median(times[1:]))  # the first step still warms caches
        for name, values in seconds.items():
            row[f"{name}_seconds"] = statistics.median(values)
        for to in ("CFG", "floor"):
            pairs = zip(seconds["guided"], seconds[to], strict=True)
            ratios[f"{layout}: {row['way']} / {to}"] = statistics.median(a / b for a, b in pairs)
        ratios[f"{layout}: {row['way']}: operations of the floor / CFG"] = floor_operations / plain_operations
        rows.append(row)
    return ratios, rows


def main() -> None:
    sys.path.append(str(ROOT))
    from tools.report import arguments, print_report, write_report

    parser = arguments(__doc__.splitlines()[0])
    parser.add_argument("--full", action="store_true", help="SD1.5 at full size also on the CPU (very slow)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--only", nargs="*", default=[], metavar="WORD", help="only ways with all these words: vae_crop x0 B/32 ..."
    )
    options = parser.parse_args()
    import comfy.model_management as management

    ways = [(decoder, gradient, scorer) for scorer in SCORERS for gradient in (X0, THROUGH) for decoder in DECODERS]
    if options.quick:
        ways = [DEFAULT, ("latent_rgb", THROUGH, "B/32")]
    ways = [way for way in ways if set(options.only) <= set(way)]
    device = management.get_torch_device()
    layouts = ["sd15", "sdxl"] if device.type == "cuda" else ["sd15"] if options.full else ["sd15-narrow"]
    ratios, rows = {}, []
    for layout in layouts:
        more_ratios, more_rows = measure(layout, ways, *((1, 2) if options.quick else (options.rounds, 4)))
        ratios.update(more_ratios)
        rows += more_rows
        management.unload_all_models()
    print_report(ratios, rows)
    write_report(options.json, ratios, rows, device)


if __name__ == "__main__":
    main()
