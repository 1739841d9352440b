"""Makes every weight from nothing, in order; whatever is finished is skipped, whatever is not goes on. Run: python
dev.py train all

`--scale 0.01` makes a run that shows that everything works, in a folder of its own (environment variable SHAPES_RUNS).
"""

import argparse
import os
import subprocess
import sys
import time

import torch

from guidance_lab.experiments.training import seen

# (run folder, module, options, samples of the plan, samples a second: on one calm core, on one that has AVX-512 BF16
# with --bf16 (None: these stay in float32), on one data-centre GPU)
ORDER = (
    ("vae", "vae", (), 160_000, 13, None, 1500),
    ("text", "text", (), 128_000, 700, None, 3000),
    ("decoder", "vae", ("--decoder",), 40_000, 16, None, 1500),
    ("main", "diffusion", (), 3_000_000, 19, 70, 4000),
    ("small", "diffusion", ("--small",), 3_000_000, 35, 87, 5000),
    ("clip", "clip", (), 400_000, 60, 250, 3000),
    ("noised_clip", "noised_clip", (), 800_000, 60, 140, 3000),
    ("captioner", "captioner", (), 400_000, 60, 410, 3000),
    ("galip", "galip", (), 300_000, 8, 33, 500),
)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scale", type=float, default=1.0, help="share of every plan to do")
    parser.add_argument("--only", choices=[row[0] for row in ORDER], action="append", help="this run alone")
    parser.add_argument("--bf16", action="store_true", help="bfloat16 on a CPU, where a training can")
    parser.add_argument("--plan", action="store_true", help="only say what is left and how long it takes")
    args = parser.parse_args()
    gpu = torch.cuda.is_available()
    rows = [row for row in ORDER if not args.only or row[0] in args.only]
    left = {}
    for name, _, _, samples, core, half, card in rows:
        wanted = int(samples * args.scale) // (16 if name == "small" else 1)
        left[name] = max(0, wanted - seen(name)) / (card if gpu else half if half and args.bf16 else core)
        print(f"{name}: {seen(name)} of {wanted} samples, about {left[name] / 3600:.1f} h left", flush=True)
    print(f"in all about {sum(left.values()) / 3600:.1f} h", flush=True)
    if args.plan:
        return 0
    package = __package__
    for name, module, options, samples, _, half, _ in rows:
        if left[name] <= 0:
            continue
        began = time.time()
        command = [sys.executable, "tools/run_module.py", os.environ["PYTHONPATH"].split(os.pathsep)[0]]
        command += [f"{package}.{module}", *options, "--samples", str(int(samples * args.scale))]
        command += ["--bf16"] if half and args.bf16 else []
        code = subprocess.run(command).returncode
        print(f"{name}: ended with {code} after {(time.time() - began) / 3600:.1f} h", flush=True)
        if code:
            return code
    return 0


if __name__ == "__main__":
    sys.exit(main())
