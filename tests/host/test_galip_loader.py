"""GALIP Loader: files of models/galip, and files that must be refused."""

import os
from pathlib import Path

import folder_paths
import pytest
import tiny_galip
import torch
from safetensors.torch import save_file

ID = "GuidanceLab_GALIPLoader"


@pytest.fixture
def folder(pack_nodes):
    """models/galip, empty again afterwards."""
    pack_nodes[ID].GET_SCHEMA()
    folder = Path(folder_paths.get_folder_paths("galip")[0])
    folder.mkdir(exist_ok=True)
    yield folder
    for path in folder.iterdir():
        path.unlink()


def options(pack_nodes) -> list[str]:
    return pack_nodes[ID].GET_NODE_INFO_V1()["input"]["required"]["file"][1]["options"]


def test_files_of_the_folder_and_of_extra_paths_are_listed(folder, pack_nodes, tmp_path, run_node, monkeypatch):
    paths, extensions = folder_paths.folder_names_and_paths["galip"]
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "galip", ([*paths], extensions))
    assert folder == Path(folder_paths.models_dir) / "galip"
    tiny_galip.write_generator(folder / "pre_tiny.pth")
    (folder / "readme.txt").write_text("no model")
    folder_paths.add_model_folder_path("galip", str(tmp_path))
    tiny_galip.write_generator(tmp_path / "other.safetensors")
    assert options(pack_nodes) == ["other.safetensors", "pre_tiny.pth"]
    assert run_node(ID, file="other.safetensors")[0].dims.sizes == (8, 16, 32)


def test_extra_paths_that_came_first_are_kept(monkeypatch, pack_nodes, tmp_path):
    """ComfyUI reads extra_model_paths.yaml before it loads packs; its entry has no extensions."""
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "galip", ([str(tmp_path)], set()))
    tiny_galip.write_generator(tmp_path / "mine.safetensors")
    (tmp_path / "notes.txt").write_text("no model")
    assert options(pack_nodes) == ["mine.safetensors"]


def test_an_official_file_draws_224_pixels(folder, run_node, generator):
    tiny_galip.write_generator(folder / "pre_tiny.pth")
    (galip,) = run_node(ID, file="pre_tiny.pth", precision="fp32")
    noise, sentence = torch.randn(1, 12, generator=generator), torch.randn(1, 64, generator=generator)
    assert galip.draw(noise, sentence).shape == (1, 224, 224, 3)
    assert galip.name == "pre_tiny.pth"


@pytest.mark.parametrize(
    "precision, dtype",
    [("auto", torch.float32), ("fp32", torch.float32), ("fp16", torch.float16), ("bf16", torch.bfloat16)],
)
def test_precisions(folder, run_node, precision, dtype, generator):
    tiny_galip.write_generator(folder / "a.safetensors")
    (galip,) = run_node(ID, file="a.safetensors", precision=precision)
    assert {parameter.dtype for parameter in galip.generator.parameters()} == {dtype}
    image = galip.draw(torch.randn(1, 12, generator=generator), torch.randn(1, 64, generator=generator))
    assert image.dtype == torch.float32 and image.min() >= 0 and image.max() <= 1 and image.std() > 0.1


class Attack:
    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_code_in_a_file_is_never_run(folder, run_node, tmp_path):
    torch.save({"netG": tiny_galip.generator_weights(), "x": Attack(tmp_path / "owned")}, folder / "bad.pth")
    with pytest.raises(ValueError, match="bad.pth.*never run"):
        run_node(ID, file="bad.pth")
    assert not (tmp_path / "owned").exists()


def test_broken_and_wrong_files_are_refused(folder, run_node):
    tiny_galip.write_generator(folder / "cut.safetensors")
    whole = (folder / "cut.safetensors").read_bytes()
    (folder / "cut.safetensors").write_bytes(whole[: len(whole) // 2])
    weights = tiny_galip.generator_weights()
    save_file({**weights, "fc_code.bias": weights["fc_code.bias"].fill_(float("nan"))}, folder / "nan.safetensors")
    save_file({"model.diffusion_model.out.2.weight": torch.zeros(2, 2)}, folder / "sd15.safetensors")
    fork = tiny_galip.generator_weights()
    save_file({**fork, "mapping.conv.weight": torch.zeros(16, 63, 5, 5)}, folder / "fork.safetensors")
    for name, words in {
        "cut": "damaged", "nan": "'fc_code.bias' contains values that are not finite", "sd15": "not a GALIP generator",
        "fork": r"'mapping.conv.weight' has shape \[16, 63, 5, 5\].*\[16, 64, 5, 5\]",
    }.items():  # fmt: skip
        with pytest.raises(ValueError, match=rf"{name}\.safetensors.*{words}"):
            run_node(ID, file=f"{name}.safetensors")
    with pytest.raises(ValueError, match="no file 'gone.pth' in models/galip"):
        run_node(ID, file="gone.pth")


def test_loading_leaves_the_random_state(folder, run_node):
    tiny_galip.write_generator(folder / "a.safetensors")
    before = torch.get_rng_state()
    run_node(ID, file="a.safetensors")
    assert torch.equal(torch.get_rng_state(), before)
