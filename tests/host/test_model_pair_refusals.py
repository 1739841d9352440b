"""Bad input gets one sentence, at queue time where that is possible."""

import logging

import comfy.latent_formats
import pytest
import torch
from comfy_extras.nodes_model_advanced import ModelSamplingDiscrete, ModelSamplingSD3
from pair_tools import pair


def refused(run_node, model, guide, message, **options):
    with pytest.raises(ValueError, match=message) as caught:
        pair(run_node, model, guide, **options)
    assert "\n" not in str(caught.value)


def test_weights_and_windows(tiny_model, tiny_model_b, run_node):
    for weight in (float("nan"), float("inf")):
        refused(run_node, tiny_model, tiny_model_b, "finite", weight=weight)
    refused(run_node, tiny_model, tiny_model_b, "start must not be greater", start_percent=0.7, end_percent=0.3)
    refused(run_node, tiny_model, tiny_model_b, "end_percent", end_percent=1.5)


@pytest.mark.parametrize(
    ("values", "answer"),
    [
        ({}, True),
        ({"weight": 2.0, "start_percent": 0.2, "end_percent": 0.2}, True),
        ({"weight": None, "start_percent": None, "end_percent": None}, True),
        ({"weight": float("nan")}, "from 0 to 20"),
        ({"weight": 21.0}, "from 0 to 20"),
        ({"weight": -0.1}, "from 0 to 20"),
        ({"start_percent": 0.6, "end_percent": 0.5}, "start must not be greater"),
        ({"start_percent": -0.1}, "start_percent"),
        ({"start_percent": float("nan")}, "start_percent"),
    ],
)
def test_at_queue_time(pack_nodes, values, answer):
    """None is what the host hands over for an input that is linked."""
    said = pack_nodes["GuidanceLab_AutoguidanceModelPair"].validate_inputs(**values)
    assert said is True if answer is True else answer in said


def test_a_missing_guide(tiny_model, run_node):
    refused(run_node, tiny_model, None, "guide_model")


def test_another_latent_space(tiny_model, tiny_model_b, run_node):
    """Weights of one family with the latent scale of another: as a guide from SDXL for a model of SD1.5."""
    kept = tiny_model_b.model.latent_format
    tiny_model_b.model.latent_format = comfy.latent_formats.SDXL()
    try:
        refused(run_node, tiny_model, tiny_model_b, "latents")
    finally:
        tiny_model_b.model.latent_format = kept


def test_another_prediction_type(tiny_model, tiny_model_b, run_node):
    flow = ModelSamplingSD3().patch(tiny_model_b, 3.0)[0]
    refused(run_node, tiny_model, flow, "predicts CONST and model EPS")


def test_eps_and_v_share_one_noisy_latent(tiny_model, tiny_model_b, run_node):
    pair(run_node, tiny_model, ModelSamplingDiscrete().patch(tiny_model_b, "v_prediction", False)[0])


def test_another_meaning_of_sigma(tiny_model, tiny_model_b, run_node):
    zero_snr = ModelSamplingDiscrete().patch(tiny_model_b, "v_prediction", True)[0]
    refused(run_node, tiny_model, zero_snr, "largest noise level")
    shifted = [ModelSamplingSD3().patch(model, shift)[0] for model, shift in ((tiny_model, 3.0), (tiny_model_b, 6.0))]
    refused(run_node, *shifted, "ModelSampling node")


def test_another_width_of_context(tiny_model, tiny_model_b, cond, run_node):
    config = tiny_model_b.model.model_config.unet_config
    config["context_dim"] = 1024  # what the loader writes there for a guide with another text encoder
    try:
        refused(run_node, tiny_model, tiny_model_b, "guide_positive")
        refused(run_node, tiny_model, tiny_model_b, "768 numbers wide", guide_positive=cond(1))
        pair(run_node, tiny_model, tiny_model_b, guide_positive=[[torch.zeros(1, 77, 1024), {}]])
    finally:
        config["context_dim"] = 768


def test_an_identical_pair_is_warned_about(tiny_model, tiny_model_b, run_node, caplog):
    with caplog.at_level(logging.WARNING):
        pair(run_node, tiny_model, tiny_model_b)
        assert "are the same" not in caplog.text
        pair(run_node, tiny_model, tiny_model.clone())
        assert "are the same" in caplog.text
