"""What CLIP guidance cannot do it says in one sentence, before or at the start of sampling; and scorers of noisy
pictures.
"""

import math

import comfy.hooks
import comfy.sampler_helpers
import pytest
import tiny_networks
import torch
from clip_tools import ConstantScorer, LinearScorer, TinyCLIP, guide, objective, one_evaluation, pixel_space
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import CallbacksMP
from pair_tools import with_lora

from guidance_lab.nodes.clip_guidance.objective import Objective
from guidance_lab.nodes.host.gradient import resident

START = {"samples": torch.zeros(1, 4, 8, 8)}
PROMPTS = tiny_networks.positive(1), tiny_networks.positive(2)


@pytest.fixture(scope="module")
def _sd15():
    with torch.inference_mode():
        return tiny_networks.build("SD15")


@pytest.fixture
def model(_sd15):
    return _sd15.clone()


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        (dict(start_percent=0.9, end_percent=0.5), "start_percent 0.9 comes after end_percent 0.5"),
        (dict(strength=math.nan), "strength is nan"),
        (dict(every=0), "every is 0"),
        (dict(crops=0, whole_view=False), "nothing to look at"),
        (dict(crops=-1), "nothing to look at"),
        (dict(size="huge"), "rms, clamp or exact"),
        (dict(decoder=None), "choose one of"),
        (dict(decoder={"decoder": "vae"}), "needs a VAE"),
    ],
)
def test_bad_settings(model, run_node, settings, sentence):
    with pytest.raises(ValueError, match=sentence):
        guide(run_node, model, LinearScorer(), **settings)


def test_an_empty_or_missing_objective(model, run_node):
    for given, sentence in ((None, "connect an Objective"), (Objective(()), "objective is empty")):
        with pytest.raises(ValueError, match=sentence):
            run_node("GuidanceLab_CLIPGuidance", model=model, objective=given, decoder={"decoder": "latent_rgb"})


def test_validation_at_queue_time(pack_nodes):
    """Linked inputs arrive as None, and the dynamic parent `decoder` is always handed in."""
    for name in ("GuidanceLab_CLIPGuidance", "GuidanceLab_UPaintingCLIPGuider"):
        validate = pack_nodes[name].validate_inputs
        assert validate(start_percent=0.2, end_percent=1.0, decoder="vae") is True
        assert validate(start_percent=None, end_percent=None, decoder=None) is True
        assert "comes after" in validate(start_percent=0.9, end_percent=0.5, decoder="vae")
        assert "start_percent is 1.5" in validate(start_percent=1.5, end_percent=1.0, decoder="vae")


def test_two_through_the_model_are_refused_and_one_beside_an_x0_is_not(model, sample, run_node):
    once = guide(run_node, model, LinearScorer(), gradient="through model")
    with pytest.raises(ValueError, match="Only one guidance can go through the model"):
        sample(guide(run_node, once, LinearScorer(seed=1), gradient="through model"), *PROMPTS, START, steps=1)
    both = sample(guide(run_node, once, LinearScorer(seed=1)), *PROMPTS, START, steps=2)
    assert not torch.equal(both, sample(once, *PROMPTS, START, steps=2))


def test_hooks_on_the_prompt(model, sample, run_node):
    hooks = comfy.hooks.create_hook_lora({}, 1.0, 1.0)
    hooks.hooks[0].weights = {
        key: ("diff", (value.clone(),)) for key, value in model.model.state_dict().items() if "to_k" in key
    }
    hooks.hooks[0].need_weight_init = False
    hooked = comfy.hooks.set_hooks_for_conditioning(PROMPTS[0], hooks)
    with pytest.raises(ValueError, match="hooks on the conditioning.*Choose gradient 'x0'"):
        sample(guide(run_node, model, LinearScorer(), gradient="through model"), hooked, PROMPTS[1], START, steps=1)
    sample(guide(run_node, model, LinearScorer()), hooked, PROMPTS[1], START, steps=1)


def test_a_lora_is_differentiated_with_its_model(model, run_node):
    """The gradient is that of the patched weights: as if they had been loaded so."""
    x = 3.0 * tiny_networks.noisy(model, batch=1, height=8, width=8)
    settings = dict(gradient="through model", size="exact", strength=1.0)
    plain = one_evaluation(guide(run_node, model, LinearScorer(), **settings), x, 3.0, *PROMPTS, cfg=3.0)
    late = one_evaluation(with_lora(guide(run_node, model, LinearScorer(), **settings)), x, 3.0, *PROMPTS, cfg=3.0)
    early = one_evaluation(guide(run_node, with_lora(model), LinearScorer(), **settings), x, 3.0, *PROMPTS, cfg=3.0)
    assert torch.equal(late, early) and not torch.equal(late, plain)


@pytest.mark.parametrize("which", ["model", "scorer"])
def test_partly_loaded_weights(model, sample, run_node, which):
    """As ComfyUI marks a module that it streams into VRAM because it does not fit."""

    def mark(patcher, *_):
        patcher.model.model_lowvram = True

    scorer = TinyCLIP()
    patcher = model if which == "model" else scorer.models[0]
    patcher.add_callback(CallbacksMP.ON_LOAD, mark)
    try:
        with pytest.raises(ValueError, match="does not fit into VRAM as a whole"):
            sample(guide(run_node, model, scorer, gradient="through model"), *PROMPTS, START, steps=1)
        if which == "model":  # which an x0 gradient never goes through
            sample(guide(run_node, model, scorer), *PROMPTS, START, steps=1)
    finally:
        patcher.model.model_lowvram = False


def test_quantised_weights(sample, run_node):
    from comfy.quant_ops import QuantizedTensor

    model = tiny_networks.build("SD15")
    layer = model.model.diffusion_model.middle_block[1].transformer_blocks[0].attn1.to_q
    plain = layer.weight
    quantised = torch.nn.Parameter(QuantizedTensor.from_float(plain.data, "TensorCoreFP8Layout"), requires_grad=False)
    # Once it is loaded: a quantised weight in a plain layer is more than ComfyUI's loading can move.
    model.add_callback(CallbacksMP.ON_LOAD, lambda *_: setattr(layer, "weight", quantised))
    model.add_callback(CallbacksMP.ON_CLEANUP, lambda *_: setattr(layer, "weight", plain))
    with pytest.raises(ValueError, match="weights are quantised"):
        sample(guide(run_node, model, LinearScorer(), gradient="through model"), *PROMPTS, START, steps=1)


class PagedPatcher(ModelPatcher):
    """Stands for a patcher of dynamic VRAM, which needs a GPU."""

    def is_dynamic(self):
        return True


def test_dynamic_vram(model, run_node, sample):
    paged = PagedPatcher(model.model, model.load_device, model.offload_device)
    with pytest.raises(ValueError, match="use ComfyUI's own loader"):
        guide(run_node, paged, LinearScorer(), gradient="through model")
    assert resident(model, "model") is model
    guide(run_node, paged, LinearScorer())


def test_a_video_has_no_single_picture(sample, run_node):
    wan = tiny_networks.build("WAN21_T2V")
    prompt = tiny_networks.positive()
    with pytest.raises(ValueError, match="a video or no picture"):
        sample(guide(run_node, wan, LinearScorer()), prompt, prompt, {"samples": torch.zeros(1, 16, 3, 8, 8)}, steps=1)
    sample(guide(run_node, wan, LinearScorer()), prompt, prompt, {"samples": torch.zeros(1, 16, 1, 8, 8)}, steps=1)


class NoisyScorer(LinearScorer):
    """The same inner product, with the noisy sample in VP and -1..1; keeps what it was shown."""

    noisy = True

    def __init__(self, side=8):
        super().__init__(side)
        self.seen = []

    def score(self, view, step):
        self.seen.append((view.detach().clone(), step.level))
        return super().score(view, step)


def test_scorers_of_noisy_pictures_on_latent_models_and_in_mixed_company(model, run_node, sample):
    with pytest.raises(ValueError, match="a latent model has none to show"):
        guide(run_node, model, NoisyScorer())
    pixel = pixel_space(tiny_networks.build("SD15", config={**tiny_networks.SD15, "in_channels": 3, "out_channels": 3}))
    mixed = objective(NoisyScorer(), LinearScorer())
    with pytest.raises(ValueError, match="two CLIP Guidance nodes"):
        run_node("GuidanceLab_CLIPGuidance", model=pixel, objective=mixed, decoder={"decoder": "latent_rgb"})
    with pytest.raises(ValueError, match="16 x 16 pixels, and this is 8 x 8"):
        sample(guide(run_node, pixel, NoisyScorer(16)), *PROMPTS, {"samples": torch.zeros(1, 3, 8, 8)}, steps=1)


@pytest.mark.parametrize("gradient", ["x0", "through model"])
def test_scorers_of_noisy_pictures_get_x_t_in_vp(run_node, gradient):
    """S is a function of x_t itself: D' = D + sigma^2 * gamma * dS/dx, and no model in the gradient in either mode."""
    pixel = pixel_space(tiny_networks.build("SD15", config={**tiny_networks.SD15, "in_channels": 3, "out_channels": 3}))
    scorer, sigma, gamma = NoisyScorer(), 2.0, 0.3
    x = sigma * torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    guided = guide(run_node, pixel, scorer, size="exact", strength=gamma, gradient=gradient)
    moved = one_evaluation(guided, x, sigma, *PROMPTS, cfg=3.0) - one_evaluation(pixel, x, sigma, *PROMPTS, cfg=3.0)
    vp = (1 + sigma**2) ** 0.5
    assert torch.allclose(moved, sigma**2 * gamma * scorer.pattern.expand_as(x) / vp, atol=1e-3)
    view, level = scorer.seen[0]
    assert len(scorer.seen) == 1 and torch.allclose(view, x / vp, atol=1e-6)
    assert torch.allclose(level.sigma.flatten(), torch.tensor([sigma] * 2))


def test_a_scorer_of_noisy_pictures_sees_crops_of_its_own_size(run_node):
    pixel = pixel_space(tiny_networks.build("SD15", config={**tiny_networks.SD15, "in_channels": 3, "out_channels": 3}))
    scorer = NoisyScorer(4)
    x = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    one_evaluation(guide(run_node, pixel, scorer, crops=3), x, 2.0, *PROMPTS)
    assert [view.shape for view, _ in scorer.seen] == [(1, 3, 4, 4)] * 3


def test_a_picture_of_the_scorers_own_size_is_scored_once_however_many_crops(run_node):
    """All crops would be the same square."""
    pixel = pixel_space(tiny_networks.build("SD15", config={**tiny_networks.SD15, "in_channels": 3, "out_channels": 3}))
    x = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    moves = []
    for crops in (1, 3):
        scorer = NoisyScorer(8)
        guided = guide(run_node, pixel, scorer, crops=crops, size="exact", strength=0.3)
        moves.append(one_evaluation(guided, x, 2.0, *PROMPTS))
        assert len(scorer.seen) == 1
    assert torch.equal(*moves)


@pytest.mark.parametrize("gradient", ["x0", "through model"])
def test_a_network_without_a_backward(model, sample, run_node, gradient):
    class Loaded(LinearScorer):
        """Multiplies by a weight that was made in inference mode and belongs to no model that it named."""

        def __init__(self):
            super().__init__()
            with torch.inference_mode():
                self.pattern = torch.ones(3, 8, 8)

    with pytest.raises(
        ValueError, match="has no gradient .*saved for backward.*Choose gradient 'x0' if it is the model"
    ):
        sample(guide(run_node, model, Loaded(), gradient=gradient), *PROMPTS, START, steps=1)


def test_one_warning_for_all_steps(model, sample, run_node, caplog):
    sample(guide(run_node, model, ConstantScorer(math.nan)), *PROMPTS, START, steps=4)
    assert caplog.text.count("not a number") == 1
