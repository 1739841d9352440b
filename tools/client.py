"""Queue a workflow on a ComfyUI server over HTTP and websocket. Runs under the host's interpreter (aiohttp,
comfy-cli).
"""

import asyncio
import json
import sys
import urllib.parse
import uuid
from pathlib import Path

import aiohttp

from tools.host import DevError
from tools.server import open_url


def to_api(workflow: dict, object_info: dict) -> dict:
    """The API prompt of a workflow in UI format. Raises DevError when comfy-cli, which knows how, is missing."""
    try:
        from comfy_cli.workflow_to_api import convert_ui_to_api
    except ImportError as error:
        raise DevError(
            f"this host has no comfy-cli, which converts workflows; `{sys.executable} -m pip install comfy-cli`."
        ) from error
    return convert_ui_to_api(workflow, object_info)


def needed_files(workflow: dict) -> list[str]:
    """Files under models/ that the user must bring for this workflow: `extra.guidance_lab.needs` of the UI format."""
    return workflow.get("extra", {}).get("guidance_lab", {}).get("needs", [])


def run_prompt(url: str, prompt: dict, progress=None, timeout: float | None = None) -> list[dict]:
    """Queue an API prompt, wait for its end, return its images as `{filename, subfolder, type}`.

    `progress(node_class, value, maximum)` is called as the server reports. Raises DevError with what the server said,
    TimeoutError after `timeout` seconds.
    """
    return asyncio.run(asyncio.wait_for(_run_prompt(url, prompt, progress or (lambda *_: None)), timeout))


async def _run_prompt(url: str, prompt: dict, progress) -> list[dict]:
    client = uuid.uuid4().hex
    async with (
        aiohttp.ClientSession() as session,
        session.ws_connect(f"{url}/ws?clientId={client}", max_msg_size=0) as socket,
    ):
        async with session.post(f"{url}/prompt", json={"prompt": prompt, "client_id": client}) as answer:
            body = await answer.json()
            if answer.status != 200:
                raise DevError(f"ComfyUI refused the prompt: {_refusal(body)}")
        prompt_id = body["prompt_id"]
        async for message in socket:  # ends without `break` only when the server went away
            if message.type is not aiohttp.WSMsgType.TEXT:
                continue
            event = json.loads(message.data)
            data = event.get("data", {})
            if data.get("prompt_id") != prompt_id:
                continue
            if event["type"] == "execution_error":
                raise DevError(
                    f"node {data['node_id']} ({data['node_type']}) failed: {data['exception_message'].strip()}"
                )
            if event["type"] == "progress":
                progress(_class_of(prompt, data.get("node")), data["value"], data["max"])
            elif event["type"] == "executing":
                if data["node"] is None:  # the history is written before this, and only then
                    break
                progress(_class_of(prompt, data["node"]), 0, 1)
        else:
            raise DevError(f"ComfyUI at {url} went away in the middle of the prompt.")
        async with session.get(f"{url}/history/{prompt_id}") as answer:
            outputs = (await answer.json())[prompt_id]["outputs"]
    return [image for output in outputs.values() for image in output.get("images", [])]


def _class_of(prompt: dict, node_id) -> str:
    return prompt.get(str(node_id), {}).get("class_type", str(node_id))


def _refusal(body: dict) -> str:
    parts = []
    for node_id, node in body.get("node_errors", {}).items():
        parts += [
            f"node {node_id} ({node['class_type']}): {error['message']}: {error['details']}" for error in node["errors"]
        ]
    error = body.get("error", {})
    return "; ".join(parts) or f"{error.get('message')}: {error.get('details')}"


def fetch_image(url: str, image: dict) -> bytes:
    with open_url(f"{url}/view?{urllib.parse.urlencode(image)}", timeout=60) as answer:
        return answer.read()


def save_images(url: str, images: list[dict], folder: Path) -> list[Path]:
    """Write the images into `folder`, saved ones rather than previews if there are both; returns the paths."""
    saved = [image for image in images if image["type"] == "output"] or images
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for image in saved:
        path = folder / image["filename"]
        path.write_bytes(fetch_image(url, image))
        paths.append(path)
    return paths
