"""Changes of single lines that a test must notice: each is made in a copy of the checkout, with the tests named for it.

python -m tools.mutants [NAME ...]      all of MUTANTS without a name; exit code 0 when every change was noticed

A test kills a change when it passes without it and fails with it, and fails itself: not while it is collected or set
up, and not because a name or a module is missing. The checkout is never changed.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import NamedTuple

from .host import ROOT, DevError, find_host

BROKEN = ("ImportError", "ModuleNotFoundError", "NameError", "SyntaxError", "IndentationError")
PROMISES, CAPTIONS = "tests/host/test_host_promises.py", "tests/host/test_caption_residual_conds.py"
REFUSALS, LIMITS = "tests/host/test_clip_guidance_refusals.py", "tests/host/test_glide_nodes.py"
GALIP, GLIDE, LAW = (f"tests/unit/test_{name}.py" for name in ("galip_checkpoint", "glide", "glide_sampling"))


class Mutant(NamedTuple):
    """`old`, which stands in `file` once, becomes `new`; `test`: pytest's id of the test that notices it."""

    name: str
    file: str
    old: str
    new: str
    test: str


# fmt: off
MUTANTS = (
    Mutant("next_sigma", "guidance/schedule.py", "sigmas < sigma[:, None]", "sigmas <= sigma[:, None]",
           f"{PROMISES}::test_the_next_noise_level_is_the_next_lower_one_of_the_schedule"),
    Mutant("differential_diffusion", "nodes/host/run.py",
           'function = self.main.options.get("denoise_mask_function")', "function = None",
           f"{PROMISES}::test_differential_diffusion_is_asked_for_its_mask_at_every_step"),
    Mutant("shape_guard", "nodes/host/run.py", " or prediction.shape != self.x.shape", "",
           f"{PROMISES}::test_a_picture_that_is_predicted_in_tiles_is_guided_as_a_whole"),
    Mutant("hook_mode", "nodes/host/evaluate.py", "self.patcher.hook_mode = self.hook_mode\n", "pass\n",
           f"{PROMISES}::test_the_hook_mode_of_an_extra_model_is_put_back"),
    Mutant("end_of_extras", "nodes/host/driver.py", "stack.callback(loaded.end)",  # in wiring order
           "len(self.extras) > 1 or stack.callback(lambda: [extra.end() for extra in self.extras])",
           f"{PROMISES}::test_everything_is_ended_in_the_reverse_of_its_order"),
    Mutant("wrapper_first", "nodes/host/driver.py", "{KEY: [self._calc_cond_batch], **others}",
           "{**others, KEY: [self._calc_cond_batch]}",
           f"{PROMISES}::test_c_is_what_other_wrappers_of_the_prediction_make_of_it"),
    Mutant("parent", "nodes/host/models.py", "clone.parent = None", "pass",
           f"{PROMISES}::test_memory_management_does_not_take_the_first_module_for_the_copy"),
    Mutant("newer_weight", "nodes/host/gradient.py", "table[name] is ours\n", "ours is ours\n",
           f"{PROMISES}::test_a_weight_that_somebody_replaced_under_a_gradient_stays_replaced"),
    Mutant("gradient_memory", "nodes/host/gradient.py", "return 20 * cells", "return 2 * cells",
           f"{PROMISES}::test_the_memory_of_a_gradient_is_what_was_measured"),
    Mutant("exact_size", "nodes/clip_guidance/score_guidance.py", "following = None if size == EXACT else ",
           "following = ", f"{PROMISES}::test_the_exact_size_is_never_capped"),
    Mutant("sigma_scale", "nodes/autoguidance/pairing.py", "rel_tol=1e-3, abs_tol=1e-6", "rel_tol=1e-1, abs_tol=1e-4",
           f"{PROMISES}::test_how_far_the_sigmas_of_a_pair_may_lie_apart"),
    Mutant("uuid_constant", "nodes/captions/run_texts.py", "uuid.uuid4()", "uuid.UUID(int=0)",
           f"{CAPTIONS}::test_every_caption_is_a_cond_of_its_own_for_those_that_remember_conds"),
    Mutant("uuid_kept", "nodes/captions/run_texts.py", ', "uuid": uuid.uuid4()', "",
           f"{CAPTIONS}::test_every_caption_is_a_cond_of_its_own_for_those_that_remember_conds"),
    Mutant("noisy_boxes", "nodes/clip_guidance/views.py", "boxes = list(dict.fromkeys(boxes))", "boxes = list(boxes)",
           f"{REFUSALS}::test_a_picture_of_the_scorers_own_size_is_scored_once_however_many_crops"),
    Mutant("galip_clip", "galip/clip.py", "0.01 * own.norm()", "0.5 * own.norm()",
           f"{GALIP}::test_clip_must_be_the_one_inside"),
    # What galip/checkpoint.py asks of all of something; the first two lie where every reader finds them now.
    Mutant("prefix_of_all", "weight_files/read.py", 'content and all(str(key).startswith("module.")',
           'content and any(str(key).startswith("module.")',
           f"{GALIP}::test_a_prefix_on_some_names_is_a_part_of_those_names"),
    Mutant("finite_part", "weight_files/read.py", "torch.isfinite(part).all()", "torch.isfinite(part).any()",
           f"{GALIP}::test_wrong_contents_are_refused"),
    Mutant("finite_parts", "weight_files/read.py", "return all(bool(", "return any(bool(",
           "tests/unit/test_weight_files_read.py::test_one_number_that_is_not_finite_is_found_in_millions"),
    Mutant("finite_saved", "galip/checkpoint.py", "torch.isfinite(tensor).all()", "torch.isfinite(tensor).any()",
           f"{GALIP}::test_save_refuses_what_fp16_cannot_hold"),
    Mutant("mkshing_rows", "xti/formats_tokens.py", "range(7, 16)", "range(8, 16)",
           "tests/unit/test_xti_formats.py::test_one_differing_unused_token_makes_it_seongmon"),
    Mutant("glide_drop", "guidance/glide.py", ".clamp(min=0)", "",
           f"{GLIDE}::test_a_step_that_adds_noise_or_none_is_not_capped"),
    Mutant("glide_ends", "guidance/glide.py", "target.clamp(table.min(), table.max())", "target",
           f"{GLIDE}::test_noise_beyond_the_schedule_gets_its_ends"),
    # The clamp of the estimate, which was in guidance/glide.py once.
    Mutant("glide_x0", "glide/diffusion.py", "x0 = x0.clamp(-1, 1)", "pass",
           f"{LAW}::test_the_clip_comes_after_denoised_fn_and_before_the_gradient"),
    Mutant("glide_limits", "nodes/glide/limits.py", "estimate = estimate.clamp(-1, 1)", "pass",
           f"{LIMITS}::test_stock_ddim_is_close_to_the_original"),
)
# fmt: on


def copy_of_checkout(place: Path) -> None:
    """What git knows of the checkout, as it lies there now."""
    listing = subprocess.run(
        ["git", "ls-files", "-coz", "--exclude-standard"], cwd=ROOT, check=True, capture_output=True, text=True
    )
    for name in filter(None, listing.stdout.split("\0")):
        if (ROOT / name).is_file():
            (place / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, place / name)


def run(copy: Path, tests: list[str], environment: dict[str, str]) -> tuple[dict[str, str], str]:
    """Test → "" when it passed, else what went wrong, as it begins; and what pytest printed."""
    report = copy.parent / "report.xml"
    report.unlink(missing_ok=True)
    command = [sys.executable, copy / "dev.py", "test", *tests, "-q", f"--junitxml={report}", "-p", "no:cacheprovider"]
    done = subprocess.run(command, cwd=copy, env=environment, capture_output=True, text=True)
    found = {}
    for case in ElementTree.parse(report).iter("testcase") if report.is_file() else ():
        wrong = [f"{part.tag}: {part.get('message')}" for part in case if part.tag in ("failure", "error", "skipped")]
        found[f"{case.get('classname', '').replace('.', '/')}.py::{case.get('name')}"] = "".join(wrong)
    return found, done.stdout + done.stderr


def killing(mutant: Mutant, found: dict[str, str]) -> str:
    """How the first case of its test failed, in the test; "" when none did."""
    cases = [wrong.partition("failure: ")[2] for name, wrong in found.items() if name.split("[")[0] == mutant.test]
    return next((wrong for wrong in cases if wrong and not wrong.startswith(BROKEN)), "")


def main() -> int:
    known = {mutant.name: mutant for mutant in MUTANTS}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(known))
    names = parser.parse_args().names
    if not known.keys() >= set(names):
        parser.error(f"no {', '.join(sorted(set(names) - known.keys()))}; there is {', '.join(known)}")
    chosen = [known[name] for name in names or known]
    host = find_host()
    environment = {**os.environ, "COMFYUI_PATH": str(host.comfyui), "COMFYUI_PYTHON": str(host.python)}
    environment["PYTHONDONTWRITEBYTECODE"] = "1"
    verdicts = []
    with tempfile.TemporaryDirectory(prefix="guidance-lab-mutants-") as folder:
        copy = Path(folder).resolve() / "checkout"
        copy_of_checkout(copy)
        tests = list(dict.fromkeys(mutant.test for mutant in chosen))
        found, printed = run(copy, tests, environment)
        ran = {name.split("[")[0] for name in found}
        if set(tests) - ran or any(found.values()):
            raise DevError(f"these tests do not pass without any change:\n{printed}")
        for mutant in chosen:
            path = copy / mutant.file
            text = path.read_text(encoding="utf-8") if path.is_file() else ""
            verdict, why = "NOT APPLICABLE", ""
            if text.count(mutant.old) == 1:
                path.write_text(text.replace(mutant.old, mutant.new), encoding="utf-8")
                why = killing(mutant, run(copy, [mutant.test], environment)[0])
                verdict = "killed" if why else "SURVIVED"
                path.write_text(text, encoding="utf-8")
            test = mutant.test.split("::")[1]
            print(f"{verdict:14} {mutant.name:22} {test}  {' '.join(why.split())[:80]}", flush=True)
            verdicts.append(verdict)
    return 0 if set(verdicts) == {"killed"} else 1


if __name__ == "__main__":
    try:
        sys.exit(main())
    except DevError as error:
        sys.exit(f"error: {error}")
