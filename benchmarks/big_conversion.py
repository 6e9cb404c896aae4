"""Measure the memory that loading and converting a large model takes, with a folder of random weights.

    python benchmarks/big_conversion.py --folder /a/folder/on/a/large/disk

Each case is a separate process. Its peak is the largest resident memory, with mapped pages of files, minus that of an
interpreter that has imported the package. It is given as a multiple of the size of the folder's weights. The files are
deleted at the end. This script needs Linux.
"""

import argparse
import json
import shutil
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import torch
from measure import busy_elsewhere

from gptladder import GPT2, GPT2Config
from gptladder.weights.building import unfilled_model
from gptladder.weights.files.write import write_folder
from gptladder.weights.formats.huggingface import config_to_hf, state_to_hf
from gptladder.weights.lazy import Lazy

SHARD = 2 * 2**30

# Name of a case -> its command; {out} is the path of the result.
CASES = {
    "load, float32, and a forward pass": "load",
    "load to bfloat16, and a forward pass": "load bfloat16",
    "convert, hf to hf, float32": "convert {out} --to hf",
    "convert, hf to hf, bfloat16": "convert {out} --to hf --dtype bfloat16",
    "convert, hf to hooked, float32": "convert {out} --to hooked",
    "convert, hf to nanogpt, float32": "convert {out}/ckpt.pt --to nanogpt --act-fn gelu_new",
    "load from nanogpt, float32": "load {out}/ckpt.pt",
}


def make(folder: Path, name: str) -> int:
    """Write a folder of random weights, in shards, and return the number of bytes of its weights."""
    config = GPT2Config.preset(name)
    shapes = unfilled_model(config).state_dict()

    def drawn(number: int, key: str) -> torch.Tensor:
        generator = torch.Generator().manual_seed(number)
        return torch.randn(shapes[key].shape, generator=generator) / 50

    state = Lazy({key: partial(drawn, number, key) for number, key in enumerate(shapes)})
    config, tensors = state_to_hf(config, state)
    write_folder(folder, config_to_hf(config), tensors, max_shard_size=SHARD)
    return sum(path.stat().st_size for path in folder.glob("*.safetensors"))


def resident(field: str) -> int:
    """Return a measure of this process's memory in bytes, by Linux's name for it."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def work(source: str, command: str, *arguments: str) -> None:
    """Run one case in this process, and print its peak in bytes."""
    from gptladder.weights import command as commands

    before = resident("VmRSS")
    if command == "load":
        path = arguments[0] if arguments and arguments[0].endswith(".pt") else source
        dtype = torch.bfloat16 if "bfloat16" in arguments else None
        model = GPT2.from_pretrained(path, dtype=dtype)
        with torch.no_grad():
            assert model(torch.arange(16)[None]).isfinite().all()
    else:
        commands.convert([source, *arguments, "--shard-gb", str(SHARD / 2**30), "--json"])
    print(resident("VmHWM") - before)


def main() -> None:
    """Measure, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="a new folder; three times the model's size in it")
    parser.add_argument("--model", default="gpt2-xl", help="a preset (default: gpt2-xl, 6.2 GB)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--work", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.work:
        work(*arguments.work)
        return
    arguments.folder.mkdir(parents=True)
    source, out = arguments.folder / "source", arguments.folder / "out"
    result: dict[str, object] = {"processors busy elsewhere, before": busy_elsewhere()}
    try:
        size = make(source, arguments.model)
        result["weights, GB"] = size / 1e9
        for name, case in CASES.items():
            began = time.perf_counter()
            command = [sys.executable, __file__, "--folder", str(source), "--work", str(source)]
            done = subprocess.run(
                [*command, *case.format(out=out).split()], capture_output=True, text=True, check=False
            )
            if done.returncode:
                raise SystemExit(f"{name}: {done.stderr}")
            peak = int(done.stdout.splitlines()[-1])
            result[name] = {"peak": peak / size, "GB": peak / 1e9, "seconds": time.perf_counter() - began}
            if not arguments.json:
                print(f"{name:40} {peak / size:6.3f} of the weights ({peak / 1e9:.2f} GB)", flush=True)
            if "nanogpt" not in name:
                shutil.rmtree(out, ignore_errors=True)
    finally:
        shutil.rmtree(arguments.folder)
    if arguments.json:
        print(json.dumps(result))


if __name__ == "__main__":
    main()
