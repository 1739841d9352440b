"""Every call in the pack that could run code, load something, or touch files: each is known, and nothing else is there.

A new call fails this test. Look at what decides its arguments before it is entered: nothing that a workflow or a model
file says may name a path, an address or a class. SECURITY.md says the same in words.
"""

import ast
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SHIPPED = ("__init__.py", "nodes", "guidance", "xti", "galip", "glide", "shapes", "plots", "weight_files")
WATCHED = {
    # code
    "eval", "exec", "compile", "__import__", "import_module", "spec_from_file_location", "exec_module", "load_library",
    "system", "popen", "Popen", "run_path", "run_module", "check_call", "check_output", "call",
    # pickles and weights
    "load", "loads", "Unpickler", "load_file", "safe_open", "load_torch_file", "from_pretrained", "create_model", "hub",
    "load_state_dict_from_url", "HFTokenizer", "TAESD", "safe_globals",
    # files
    "open", "fdopen", "read_text", "read_bytes", "write_text", "write_bytes", "save", "save_file", "unlink", "rmtree",
    "rename", "replace", "remove", "rmdir", "mkdir", "makedirs", "symlink", "link", "extractall", "copytree",
    # network
    "urlopen", "urlretrieve", "hf_hub_download", "snapshot_download", "socket", "request",
}  # fmt: skip
# Only when they are what the name says: text.replace, tensor.eval and re.compile are harmless and everywhere.
HARMLESS = ("re.compile", ".eval", "replace", ".replace", ".remove", ".run", "weights.remove")
KNOWN = {
    "nodes/__init__.py": {"import_module"},  # of the families, whose names stand there
    "nodes/captions/captioner_loader.py": {"transformers.AutoProcessor.from_pretrained"},
    "nodes/clip_guidance/clip_text.py": {"open_clip().tokenizer.HFTokenizer"},
    "nodes/clip_guidance/objectives/classifier_folder.py": {
        "path.open", "transformers.AutoImageProcessor.from_pretrained"},
    "nodes/clip_guidance/objectives/image_text_match.py": {
        "transformers.AutoTokenizer.from_pretrained", "transformers.AutoImageProcessor.from_pretrained"},
    "nodes/clip_guidance/objectives/noised.py": {"load"},  # guidance.noised_clip.load, of tensors
    "nodes/clip_guidance/objectives/timm_folder.py": {"timm.create_model"},
    "nodes/host/decode.py": {"TAESD", "comfy.utils.load_torch_file"},
    "nodes/glide/loader.py": {"load"},  # glide.load, of tensors
    "nodes/host/driver.py": {"call"},  # a callback of its own
    "nodes/host/model_folders.py": {"json.loads", "path.read_text"},
    "nodes/host/saving.py": {"path.unlink"},
    "nodes/host/transformers_folders.py": {
        "kind.config_class.from_pretrained", "kind.from_pretrained", "transformers.GenerationConfig.from_pretrained"},
    "nodes/layers/photo_files.py": {"file.read_text"},  # captions in a folder below ComfyUI's input folder
    "nodes/layers/route.py": {"json.loads"},
    # Adam's memory as bytes inside the metadata of an XTI file: safetensors, which runs nothing.
    "nodes/layers/training_state.py": {"safetensors.torch.load", "safetensors.torch.save"},
    "nodes/layers/xti_files.py": {"load", "save"},  # of xti/files.py
    "glide/tokenizer.py": {"MERGES.read_bytes"},  # of a file that ships
    "xti/formats_layers.py": {"json.loads"},
    "shapes/models.py": {"PreTrainedTokenizerFast.from_pretrained"},  # of files that ship
    "shapes/world.py": {"(Path(__file__).parent / 'held_out.json').read_text", "json.loads"},  # of a file that ships
    "shapes/shipped.py": {"comfy.utils.load_torch_file", "json.loads"},  # of files that ship
    "weight_files/read.py": {"safetensors_file.load", "torch_file.load"},
    "weight_files/safetensors_file.py": {"path.open", "json.loads", "safetensors.safe_open"},
    "nodes/host/live.py": {"image.save"},  # into memory
    "weight_files/torch_file.py": {"path.open", "torch.load", "torch.serialization.safe_globals"},
    "weight_files/write.py": {
        "open", "os.open", "os.makedirs", "os.replace", "path.parent.mkdir", "unfinished.unlink",
        "safetensors.torch.save_file"},
}  # fmt: skip
FORBIDDEN_IMPORTS = {
    *("pickle", "dill", "joblib", "marshal", "shelve", "subprocess", "ctypes", "runpy", "importlib", "imp", "shutil"),
    *("socket", "urllib", "requests", "aiohttp", "http"),
}
# The families are imported by the names in the same file; the route answers on ComfyUI's own server.
NEEDED_IMPORTS = {"nodes/__init__.py": {"importlib"}, "nodes/layers/route.py": {"aiohttp"}}


def sources():
    for name in SHIPPED:
        path = ROOT / name
        yield from [path] if path.is_file() else sorted(path.rglob("*.py"))


def calls(tree: ast.AST) -> set[str]:
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            last = name.rpartition(".")[2]
            harmless = (
                name != "os.replace" and name.endswith(HARMLESS) and name not in ("eval", "os.remove", "shutil.run")
            )
            if last in WATCHED and not harmless:
                found.add(name)
    return found


def test_every_call_that_could_load_or_write_is_known():
    found = {
        path.relative_to(ROOT).as_posix(): calls(ast.parse(path.read_text(encoding="utf-8"))) for path in sources()
    }
    assert {name: names for name, names in found.items() if names} == KNOWN


def test_the_scan_sees_what_it_should():
    code = "eval('1')\nos.replace(a, b)\ntorch.load(x)\npath.write_text('')\ntext.replace('a', 'b')\nmodel.eval()\n"
    assert calls(ast.parse(code)) == {"eval", "os.replace", "torch.load", "path.write_text"}


def test_no_module_imports_what_runs_or_fetches():
    for path in sources():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) and node.module and not node.level else []
            bad = {name.partition(".")[0] for name in names} & FORBIDDEN_IMPORTS
            name = path.relative_to(ROOT).as_posix()
            assert bad <= NEEDED_IMPORTS.get(name, set()), f"{name} imports {bad}"


def keywords(path: str, call: str) -> list[dict[str, str]]:
    tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
    return [
        {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and ast.unparse(node.func) == call
    ]


def test_the_calls_are_made_with_care():
    assert all(one["weights_only"] == "True" for one in keywords("weight_files/torch_file.py", "torch.load"))
    for one in keywords("nodes/clip_guidance/objectives/timm_folder.py", "timm.create_model"):
        assert one["pretrained"] == "False"
    for path, names in KNOWN.items():
        for name in names:
            if name.endswith("from_pretrained") and path.startswith("nodes/"):
                for one in keywords(path, name):
                    assert one.get("local_files_only") == "True" or one.get(None) == "options", (path, name)
    text = "".join(path.read_text(encoding="utf-8") for path in sources())
    assert "trust_remote_code=True" not in text and '"trust_remote_code": True' not in text
    assert "weights_only=False" not in text
