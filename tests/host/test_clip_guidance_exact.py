"""CLIP guidance against closed forms: a Gaussian world in every parameterization, and diffusers' formula in its own
frame.
"""

import comfy.model_base
import comfy.samplers
import pytest
import tiny_networks
import torch
from clip_tools import RGB, LinearScorer, QuadraticScorer, guide, one_evaluation, pixel_space

from guidance_lab.guidance.crops import whole_view
from guidance_lab.nodes.host.decode import make_decoder

SIDE = 4
SIZE = 3 * SIDE * SIDE
KINDS = {
    "eps": comfy.model_base.ModelType.EPS,
    "v": comfy.model_base.ModelType.V_PREDICTION,
    "flow": comfy.model_base.ModelType.FLOW,
}


class GaussianNetwork(torch.nn.Module):
    """What a network trained to perfection on data N(mean, covariance) predicts, for each kind of prediction."""

    def __init__(self, kind, mean, covariance, sampling):
        super().__init__()
        self.kind, self.sampling, self.dtype = kind, sampling, torch.float32
        self.mean, self.covariance = torch.nn.Parameter(mean), torch.nn.Parameter(covariance)

    def signal_and_noise(self, sigma):
        return (1 - sigma, sigma) if self.kind == "flow" else (1.0, sigma)

    def denoise(self, x, sigma):
        """E[x0 | x] of x = signal * x0 + noise * n; x [B, N]."""
        signal, noise = self.signal_and_noise(sigma)
        within = signal**2 * self.covariance + noise**2 * torch.eye(SIZE)
        return self.mean + signal * torch.linalg.solve(within, (x - signal * self.mean).T).T @ self.covariance.T

    def forward(self, x, timesteps, **_):
        sigma = self.sampling.sigma(timesteps[0])
        flat = x.flatten(1)
        if self.kind == "flow":
            return ((flat - self.denoise(flat, sigma)) / sigma).reshape(x.shape)
        ve = flat * (1 + sigma**2) ** 0.5
        x0 = self.denoise(ve, sigma)
        eps = (ve - x0) / sigma
        return (eps if self.kind == "eps" else (eps - sigma * x0) / (1 + sigma**2) ** 0.5).reshape(x.shape)


def gaussian_model(kind: str):
    """A MODEL in pixel space whose data are N(mean, covariance), and those two."""
    generator = torch.Generator().manual_seed(0)
    mean = 0.3 * torch.randn(SIZE, generator=generator)
    root = 0.5 * torch.randn(SIZE, SIZE, generator=generator) / SIZE**0.5
    covariance = root @ root.T + 0.05 * torch.eye(SIZE)
    model = pixel_space(tiny_networks.build("SD15"))
    model.model.model_sampling = comfy.model_base.model_sampling(model.model.model_config, KINDS[kind])
    model.model.diffusion_model = GaussianNetwork(kind, mean, covariance, model.model.model_sampling)
    return model, mean, covariance


def sigma_of(model):
    """A noise level in the middle of the model's own table; a network is never told one between two entries."""
    return model.model.model_sampling.sigmas[550].item()


@pytest.mark.parametrize("kind", KINDS)
def test_through_the_model_is_the_denoiser_of_the_tilted_data(run_node, kind):
    """Data N(m, C) and a linear reward: the guided x0 is that of N(m + gamma C a, C), at every pixel."""
    model, mean, covariance = gaussian_model(kind)
    scorer, gamma, sigma = LinearScorer(SIDE, factor=0.6), 1.5, sigma_of(model)
    x = torch.randn(2, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1))
    tilted = GaussianNetwork(
        kind, mean + gamma * covariance @ scorer.pattern.flatten() / 2, covariance, None
    )  # 0..1 halves the slope
    guided = guide(run_node, model, scorer, size="exact", strength=gamma, gradient="through model", blend="x0")
    prompt = tiny_networks.positive()
    expected = tilted.denoise(x.flatten(1), sigma).reshape(x.shape)
    assert torch.allclose(one_evaluation(guided, x, sigma, prompt), expected, atol=1e-5)
    plain = one_evaluation(model, x, sigma, prompt)
    assert torch.allclose(plain, model.model.diffusion_model.denoise(x.flatten(1), sigma).reshape(x.shape), atol=1e-5)
    assert (plain - expected).abs().max() > 0.05


@pytest.mark.parametrize("kind", KINDS)
def test_x0_only_moves_the_estimate_along_the_reward(run_node, kind):
    model, _, _ = gaussian_model(kind)
    scorer, gamma, sigma = LinearScorer(SIDE), 0.4, sigma_of(model)
    x = torch.randn(2, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1))
    guided = guide(run_node, model, scorer, size="exact", strength=gamma, blend="x0")
    moved = one_evaluation(guided, x, sigma, tiny_networks.positive()) - one_evaluation(
        model, x, sigma, tiny_networks.positive()
    )
    assert torch.allclose(moved, gamma * scorer.pattern.expand_as(x) / 2, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_samples_come_from_the_tilted_distribution(run_node, sample, kind):
    model, mean, covariance = gaussian_model(kind)
    scorer, gamma, count = LinearScorer(SIDE, factor=0.6), 1.5, 2000
    guided = guide(run_node, model, scorer, size="exact", strength=gamma, gradient="through model", blend="x0")
    start = {"samples": torch.zeros(count, 3, SIDE, SIDE)}
    prompt = tiny_networks.positive()
    scheduler = "simple" if kind == "flow" else "karras"
    drawn = sample(guided, prompt, prompt, start, "heun", steps=20, cfg=1.0, scheduler=scheduler).flatten(1)
    shift = gamma * covariance @ scorer.pattern.flatten() / 2
    spread = covariance.diagonal().sqrt()
    # 5 standard errors of the mean, and the error of 20 steps
    assert ((drawn.mean(0) - (mean + shift)).abs() / spread).max() < 5 / count**0.5 + 0.03
    assert (shift.abs() / spread).max() > 0.5
    assert torch.allclose(drawn.T.cov(), covariance, atol=6 * covariance.max() / count**0.5)


class Diffusers:
    """Cross-modal guidance as diffusers' clip_guided_stable_diffusion and PaddleNLP's upainting pipeline write it, from
    the formulas.

    VP frame, eps-prediction, DDIM with eta 0:  x0 = (x - sqrt(1 - abar) eps)/sqrt(abar);
    x_in = x0 sqrt(1 - abar) + x (1 - sqrt(1 - abar));  g = dS(decode(x_in))/dx,
    its RMS cut at `clamp` if there is one;  eps' = eps - w sqrt(1 - abar) g.
    """

    def __init__(self, network, score, cfg, weight, clamp=None):
        self.network, self.score, self.cfg, self.weight, self.clamp = network, score, cfg, weight, clamp
        betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
        self.abar = torch.cumprod(1 - betas, 0)

    def sample(self, noise, timesteps, positive, negative):
        x = (1 - self.abar[timesteps[0]]).sqrt().float() * noise
        for t, following in zip(timesteps, [*timesteps[1:], None], strict=True):
            a, b = self.abar[t].sqrt().float(), (1 - self.abar[t]).sqrt().float()
            leaf = x.detach().requires_grad_()
            where = torch.full((2 * len(x),), float(t))
            context = torch.cat([positive.expand(len(x), -1, -1), negative.expand(len(x), -1, -1)])
            cond, uncond = self.network(torch.cat([leaf, leaf]), where, context=context).chunk(2)
            eps = uncond + self.cfg * (cond - uncond)
            x_in = (leaf - b * eps) / a * b + leaf * (1 - b)
            (g,) = torch.autograd.grad(self.score(x_in).sum(), leaf)
            if self.clamp is not None:
                magnitude = g.square().mean((1, 2, 3), keepdim=True).sqrt()
                g = g * magnitude.clamp(max=self.clamp) / magnitude
            eps = (eps - self.weight * b * g).detach()
            after = self.abar[following].float() if following is not None else torch.tensor(1.0)
            x = after.sqrt() * (x - b * eps) / a + (1 - after).sqrt() * eps
        return x


@pytest.mark.parametrize("size", ["exact", "clamp"])
def test_equals_diffusers_formula_in_its_own_frame(run_node, size):
    """Five steps of Euler in ComfyUI's frame against five DDIM steps in VP, guided through UNet and CFG, on the same
    weights.
    """
    model = tiny_networks.build("SD15")
    positive, negative = tiny_networks.positive(1), tiny_networks.positive(2)
    scorer, strength, timesteps = (
        QuadraticScorer(8, factor=0.5),
        0.3 if size == "exact" else 4.0,
        [500, 400, 300, 200, 100],
    )
    decoder = make_decoder(RGB, model)
    noise = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(3))

    def score(latent):
        return scorer.score(whole_view(decoder.decode(latent), 8), None)

    reference = Diffusers(model.model.diffusion_model, score, 3.0, strength, 0.05 if size == "clamp" else None)
    expected = reference.sample(noise, timesteps, positive[0][0], negative[0][0])
    unguided = Diffusers(model.model.diffusion_model, score, 3.0, 0.0).sample(
        noise, timesteps, positive[0][0], negative[0][0]
    )
    guided = guide(run_node, model, scorer, strength=strength, gradient="through model", size=size)
    guider = comfy.samplers.CFGGuider(guided)
    guider.set_conds(positive, negative)
    guider.set_cfg(3.0)
    sigmas = torch.cat([model.model.model_sampling.sigmas[timesteps], torch.zeros(1)])
    with torch.inference_mode():
        out = guider.sample(
            noise, torch.zeros_like(noise), comfy.samplers.sampler_object("euler"), sigmas, disable_pbar=True
        )
    out = out * model.model.latent_format.scale_factor
    assert (expected - unguided).abs().max() > 0.1 * unguided.abs().max()
    assert (out - expected).abs().max() < 2e-4 * expected.abs().max()
