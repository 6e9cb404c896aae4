"""A class of 200 submissions for `gptladder grade`: right ones, wrong ones, hostile ones, damaged ones."""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from odd_submissions import odd, text

from gptladder.ladder.grading.submissions import printable
from gptladder.ladder.mistakes import MISTAKES

SIZE = 200
LAYERS = Path(__file__).parents[1] / "tests" / "ladder" / "layers"

ATTENTION = """
import math
import torch
import torch.nn as nn
{before}

class {name}(nn.Module):
    def __init__(self, cfg):
        super().__init__()
        self.heads = cfg.n_heads
        self.qkv = nn.Linear(cfg.d_model, 3 * cfg.d_model)
        self.proj = nn.Linear(cfg.d_model, cfg.d_model)

    def forward(self, x):
        {within}
        B, T, C = x.shape
        q, k, v = (part.view(B, T, self.heads, C // self.heads).transpose(1, 2) for part in self.qkv(x).chunk(3, 2))
        scores = q @ k.transpose(-2, -1) / math.sqrt(C // self.heads)
        later = torch.ones(T, T, dtype=torch.bool).triu(1)
        pattern = scores.masked_fill(later, -torch.inf).softmax(-1)
        return self.proj((pattern @ v).transpose(1, 2).reshape(B, T, C))
"""

MLP = """
import torch, torch.nn as nn
{before}

class {name}(nn.Module):
    def __init__(self, cfg):
        super().__init__()
        self.W_in = nn.Parameter(torch.empty(cfg.d_model, cfg.d_mlp))
        self.b_in = nn.Parameter(torch.zeros(cfg.d_mlp))
        self.W_out = nn.Parameter(torch.empty(cfg.d_mlp, cfg.d_model))
        self.b_out = nn.Parameter(torch.zeros(cfg.d_model))

    def forward(self, x):
        {within}
        pre = x @ self.W_in + self.b_in
        post = 0.5 * pre * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (pre + 0.044715 * pre ** 3)))
        return post @ self.W_out + self.b_out
"""

CATALOGUED = """
import torch
from gptladder import GPT2Config
from gptladder.ladder.mistakes import MISTAKES

def {function}(cfg, parameters):
    mistake = next(each for each in MISTAKES if (each.rung, each.name) == ({rung!r}, {name!r}))
    sizes = ("d_model", "n_layers", "n_heads", "d_head", "d_mlp", "d_vocab", "n_ctx", "layer_norm_eps", "act_fn")
    return mistake.build(GPT2Config(**{{name: getattr(cfg, name) for name in sizes}}), torch.float64), parameters
"""

# Mistakes that are none with GPT-2's own choices: such a layer is right, and a note names the others.
CHOICES = ("scaled although scale_attn_weights is off", "gelu_new whatever act_fn is")

# What a step of the right attention is replaced by: mistakes as students make them.
MISTAKEN = [
    (" / math.sqrt(C // self.heads)", ""),
    ("math.sqrt(C // self.heads)", "(C // self.heads)"),
    ("math.sqrt(C // self.heads)", "math.sqrt(C)"),
    (".triu(1)", ".triu(0)"),
    (".triu(1)", ".tril(-1)"),
    ("-torch.inf", "-30.0"),
    ("-torch.inf", "0.0"),
    (".softmax(-1)", ".softmax(-2)"),
    (".transpose(1, 2).reshape(B, T, C)", ".reshape(B, T, C)"),
    (".view(B, T, self.heads, C // self.heads).transpose(1, 2)", ".view(B, self.heads, T, C // self.heads)"),
    ("self.proj((pattern @ v)", "((pattern @ v)"),
    ("return self.proj(", "return x + self.proj("),
    ("pattern @ v", "pattern @ k"),
    ("scores.masked_fill(later, -torch.inf).softmax(-1)", "scores.softmax(-1).masked_fill(later, 0.0)"),
]

FORGE = """import glob, os, time
        if os.fork() == 0:
            os.setsid()
            if os.fork() == 0:
                for _ in range(200):
                    for path in glob.glob({out!r} + "/**", recursive=True) + glob.glob({folder!r} + "/*"):
                        try:
                            open(path, "w").write("forged")
                        except OSError:
                            pass
                    time.sleep(0.1)
            os._exit(0)"""

# Code that runs in forward, and the statuses that it may lead to. Other submissions must not notice any of it.
HOSTILE: dict[str, tuple[str, tuple[str, ...]]] = {
    "hangs": ("while True: pass", ("hung",)),
    "sleeps": ("import time; time.sleep(3600)", ("hung",)),
    "exits": ("import os; os._exit(3)", ("crashed",)),
    "exits-politely": ("raise SystemExit", ("crashed",)),
    "interrupts": ("raise KeyboardInterrupt", ("crashed", "wrong")),
    "crashes": ("import ctypes; ctypes.string_at(0)", ("crashed",)),
    "kills-itself": ("import os; os.kill(os.getpid(), 9)", ("crashed",)),
    "stops-itself": ("import os, signal; os.kill(os.getpid(), signal.SIGSTOP)", ("hung",)),
    "kills-all": ("import os, signal; os.kill(-1, signal.SIGKILL)", ("crashed", "right", "wrong")),
    "kills-parents": (
        "import os\n        for pid in (os.getppid(), *range(2, 400)):\n            try: os.kill(pid, 9)\n"
        "            except OSError: pass",
        ("crashed", "right", "hung"),
    ),
    "is-deaf": (
        "import signal, time; [signal.signal(n, signal.SIG_IGN) for n in (1, 2, 15)]; time.sleep(3600)",
        ("hung",),
    ),
    "recurses": ("return self.forward(x)", ("wrong", "crashed")),
    "floods": ("print('x' * 10_000_000)", ("right",)),
    "floods-for-ever": ("while True: print('x' * 1000)", ("hung",)),
    "prints-escapes": ("print('\\x1b[2J\\x1b]0;title\\x07', end=''); import os; os._exit(1)", ("crashed",)),
    "eats": (
        "self.kept = [torch.ones(2**24) for _ in range(1000)]",
        ("wrong", "crashed", "over a limit", "hung"),
    ),
    "eats-shared": (
        "import mmap; m = mmap.mmap(-1, 6 << 30); [m.write(bytes(1 << 20)) for _ in range(6000)]",
        ("wrong", "crashed", "over a limit"),
    ),
    "eats-in-files": (
        "import os\n        for _ in range(4000): os.write(os.memfd_create('x'), bytes(15 << 20))",
        ("wrong", "crashed", "over a limit", "hung"),
    ),
    "forks": (
        "import os, time; [os.fork() or time.sleep(600) for _ in range(1000)]",
        ("over a limit", "crashed", "hung"),
    ),
    "bombs": (
        "import os\n        while True:\n            try: os.fork()\n            except OSError: pass",
        ("over a limit", "crashed", "hung"),
    ),
    "threads": (
        "import threading, time; [threading.Thread(target=time.sleep, args=(600,)).start() for _ in range(5000)]",
        ("wrong", "crashed", "hung", "over a limit"),
    ),
    "double-forks": (
        "import os, time\n        if os.fork() == 0:\n            os.setsid()\n"
        "            if os.fork() == 0: time.sleep(600)\n            os._exit(0)",
        ("right", "over a limit"),
    ),
    "forges": (FORGE, ("right", "over a limit")),
    "deletes": ("import shutil; shutil.rmtree({folder!r}, ignore_errors=True)", ("right",)),
    "calls-home": (
        "import socket; socket.create_connection(('1.1.1.1', 80), timeout=3)",
        ("wrong",),
    ),
    "resolves": ("import urllib.request; urllib.request.urlopen('http://example.com', timeout=3)", ("wrong",)),
    "fills-the-disk": (
        "import os, tempfile\n        for i in range(100000):\n"
        "            with open(os.path.join(tempfile.gettempdir(), str(i)), 'wb') as f: f.write(bytes(4 << 20))",
        ("over a limit", "crashed", "wrong"),
    ),
    "fills-the-folder": (
        "import os, tempfile\n        for i in range(10**6):\n"
        "            open(os.path.join(tempfile.gettempdir(), str(i)), 'w').close()",
        ("over a limit", "hung", "wrong"),
    ),
    "one-big-file": (
        "import os, tempfile\n        with open(os.path.join(tempfile.gettempdir(), 'x'), 'wb') as f:\n"
        "            while True: f.write(bytes(1 << 20))",
        ("crashed", "wrong", "over a limit"),
    ),
    "closes-all": ("import os; os.closerange(0, 1000)", ("crashed",)),
    "writes-to-all": (
        "import os\n        for n in range(3, 50):\n            try: os.write(n, b'x' * 64)\n"
        "            except OSError: pass",
        ("crashed", "right"),
    ),
    "asks": ("input()", ("wrong",)),
    "reads-others": ("exec(open({other!r}).read(), globals()); return {name}.forward(self, x)", ("wrong",)),
    "lists-others": ("import os; os.listdir({folder!r})", ("wrong",)),
    "reads-environment": ("open('/proc/self/environ').read()", ("wrong",)),
    "breaks-torch": ("torch.Tensor.__matmul__ = None", ("wrong", "right")),
    "sets-threads": ("torch.set_num_threads(64)", ("right", "hung")),
    "fakes-answer": (
        "import sys\n        frame = sys._getframe()\n        while frame is not None:\n"
        "            replies = frame.f_locals.get('replies')\n"
        "            if replies is not None: replies.write(b'\\x00' * 4096)\n            frame = frame.f_back",
        ("crashed",),
    ),
    "sends-too-much": (
        "import sys\n        frame = sys._getframe()\n        while frame is not None:\n"
        "            replies = frame.f_locals.get('replies')\n"
        "            if replies is not None: replies.write(b'\\xff' * 8 + b'x' * 4096)\n"
        "            frame = frame.f_back",
        ("crashed",),
    ),
}
# Code that runs when the file is read.
AT_READING: dict[str, tuple[str, tuple[str, ...]]] = {
    "hangs-at-reading": ("class Config:\n    while True: pass", ("hung",)),
    "exits-at-reading": ("class Config:\n    import os; os._exit(0)", ("crashed",)),
    "forks-at-reading": ("class Config:\n    import os, time\n    for _ in range(500): os.fork() or time.sleep(600)",
                         ("over a limit", "crashed")),
    "imports-others": ("from other_right import *", ("right",)),  # it is not found, and not needed
    "is-a-script": ("while True: pass\nimport sys; sys.exit(3)", ("right",)),
    "shadows-random": ("import random", ("right",)),
}  # fmt: skip


@dataclass(frozen=True)
class Case:
    """One submission and what may come out.

    Args:
        name: of the file or folder.
        rung: on which it is graded.
        write: writes it to a path without suffix.
        statuses: that it may get.
        mistake: that must be named; empty if none must.
    """

    name: str
    rung: str
    write: Callable[[Path], None]
    statuses: tuple[str, ...]
    mistake: str = ""


def cases(folder: Path, out: Path) -> Iterator[Case]:
    """Yield the class: hostile and damaged ones, every mistake, and right ones up to `SIZE`."""
    right, right_mlp = (
        ATTENTION.format(before="", name="Attention", within="pass"),
        MLP.format(before="", name="MLP", within="pass"),
    )
    other = str(folder / "other_right.py")

    # Hostile and odd ones.
    yield Case("other_right", "attention", text(right), ("right",))
    for name, (within, statuses) in HOSTILE.items():
        code = within.replace("{out!r}", repr(str(out))).replace("{folder!r}", repr(str(folder)))
        code = code.replace("{other!r}", repr(other)).replace("{name}", "Attention")
        yield Case(name, "attention", text(ATTENTION.format(before="", name="Attention", within=code)), statuses)
    for name, (before, statuses) in AT_READING.items():
        yield Case(name, "attention", text(ATTENTION.format(before=before, name="Attention", within="pass")), statuses)
    for name, (write, statuses) in odd(right).items():
        yield Case(name, "attention", write, statuses)

    # Wrong ones: mistakes in the text of the right layer, and each of the catalogue.
    for number, (old, new) in enumerate(MISTAKEN):
        assert old in right, old
        yield Case(f"mistaken-{number}", "attention", text(right.replace(old, new, 1)), ("wrong",))
    for number, mistake in enumerate(MISTAKES):
        function = mistake.rung.replace("-", "_")
        code = CATALOGUED.format(rung=mistake.rung, name=mistake.name, function=function)
        hidden = mistake.name in CHOICES
        statuses, expected = (("right",), "") if hidden else (("wrong",), mistake.name)
        yield Case(f"catalogued-{number}", mistake.rung, text(code), statuses, expected)

    # Right ones in several styles, without an end.
    styles = [(LAYERS / "nanogpt.py").read_text(), (LAYERS / "arena.py").read_text()]
    number = 0
    while True:
        rung, code = [("mlp", right_mlp), ("attention", right), ("attention", styles[0]), ("mlp", styles[1])][
            number % 4
        ]
        yield Case(f"right-{number}", rung, text(code), ("right",))
        number += 1


def written(root: Path, out: Path, size: int) -> list[Case]:
    """Write the class into a folder for each rung, unless it is there, and return its members."""
    members: list[Case] = []
    for case in cases(root / "attention", out):
        if len(members) == size:
            break
        members.append(case)
        folder = root / case.rung
        if not (folder / ".written").exists():
            folder.mkdir(parents=True, exist_ok=True)
            with contextlib.suppress(FileExistsError):
                case.write(folder / case.name)
    for rung in {case.rung for case in members}:
        (root / rung / ".written").touch()
    return members


def checked(cases: list[Case], rows: list[dict[str, str]]) -> list[str]:
    """Return what is wrong with the results: a submission that is missing, a status that it may not have."""
    faults = []
    found = {row["student"].removeprefix("'"): row for row in rows}
    for case in cases:
        student = next((name for name in _names(case.name) if name in found), "")
        if not student:
            faults.append(f"{case.name!r}: not reported")
            continue
        row = found[student]
        if row["status"] not in case.statuses:
            faults.append(f"{case.name!r}: {row['status']} ({row['mistake']}), where {case.statuses} was expected")
        if (row["score"] == "10.0") != (row["status"] in ("right", "right in float32")):
            faults.append(f"{case.name!r}: {row['score']} points for {row['status']}")
        if case.mistake and case.mistake not in row["mistake"].split("; "):
            faults.append(f"{case.name!r}: the mistake is {row['mistake']!r}, not {case.mistake!r}")
    if len(rows) != len(cases):
        faults.append(f"{len(rows)} rows for {len(cases)} submissions")
    return faults


def _names(name: str) -> list[str]:
    """Return what a submission's student may be called."""
    canvas = name.split("_LATE_")
    return [printable(name), f"{canvas[0]}_{canvas[-1].split('_')[0]}", name.partition("_assignsubmission")[0]]
