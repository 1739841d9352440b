"""What a running guidance tells the page that queued it, and that it tells nobody else and changes no picture."""

import asyncio
import base64
import io
import json
import uuid

import aiohttp
import pytest
from conftest import ROOT
from PIL import Image

from tools.client import fetch_image

EVENT = "guidance_lab.live"


def prompt_of(name: str, **changes) -> dict:
    """The API prompt of an example; changes: input → value, wherever a node has such an input."""
    prompt = json.loads((ROOT / "docs" / "api" / f"{name}.json").read_text(encoding="utf-8"))
    for node in prompt.values():
        node["inputs"] |= {key: value for key, value in changes.items() if key in node["inputs"]}
    return prompt


async def _queue(url: str, prompt: dict, listens: bool) -> tuple[list[dict], list[dict], list[dict]]:
    me, other = uuid.uuid4().hex, uuid.uuid4().hex
    mine, theirs = [], []
    async with aiohttp.ClientSession() as session:
        async with (
            session.ws_connect(f"{url}/ws?clientId={me if listens else uuid.uuid4().hex}", max_msg_size=0) as ours,
            session.ws_connect(f"{url}/ws?clientId={other}", max_msg_size=0) as foreign,
        ):
            async with session.post(f"{url}/prompt", json={"prompt": prompt, "client_id": me}) as answer:
                body = await answer.json()
                assert answer.status == 200, body
            for _ in range(3000):
                async with session.get(f"{url}/history/{body['prompt_id']}") as answer:
                    entry = (await answer.json()).get(body["prompt_id"])
                if entry:
                    break
                await asyncio.sleep(0.2)
            for socket, heard in ((ours, mine), (foreign, theirs)):
                while True:
                    try:
                        message = await asyncio.wait_for(socket.receive(), 1)
                    except TimeoutError:
                        break
                    if message.type is aiohttp.WSMsgType.TEXT:
                        event = json.loads(message.data)
                        if event["type"] == EVENT:
                            heard.append(event["data"])
    assert entry["status"]["status_str"] == "success", entry["status"]["messages"][-1]
    images = [image for output in entry["outputs"].values() for image in output.get("images", [])]
    images = [image for image in images if image["type"] == "output"]  # what is saved, not previews
    return mine, theirs, images


def queue(server, prompt: dict, listens: bool = True):
    """(messages to the page that queued it, to another page, images)"""
    return asyncio.run(_queue(server.url, prompt, listens))


@pytest.mark.parametrize("gradient", ["x0", "through model"])
def test_clip_guidance_tells_its_page_and_nobody_else(server, gradient):
    example = "UPainting CLIP Guider (Shapes)"
    changes = {"steps": 8, "start_percent": 0.0, "crops": 2, "gradient": gradient, "cfg": 2.0}
    mine, theirs, watched = queue(server, prompt_of(example, noise_seed=11, **changes))
    assert theirs == []
    assert {message["kind"] for message in mine} == {"clip"} and len({message["run"] for message in mine}) == 1
    points = [point for message in mine for point in message["points"]]
    assert [point[0] for point in points] == list(range(8))
    assert all(isinstance(score, float) and push > 0 and cfg > 0 for _, score, push, cfg in points)
    shown = [message for message in mine if "picture" in message]
    picture = Image.open(io.BytesIO(base64.b64decode(shown[0]["picture"].partition(",")[2])))
    assert picture.size == (128, 128) and any(low < high for low, high in picture.getextrema())
    boxes = shown[0]["views"]["boxes"]
    assert len(boxes) == 2 and shown[0]["views"]["whole"] is True
    assert all(0 <= left and 0 <= top and left + width <= 1.001 and top + height <= 1.001
               for left, top, width, height in boxes)  # fmt: skip
    # The same once more, with nobody there: not a bit of the picture changes. Another seed between the two keeps the
    # server's cache out of it.
    queue(server, prompt_of(example, noise_seed=12, **changes), listens=False)
    unheard, _, alone = queue(server, prompt_of(example, noise_seed=11, **changes), listens=False)
    assert unheard == []
    pixels = [
        [Image.open(io.BytesIO(fetch_image(server.url, image))).tobytes() for image in images]
        for images in (watched, alone)
    ]
    assert pixels[0] and pixels[0] == pixels[1]


def test_a_curve_is_told_as_the_weights_of_the_steps(server):
    prompt = prompt_of("Autoguidance (Shapes)", seed=21, weight=3)
    (pair,) = (key for key, node in prompt.items() if node["class_type"].endswith("AutoguidanceModelPair"))
    curve = {"points": [[0, 1], [1, 0]], "interpolation": "linear"}
    prompt["90"] = {"class_type": "CurveEditor", "inputs": {"curve": curve}, "_meta": {"title": "Curve"}}
    prompt[pair]["inputs"]["weight_curve"] = ["90", 0]
    mine, theirs, _ = queue(server, prompt)
    assert theirs == []
    (told,) = mine
    assert (told["kind"], told["node"], told["neutral"]) == ("weights", pair, 1.0)
    assert len(told["weights"]) == 12 and told["weights"] == sorted(told["weights"], reverse=True)
    assert told["weights"][0] == pytest.approx(3, abs=0.05) and 1 <= told["weights"][-1] < 1.3


def test_training_tells_every_step_once(server):
    prompt = prompt_of("Train an XTI and use it (Shapes)", steps=7, preview_every=0)
    for key, node in list(prompt.items()):  # the training alone
        if node["class_type"] == "SaveImage":
            del prompt[key]
    (train,) = (key for key, node in prompt.items() if node["class_type"].endswith("XTITrain"))
    prompt[train]["inputs"]["seed"] = 99
    prompt["91"] = {"class_type": "PreviewImage", "inputs": {"images": [train, 1]}, "_meta": {"title": "Plot"}}
    mine, theirs, _ = queue(server, prompt)
    told = [message for message in mine if message["kind"] == "training"]
    assert theirs == [] and told
    points = [point for message in told for point in message["points"]]
    assert [point[0] for point in points] == list(range(1, 8)) and told[0]["last"] == 7
    assert all(loss > 0 and norm > 0 for _, loss, norm in points) and told[0]["words"] > 0


def test_xti_info_tells_the_words_of_every_layer(server):
    prompt = prompt_of("Train an XTI and use it (Shapes)")
    train, models = (
        next(key for key, node in prompt.items() if node["class_type"].endswith(kind))
        for kind in ("XTITrain", "ShapesDemoModels")
    )
    for key in [key for key, node in prompt.items() if node["class_type"] == "SaveImage"]:
        del prompt[key]
    prompt[train]["inputs"] |= {"steps": 2, "preview_every": 0}
    inputs = {"xti": [train, 0], "clip": [models, 1], "words": 3}
    prompt["92"] = {"class_type": "GuidanceLab_XTIInfo", "inputs": inputs, "_meta": {"title": "Info"}}
    queue(server, prompt)
    (run,) = server.get("/history?max_items=1").values()
    told = json.loads(run["outputs"]["92"]["guidance_lab_words"][0])
    names = [layer["name"] for layer in told["table"]["layers"]]
    (encoder,) = told["encoders"]
    assert [layer["name"] for layer in encoder["layers"]] == names and len(names) > 3
    for layer in encoder["layers"]:
        (vector,) = layer["vectors"]
        cosines = [cosine for _, cosine in vector["words"]]
        assert vector["norm"] > 0 and len(cosines) == 3 and cosines == sorted(cosines, reverse=True)
