"""Captioner Loader: tiny random models of every family from disk, and each mistake explained in one sentence."""

import json
import shutil

import comfy.model_management
import folder_paths
import pytest
import tiny_captioner
import torch
import transformers
from tiny_captioner import SIDE, WORDS

FAMILIES = ["blip", "blip2", "git", "florence2"]


@pytest.fixture(scope="session")
def saved_captioners(tmp_path_factory):
    """A models/captioners folder with a tiny captioner of each family."""
    root = tmp_path_factory.mktemp("captioners")
    for name in FAMILIES:
        getattr(tiny_captioner, name)(root / name)
    return root


@pytest.fixture
def captioners(tmp_path, monkeypatch, saved_captioners):
    """A models folder of its own whose captioners may be broken by a test."""
    shutil.copytree(saved_captioners, tmp_path / "captioners")
    monkeypatch.setattr(folder_paths, "models_dir", str(tmp_path))
    monkeypatch.delitem(folder_paths.folder_names_and_paths, "captioners", raising=False)
    yield tmp_path / "captioners"
    folder_paths.folder_names_and_paths.pop("captioners", None)


def load(run_node, name, max_tokens=12):
    return run_node(
        "GuidanceLab_CaptionerLoader", source={"source": "folder", "folder": name, "max_tokens": max_tokens}
    )[0]


def captions(captioner, images):
    comfy.model_management.load_models_gpu(list(captioner.models))
    return captioner.caption(images)


def pictures(count=4, height=48, width=40):
    return torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", FAMILIES)
def test_each_family_captions_a_batch_as_it_captions_singles(captioners, run_node, name):
    captioner, images = load(run_node, name), pictures()
    together = captions(captioner, images)
    assert together == [captions(captioner, image[None])[0] for image in images]
    assert len(together) == 4 and all(set(line.split()) <= set(WORDS) for line in together)
    assert captioner.models[0] in [loaded.model for loaded in comfy.model_management.current_loaded_models]


@pytest.mark.parametrize("name", ["blip", "git"])
def test_a_folder_as_transformers_4_saved_it(captioners, run_node, name):
    """Most published captioners: vocab.txt in place of tokenizer.json, and pictures in preprocessor_config.json."""
    folder = captioners / name
    expected = captions(load(run_node, name), pictures())
    (folder / "vocab.txt").write_text("\n".join(WORDS))
    (folder / "tokenizer.json").unlink()
    special = {"pad": "[PAD]", "unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "bos": "[DEC]", "eos": "[SEP]"}
    tokens = {f"{kind}_token": word for kind, word in special.items()}
    (folder / "tokenizer_config.json").write_text(json.dumps({**tokens, "tokenizer_class": "BertTokenizer"}))
    both = json.loads((folder / "processor_config.json").read_text())
    (folder / "preprocessor_config.json").write_text(json.dumps(both["image_processor"]))
    (folder / "processor_config.json").unlink()
    assert captions(load(run_node, name), pictures()) == expected


def test_the_words_are_those_of_transformers_own_processor_and_generate(captioners, run_node):
    captioner, images = (
        load(run_node, "blip"),
        pictures(height=SIDE, width=SIDE),
    )  # bytes are resized to bytes, so none is resized here
    network = transformers.BlipForConditionalGeneration.from_pretrained(captioners / "blip")
    processor = transformers.BlipProcessor.from_pretrained(captioners / "blip")
    inputs = processor(images=[image.mul(255).round().byte() for image in images], return_tensors="pt")
    expected = processor.batch_decode(
        network.generate(**inputs, max_new_tokens=12, num_beams=1), skip_special_tokens=True
    )
    assert captions(captioner, images.mul(255).round() / 255) == expected
    assert len(set(expected)) > 1  # other pictures, other words


def test_it_takes_what_a_decoder_gives_and_leaves_no_graph(captioners, run_node):
    captioner, images = load(run_node, "blip"), pictures()
    beyond = (images * 3 - 1).requires_grad_(True)
    assert captions(captioner, beyond) == captions(captioner, beyond.detach().clamp(0, 1))
    assert not any(p.requires_grad or p.is_inference() for p in captioner.models[0].model.parameters())


def test_random_numbers_stay_untouched(captioners, run_node):
    before = torch.get_rng_state()
    captions(load(run_node, "blip"), pictures(1))
    assert torch.equal(torch.get_rng_state(), before)


def test_a_captioner_that_is_not_loaded_as_a_whole_says_so(captioners, run_node):
    """What ComfyUI leaves on the CPU when VRAM is short; layers of transformers cannot fetch their weights from
    there.
    """
    captioner = load(run_node, "blip")
    captions(captioner, pictures(1))
    comfy.model_management.unload_all_models()
    with pytest.raises(RuntimeError, match="blip does not fit into VRAM as a whole: use a smaller captioner"):
        captioner.caption(pictures(1))


def test_max_tokens_is_a_limit(captioners, run_node):
    lengths = {n: max(len(line.split()) for line in captions(load(run_node, "git", n), pictures())) for n in (3, 12)}
    assert lengths[3] <= 3 < lengths[12]


def test_folders_of_folders_and_extra_paths_are_listed(captioners, pack_nodes, tmp_path):
    (captioners / "someone").mkdir()
    (captioners / "blip").rename(captioners / "someone" / "blip")
    tiny_captioner.blip(tmp_path / "elsewhere" / "mine")
    folder_paths.add_model_folder_path("captioners", str(tmp_path / "elsewhere"))
    schema = pack_nodes["GuidanceLab_CaptionerLoader"].define_schema()
    folder = next(option for option in schema.inputs[0].options if option.key == "folder").inputs[0]
    assert folder.options == ["blip2", "florence2", "git", "mine", "someone/blip"]


def test_a_folder_that_is_gone_is_named(captioners, run_node):
    with pytest.raises(ValueError, match="no folder 'nothing' with a config.json in models/captioners: put it there"):
        load(run_node, "nothing")


def test_another_kind_of_model_is_refused(captioners, run_node):
    config = captioners / "git" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"model_type": "vit"}))
    with pytest.raises(
        ValueError, match="git is a 'vit' model; a captioner has to be one of blip, blip-2, git, florence2"
    ):
        load(run_node, "git")


def test_a_config_that_is_no_json_is_refused(captioners, run_node):
    (captioners / "git" / "config.json").write_text("<html>")
    with pytest.raises(ValueError, match="git has no readable config.json"):
        load(run_node, "git")


def test_pickled_weights_are_never_read(captioners, run_node):
    (captioners / "blip" / "model.safetensors").unlink()

    class Bomb:
        def __reduce__(self):
            return (captioners.__class__.touch, (captioners / "exploded",))

    torch.save({"weight": Bomb()}, captioners / "blip" / "pytorch_model.bin")
    with pytest.raises(ValueError, match="blip has no .safetensors weights, and pickled ones .* are not read"):
        load(run_node, "blip")
    assert not (captioners / "exploded").exists()


def test_code_in_the_folder_is_never_run(captioners, run_node):
    (captioners / "blip" / "code.py").write_text(f"open({str(captioners / 'exploded')!r}, 'w')\nclass Config: pass\n")
    config = captioners / "blip" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"auto_map": {"AutoConfig": "code.Config"}}))
    with pytest.raises(ValueError, match="config.json of blip has 'auto_map', which loads code"):
        load(run_node, "blip")
    assert not (captioners / "exploded").exists()


def test_a_blip_that_does_not_caption_is_refused(captioners, run_node):
    shutil.rmtree(captioners / "blip")
    tiny_captioner.blip(captioners / "blip", network_class=transformers.BlipForImageTextRetrieval)
    with pytest.raises(ValueError, match=r"blip is no blip captioner .* weights such as text_decoder.* are missing"):
        load(run_node, "blip")


def test_a_damaged_file_is_one_sentence(captioners, run_node):
    (captioners / "blip" / "model.safetensors").write_bytes(b"half a file")
    with pytest.raises(ValueError, match="model.safetensors: the file is damaged or not a safetensors file") as error:
        load(run_node, "blip")
    assert "\n" not in str(error.value)


def test_an_empty_clip_is_refused(run_node):
    with pytest.raises(ValueError, match="got an empty CLIP"):
        run_node("GuidanceLab_CaptionerLoader", source={"source": "text_encoder", "clip": None})


def test_a_clip_that_cannot_write_is_refused(run_node):
    clip = run_node("GuidanceLab_ShapesDemoModels")[1]
    with pytest.raises(ValueError, match="This CLIP cannot write text; connect a vision-language one"):
        run_node("GuidanceLab_CaptionerLoader", source={"source": "text_encoder", "clip": clip})


def test_an_unknown_source_is_refused(run_node):
    with pytest.raises(ValueError, match="choose folder or text_encoder"):
        run_node("GuidanceLab_CaptionerLoader", source=None)
