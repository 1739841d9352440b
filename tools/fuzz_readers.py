"""Thousands of files and folders that are wrong in their structure, through a reader of the pack: it must refuse each
in one sentence, or take it.

python -m tools.fuzz_readers READER|all --cases N [--first NUMBER] [--kinds]
(with the host's interpreter, ComfyUI on the path). Case NUMBER is the same every time: `--first NUMBER --cases 1`.
"""

import argparse
import collections
import resource
import sys
import tempfile
import time
import traceback
import warnings
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def _peak() -> int:
    """MiB, of the whole process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


def run(name: str, cases: int, first: int, show_kinds: bool) -> int:
    """Prints counts of one reader; returns the number of raw errors."""
    import fuzz_files
    import fuzz_folders

    counts, raw = collections.Counter(), collections.Counter()
    slowest, begin, used = 0.0, time.monotonic(), time.process_time()
    memory = "/dev/shm" if Path("/dev/shm").is_dir() else None
    with tempfile.TemporaryDirectory(prefix="guidance-lab-fuzz-", dir=memory) as folder:
        place, folders = Path(folder) / "case", name in fuzz_folders.READERS
        place.mkdir()
        made, read = fuzz_folders.READERS[name](Path(folder)) if folders else fuzz_files.prepared(name)
        level = _peak()
        for number in range(first, first + cases):
            source = made.folder(number, place) if folders else fuzz_files.source(made, name, number, place)
            start = time.process_time()
            try:
                counts["taken" if fuzz_files.attempt(read, source) else "refused"] += 1
            except fuzz_files.RawError as error:
                raw[str(error)] += 1
                if raw[str(error)] == 1:
                    print(f"case {number}:", file=sys.stderr)
                    traceback.print_exception(error.__cause__, limit=-4)
            slowest = max(slowest, time.process_time() - start)
            if number % 10_000 == 9_999:
                print(f"{name}: {number + 1 - first} cases so far", file=sys.stderr, flush=True)
    print(
        f"{name}: {cases} cases from {first} on, {counts['refused']} refused in one sentence, {counts['taken']} taken, "
        f"{sum(raw.values())} raw errors of {len(raw)} kinds; {len(made.kinds)} kinds of changes, the rarest made "
        f"{min(made.kinds.values())} times; slowest {slowest:.2f} s; "
        f"peak of memory {_peak() - level} MiB above its level; {time.process_time() - used:.0f} s of processor "
        f"time, {time.monotonic() - begin:.0f} s in all",
        flush=True,
    )
    if show_kinds:
        print("  " + ", ".join(f"{kind} {count}" for kind, count in sorted(made.kinds.items())), flush=True)
    return sum(raw.values())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("reader")
    parser.add_argument("--cases", type=int, default=1000)
    parser.add_argument("--first", type=int, default=0, help="number of the first case")
    parser.add_argument("--kinds", action="store_true", help="how often each kind of change was made")
    options = parser.parse_args()
    # ComfyUI has top-level modules of our names (`nodes`), which must win.
    sys.argv = sys.argv[:1]
    sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != ROOT]
    sys.path += [str(ROOT), str(ROOT / "tests")]
    import comfy.cli_args

    comfy.cli_args.args.cpu = True
    from tools.pack import load_pack

    load_pack()
    warnings.simplefilter("ignore")
    import fuzz_files
    import fuzz_folders
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    known = [*fuzz_files.READERS, *fuzz_files.IN_MEMORY, *fuzz_folders.READERS]
    chosen = known if options.reader == "all" else [options.reader]
    if not set(chosen) <= set(known):
        parser.error(f"no reader {options.reader}; there is {', '.join(known)}, all")
    return 1 if sum([run(name, options.cases, options.first, options.kinds) for name in chosen]) else 0


if __name__ == "__main__":
    sys.exit(main())
